"""The whole probe on a real tiny run: result file, baselines, intervals, and what cannot be probed."""

from __future__ import annotations

import io
import json
import shutil
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from safetensors.torch import load_file, save_file

from jepa.checkpoint import load_encoder, random_encoder
from jepa.data import Manifest, eval_batches
from jepa.data.build import build
from jepa.errors import CheckpointError, ConfigError, DataError
from jepa.probe.axes import Axes
from jepa.probe.linear import LinearConfig, linear_probe
from jepa.probe.ridge import RidgeConfig, r2_score, ridge_probe
from jepa.probe.run import probe
from jepa.probe.summary import summarise
from jepa.probe.terminal import print_table
from tests.probe.test_dense import DigitMaps

SUITE = """
probes:
  knn: {k: [1, 5]}
  linear: {lr: [1.0], weight_decay: [0.001, 0.1], steps: 40}
  ridge: {targets: [x, y]}
baselines: {pixels: {size: 10}, random: 1}
bootstrap: {resamples: 300}
published:
  - {encoder: "somebody [else]", probe: linear, value: 0.5, source: "a paper"}
"""


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("eval") / "small.yaml"
    path.write_text(SUITE)
    return path


@pytest.fixture(scope="module")
def result(run: Path, suite: Path) -> dict:
    return probe(run, suite, progress=False)


def test_result_is_written_and_complete(run, result):
    file = run / "probes" / "small.json"
    assert json.loads(file.read_text()) == result
    assert [p.name for p in file.parent.iterdir() if p.name.startswith(".")] == []  # nothing half-written
    assert result["protocol"] == "1" and result["suite"] == "small" and result["checkpoint"] == "step-6"
    assert result["run"] == str(run) and result["seconds"] > 0
    assert result["dataset"]["classes"] == 10
    assert result["dataset"]["splits"]["test"]["n"] == 90
    probes = ["knn", "linear", "ridge:x", "ridge:y", "ridge:x+y"]
    names = ["target (step 6)", "random init", "pixels (10×10)"]
    assert [(r["encoder"], r["probe"]) for r in result["rows"]] == [(n, p) for n in names for p in probes]
    for row in result["rows"]:
        assert row["metric"] == ("r2" if row["probe"].startswith("ridge") else "top1")
        assert row["low"] <= row["value"] <= row["high"] and row["low"] < row["high"]
        assert row["n_test"] == 90
        assert row["n_clusters"] == result["dataset"]["splits"]["test"]["originals"] < 90
        assert row["baseline"] == (row["encoder"] != "target (step 6)") == ("gap" in row)


def features_of(encoder: torch.nn.Module, data: Path, split: str) -> torch.Tensor:
    (batch,) = eval_batches(Manifest.open(data).splits[split], (20, 20), 1000)
    return encoder.pool(batch.images)


@pytest.mark.parametrize("which", ["target (step 6)", "random init"])
def test_figures_are_those_of_the_probes_on_that_encoder(run, probe_data, result, which):
    encoder = load_encoder(run)
    if which == "random init":
        encoder = random_encoder(encoder.config, encoder.config.seed)
    x = {name: features_of(encoder, probe_data, name) for name in ("train", "val", "test")}
    splits = Manifest.open(probe_data).splits
    labels = {name: torch.tensor(splits[name].labels) for name in x}
    axes = Axes.fit(x["train"])
    z = {name: axes.apply(value) for name, value in x.items()}
    found, chosen = linear_probe(
        axes, (z["train"], labels["train"]), (z["val"], labels["val"]), z["test"], 10,
        LinearConfig(lr=(1.0,), weight_decay=(0.001, 0.1), steps=40),
    )  # fmt: skip
    rows = {r["probe"]: r for r in result["rows"] if r["encoder"] == which}
    assert rows["linear"]["value"] == pytest.approx(float((found == labels["test"]).double().mean()))
    assert rows["linear"]["chosen"] == pytest.approx(chosen)
    assert rows["linear"]["chance"] == pytest.approx(np.bincount(labels["test"]).max() / 90)
    targets = {n: torch.tensor(np.stack([splits[n].targets[t] for t in "xy"], axis=1)).double() for n in x}
    fit, _ = ridge_probe(axes, (z["train"], targets["train"]), (z["val"], targets["val"]), z["test"], RidgeConfig())
    scores = r2_score(targets["test"], fit)
    assert rows["ridge:x"]["value"] == pytest.approx(float(scores[0]), abs=1e-6)
    assert rows["ridge:y"]["value"] == pytest.approx(float(scores[1]), abs=1e-6)
    assert rows["ridge:x+y"]["value"] == pytest.approx(float(scores.mean()), abs=1e-6)


