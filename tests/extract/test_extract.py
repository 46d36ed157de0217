"""Extraction with real processes: killed and gone on with, shared, refused, on a full disk."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load, load_file, save_file

from jepa import cli
from jepa.checkpoint import load_encoder
from jepa.data import Manifest, TrainData, eval_batches
from jepa.data.build import build
from jepa.errors import ConfigError, DataError
from jepa.extract import ExtractConfig, extract
from jepa.probe.featureset import FeatureSet
from tests.hygiene.tree import ROOT
from tests.probe.test_run import reseal
from tests.tiny import run_config

SMALL = ExtractConfig(tokens=True, layers=(0,), batch=5, shard_samples=10)
OPTIONS = ["--tokens", "--layers", "0", "--batch", "5", "--shard-samples", "10", "--device", "cpu"]
SHARDS = 20 + 6 + 9


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "jepa", "extract", *map(str, arguments)]


def tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def whole(run: Path, probe_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Features written in one go: tokens and a layer, fp16, in shards of 10."""
    out = tmp_path_factory.mktemp("features") / "whole"
    done = extract(run, probe_data, out, SMALL, device="cpu", progress=False)
    assert done.complete and done.samples == 350 and done.bytes == 350 * (1 + 25) * 32 * 2 * 2
    return out


def test_numbers_are_the_encoders(run, probe_data, whole):
    encoder, features = load_encoder(run), FeatureSet.open(whole)
    for split in ("train", "val", "test"):
        (batch,) = eval_batches(Manifest.open(probe_data).splits[split], (20, 20), 1000)
        tokens = encoder(batch.images)
        torch.testing.assert_close(features.tensor(split, "tokens").float(), tokens, rtol=2**-11, atol=1e-5)
        torch.testing.assert_close(features.tensor(split).float(), tokens.mean(1), rtol=2**-11, atol=1e-5)
        assert features.tensor(split).dtype == torch.float16
        # a run of depth 1: its only layer is the output
        assert torch.equal(features.tensor(split, "tokens.layer0"), features.tensor(split, "tokens"))


def test_labels_originals_targets_and_keys_are_those_of_the_source(probe_data, whole):
    source, found = Manifest.open(probe_data), Manifest.open(whole, features=True)
    assert found.classes == source.classes and list(found.splits) == list(source.splits)
    for name, split in source.splits.items():
        kept = found.splits[name]
        assert np.array_equal(kept.labels, split.labels) and np.array_equal(kept.originals, split.originals)
        assert [kept.key(i) for i in range(len(kept))] == [split.key(i) for i in range(len(split))]
        for target in split.target_names:
            assert np.array_equal(kept.targets[target], split.targets[target])


def test_a_shard_is_a_plain_webdataset(probe_data, whole):
    split = Manifest.open(probe_data).splits["val"]
    with tarfile.open(whole / "val" / "small-val-000001.tar") as tar:
        files = {m.name: tar.extractfile(m).read() for m in tar}
    key = split.key(10)
    assert sorted(n for n in files if n.startswith(f"{key}.")) == [f"{key}.cls", f"{key}.json", f"{key}.safetensors"]
    tensors = load(files[f"{key}.safetensors"])
    assert {n: tuple(t.shape) for n, t in tensors.items()} == {
        "pooled": (32,), "pooled.layer0": (32,), "tokens": (25, 32), "tokens.layer0": (25, 32),
    }  # fmt: skip
    assert int(files[f"{key}.cls"]) == split.labels[10]
    facts = json.loads(files[f"{key}.json"])
    assert facts["original"] == split.originals[10] and facts["x"] == pytest.approx(float(split.targets["x"][10]))


@pytest.mark.parametrize(("dtype", "step"), [("fp32", 2**-24), ("bf16", 2**-8)])
def test_other_precisions(run, probe_data, tmp_path, dtype, step):
    extract(run, probe_data, tmp_path / "out", ExtractConfig(dtype=dtype, splits=("val",)), device="cpu")
    (batch,) = eval_batches(Manifest.open(probe_data).splits["val"], (20, 20), 1000)
    found, exact = FeatureSet.open(tmp_path / "out").tensor("val"), load_encoder(run).pool(batch.images)
    assert found.dtype == {"fp32": torch.float32, "bf16": torch.bfloat16}[dtype]
    torch.testing.assert_close(found.float(), exact, rtol=step, atol=1e-6)
    assert list(FeatureSet.open(tmp_path / "out").manifest.splits) == ["val"]


