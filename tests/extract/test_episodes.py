"""Features of episodes: their arrays come along, and say which frames the features are of."""

from __future__ import annotations

import io
import shutil
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from jepa.checkpoint import load_encoder
from jepa.data import Manifest
from jepa.data.clipdata import read_video
from jepa.data.manifest import FILE
from jepa.data.video.decode import decode
from jepa.errors import ConfigError
from jepa.extract import ExtractConfig, extract
from jepa.probe.featureset import FeatureSet
from jepa.train import train
from tests.rollout.conftest import run_config, walks

__all__ = ["walks"]

CLIPS = ExtractConfig(frames=1, stride=1, clips=4, splits=("train", "test"), dtype="fp32", shard_samples=7, batch=7)


@pytest.fixture(scope="module")
def features(run: Path, walks: Path, tmp_path_factory: pytest.TempPathFactory) -> FeatureSet:
    out = tmp_path_factory.mktemp("features") / "walks"
    extract(run, walks, out, CLIPS, device="cpu", progress=False)
    return FeatureSet.open(out)


def test_arrays_are_those_of_the_data_set(walks: Path, features: FeatureSet) -> None:
    source = Manifest.open(walks)
    for split in CLIPS.splits:
        ours, theirs = features.manifest.splits[split], source.splits[split]
        assert ours.arrays.keys() - theirs.arrays.keys() == {"clip_frames"} and {"action", "place"} < ours.arrays.keys()
        for name, array in theirs.arrays.items():
            assert ours.arrays[name] == array  # with statistics
            for i in range(len(theirs)):
                found, wanted = ours.read_array(i, name), theirs.read_array(i, name)
                assert found.dtype == wanted.dtype and np.array_equal(found, wanted)


def test_clip_frames_are_the_frames_that_the_features_are_of(run: Path, walks: Path, features: FeatureSet) -> None:
    encoder, source = load_encoder(run), Manifest.open(walks).splits["test"]
    pooled = features.tensor("test", "pooled")  # (n, C, 1, D)
    for i in (0, 5):
        shown = features.manifest.splits["test"].read_array(i, "clip_frames")
        last = len(features.manifest.splits["test"].read_array(i, "place")) - 1
        assert shown.shape == (4, 1) and (np.diff(shown[:, 0]) > 0).all() and shown[0, 0] == 0 and shown[-1, -1] == last
        video, _ = read_video(source, i)
        for c, frames in enumerate(shown):
            picture = decode(video, frames).pixels[:1]  # (1, 3, H, W)
            again = encoder.features(picture).mean(1)[0]
            assert (again - pooled[i, c, 0]).abs().max() < 1e-2 < pooled[i].std(0).max()


def test_a_shard_is_a_plain_webdataset(features: FeatureSet) -> None:
    split = features.manifest.splits["test"]
    with tarfile.open(split.shards[0].path) as tar:
        file = tar.extractfile(f"{split.key(1)}.place.npy")
        assert file is not None
        place = np.load(io.BytesIO(file.read()), allow_pickle=False)
    assert np.array_equal(place, split.read_array(1, "place"))


def test_an_array_of_that_name_is_refused(run: Path, walks: Path, tmp_path: Path) -> None:
    shutil.copytree(walks, tmp_path / "data")
    text = (tmp_path / "data" / FILE).read_text(encoding="utf-8").replace('"place": {', '"clip_frames": {')
    (tmp_path / "data" / FILE).write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match="array 'clip_frames', a name that features need"):
        extract(run, tmp_path / "data", tmp_path / "out", CLIPS, device="cpu", progress=False)


def test_an_encoder_of_images_sees_single_frames_only(run: Path, walks: Path, tmp_path: Path) -> None:
    wanted = replace(CLIPS, frames=3)
    with pytest.raises(ConfigError, match="clips of 3 frames: this encoder was trained on images .*--frames 1"):
        extract(run, walks, tmp_path / "out", wanted, device="cpu", progress=False)


def test_clips_of_several_frames(walks: Path, tmp_path: Path) -> None:
    """Of a world model's own encoder, at the clips that its run was trained with."""
    model = {
        "name": "lewm", "latent": 8, "hidden": 16, "history": 2,
        "encoder": {"patch": 8, "width": 16, "depth": 1, "heads": 2},
        "predictor": {"width": 16, "depth": 1, "heads": 2},
    }  # fmt: skip
    config = run_config(walks)
    config = replace(config, method=model)
    train(config, tmp_path / "run", quiet=True)
    wanted = ExtractConfig(splits=("test",), clips=2)
    extract(tmp_path / "run", walks, tmp_path / "features", wanted, device="cpu", progress=False)
    split = FeatureSet.open(tmp_path / "features").manifest.splits["test"]
    for i in range(len(split)):
        last = len(split.read_array(i, "place")) - 1
        assert split.read_array(i, "clip_frames").tolist() == [[0, 1, 2, 3], [last - 3, last - 2, last - 1, last]]