def test_gap_is_the_paired_difference(result):
    rows = {(r["encoder"], r["probe"]): r for r in result["rows"]}
    for (encoder, name), row in rows.items():
        if encoder != "target (step 6)":
            main = rows["target (step 6)", name]
            assert row["gap"]["value"] == pytest.approx(main["value"] - row["value"], abs=1e-9)
            assert row["gap"]["low"] <= row["gap"]["value"] <= row["gap"]["high"]


def test_probing_again_gives_the_same_figures_from_the_cache(run, suite, result):
    before = {p.name: p.stat().st_mtime_ns for p in (run / "probes" / "cache").iterdir()}
    assert len(before) == 6  # target and random init, three splits each; pixels are not worth it
    again = probe(run, suite, progress=False)
    assert {p.name: p.stat().st_mtime_ns for p in (run / "probes" / "cache").iterdir()} == before
    assert again["rows"] == result["rows"]


def test_an_earlier_checkpoint_and_another_place_for_the_result(run, suite, result, tmp_path):
    out = tmp_path / "deep" / "early.json"
    early = probe(
        run / "checkpoints" / "step-0", suite, ["probes.knn=null", "probes.ridge=null"], out=out, progress=False
    )
    assert json.loads(out.read_text()) == early and early["checkpoint"] == "step-0"
    rows = {r["encoder"]: r["value"] for r in early["rows"]}
    assert rows["target (step 0)"] == rows["random init"]  # before training they are the same network
    old = {(r["encoder"], r["probe"]): r["value"] for r in result["rows"]}
    assert old["random init", "linear"] == rows["random init"]
    assert json.loads((run / "probes" / "small.json").read_text())["checkpoint"] == "step-6"  # untouched


def test_several_encoders_and_random_seeds(run, suite, tmp_path):
    settings = ["features.encoders=[target, context]", "baselines={pixels: null, random: 2}"]
    found = probe(run, suite, [*settings, "probes={knn: null, ridge: null}"], out=tmp_path / "a.json", progress=False)
    names = [r["encoder"] for r in found["rows"]]
    assert names == ["target (step 6)", "context (step 6)", "random init (seed 3)", "random init (seed 4)"]
    assert [r["baseline"] for r in found["rows"]] == [False, False, True, True]
    widths = {s["encoder"]: s["width"] for s in found["sources"]}
    assert widths["context (step 6)"] == 32


def test_fewer_training_samples(run, suite, tmp_path):
    found = probe(
        run,
        suite,
        ["splits.max_train=120", "probes={knn: null, linear: null}"],
        out=tmp_path / "a.json",
        progress=False,
    )
    assert found["dataset"]["splits"]["train"]["n"] == 120
    assert found["dataset"]["classes"] == 0 and {r["metric"] for r in found["rows"]} == {"r2"}


def test_table_shows_every_row_and_published_figures(result):
    screen = Console(file=io.StringIO(), width=120)
    print_table(result, screen)
    text = screen.file.getvalue()
    for row in result["rows"]:
        if row["metric"] == "top1":
            assert f"{100 * row['value']:.1f} % [{100 * row['low']:.1f}, {100 * row['high']:.1f}]" in text
        else:
            assert f"{row['value']:.3f} [{row['low']:.3f}, {row['high']:.3f}]" in text
        assert row["encoder"] in text
    assert "somebody [else] (published: a paper)" in " ".join(text.split()) or "somebody [else]" in text
    assert "50.0 %" in text and "Protocol 1" in text
    assert all(len(line) <= 120 for line in text.splitlines())


def test_seeds_are_summed_up(result):
    other = json.loads(json.dumps(result))
    other["seed"], other["run"] = 4, "another"
    for row in other["rows"]:
        row["value"], row["low"], row["high"] = (row[k] + 0.1 for k in ("value", "low", "high"))
        row["encoder"] = row["encoder"].replace("step 6", "step 7")
    both = summarise([result, other])
    assert both["seeds"] == [3, 4] and len(both["rows"]) == len(result["rows"])
    for row, first in zip(both["rows"], result["rows"], strict=True):
        assert row["values"] == [first["value"], pytest.approx(first["value"] + 0.1)]
        assert row["mean"] == pytest.approx(first["value"] + 0.05)
        assert (row["min"], row["max"]) == (first["value"], pytest.approx(first["value"] + 0.1))
        assert (row["low"], row["high"]) == (first["low"], pytest.approx(first["high"] + 0.1))
    assert both["rows"][0]["encoder"] == "target"
    margin = next(m for m in both["margins"] if m["probe"] == "linear")
    values = {r["encoder"]: r["value"] for r in result["rows"] if r["probe"] == "linear"}
    best = max(values["random init"], values["pixels (10×10)"]) + 0.1
    assert margin["margin"] == pytest.approx(values["target (step 6)"] - best)
    assert margin["apart"] == all(
        r["low"] > o["high"]
        for r in both["rows"] for o in both["rows"]
        if r["probe"] == o["probe"] == "linear" and not r["baseline"] and o["baseline"]
    )  # fmt: skip