def test_the_manifest_says_what_they_are(run, probe_data, whole):
    about = FeatureSet.open(whole).about
    sealed = json.loads((run / "checkpoints" / "step-6" / "checkpoint.json").read_text())
    assert about.weights == sealed["files"]["model.safetensors"]["sha256"]
    assert (about.which, about.step, about.depth, about.dtype, about.layers) == ("target", 6, 1, "fp16", (0,))
    assert about.source.hash == Manifest.open(probe_data).hash and about.mean == (0.485, 0.456, 0.406)
    made = json.loads((whole / "manifest.json").read_text())["made"]
    assert made == [{"batch": 5, "device": "cpu", "torch": torch.__version__}]


# --- interruptions and shares -------------------------------------------------------------------------------------


def test_killed_anywhere_it_goes_on_and_ends_in_the_same_bytes(run, probe_data, whole, tmp_path):
    out, kills, seen = tmp_path / "out", 0, [0]
    while not (out / "manifest.json").exists():
        process = subprocess.Popen(command(run, probe_data, "--out", out, *OPTIONS), stdout=subprocess.DEVNULL)
        until = time.monotonic() + 200
        while process.poll() is None and len(list((out / ".extract").glob("*.npz"))) < seen[-1] + 6:
            assert time.monotonic() < until
            time.sleep(0.001)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            kills += process.wait() == -signal.SIGKILL
        assert process.returncode in (0, -signal.SIGKILL)
        seen.append(len(list((out / ".extract").glob("*.npz"))))
        if not (out / "manifest.json").exists():
            with pytest.raises(DataError, match="not finished. Run the same `jepa extract` command again"):
                FeatureSet.open(out)
        if kills == 2:  # enough; to the end now
            done = extract(run, probe_data, out, SMALL, device="cpu", progress=False)
            assert done.complete and 0 < done.samples <= 350 - 10 * seen[-1] + 10  # what was there is not made again
    assert kills == 2
    assert tree(out) == tree(whole)


def test_two_processes_at_once_write_what_one_does(run, probe_data, whole, tmp_path):
    out = tmp_path / "out"
    both = [
        subprocess.Popen(
            command(run, probe_data, "--out", out, *OPTIONS, "--shard-of", f"{i}/2"), stdout=subprocess.PIPE, text=True
        )
        for i in range(2)
    ]
    said = [process.communicate(timeout=200)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert any("is ready (train 200, val 60, test 90)" in text for text in said)
    assert sorted(int(text.split()[0]) for text in said) == [170, 180]
    assert tree(out) == tree(whole)


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_ranks_of_a_launcher_in_any_order(run, probe_data, whole, tmp_path, monkeypatch, order):
    out = tmp_path / "out"
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in order:
        assert not (out / "manifest.json").exists()
        monkeypatch.setenv("RANK", str(rank))
        done = extract(run, probe_data, out, SMALL, device="cpu", progress=False)
        assert done.complete == (rank == order[1])
    assert tree(out) == tree(whole)


def test_another_number_of_processes_goes_on(run, probe_data, whole, tmp_path):
    out = tmp_path / "out"
    assert not extract(run, probe_data, out, SMALL, device="cpu", share=(1, 3), progress=False).complete
    done = extract(run, probe_data, out, SMALL, device="cpu", progress=False)
    assert done.complete and done.samples == 350 - 10 * len(range(1, SHARDS, 3))
    assert tree(out) == tree(whole)


def test_a_shard_that_another_process_holds_is_refused(run, probe_data, tmp_path):
    fcntl = pytest.importorskip("fcntl")
    out = tmp_path / "out"
    extract(run, probe_data, out, SMALL, device="cpu", share=(1, 35), progress=False)
    with (out / ".extract" / "train-000000.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(DataError, match="another process is writing shard train-000000 .*--shard-of 0/2"):
            extract(run, probe_data, out, SMALL, device="cpu", progress=False)


def test_a_lost_shard_is_made_again(run, probe_data, whole, tmp_path):
    out = tmp_path / "out"
    extract(run, probe_data, out, SMALL, device="cpu", share=(0, 2), progress=False)
    (out / "train" / "small-train-000002.tar").unlink()
    assert extract(run, probe_data, out, SMALL, device="cpu", progress=False).complete
    assert tree(out) == tree(whole)


def test_again_when_all_is_there(run, probe_data, whole, capsys):
    before = {p: p.stat().st_mtime_ns for p in whole.rglob("*")}
    assert cli.main(["extract", str(run), str(probe_data), "--out", str(whole), *OPTIONS]) == 0
    assert "was complete already" in capsys.readouterr().out
    assert {p: p.stat().st_mtime_ns for p in whole.rglob("*")} == before


# --- what is refused ----------------------------------------------------------------------------------------------


@pytest.fixture(params=["finished", "unfinished"])
def held(request, run, probe_data, whole, tmp_path) -> Path:
    """A folder with features, which is not to be changed."""
    if request.param == "finished":
        return whole
    extract(run, probe_data, tmp_path / "part", SMALL, device="cpu", share=(0, 9), progress=False)
    return tmp_path / "part"


def test_features_of_other_weights_data_or_settings_are_not_mixed(run, probe_data, tiny_data, held):
    before = tree(held)
    for changed, arguments in (
        (r"weights: '\w+' -> '\w+'; step: 6 -> 3", (run / "checkpoints" / "step-3", probe_data, SMALL)),
        (r"source\.hash", (run, tiny_data, SMALL)),
        ("dtype: 'fp16' -> 'bf16'", (run, probe_data, ExtractConfig(tokens=True, layers=(0,), dtype="bf16"))),
        ("which: 'target' -> 'context'", (run, probe_data, ExtractConfig(which="context"))),
    ):
        with pytest.raises(DataError, match=f"holds .*features of other weights, data or settings: .*{changed}"):
            extract(*arguments[:2], held, arguments[2], device="cpu", progress=False)
    assert tree(held) == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--dtype", "fp8"], "dtype: got 'fp8'"),
        (["--layers", "7"], r"layers \[7\]: this encoder has layers 0 to 0"),
        (["--layers", "a"], "--layers 'a': give whole numbers"),
        (["--splits", "train,dev"], "has no split 'dev'; it has: train, val, test"),
        (["--which", "teacher"], "no encoder 'teacher'"),
        (["--frames", "4"], "frames: of videos only"),
        (["--clips", "2"], "clips: of videos only"),
        (["--views", "3"], "views: of videos only"),
        (["--batch", "0"], "batch=0"),
        (["--shard-of", "2/2"], "--shard-of '2/2': give I/N with I from 0 to 1"),
        (["--device", "tpu"], "device 'tpu' cannot be used"),
    ],
)
def test_settings_that_do_not_fit(run, probe_data, tmp_path, capsys, options, message):
    out = tmp_path / "out"
    assert cli.main(["extract", str(run), str(probe_data), "--out", str(out), *options]) == 2
    assert re.search(message, capsys.readouterr().err.replace("\n", " "))
    assert not out.exists()


