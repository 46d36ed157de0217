"""Data sets in Hugging Face's format, made here with `datasets`: mapped and streamed, images and videos."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import datasets
from jepa.data import Manifest
from jepa.data.build import build
from jepa.data.sources import huggingface
from jepa.data.video.probe import probe
from jepa.errors import ConfigError, DataError
from tests.data.conftest import encoded, picture
from tests.data.test_videos import movie

MOVIES = [movie(frames=6 + i, seed=i) for i in range(8)]


@pytest.fixture(autouse=True, scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    datasets.config.HF_DATASETS_CACHE = tmp_path_factory.mktemp("cache")
    datasets.disable_progress_bars()


@pytest.fixture(scope="module")
def parquet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two parquet files of train and one of validation; bytes in the cells, class names, and other columns."""
    root = tmp_path_factory.mktemp("parquet")
    features = datasets.Features({
        "clip": datasets.Video(), "verb": datasets.ClassLabel(names=["push", "lift", "drop"]),
        "film": datasets.Value("string"), "speed": datasets.Value("float32"), "number": datasets.Value("int64"),
        "preview": datasets.Value("binary"),
    })  # fmt: skip
    for name, chosen in (("train-0", range(3)), ("train-1", range(3, 6)), ("validation-0", range(6, 8))):
        rows = {
            "clip": [{"bytes": MOVIES[i], "path": None} for i in chosen], "verb": [i % 2 for i in chosen],
            "film": [f"film {i // 2}" for i in chosen], "speed": [i / 4 for i in chosen],
            "number": [2 * (i % 3) for i in chosen], "preview": [encoded(picture(i)) for i in chosen],
        }  # fmt: skip
        datasets.Dataset.from_dict(rows, features=features).to_parquet(str(root / f"{name}.parquet"))
    return root


def made(source: Path, out: Path, *overrides: str, workers: int = 0) -> Manifest:
    options = [f"source.path={source}", "splits.fractions={}", *overrides]
    return build("huggingface", out, overrides=options, workers=workers, progress=False)


def contents(found: Manifest, split: str) -> dict[bytes, int]:
    chosen = found.split(split)
    return {chosen.read(i)[0]: int(chosen.labels[i]) for i in range(len(chosen))}


@pytest.mark.parametrize("streaming", [False, True])
def test_a_column_of_videos(parquet: Path, streaming: bool, tmp_path: Path) -> None:
    found = made(parquet, tmp_path / "out", f"source.streaming={streaming}", "source.targets={v: speed}")
    assert (found.media, found.classes, found.bad_count) == ("video", ["push", "lift", "drop"], 0)
    assert contents(found, "train") == {MOVIES[i]: i % 2 for i in range(6)}  # the same bytes: nothing was decoded
    assert contents(found, "val") == {MOVIES[i]: i % 2 for i in (6, 7)}
    train = found.split("train")
    by_bytes = {train.read(i)[0]: float(train.targets["v"][i]) for i in range(6)}
    assert by_bytes == {MOVIES[i]: i / 4 for i in range(6)}
    lengths = [len(probe(train.read(i)[0])) for i in range(6)]
    assert train.video[:, 0].tolist() == lengths and (lengths == sorted(lengths)) == streaming
    assert any("streamed" in note for note in found.notes) == streaming


def test_workers_make_the_same_data_set(parquet: Path, tmp_path: Path) -> None:
    for streaming in ("source.streaming=false", "source.streaming=true"):
        here, there = (made(parquet, tmp_path / f"{streaming}{n}", streaming, workers=n) for n in (0, 2))
        assert here.hash == there.hash


def test_splits(parquet: Path, tmp_path: Path) -> None:
    found = made(parquet, tmp_path / "named", "source.splits={test: validation, train: 'train[:50%]'}")
    assert {name: len(split) for name, split in found.splits.items()} == {"test": 2, "train": 3}
    cut = made(parquet, tmp_path / "cut", "source.original=film", "splits.fractions={test: 0.5}")
    train, test = cut.split("train"), cut.split("test")
    assert len(train) + len(test) == 6 and not set(train.originals.tolist()) & set(test.originals.tolist())
    assert len(np.unique(train.originals)) * 2 == len(train)
    streamed = made(parquet, tmp_path / "streamed", "source.streaming=true", "splits.fractions={test: 0.5}")
    assert contents(streamed, "train") | contents(streamed, "test") == {MOVIES[i]: i % 2 for i in range(6)}
    with pytest.raises(DataError, match="cannot be read: Unknown split"):
        made(parquet, tmp_path / "bad", "source.splits={train: training}")