def test_apart_is_said_only_when_every_interval_is(result):
    good = json.loads(json.dumps(result))
    for row in good["rows"]:
        row["value"], row["low"], row["high"] = (0.9, 0.8, 0.95) if not row["baseline"] else (0.3, 0.2, 0.4)
    assert all(m["apart"] for m in summarise([good, good])["margins"])
    next(r for r in good["rows"] if r["baseline"] and r["probe"] == "linear")["high"] = 0.81
    apart = {m["probe"]: m["apart"] for m in summarise([good])["margins"]}
    assert not apart["linear"] and apart["knn"]


@pytest.mark.parametrize("what", ["protocol", "suite", "dataset", "rows"])
def test_results_that_do_not_belong_together_are_not_summed_up(result, what):
    other = json.loads(json.dumps(result))
    if what == "dataset":
        other["dataset"]["hash"] = "another"
    elif what == "rows":
        other["rows"].pop()
    else:
        other[what] = "another"
    with pytest.raises(ConfigError, match=f"their {what} differs"):
        summarise([result, other])
    with pytest.raises(ConfigError, match="at least one"):
        summarise([])


# --- probes of tokens and of layers -------------------------------------------------------------------------------

TOKENS = """
probes:
  linear: {lr: [1.0], weight_decay: [0.01], steps: 20, layers: [0, -1]}
  attentive: {heads: 2, lr: [0.003], weight_decay: [0.01, 0.1], duration: {steps: 40}, batch: 64, targets: [y, size]}
baselines: {pixels: {size: 10}, random: 1}
bootstrap: {resamples: 200}
published:
  - {encoder: "somebody else", probe: attentive, value: 0.5, source: "a paper"}
"""


@pytest.fixture(scope="module")
def token_suite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("eval") / "tokens.yaml"
    path.write_text(TOKENS)
    return path


@pytest.fixture(scope="module")
def token_result(run: Path, token_suite: Path) -> dict:
    return probe(run, token_suite, progress=False)


def test_token_rows_stand_beside_the_others(run, token_result):
    assert json.loads((run / "probes" / "tokens.json").read_text()) == token_result
    pooled, tokens = ["linear", "linear@0", "linear@-1"], ["attentive:y", "attentive:size", "attentive:y+size"]
    every = [*pooled, "attentive", *tokens]
    rows = {(r["encoder"], r["probe"]): r for r in token_result["rows"]}
    assert list(rows) == [
        *(("target (step 6)", p) for p in every), *(("random init", p) for p in every), ("pixels (10×10)", "linear"),
    ]  # fmt: skip
    for (encoder, name), row in rows.items():
        assert row["metric"] == ("r2" if ":" in name else "top1") and row["protocol"] == "1"
        assert row["low"] < row["value"] < row["high"] or row["low"] <= row["value"] <= row["high"]
        assert row["n_clusters"] == token_result["dataset"]["splits"]["test"]["originals"] < row["n_test"] == 90
        assert ("gap" in row) == (encoder != "target (step 6)")
    # the last layer is the output: the same features, the same figure
    assert rows["target (step 6)", "linear@-1"]["value"] == rows["target (step 6)", "linear"]["value"]
    assert rows["random init", "attentive"]["chosen"].keys() >= {"lr", "weight_decay", "val", "steps"}
    kept = {s["encoder"]: s.get("tokens") for s in token_result["sources"]}
    assert kept["target (step 6)"] == {"shape": [1, 25, 32], "kept": "memory"} and kept["pixels (10×10)"] is None


def test_token_rows_again_are_the_same(run, token_suite, token_result, tmp_path):
    again = probe(run, token_suite, out=tmp_path / "again.json", progress=False)
    assert again["rows"] == token_result["rows"]
    few = ["features.tokens={memory_gib: 0, dtype: fp16}"]
    from_disk = probe(run, token_suite, few, out=tmp_path / "disk.json", progress=False)
    assert from_disk["rows"] == token_result["rows"]
    assert {s["tokens"]["kept"] for s in from_disk["sources"] if "tokens" in s} == {"disk"}
    assert not list((run / "probes" / "cache").glob("*.npy"))


