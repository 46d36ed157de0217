"""Probing extracted features: the same figures as probing the run, and a clear word where that cannot be."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest
import torch

from jepa import cli
from jepa.data import Manifest
from jepa.errors import ConfigError, DataError
from jepa.extract import ExtractConfig, extract
from jepa.probe.run import probe
from tests.probe.test_dense import DigitMaps
from tests.probe.test_videos import RUN, clip_run, videos

__all__ = ["RUN", "clip_run", "videos"]

SUITE = """
probes:
  knn: {k: [1, 5], layers: [-1]}
  linear: {lr: [1.0], weight_decay: [0.001, 0.1], steps: 40}
  ridge: {targets: [x, y]}
  attentive: {heads: 2, lr: [0.003], weight_decay: [0.1], duration: {steps: 5}, targets: [x]}
features: {batch: 50}
baselines: {pixels: {size: 6}, random: 1}
bootstrap: {resamples: 100}
"""
MEANS = ["probes.attentive=null", "probes.knn.layers=[]"]
ALONE = ["baselines.random=0", "baselines.pixels=null"]


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("eval") / "small.yaml"
    path.write_text(SUITE)
    return path


@pytest.fixture(scope="module")
def exact(run: Path, probe_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Everything, in float32."""
    out = tmp_path_factory.mktemp("features") / "exact"
    wanted = ExtractConfig(tokens=True, layers=(-1,), dtype="fp32", batch=50, shard_samples=100)
    extract(run, probe_data, out, wanted, device="cpu", progress=False)
    return out


