"""Opening a dataset: fast, strict about what it reads, clear about what is wrong."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest

from jepa.config import DataConfig
from jepa.data import Manifest, TrainData
from jepa.errors import DataError


@pytest.fixture
def copy(digits: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(digits, tmp_path / "copy"))


def test_samples_are_read_where_the_index_says(digits: Path) -> None:
    manifest = Manifest.open(digits)
    split = manifest.split("train")
    assert len(split) == 120 and split.shard_sizes.tolist() == [50, 50, 20]
    data, extension = split.read(77)
    assert extension == "jpg" and data[:2] == b"\xff\xd8" and data[-2:] == b"\xff\xd9"
    assert split.key(77) == "000000077"
    assert isinstance(split.labels, np.memmap) and isinstance(split.index, np.memmap)
    again = pickle.loads(pickle.dumps(split))
    assert len(pickle.dumps(split)) < 5000, "a split must not carry its arrays to the workers"
    assert again.read(77) == (data, extension)


@pytest.mark.parametrize("size", [0, 1, 40, 300])
def test_a_truncated_manifest(copy: Path, size: int) -> None:
    path = copy / "manifest.json"
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(DataError, match="not valid JSON"):
        Manifest.open(copy)


@pytest.mark.parametrize("content", ["[]", "{}", '{"format": "other"}', "3", "null"])
def test_a_foreign_manifest(copy: Path, content: str) -> None:
    (copy / "manifest.json").write_text(content)
    with pytest.raises(DataError, match="not a manifest"):
        Manifest.open(copy)


@pytest.mark.parametrize("key", ["splits", "classes", "hash", "recipe"])
@pytest.mark.parametrize("value", [None, 7])
def test_a_garbled_manifest(copy: Path, key: str, value: object) -> None:
    path = copy / "manifest.json"
    values = json.loads(path.read_text())
    if value is None:
        del values[key]
    elif key != "hash":
        values[key] = value
    else:
        values["splits"]["train"]["samples"] = value
    path.write_text(json.dumps(values))
    with pytest.raises(DataError):
        Manifest.open(copy)


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("samples", 2**70, "lacks or garbles"),
        ("size", None, "lacks or garbles"),
        ("path", "a\0b", "lacks or garbles a shard at"),
        ("path", "\ud800.tar", r"not valid JSON \(.*surrogates"),
    ],
)
def test_a_garbled_shard(copy: Path, key: str, value: object, reason: str) -> None:
    path = copy / "manifest.json"
    values = json.loads(path.read_text())
    values["splits"]["train"]["shards"][0][key] = value
    path.write_text(json.dumps(values))
    with pytest.raises(DataError, match=reason):
        Manifest.open(copy)


def test_another_version(copy: Path) -> None:
    path = copy / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"version": 99}))
    with pytest.raises(DataError, match="version 99, this program reads 1"):
        Manifest.open(copy)


def test_no_dataset_at_all(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is not a folder"):
        Manifest.open(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"has no manifest\.json"):
        Manifest.open(tmp_path)


def test_an_unknown_split_lists_those_there_are(digits: Path) -> None:
    with pytest.raises(DataError, match="no split 'training'; it has: train, val, test"):
        Manifest.open(digits).split("training")


@pytest.mark.parametrize("damage", ["missing", "cut", "pickle", "shape", "dtype"])
def test_a_damaged_array(copy: Path, damage: str) -> None:
    path = copy / "train" / "labels.npy"
    if damage == "missing":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:60])
    elif damage == "pickle":
        np.save(path, np.array([{"a": 1}] * 120, dtype=object), allow_pickle=True)
    else:
        np.save(path, np.zeros(119 if damage == "shape" else 120, dtype=np.int64 if damage == "shape" else np.int32))
    with pytest.raises(DataError, match=r"labels\.npy"):
        _ = Manifest.open(copy).split("train").labels


def test_a_truncated_and_a_missing_shard_are_named_before_training(copy: Path) -> None:
    shards = sorted((copy / "train").glob("*.tar"))
    shards[0].write_bytes(shards[0].read_bytes()[:-1024])
    shards[2].unlink()
    split = Manifest.open(copy).split("train")
    with pytest.raises(DataError, match=f"2 of 3 shards.*{shards[0].name}.*bytes now.*{shards[2].name}: No such file"):
        TrainData(DataConfig(path=str(copy)), seed=0)
    with pytest.raises(DataError, match="truncated or replaced"):
        split.read(0)


def test_a_million_samples_open_without_being_read(tmp_path: Path) -> None:
    """Opening maps the arrays, so it reads only the JSON; a sample far inside is found by its own row."""
    n, shards = 1_000_000, 1000
    (tmp_path / "train").mkdir()
    index = np.zeros((n, 4), dtype=np.int64)
    index[:, 0] = np.arange(n) // (n // shards)
    index[:, 1] = np.arange(n) % (n // shards)
    index[:, 2] = 1
    np.save(tmp_path / "train" / "index.npy", index)
    np.save(tmp_path / "train" / "labels.npy", np.zeros(n, dtype=np.int64))
    listed = [
        {"path": f"train/{i}.tar", "size": n // shards, "sha256": "", "samples": n // shards} for i in range(shards)
    ]
    (tmp_path / "train" / "777.tar").write_bytes(bytes(i % 256 for i in range(n // shards)))
    values = {
        "format": "jepa-dataset", "version": 1, "name": "big", "licence": "", "classes": ["a"], "hash": "0" * 64,
        "splits": {"train": {"samples": n, "targets": [], "shards": listed}}, "image": {}, "notes": [], "bad": [],
        "bad_count": 0, "recipe": {},
    }  # fmt: skip
    (tmp_path / "manifest.json").write_text(json.dumps(values))
    split = Manifest.open(tmp_path).split("train")
    assert not {"index", "labels", "originals"} & set(vars(split)), "opening must not touch the arrays"
    assert split.read(777_005) == (bytes([5]), "jpg")
    assert isinstance(split.index, np.memmap)