def test_gaps_of_token_rows_are_paired(token_result):
    rows = {(r["encoder"], r["probe"]): r for r in token_result["rows"]}
    for (_, name), row in rows.items():
        if "gap" in row:
            main = rows["target (step 6)", name]
            assert row["gap"]["value"] == pytest.approx(main["value"] - row["value"], abs=1e-9)
            assert row["gap"]["low"] <= row["gap"]["value"] <= row["gap"]["high"]


def test_table_and_summary_have_token_rows(token_result):
    screen = Console(file=io.StringIO(), width=120)
    print_table(token_result, screen)
    text = screen.file.getvalue()
    for row in (r for r in token_result["rows"] if r["probe"] == "attentive"):
        assert f"{100 * row['value']:.1f} % [{100 * row['low']:.1f}, {100 * row['high']:.1f}]" in text
    assert "attentive top1" in text and "linear@0 top1" in text and "somebody else" in text
    both = summarise([token_result, token_result])
    assert {m["probe"] for m in both["margins"]} == {r["probe"] for r in token_result["rows"]}
    assert {r["protocol"] for r in both["rows"]} == {"1"}


def test_attentive_alone_computes_nothing_else(run, token_suite, tmp_path):
    found = probe(run, token_suite, ["probes.linear=null", "baselines.pixels=null"], out=tmp_path / "a.json",
                  progress=False)  # fmt: skip
    assert {r["probe"].split(":")[0] for r in found["rows"]} == {"attentive"}
    assert not any("width" in s and "tokens" not in s for s in found["sources"])


def test_dense_rows(run, token_suite, probe_data, monkeypatch, tmp_path):
    monkeypatch.setattr("jepa.data.manifest.Split.map_names", DigitMaps.map_names, raising=False)
    monkeypatch.setattr("jepa.data.manifest.Split.read_map", DigitMaps.read_map, raising=False)
    dense = [
        "probes.linear=null", "probes.attentive=null", "baselines.pixels=null", "probes.depth={most: 10}",
        "probes.segmentation={lr: [0.03], weight_decay: [0.01], duration: {steps: 30}}",
    ]  # fmt: skip
    found = probe(run, token_suite, dense, out=tmp_path / "a.json", progress=False)
    rows = {(r["encoder"], r["probe"]): r for r in found["rows"]}
    assert len(rows) == 4 and {r["metric"] for r in found["rows"]} == {"miou", "rmse"}
    for (encoder, name), row in rows.items():
        assert row["low"] < row["value"] < row["high"] and row["n_test"] == 90
        if encoder == "random init":
            main = rows["target (step 6)", name]
            assert row["gap"]["value"] == pytest.approx(main["value"] - row["value"], abs=1e-9)
    assert 0.4 < rows["random init", "segmentation"]["value"] < 1 and 0.1 < rows["random init", "depth"]["value"] < 1.2
    better = {m["probe"]: m for m in summarise([found])["margins"]}["depth"]
    a, b = rows["target (step 6)", "depth"]["value"], rows["random init", "depth"]["value"]
    assert better["margin"] == pytest.approx(b - a)  # less is better
    text = io.StringIO()
    print_table(found, Console(file=text, width=120))
    assert f"{100 * rows['random init', 'segmentation']['value']:.1f} %" in text.getvalue()


# --- what cannot be probed ----------------------------------------------------------------------------------------


def pictures(folder: Path, names: dict[str, int]) -> Path:
    """A built data set of noise: `names` maps folders ("train/cat") to numbers of images."""
    rng = np.random.default_rng(0)
    for name, count in names.items():
        (folder / "images" / name).mkdir(parents=True)
        for i in range(count):
            picture = Image.fromarray(rng.integers(0, 255, (20, 20, 3), dtype=np.uint8))
            picture.save(folder / "images" / name / f"{i}.png")
    build("folder", folder / "data", overrides=[f"source.path={folder / 'images'}"], progress=False)
    return folder / "data"


def refused(run: Path, suite: Path, data: Path, *overrides: str) -> str:
    with pytest.raises((ConfigError, DataError)) as error:
        probe(run, suite, [f"dataset={data}", "probes.ridge=null", *overrides], out=data / "r.json", progress=False)
    assert not (data / "r.json").exists()
    return str(error.value)


def test_no_labels(run, suite, tmp_path):
    data = pictures(tmp_path, {"train": 6, "val": 3, "test": 3})
    message = refused(run, suite, data)
    assert "knn and linear need labels" in message and "probes.knn=null probes.linear=null" in message