def test_folders_that_are_something_else(run, probe_data, whole, tmp_path):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("keep me")
    with pytest.raises(DataError, match="holds other files"):
        extract(run, probe_data, tmp_path / "notes", SMALL, device="cpu")
    with pytest.raises(DataError, match="is a file"):
        extract(run, probe_data, tmp_path / "notes" / "a.txt", SMALL, device="cpu")
    with pytest.raises(DataError, match="is a data set of images or videos, not features"):
        extract(run, probe_data, probe_data, SMALL, device="cpu")
    with pytest.raises(DataError, match="holds features made by `jepa extract`, not images"):
        extract(run, whole, tmp_path / "out", SMALL, device="cpu")
    with pytest.raises(DataError, match="holds features made by `jepa extract`, not images"):
        TrainData(run_config(whole).data, 0)


def test_numbers_that_are_not_finite_name_their_sample(run, probe_data, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(run, broken, ignore=shutil.ignore_patterns("step-0", "step-3", "probes"))
    folder = broken / "checkpoints" / "step-6"
    tensors = load_file(folder / "model.safetensors")
    key = Manifest.open(probe_data).splits["train"].key(0)
    for value, wanted, message in (
        (float("nan"), "fp32", f"pooled of sample {key} in .*, split 'train', holds numbers that are NaN"),
        (1e6, "fp16", f"pooled of sample {key} in .*goes beyond 65504.*--dtype bf16"),
    ):
        tensors["target.norm.bias"][0] = value
        save_file(tensors, folder / "model.safetensors")
        reseal(folder)
        with pytest.raises(DataError, match=message):
            extract(broken, probe_data, tmp_path / "out" / wanted, ExtractConfig(dtype=wanted), device="cpu")
        assert list((tmp_path / "out" / wanted).glob("*/*.tar")) == []
    extract(broken, probe_data, tmp_path / "bf16", ExtractConfig(dtype="bf16"), device="cpu")  # as it was advised


def test_a_sample_that_cannot_be_read_stops_it_by_name(run, probe_data, tmp_path):
    copy = tmp_path / "data"
    shutil.copytree(probe_data, copy)
    split = Manifest.open(copy).splits["val"]
    shard, offset, length, _ = split.index[33].tolist()
    with split.shards[shard].path.open("r+b") as file:
        file.seek(offset)
        file.write(bytes(length))
    with pytest.raises(DataError, match=f"sample {split.key(33)} in .* cannot be read"):
        extract(run, copy, tmp_path / "out", SMALL, device="cpu")
    assert len(list((tmp_path / "out" / ".extract").glob("*.npz"))) == 20 + 3  # train and what came before


LIMITED = """
import resource, sys
from jepa import cli
limit = int(sys.argv.pop(1))
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
sys.exit(cli.main(sys.argv[1:]))
"""


def test_a_full_disk_is_said_and_gone_on_after(run, probe_data, whole, tmp_path):
    """A limit on file sizes stands for the full disk: the write fails in the same place, here at train's index."""
    out, sizes = tmp_path / "out", sorted(p.stat().st_size for p in whole.glob("*/*.tar"))
    for limit, kept in ((sizes[0] // 2, 0), (sizes[-1] + 100, 35)):
        arguments = [sys.executable, "-c", LIMITED, str(limit), *command(run, probe_data, "--out", out, *OPTIONS)[3:]]
        done = subprocess.run(arguments, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
        if limit < sizes[0]:
            assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
            assert re.search(r"the disk is full .*Make room. Run the same command again", done.stderr)
            assert list(out.glob("*/*.tar")) == [] and list(out.glob("*/.*")) == []  # nothing half-written
        else:
            assert done.returncode == 0, done.stderr
            assert len(list(out.glob("*/*.tar"))) == kept
    assert tree(out) == tree(whole)


def test_a_disk_that_is_too_small_is_warned_of(run, probe_data, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1000, 999, 1))
    with pytest.warns(UserWarning, match=r"about 0\.0 GB will be written to .*same command goes on"):
        extract(run, probe_data, tmp_path / "out", SMALL, device="cpu")


# --- reading ------------------------------------------------------------------------------------------------------


def test_damaged_features(whole, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(whole, copy)
    tar = copy / "val" / "small-val-000001.tar"
    content = bytearray(tar.read_bytes())
    content[512 + 20] ^= 1  # in the header of the first sample's tensors
    tar.write_bytes(content)
    assert len(FeatureSet.open(copy).tensor("val", index=np.arange(10))) == 10
    with pytest.raises(DataError, match="does not hold the tensors that manifest.json says"):
        FeatureSet.open(copy).tensor("val")
    tar.write_bytes(content[:-512])
    with pytest.raises(DataError, match=r"small-val-000001\.tar: \d+ bytes now"):
        FeatureSet.open(copy)
    with pytest.raises(DataError, match="holds no tensor 'tokens.layer9'; it holds pooled, pooled.layer0"):
        FeatureSet.open(whole).tensor("val", "tokens.layer9")
    values = json.loads((copy / "manifest.json").read_text())
    del values["features"]["weights"]
    (copy / "manifest.json").write_text(json.dumps(values))
    with pytest.raises(DataError, match="missing required key.*weights.*extract again"):
        FeatureSet.open(copy)


def test_the_page_shows_how_others_read_them(run, probe_data, tmp_path, monkeypatch, capsys):
    page = (ROOT / "docs" / "extract-features.md").read_text(encoding="utf-8")
    found = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    examples = [
        example for example in found if "features/tworoom" not in example
    ]  # of episodes: tests/test_tutorials.py
    assert len(examples) == 2 and all(len(e.splitlines()) <= 11 for e in examples)
    monkeypatch.chdir(tmp_path)
    done = extract(run, probe_data, "features/digits", ExtractConfig(tokens=True, dtype="bf16"), device="cpu")
    assert done.complete
    for example in examples:
        out = io.StringIO()
        monkeypatch.setattr(sys, "stdout", out)
        exec(compile(example, "example", "exec"), {})
        monkeypatch.undo()
        monkeypatch.chdir(tmp_path)
        assert "torch.bfloat16" in out.getvalue() and "200" in out.getvalue(), out.getvalue()


def test_keys_too_long_for_a_tar(run, tmp_path):
    """Foreign tars may have longer names than ours can."""
    source = tmp_path / "foreign-000000.tar"
    picture = io.BytesIO()
    from PIL import Image

    Image.new("RGB", (20, 20)).save(picture, "PNG")
    with tarfile.open(source, "w", format=tarfile.PAX_FORMAT) as tar:
        for number in range(2):
            info = tarfile.TarInfo(f"{'k' * 300}{number}.png")
            info.size = len(picture.getvalue())
            tar.addfile(info, io.BytesIO(picture.getvalue()))
    recipe = tmp_path / "foreign.yaml"
    recipe.write_text("source: {kind: webdataset}\nsplits: {fractions: {}}\n")
    build(recipe, tmp_path / "data", overrides=[f"source.shards={source}"], progress=False)
    with pytest.raises(DataError, match="its key cannot name a file in a tar"):
        extract(run, tmp_path / "data", tmp_path / "out", device="cpu")


def test_shares_are_checked(run, probe_data, tmp_path):
    with pytest.raises(ConfigError, match="share 3/2: the parts of 2 are 0 to 1"):
        extract(run, probe_data, tmp_path / "out", share=(3, 2))
