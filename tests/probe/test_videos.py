"""The whole probe on real clips: a V-JEPA trained for three steps on moving digits, kept as mp4."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from jepa import config
from jepa.checkpoint import load_encoder
from jepa.config import ClipConfig, RunConfig
from jepa.data import Manifest, eval_clips
from jepa.data.build import build
from jepa.data.video.write import Coding, write
from jepa.errors import ConfigError
from jepa.probe.baselines import RunBaseline, hold_frame, other_run, shuffle_frames
from jepa.probe.run import probe
from jepa.probe.terminal import print_table
from jepa.train import train
from tests import tiny

SUITE = """
probes:
  knn: {k: [1, 3], layers: [0]}
  ridge: {targets: [speed]}
  attentive: {heads: 2, lr: [0.003], weight_decay: [0.1], duration: {steps: 5}, targets: [vx, vy]}
features: {batch: 16, clips: {frames: 4, stride: 1, clips: 2}}
baselines: {pixels: {size: 6}, random: 1}
bootstrap: {resamples: 100}
"""
RUN = {
    "name": "clips",
    "method": {
        "name": "vjepa",
        "encoder": {"width": 24, "depth": 2, "heads": 2, "patch": 8},
        "predictor": {"width": 24, "depth": 1, "heads": 2},
    },
    "data": {"image_size": 24, "workers": 0, "clip": {"frames": 4, "stride": 1}},
    "optim": {"warmup": {"steps": 1}},
    "train": {"batch": 8, "duration": {"steps": 3}, "precision": "fp32", "trackers": [], "threads": 1},
    "monitor": {"every": {"steps": 3}, "samples": 8, "knn_bank": 0},
}


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """80 train, 12 val and 16 test videos of 8 frames of 24 x 24."""
    folder = tmp_path_factory.mktemp("data") / "moving"
    small = ["source.size=24", "source.digit=[10, 14]", "source.frames=8"]
    build("moving-digits", folder, overrides=[*small, "source.samples={train: 80, val: 12, test: 16}"], progress=False)
    return folder


@pytest.fixture(scope="module")
def clip_run(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "clips"
    train(config.build(RunConfig, config.override(RUN, [f"data.path={videos}"])), out, quiet=True)
    return out


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("eval") / "clips.yaml"
    path.write_text(SUITE)
    return path


def test_rows_of_clips(clip_run, videos, suite):
    found = probe(clip_run, suite, progress=False)
    rows = {(r["encoder"], r["probe"]): r for r in found["rows"]}
    pooled, tokens = ["knn", "knn@0", "ridge:speed"], ["attentive", "attentive:vx", "attentive:vy", "attentive:vx+vy"]
    for encoder in ("target (step 3)", "random init"):
        assert [p for e, p in rows if e == encoder] == [*pooled, *tokens]
    assert [p for e, p in rows if e == "pixels (6×6)"] == ["knn", "ridge:speed"]
    about = {s["encoder"]: s for s in found["sources"]}
    assert about["target (step 3)"]["tokens"]["shape"] == [1, 2 * 2 * 9, 24]  # two clips of two times of 3 x 3 places
    assert about["pixels (6×6)"]["width"] == 3 * 4 * 6 * 6
    screen = Console(file=io.StringIO(), width=120)
    print_table(found, screen)
    assert "attentive:vx" in screen.file.getvalue()
    again = probe(clip_run, suite, progress=False)
    assert again["rows"] == found["rows"]


def test_suites_of_images_and_of_clips_are_told_apart(clip_run, suite):
    with pytest.raises(ConfigError, match=r"holds videos: say in features.clips"):
        probe(clip_run, suite, ["features.clips=null"], progress=False)


def test_views_lie_along_the_longer_side(tmp_path):
    """Frames of 24 x 40 whose columns tell their place: views of 24 x 24 see the left, the middle and the right."""
    frames = np.broadcast_to((np.arange(40, dtype=np.uint8) * 6)[None, None, :, None], (6, 24, 40, 3))
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.mp4").write_bytes(write(np.ascontiguousarray(frames), 8, Coding(crf=1, full_colour=True)))
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("name: wide\nsource: {kind: videos}\nsplits: {fractions: {}}\n")
    made = build(recipe, tmp_path / "out", overrides=[f"source.path={tmp_path / 'in'}"], progress=False)
    (batch,) = eval_clips(made.split("train"), ClipConfig(frames=2, stride=1, clips=2), (24, 24), 4, views=3)
    assert batch.images.shape == (1, 2, 3, 3, 2, 24, 24)
    first = batch.images[0, :, :, 1, :, 12, 0].float().mean(dim=(0, 2))  # the leftmost column of each view
    assert first.tolist() == pytest.approx([0, 8 * 6, 16 * 6], abs=6)


def test_views_are_averaged_in_the_test(clip_run, suite):
    found = probe(clip_run, suite, ["features.clips.views=3"], progress=False)
    assert {r["probe"] for r in found["rows"]} >= {"knn", "attentive", "attentive:vx"}


# --- baselines that see less of a video ---------------------------------------------------------------------------


def test_shuffled_and_still_clips_are_what_they_say():
    clips = torch.arange(2 * 1 * 1 * 3 * 6 * 2 * 2, dtype=torch.uint8).view(2, 1, 1, 3, 6, 2, 2)
    index = np.array([4, 9])
    mixed = shuffle_frames(clips, index)
    for before, after in zip(clips, mixed, strict=True):  # the same frames, whole, in another order
        old, new = (x.movedim(3, 0).reshape(6, -1).tolist() for x in (before, after))
        assert sorted(old) == sorted(new) and old != new
    assert torch.equal(shuffle_frames(clips[1:], index[1:]), mixed[1:]), "the order goes by the sample, not the batch"
    held = hold_frame(clips, index)
    assert all(torch.equal(held[..., t, :, :], clips[..., 3, :, :]) for t in range(6))


def test_the_same_encoder_on_less_of_the_clip(clip_run, suite):
    found = probe(clip_run, suite, ["baselines.frames=[shuffled, still]"], progress=False)
    rows = {(r["encoder"], r["probe"]): r for r in found["rows"]}
    for name in ("target, frames shuffled", "target, one frame held"):
        assert {p for e, p in rows if e == name} >= {"knn", "ridge:speed", "attentive", "attentive:vx"}
        assert rows[name, "attentive:vx"]["value"] != rows["target (step 3)", "attentive:vx"]["value"]
        assert "gap" in rows[name, "attentive:vx"] and rows[name, "knn"]["baseline"] is True
    again = probe(clip_run, suite, ["baselines.frames=[shuffled, still]"], progress=False)
    assert again["rows"] == found["rows"]
    with pytest.raises(ConfigError, match=r"baselines.frames takes the order of frames away"):
        probe(clip_run, suite, ["baselines.frames=[still]", "features.clips=null"], progress=False)


def test_an_image_encoder_sees_the_middle_frame(clip_run, videos, suite, tmp_path, tiny_data):
    """Its rows equal those of the same encoder on clips whose frames are all the middle one."""
    image_run = tmp_path / "images"
    train(tiny.run_config(tiny_data, "data.image_size=24", "train.duration.steps=3"), image_run, quiet=True)
    given = [f"baselines.runs=[{{path: {image_run}}}]", "baselines.random=0", "baselines.pixels=null"]
    found = probe(clip_run, suite, given, progress=False)
    (name,) = {r["encoder"] for r in found["rows"] if r["role"] == "other"}
    assert name == "images (target, step 3, one frame)"
    encoder, manifest = load_encoder(image_run), Manifest.open(videos)
    (batch,) = eval_clips(manifest.split("test"), ClipConfig(frames=4, stride=1, clips=2), (24, 24), 64)
    source = other_run(RunBaseline(str(image_run)), clips=True)
    pooled = source.build(torch.device("cpu"))(batch.images[:, 0, 0])
    torch.testing.assert_close(pooled, encoder.pool(batch.images[:, 0, 0, :, 2]))
    with pytest.raises(ConfigError, match=r"encodes clips, and the suite looks at images"):
        other_run(RunBaseline(str(clip_run)), clips=False)