def test_one_class(run, suite, tmp_path):
    data = pictures(tmp_path, {"train/cat": 6, "val/cat": 3, "test/cat": 3})
    assert "one class, 'cat'" in refused(run, suite, data)


def test_classes_that_training_lacks(run, suite, tmp_path):
    data = pictures(tmp_path, {"train/a": 4, "train/b": 4, "val/a": 2, "test/a": 2, "test/c": 2})
    assert "1 class(es) of split 'test' have no training sample in split 'train': 'c'" in refused(run, suite, data)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["splits.val=dev"], "splits.val='dev': data set .* has no such split; it has: test, train, val"),
        (["probes.ridge.targets=[z]"], "unknown key 'z'. .*Valid keys here: size, x, y"),
        (["dataset=/no/such/folder"], "is not a folder"),
        (["features.encoders=[teacher]"], "no encoder 'teacher'"),
        (["baselines.random=-1"], "allowed: 0 or more"),
        (["probes.linear.step=3"], "unknown key 'probes.linear.step'. Did you mean 'steps'"),
        (["probes.linear.layers=[1]"], r"layers \[1\]: this encoder has layers 0 to 0, or -1 to -1 from the end"),
        (["probes.knn.layers=[last4]"], r"layers \[-4, -3, -2\]: this encoder has layers 0 to 0"),
        (["probes.attentive={targets: [z]}"], "probes.attentive.targets: unknown key 'z'"),
        (["probes.attentive={heads: 5}"], "heads=5 does not divide the width 32"),
        (["probes.segmentation={}"], "dense probes need a label for every pixel"),
        (["probes.depth={}"], "dense probes need a label for every pixel"),
        (["features.clips={stride: 4}"], "asks for clips of videos, and data set .* holds images"),
    ],
)
def test_settings_that_do_not_fit(run, suite, tmp_path, overrides, message):
    with pytest.raises((ConfigError, DataError, CheckpointError), match=message):
        probe(run, suite, overrides, out=tmp_path / "r.json", progress=False)


def test_no_continuous_targets(run, suite, tmp_path):
    data = pictures(tmp_path, {"train/a": 4, "train/b": 4, "val/a": 2, "test/a": 2})
    with pytest.raises(ConfigError, match=r"ridge probe needs continuous targets.*probes\.ridge=null"):
        probe(run, suite, [f"dataset={data}", "probes.ridge.targets=[]"], out=tmp_path / "r.json", progress=False)


def test_device_that_is_not_there(run, suite):
    with pytest.raises(ConfigError, match="device 'nonsense' cannot be used"):
        probe(run, suite, device="nonsense", progress=False)


def test_partly_labelled_data_uses_what_has_labels(run, suite, probe_data, tmp_path):
    shutil.copytree(probe_data, tmp_path / "data")
    labels = np.load(tmp_path / "data" / "test" / "labels.npy")
    labels[:30] = -1
    np.save(tmp_path / "data" / "test" / "labels.npy", labels)
    found = probe(run, suite, [f"dataset={tmp_path / 'data'}"], out=tmp_path / "r.json", progress=False)
    sizes = {r["probe"]: r["n_test"] for r in found["rows"]}
    assert sizes == {"knn": 60, "linear": 60, "ridge:x": 90, "ridge:y": 90, "ridge:x+y": 90}
    assert found["dataset"]["splits"]["test"]["labelled"] == 60


def test_broken_weights_name_the_encoder(run, suite, tmp_path):
    broken = tmp_path / "run"
    shutil.copytree(run / "checkpoints" / "step-6", broken / "checkpoints" / "step-6")
    folder = broken / "checkpoints" / "step-6"
    tensors = load_file(folder / "model.safetensors")
    tensors["target.norm.weight"][0] = float("nan")
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match="damaged"):  # a changed file is not the checkpoint that was saved
        probe(broken, suite, progress=False)
    reseal(folder)
    with pytest.raises(DataError, match=r"target \(step 6\): 200 of 200 samples have features that are NaN"):
        probe(broken, suite, progress=False)


def reseal(folder: Path) -> None:
    """Make the manifest and the COMPLETE mark fit the files again."""
    values = json.loads((folder / "checkpoint.json").read_text())
    content = (folder / "model.safetensors").read_bytes()
    values["files"]["model.safetensors"] = {"bytes": len(content), "sha256": sha256(content).hexdigest()}
    text = json.dumps(values, indent=1)
    (folder / "checkpoint.json").write_text(text + "\n")
    (folder / "COMPLETE").write_text(sha256(text.encode()).hexdigest() + "\n")