@pytest.fixture(scope="module")
def means(run: Path, probe_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The defaults: means of the output, in float16."""
    out = tmp_path_factory.mktemp("features") / "means"
    extract(run, probe_data, out, device="cpu", progress=False)
    return out


def figures(found: dict, tolerance: float = 1e-6) -> list:
    return [
        (r["encoder"], r["probe"], pytest.approx([r["value"], r["low"], r["high"]], abs=tolerance))
        for r in found["rows"]
    ]


def plain(found: dict) -> list:
    return [(r["encoder"], r["probe"], [r["value"], r["low"], r["high"]]) for r in found["rows"]]


@pytest.fixture(scope="module")
def direct(run: Path, suite: Path, tmp_path_factory: pytest.TempPathFactory) -> dict:
    return probe(run, suite, out=tmp_path_factory.mktemp("out") / "a.json", progress=False)


@pytest.mark.parametrize("place", [[], ["features.tokens.memory_gib=0"]], ids=["in memory", "from the shards"])
def test_the_same_rows_as_of_the_run(exact, suite, direct, place):
    found = probe(exact, suite, place, progress=False)
    assert plain(found) == figures(direct)
    assert (exact / "probes" / "small.json").is_file() and found["checkpoint"] == "step-6"
    assert found["dataset"] == direct["dataset"]  # it is the source that is named
    first = found["sources"][0]
    assert first["features"] == str(exact) and first["dtype"] == "fp32"
    assert first["tokens"]["kept"] == ("disk" if place else "memory")


def test_without_the_source_the_labels_of_the_shards_do(exact, suite, direct, probe_data, tmp_path):
    """Copied to where the data set is not."""
    copy = shutil.copytree(exact, tmp_path / "copy")
    text = (copy / "manifest.json").read_text()
    (copy / "manifest.json").write_text(text.replace(str(probe_data), "/nowhere"))
    with pytest.raises(ConfigError, match=r"baselines\.random, baselines\.pixels: these read the images themselves.*"
                       r"/nowhere.*dataset=FOLDER.*baselines\.random=0 baselines\.pixels=null"):  # fmt: skip
        probe(copy, suite, progress=False)
    alone = probe(copy, suite, ALONE, progress=False)
    own = {"rows": [r for r in direct["rows"] if not r["baseline"]]}
    assert plain(alone) == figures(own)
    assert alone["dataset"]["hash"] == Manifest.open(probe_data).hash
    given = probe(copy, suite, [*MEANS, f"dataset={probe_data}"], progress=False)
    assert {r["encoder"] for r in given["rows"]} == {"target (step 6)", "random init", "pixels (6×6)"}


def test_rounded_ones_give_nearly_the_same(means, suite, direct):
    found = {(r["encoder"], r["probe"]): r["value"] for r in probe(means, suite, MEANS, progress=False)["rows"]}
    wanted = {(r["encoder"], r["probe"]): r["value"] for r in direct["rows"]}
    for (encoder, name), value in found.items():
        # two of 90 test samples on the other side; hardly trained features vary little around their mean
        assert value == pytest.approx(wanted[encoder, name], abs=0.02 if name.startswith("ridge") else 0.025)


def test_dense_probes(run, exact, suite, monkeypatch, tmp_path):
    monkeypatch.setattr("jepa.data.manifest.Split.map_names", DigitMaps.map_names, raising=False)
    monkeypatch.setattr("jepa.data.manifest.Split.read_map", DigitMaps.read_map, raising=False)
    dense = [
        "probes={knn: null, linear: null, ridge: null, attentive: null}", "probes.depth={most: 10}", *ALONE,
        "probes.segmentation={lr: [0.03], weight_decay: [0.01], duration: {steps: 30}}",
    ]  # fmt: skip
    found = probe(exact, suite, dense, out=tmp_path / "a.json", progress=False)
    assert [r["probe"] for r in found["rows"]] == ["segmentation", "depth"]
    assert plain(found) == figures(probe(run, suite, dense, out=tmp_path / "b.json", progress=False))


def test_other_features_as_a_baseline(run, exact, means, suite, tiny_data, tmp_path, probe_data):
    early = tmp_path / "early"
    extract(run / "checkpoints" / "step-0", probe_data, early, device="cpu", progress=False)
    settings = [*MEANS, *ALONE, f"baselines.features=[{early}]"]
    found = probe(exact, suite, settings, out=tmp_path / "a.json", progress=False)
    rows = {(r["encoder"], r["probe"]): r for r in found["rows"]}
    theirs, ours = rows["early: target (step 0)", "linear"], rows["target (step 6)", "linear"]
    assert theirs["baseline"] and theirs["gap"]["value"] == pytest.approx(ours["value"] - theirs["value"])
    of_run = probe(run, suite, settings, out=tmp_path / "b.json", progress=False)  # beside a run just as well
    assert plain(of_run) == figures(found)
    extract(run, tiny_data, tmp_path / "tiny", device="cpu", progress=False)
    with pytest.raises(DataError, match=r"tiny are of data set 'tiny' \(hash \w+\), not of 'small'"):
        probe(exact, suite, [*MEANS, *ALONE, f"baselines.features=[{tmp_path / 'tiny'}]"], progress=False)
    with pytest.raises(DataError, match="are of data set 'small'.*, not of 'tiny'"):
        probe(exact, suite, [f"dataset={tiny_data}"], progress=False)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["probes.knn.layers=[-1]", "probes.attentive=null"], r"layers 0 \(it holds the output only\)"),
        (["probes.knn.layers=[]"], r"tokens, for attentive or dense probes \(it holds means over tokens only\)"),
        ([*MEANS, "features.encoders=[context]"], r"encoders context \(it holds target\)"),
        ([*MEANS, "features.precision=bf16"], r"arithmetic in bf16 \(it was fp32: features.precision=fp32\)"),
        (["features.tokens.layers=[0]", "probes.knn.layers=[]"], r"layers 0 .*; tokens"),
    ],
)
def test_what_is_missing_is_said_and_the_command_makes_it(means, suite, tmp_path, settings, message):
    with pytest.raises(ConfigError, match=f"means does not hold what the suite asks for: .*{message}") as error:
        probe(means, suite, [*settings, *ALONE], progress=False)
    (command,) = re.findall(r"Extract that into another folder: jepa (.*)$", str(error.value))
    out = tmp_path / "more"
    assert cli.main(shlex.split(command.replace("FOLDER", str(out)))) == 0
    assert probe(out, suite, [*settings, *ALONE], progress=False)["rows"]


def test_splits_and_layers_that_are_not_there(run, probe_data, means, suite, tmp_path):
    extract(run, probe_data, tmp_path / "part", ExtractConfig(splits=("train", "val")), device="cpu", progress=False)
    with pytest.raises(ConfigError, match=r"splits.test='test': data set .* has no such split; it has: train, val"):
        probe(tmp_path / "part", suite, [*MEANS, *ALONE], progress=False)
    with pytest.raises(ConfigError, match=r"split test \(it holds train, val\)"):
        probe(tmp_path / "part", suite, [*MEANS, f"dataset={probe_data}"], progress=False)
    with pytest.raises(ConfigError, match=r"layers \[5\]: the encoder of .* has layers 0 to 0"):
        probe(means, suite, ["probes.knn.layers=[5]", "probes.attentive=null", *ALONE], progress=False)


def test_unfinished_features_and_data_sets_are_refused(run, probe_data, suite, tmp_path):
    extract(run, probe_data, tmp_path / "out", device="cpu", share=(0, 2), progress=False)
    with pytest.raises(DataError, match="not finished. Run the same `jepa extract` command again"):
        probe(tmp_path / "out", suite, progress=False)
    with pytest.raises(DataError, match="is a data set of images or videos, not features"):
        probe(probe_data, suite, progress=False)


# --- videos -------------------------------------------------------------------------------------------------------

CLIPS = """
probes:
  knn: {k: [1, 3], layers: [0]}
  ridge: {targets: [speed]}
  attentive: {heads: 2, lr: [0.003], weight_decay: [0.1], duration: {steps: 5}, targets: [vx]}
features: {batch: 16, clips: {frames: 4, stride: 1, clips: 2, views: 3}}
baselines: {random: 0}
bootstrap: {resamples: 100}
"""


@pytest.mark.parametrize("joined", [True, False])
def test_clips_and_views(clip_run, videos, tmp_path, joined):
    suite = tmp_path / "clips.yaml"
    suite.write_text(CLIPS)
    out, settings = tmp_path / "out", [f"features.clips.join={joined}".lower()]
    wanted = ExtractConfig(
        tokens=True, layers=(0,), dtype="fp32", clips=2, views=("3", "train=1"), batch=16, shard_samples=48
    )
    extract(clip_run, videos, out, wanted, device="cpu", progress=False)
    found = probe(out, suite, settings, progress=False)
    assert plain(found) == figures(probe(clip_run, suite, settings, out=tmp_path / "b.json", progress=False), 1e-5)
    assert [r["probe"] for r in found["rows"]] == ["knn", "knn@0", "ridge:speed", "attentive", "attentive:vx"]
    if not joined:
        return
    for change, message in (
        ("features.clips.stride=2", r"clips \{frames: 4, stride: 2, .*\(it holds \{frames: 4, stride: 1,"),
        ("features.clips.views=2", r"2 views of a clip, of train the middle one \(it holds val 3, test 3\)"),
    ):
        with pytest.raises(ConfigError, match=message) as error:
            probe(out, suite, [change], progress=False)
        command = str(error.value).partition("into another folder: jepa ")[2].replace("FOLDER", str(tmp_path / "new"))
        assert cli.main(shlex.split(command)) == 0
        assert probe(tmp_path / "new", suite, [change], progress=False)["rows"]
        shutil.rmtree(tmp_path / "new")
    assert probe(out, suite, ["features.clips.views=1"], progress=False)["rows"]  # the middle one of three
    with pytest.raises(ConfigError, match=r"baselines.frames=\['shuffled'\]: the encoder has to see other clips"):
        probe(out, suite, ["baselines.frames=[shuffled]"], progress=False)
    with pytest.raises(ConfigError, match=r"holds videos: say in features\.clips"):
        probe(out, suite, ["features.clips=null"], progress=False)


def test_the_clip_is_the_runs_unless_told(clip_run, videos, tmp_path):
    from jepa.probe.featureset import FeatureSet

    extract(clip_run, videos, tmp_path / "a", ExtractConfig(splits=("val",)), device="cpu", progress=False)
    a = FeatureSet.open(tmp_path / "a")
    assert a.about.clip is not None and (a.about.clip.frames, a.about.clip.stride, a.about.clip.clips) == (4, 1, 1)
    assert a.tensor("val").shape == (12, 1, 1, 24) and a.about.decoder is not None
    wanted = ExtractConfig(splits=("val",), fps=12.5, frames=2, workers=1)
    extract(clip_run, videos, tmp_path / "b", wanted, device="cpu", progress=False)
    b = FeatureSet.open(tmp_path / "b")
    assert b.about.clip is not None and (b.about.clip.frames, b.about.clip.stride, b.about.clip.fps) == (2, None, 12.5)
    assert not torch.equal(a.tensor("val"), b.tensor("val"))
    with pytest.raises(ConfigError, match="views 'tset=2': give a number from 1, or SPLIT=NUMBER"):
        extract(clip_run, videos, tmp_path / "c", ExtractConfig(views=("tset=2",)), device="cpu")