@pytest.mark.parametrize(
    ("options", "classes", "labels"),
    [
        (["source.label=number"], ["0", "1", "2", "3", "4"], [0, 2, 4, 0, 2, 4]),
        (["source.label=film"], ["film 0", "film 1", "film 2", "film 3"], [0, 0, 1, 1, 2, 2]),
        (["source.label=film", "source.classes=[film 2, film 1, film 0, film 3]"],
         ["film 2", "film 1", "film 0", "film 3"], [2, 2, 1, 1, 0, 0]),
        (["source.label=none"], [], [-1] * 6),
    ],
)  # fmt: skip
def test_labels(parquet: Path, tmp_path: Path, options: list[str], classes: list[str], labels: list[int]) -> None:
    found = made(parquet, tmp_path / "out", *options)
    assert found.classes == classes
    assert contents(found, "train") == {MOVIES[i]: labels[i] for i in range(6)}


def test_plain_bytes_are_images_too(parquet: Path, tmp_path: Path) -> None:
    found = made(parquet / "train-0.parquet", tmp_path / "out", "source.column=preview")
    assert found.media == "image" and contents(found, "train") == {encoded(picture(i)): i % 2 for i in range(3)}


def test_a_folder_of_videos_and_what_was_saved(tmp_path: Path) -> None:
    for i in range(4):
        path = tmp_path / "in" / "train" / ["run", "jump"][i % 2] / f"{i}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(MOVIES[i])
    for streaming in (False, True):
        found = made(tmp_path / "in", tmp_path / f"out{streaming}", f"source.streaming={streaming}")
        assert found.classes == ["jump", "run"]
        assert contents(found, "train") == {MOVIES[i]: 1 - i % 2 for i in range(4)}
    images = {"image": [{"bytes": encoded(picture(i)), "path": None} for i in range(4)], "label": [0, 1, 1, 0]}
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    rows = datasets.Dataset.from_dict(images, features=features)
    rows.save_to_disk(str(tmp_path / "rows"))
    datasets.DatasetDict({"train": rows, "test": rows}).save_to_disk(str(tmp_path / "splits"))
    assert list(made(tmp_path / "rows", tmp_path / "a").splits) == ["train"]
    found = made(tmp_path / "splits", tmp_path / "b")
    assert list(found.splits) == ["train", "test"] and found.media == "image"
    assert contents(found, "test") == {encoded(picture(i)): [0, 1, 1, 0][i] for i in range(4)}
    with pytest.raises(ConfigError, match="source.streaming"):
        made(tmp_path / "rows", tmp_path / "c", "source.streaming=true")
    with pytest.raises(ConfigError, match="there is no split val; there are train, test"):
        made(tmp_path / "splits", tmp_path / "c", "source.splits={val: val}")


def test_broken_cells_are_left_out(tmp_path: Path) -> None:
    cells = [MOVIES[0], b"", MOVIES[1][:800], b"no video"]
    rows = {"clip": [{"bytes": c, "path": None} for c in cells] + [{"bytes": None, "path": "/no/such.mp4"}, None]}
    rows["clip"].append({"bytes": None, "path": "ftp://host/x.mp4"})
    pq.write_table(pa.table({"clip": rows["clip"]}), tmp_path / "x.parquet")  # without the names of its features
    with pytest.raises(ConfigError, match="no column says it holds images or videos"):
        made(tmp_path / "x.parquet", tmp_path / "out")
    found = made(tmp_path / "x.parquet", tmp_path / "out", "source.column=clip")
    assert len(found.split("train")) == 1 and found.bad_count == 6
    text = json.dumps(found.bad)
    for words in ("the cell is empty", "truncated", "nor a video", "No such file", "only files and the hub are read"):
        assert words in text


def test_clear_errors(parquet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for source, overrides, error, words in (
        (parquet, ["source.column=clipp"], ConfigError, "'clipp' is not there; there are clip"),
        (parquet, ["source.column=film"], ConfigError, "holds string, no encoded images or videos"),
        (parquet, ["source.label=verbs"], ConfigError, "'verbs' is not there"),
        (parquet, ["source.label=speed"], ConfigError, "labels are whole numbers or words"),
        (parquet, ["source.label=film", "source.streaming=true"], ConfigError, "give them as source.classes"),
        (parquet, ["source.targets={x: nothing}"], ConfigError, "has no column nothing"),
        (parquet, ["source.original=film", "source.streaming=true"], ConfigError, "leave one of the two out"),
        (parquet, ["source.repo=a/b"], ConfigError, "only one of the two"),
        (tmp_path / "absent", [], DataError, "does not exist"),
        (tmp_path, [], DataError, "cannot be read"),
    ):
        with pytest.raises(error, match=words):
            made(source, tmp_path / "out", *overrides)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match="data set me/films cannot be read.*source.revision and the network"):
        build("huggingface", tmp_path / "out", overrides=["source.repo=me/films"], progress=False)


@pytest.mark.parametrize("streaming", [False, True])
def test_rows_are_read_in_any_order_and_makers_travel_light(parquet: Path, streaming: bool) -> None:
    source = huggingface.open_source(huggingface.Config(path=str(parquet), streaming=streaming))
    held = pickle.dumps(source.maker)
    assert len(held) < sum(map(len, MOVIES))  # the rows stay where they are
    maker = pickle.loads(held)
    for i in (4, 1, 2, 5, 0):
        assert maker(("train", i)).image == MOVIES[i]
