"""A data set in Hugging Face's format with a column of images or videos: a local folder, parquet files, or the hub.

Cells are never decoded here: their encoded bytes go into the shards. `datasets` keeps the rows in Arrow files that are
mapped, not loaded, so any row is read at once and nothing is held in memory; on the hub that means a download into its
cache. With `streaming` nothing is kept on disk either, and rows are read in their order.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jepa.data.sources.base import Sample, Source, hashed
from jepa.errors import ConfigError, DataError

_USUAL = {"valid": "val", "validation": "val"}


@dataclass(frozen=True)
class Config:
    """Where the data set is, and what its columns are."""

    path: str = ""  # a folder of images, videos or parquet files, what `save_to_disk` wrote, or one parquet file
    repo: str = ""  # instead of path: its name on the Hugging Face hub
    name: str | None = None  # configuration ("subset") of the data set, where it has several
    revision: str | None = None  # branch, tag or commit on the hub; null: the newest
    splits: dict[str, str] | None = None  # split here -> split there; null: all of them, validation becomes val
    column: str = "auto"  # column of images or videos; auto: the only one
    label: str = "auto"  # column of labels, or none; auto: the only one with class names
    classes: list[str] | None = None  # names of the classes, where the column does not say them
    original: str | None = None  # column naming the original that samples were made from
    targets: dict[str, str] = field(default_factory=dict)  # continuous targets: name -> column of numbers
    streaming: bool = False  # read rows in their order, keeping no copy of the data set

    def __post_init__(self) -> None:
        if self.path and self.repo:
            raise ConfigError(f"path={self.path!r} and repo={self.repo!r}: give only one of the two")
        if self.revision is not None and not self.repo:
            raise ConfigError(f"revision={self.revision!r} is for data sets from the hub: give repo as well")
        if self.splits is not None and not self.splits:
            raise ConfigError("splits: give at least one split, e.g. {train: train, test: validation}, or null")
        if self.streaming and self.original is not None:
            raise ConfigError("original needs all names at once, streaming reads row by row: leave one of the two out")


def open_source(config: Config) -> Source:
    """The source; tasks are (split, row).

    Raises:
        ConfigError: no data set given, columns that are not there, or `datasets` is not installed.
        DataError: the data set cannot be read, or the hub not be reached.
    """
    if not config.path and not config.repo:
        raise ConfigError("source.path is empty: say where the data set is, e.g. source.path=/my/dataset")
    found = _opened(config)
    first = next(iter(found.values()))
    column = _column(config, first)
    label, classes = _labels(config, found, column)
    wanted = dict.fromkeys([column, *([label] if label else []), *config.targets.values()])
    if config.original is not None:
        wanted[config.original] = None
    for split, rows in found.items():
        missing = [name for name in wanted if name not in rows.column_names]
        if missing:
            raise ConfigError(
                f"split {split!r} has no column {', '.join(missing)}; there are {', '.join(rows.column_names)}"
            )
    names = {split: rows[config.original] for split, rows in found.items()} if config.original is not None else {}
    counts = {split: _count(rows, column) if config.streaming else len(rows) for split, rows in found.items()}
    plain = {split: _undecoded(rows.select_columns(list(wanted)), column) for split, rows in found.items()}
    maker = Maker(config, plain, column, label, classes)
    notes = [] if label else ["no column holds labels (source.label)"]
    return Source(
        {split: [(split, i) for i in range(count)] for split, count in counts.items()},
        maker, classes, list(config.targets), notes, sequential=config.streaming,
        identity=lambda task: str(names[task[0]][task[1]]) if names else f"{task[0]}/{task[1]}",
    )  # fmt: skip


def _opened(config: Config) -> dict[str, Any]:
    """The splits as `datasets` gives them, by our names."""
    try:
        # a folder called datasets, such as this repository's, imports too, but has no such name
        from datasets import load_dataset, load_from_disk
    except ImportError as error:
        raise ConfigError(
            f"source.kind=huggingface needs datasets, which does not import here ({error}): pip install 'jepa[hf]'"
        ) from None
    root = Path(config.path).expanduser()
    if config.path and not root.exists():
        raise DataError(f"source.path={config.path!r} does not exist. Give a folder or a parquet file")
    saved = root.is_dir() and any((root / n).is_file() for n in ("dataset_dict.json", "state.json"))
    try:
        if config.path and saved:
            if config.streaming:
                raise ConfigError("source.streaming: what `save_to_disk` wrote is mapped in place; leave it out")
            whole = load_from_disk(str(root))
            return _named(config, whole if isinstance(whole, dict) else {"train": whole})
        if config.path and root.is_file():
            source: dict[str, Any] = {"path": "parquet", "data_files": str(root)}
        else:
            source = {"path": str(root) if config.path else config.repo, "name": config.name}
        options = source | {"revision": config.revision, "streaming": config.streaming}
        if config.splits is None:
            return _named(config, load_dataset(**options))
        return {ours: load_dataset(**options, split=theirs) for ours, theirs in config.splits.items()}
    except ConfigError:
        raise
    except Exception as error:  # its errors have no common base: of the network, the name, the format, the disk
        said = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        raise DataError(
            f"the data set {config.path or config.repo} cannot be read: {said}. Check the name"
            + ("" if config.path else ", source.revision and the network (`hf auth login` for what is not public)")
        ) from None


def _named(config: Config, found: dict[str, Any]) -> dict[str, Any]:
    if config.splits is None:
        return {_USUAL.get(str(split), str(split)): rows for split, rows in found.items()}
    missing = [theirs for theirs in config.splits.values() if theirs not in found]
    if missing:
        raise ConfigError(f"source.splits: there is no split {', '.join(missing)}; there are {', '.join(found)}")
    return {ours: found[theirs] for ours, theirs in config.splits.items()}


def _features(rows: Any) -> dict[str, Any]:
    if rows.features is None:
        raise DataError("the data set does not say which columns it has; source.streaming=false finds out")
    return dict(rows.features)


def _column(config: Config, rows: Any) -> str:
    features = _features(rows)
    media = [name for name, feature in features.items() if type(feature).__name__ in ("Image", "Video")]
    listed = ", ".join(f"{name} ({_kind(feature)})" for name, feature in features.items())
    if config.column == "auto":
        if len(media) != 1:
            what = (
                f"{len(media)} columns hold images or videos" if media else "no column says it holds images or videos"
            )
            raise ConfigError(f"source.column=auto: {what}. Name one; there are {listed}")
        return media[0]
    feature = features.get(config.column)
    if feature is None:
        raise ConfigError(f"source.column={config.column!r} is not there; there are {listed}")
    if config.column not in media and "binary" not in _kind(feature) and not _holds_bytes(feature):
        raise ConfigError(f"source.column={config.column!r} holds {_kind(feature)}, no encoded images or videos")
    return config.column


def _kind(feature: Any) -> str:
    return str(getattr(feature, "dtype", None) or type(feature).__name__) if not isinstance(feature, dict) else "struct"


def _holds_bytes(feature: Any) -> bool:
    return isinstance(feature, dict) and "binary" in _kind(feature.get("bytes"))


def _undecoded(rows: Any, column: str) -> Any:
    feature = _features(rows)[column]
    if type(feature).__name__ not in ("Image", "Video"):
        return rows
    return rows.cast_column(column, type(feature)(decode=False))


def _labels(config: Config, found: dict[str, Any], column: str) -> tuple[str | None, list[str]]:
    """The column of labels, and the names of the classes."""
    first = _features(next(iter(found.values())))
    named = [name for name, feature in first.items() if type(feature).__name__ == "ClassLabel"]
    label = config.label if config.label != "auto" else named[0] if len(named) == 1 else "none"
    if config.label == "auto" and len(named) > 1:
        raise ConfigError(f"source.label=auto: {', '.join(named)} hold labels. Name one, or none")
    if label == "none":
        return None, config.classes or []
    if label not in first or label == column:
        raise ConfigError(f"source.label={label!r} is not there; there are {', '.join(first)}")
    if config.classes is not None:
        return label, config.classes
    if label in named:
        lists = {tuple(_features(rows)[label].names) for rows in found.values()}
        if len(lists) > 1:
            raise DataError(f"the splits name other classes in column {label!r}: give them as source.classes")
        return label, list(lists.pop())
    if config.streaming:
        raise ConfigError(f"source.label={label!r} has no class names: give them as source.classes")
    values = {value for rows in found.values() for value in rows.unique(label) if value is not None}
    if all(isinstance(value, int) for value in values):
        return label, [str(i) for i in range(int(max(values, default=-1)) + 1)]
    if all(isinstance(value, str) for value in values):
        return label, sorted(values)
    raise ConfigError(f"source.label={label!r} holds {_kind(first[label])}; labels are whole numbers or words")


def _count(rows: Any, column: str) -> int:
    """Rows of a streamed split."""
    known = (rows.info.splits or {}).get(str(rows.split))
    if known is not None and known.num_examples:
        return int(known.num_examples)
    others = [name for name in rows.column_names if name != column]
    return sum(1 for _ in rows.select_columns(others[:1] or [column]))  # parquet reads that column only


class Maker:
    """Reads rows. Picklable: the data sets are mapped, or streamed, anew in every process."""

    def __init__(
        self, config: Config, rows: dict[str, Any], column: str, label: str | None, classes: list[str]
    ) -> None:
        self.config, self.rows, self.column, self.label, self.classes = config, rows, column, label, classes
        self._streams: dict[str, tuple[int, Iterator[Any]]] = {}  # number of the next row, and the rows from it on

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_streams": {}}

    def __call__(self, task: tuple[str, int]) -> Sample:
        split, number = task
        row = self._row(split, number)
        data = _bytes(row[self.column])
        name = f"{split}/{number}"
        original = row[self.config.original] if self.config.original is not None else name
        targets = tuple(_number(row[column], target) for target, column in self.config.targets.items())
        return Sample(data, self._label(row), hashed("original", original), name, targets)

    def _row(self, split: str, number: int) -> dict[str, Any]:
        if not self.config.streaming:
            return dict(self.rows[split][number])
        place, rows = self._streams.get(split, (0, None))
        if rows is None or place > number:
            place, rows = number, iter(self.rows[split].skip(number))
        row = None
        for _ in range(place, number + 1):
            row = next(rows, None)
        self._streams[split] = (number + 1, rows)
        if row is None:
            raise DataError("the split ends before this row; its description is wrong")
        return dict(row)

    def _label(self, row: dict[str, Any]) -> int:
        value = row[self.label] if self.label is not None else None
        if value is None:
            return -1
        if isinstance(value, str) and value in self.classes:
            return self.classes.index(value)
        if not isinstance(value, int) or value >= len(self.classes):
            raise DataError(f"label {str(value)[:40]!r} is none of the {len(self.classes)} classes")
        return max(int(value), -1)


def _bytes(cell: Any) -> bytes:
    """The encoded image or video of a cell, from the file it names if it holds none itself."""
    if isinstance(cell, bytes) and cell:
        return cell
    data, path = (cell.get("bytes"), cell.get("path")) if isinstance(cell, dict) else (None, None)
    if data:
        return bytes(data)
    if not path:
        raise DataError("the cell is empty")
    try:
        if "://" not in path:
            return Path(path).read_bytes()
        if not path.startswith(("hf://", "zip://", "https://")):
            raise DataError(f"the cell names {path[:80]}, only files and the hub are read")
        import fsspec

        with fsspec.open(path, "rb") as file:
            return bytes(file.read())
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {error}") from None


def _number(value: Any, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise DataError(f"target {name!r} is {value!r}, not a finite number")
    return float(value)


__all__ = ["Config", "Maker", "open_source"]
