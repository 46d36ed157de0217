"""A shard that is deleted, cut off or replaced while a real run reads it: the run stops, blames no sample, goes on."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from jepa.data import Manifest, storage
from jepa.data.remote import StorageError
from jepa.data.samples import TrainData
from jepa.errors import JepaError
from jepa.train import train
from tests.tiny import run_config
from tests.train import runs, worker
from tests.train.worker import Job

STEPS = ("train.duration={steps: 3000}", "train.checkpoint_every={steps: 10}", "monitor.every={steps: 0}")


@pytest.fixture
def data(tiny_data: Path, tmp_path: Path) -> Path:
    """A copy to spoil; 4 shards of 16 samples, 8 steps an epoch."""
    return Path(shutil.copytree(tiny_data, tmp_path / "data"))


def started(data: Path, out: Path, *settings: str) -> worker.BaseProcess:
    """A run that has begun and has no reason to end soon."""
    child = worker.start(Job(data, out, (*STEPS, *settings), trace=False))
    until = time.monotonic() + worker.LIMIT
    while not ((out / "metrics.jsonl").exists() and len(runs.lines(out)) > 12):
        assert time.monotonic() < until and child.is_alive(), "the run did not get going"
        time.sleep(0.02)
    return child


def spoil(how: str, shard: Path) -> None:
    if how == "deleted":
        shard.unlink()
    elif how == "cut off":
        os.truncate(shard, 4096)  # also for whoever has it open
    else:
        other = shard.with_name("other")
        other.write_bytes(shard.read_bytes() + bytes(512))
        other.replace(shard)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_shard_cut_off_while_a_run_goes_on(workers: int, data: Path, tmp_path: Path) -> None:
    """Descriptors are open, so this is the one of the three that a run notices in its very next epoch."""
    out, shard = tmp_path / "run", sorted((data / "train").glob("*.tar"))[1]
    whole = shard.read_bytes()
    child = started(data, out, f"data.workers={workers}")
    spoil("cut off", shard)
    assert worker.finish(child) == 2
    said = (tmp_path / "run.error").read_text()
    assert said.startswith("StorageError") and str(shard) in said and "truncated or replaced" in said, said
    assert "--resume" in said and not (out / "quarantine.jsonl").exists(), "no sample is to blame"
    last = runs.lines(out)[-1]["step"]
    shard.write_bytes(whole)
    done = last - last % 10 + 20
    settings = (*STEPS, f"data.workers={workers}")
    child = worker.start(Job(data, out, settings, resume=True, trace=False))
    until = time.monotonic() + worker.LIMIT
    while runs.lines(out)[-1]["step"] < done:
        assert time.monotonic() < until and child.is_alive(), "it did not go on"
        time.sleep(0.02)
    child.terminate()
    assert worker.finish(child) == 0


@pytest.mark.parametrize("how", ["deleted", "cut off", "replaced"])
def test_a_shard_that_is_another_one_at_its_next_opening(
    how: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One shard is kept open at a time, as with more shards than descriptors; the second epoch meets what happened."""
    monkeypatch.setattr(storage, "_OPEN_SHARDS", 1)
    monkeypatch.setattr(storage, "_descriptors", type(storage._descriptors)())
    out, shard = tmp_path / "run", sorted((data / "train").glob("*.tar"))[1]
    whole = shard.read_bytes()
    read, seen = storage.read, [0]

    def counted(path: Path, *arguments: int, **more: tuple[float, ...]) -> bytes:
        seen[0] += 1
        if seen[0] == 80:  # in the second epoch
            spoil(how, shard)
        return read(path, *arguments, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(storage, "read", counted)
    settings = ("train.duration={steps: 24}", "train.checkpoint_every={steps: 8}", "monitor.every={steps: 0}")
    with pytest.raises(JepaError, match="No such file|truncated or replaced") as caught:
        train(run_config(data, *settings), out, quiet=True)
    assert str(shard) in str(caught.value) and "--resume" in str(caught.value)
    assert not (out / "quarantine.jsonl").exists() and runs.lines(out)[-1]["step"] >= 8
    shard.write_bytes(whole)
    assert train(run_config(data, *settings), out, resume=True, quiet=True).step == 24
    undisturbed = tmp_path / "undisturbed"
    train(run_config(data, *settings), undisturbed, quiet=True)
    runs.assert_bit_equal(runs.tensors(out, 24), runs.tensors(undisturbed, 24))


def test_a_shard_of_the_same_size_with_other_bytes(data: Path, tmp_path: Path) -> None:
    """Sizes do not tell it: what cannot be decoded is counted, what can be is used, and the manifest knows better."""
    split = Manifest.open(data).splits["train"]
    shard, offset, length, _ = split.index[20].tolist()
    path = Path(str(split.shards[shard].path))
    spoilt = bytearray(path.read_bytes())
    spoilt[offset : offset + length] = bytes(length)
    path.write_bytes(spoilt)
    out = tmp_path / "run"
    assert train(run_config(data, "monitor.every={steps: 0}"), out, quiet=True).step == 12
    (first, *more) = [json.loads(line) for line in (out / "quarantine.jsonl").read_text().splitlines()]
    assert first["index"] == 20 and path.name in first["place"] and all(row["index"] == 20 for row in more)
    told = json.loads((data / "manifest.json").read_text())["splits"]["train"]["shards"][shard]["sha256"]
    assert told != hashlib.sha256(spoilt).hexdigest()


def test_a_substitute_is_not_replaced_by_another_for_want_of_its_shard(data: Path) -> None:
    """Which sample takes a bad one's place must not depend on what the storage does."""
    given = TrainData(run_config(data).data, 0)
    images, number = torch.empty(1, 3, 20, 20, dtype=torch.uint8), np.array([0])
    place = int(given.order(number)[0])
    other = (place + 16) % 64  # lies in another shard
    loaded = given.load(images, number, {0: other})
    assert loaded.index.tolist() == [other] and loaded.bad[0].substitute == other
    shard = given.split.shards[other // 16]
    os.truncate(shard.path, 512)
    with pytest.raises(StorageError, match="truncated or replaced meanwhile"):
        given.load(images, number, {0: other})
