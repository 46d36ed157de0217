"""A folder of videos: class subfolders, a CSV file of labels, or no labels at all.

CSV files are those of the video data sets: one line per video, `PATH LABEL` (V-JEPA, separated by a space) or
`PATH,LABEL`, with or without a header; paths are relative to the folder or absolute. Labels are numbers or words.
A JSON list of objects will do too, with the names in `id` (or as in a CSV's header) and the labels in `template` or
`label`: the format of Something-Something.
"""

from __future__ import annotations

import csv
import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from jepa.data.sources import folder
from jepa.data.sources.base import Sample, Source, hashed
from jepa.errors import ConfigError, DataError

READ = frozenset({
    ".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".flv", ".ogv", ".wmv", ".gif"
})  # fmt: skip
_PATH_COLUMNS = ("path", "video", "video_path", "file", "filename", "name")
_LABEL_COLUMNS = ("label", "class", "category", "target", "template")


@dataclass(frozen=True)
class Config:
    """Where the videos and their labels are."""

    path: str = ""  # the folder; give it as source.path=/my/videos
    splits: dict[str, str] | None = None  # split -> subfolder; null: train, val, test if there is a train, else none
    classes: Literal["auto", "folders", "none"] = "auto"  # auto: subfolders are classes if there are any
    labels: str | dict[str, str] | None = None  # CSV or JSON file, or one for each split; only listed videos count
    folder: str = ""  # of the listed videos, below path
    suffix: str = ""  # that listed names lack, such as .webm
    missing: Literal["error", "skip"] = "error"  # a listed video that is not there: stop, or leave it out and say so

    def __post_init__(self) -> None:
        if self.splits is not None and not self.splits:
            raise ConfigError("splits: give at least one split, e.g. {train: train, test: val}, or null")
        if self.labels is not None and self.splits is not None:
            raise ConfigError("labels and splits: CSV files say which videos a split holds; give only one of the two")


def open_source(config: Config) -> Source:
    """The source; tasks are paths relative to the folder, with / between parts.

    Raises:
        ConfigError: no path given.
        DataError: the folder or a label file is missing or unreadable, names videos that are not there, or no video
            is found.
    """
    if not config.path:
        raise ConfigError("source.path is empty: say where the videos are, e.g. source.path=/my/videos")
    root = Path(config.path).expanduser()
    if not root.is_dir():
        state = "is not a folder" if root.exists() else "does not exist"
        raise DataError(f"source.path={config.path!r} {state}. Give a folder of {', '.join(sorted(READ))} videos")
    if config.labels is not None:
        return _listed(config, root)
    root = root / config.folder
    if not root.is_dir():
        raise DataError(f"source.folder={config.folder!r}: there is no folder {root}")
    still = folder.Config(config.path, config.splits, config.classes)
    found = folder.listing(still, root, READ, "videos")
    return dataclasses.replace(
        found, notes=[n.replace("images", "videos").replace("image", "video") for n in found.notes]
    )


def _listed(config: Config, root: Path) -> Source:
    assert config.labels is not None
    files = {"": config.labels} if isinstance(config.labels, str) else config.labels
    lists = {split: _list_at(root, name) for split, name in files.items()}
    root = root / config.folder
    rows = {split: [(f"{p}{config.suffix}", c) for p, c in _read(path, root)] for split, path in lists.items()}
    names = sorted({label for listed in rows.values() for _, label in listed if label is not None})
    numbers = [int(n) for n in names if n.isascii() and n.isdigit()]
    if len(numbers) == len(names):  # class numbers; classes that no video has still count
        classes = [str(i) for i in range(max(numbers, default=-1) + 1)]
    else:
        classes = names
    places, gone = {name: i for i, name in enumerate(classes)}, []
    splits: dict[str, list[str]] = {}
    labels: dict[str, int] = {}
    for split, listed in rows.items():
        kept = []
        for path, label in listed:
            if not (root / path).is_file():
                gone.append(path)
                continue
            number = places[str(int(label))] if label is not None and len(numbers) == len(names) else None
            labels[path] = -1 if label is None else number if number is not None else places[label]
            kept.append(path)
        splits[split] = sorted(dict.fromkeys(kept))
    if gone and config.missing == "error":
        raise DataError(
            f"{len(gone)} of {sum(map(len, rows.values()))} videos listed in {', '.join(files.values())} are not in "
            f"{root}: {', '.join(gone[:3])}{' ...' if len(gone) > 3 else ''}. Mend source.path or the list, or leave "
            "them out with source.missing=skip"
        )
    if not any(splits.values()):
        raise DataError(f"none of the videos listed in {', '.join(files.values())} is in {root}")
    notes = [f"{len(gone)} listed videos are not there and were left out, such as {gone[0]}"] if gone else []
    return Source(splits=dict(splits), maker=Listed(root, labels), classes=classes, notes=notes)


def _list_at(root: Path, name: str) -> Path:
    """A list of labels as it is given, or below the source's folder."""
    given = Path(name).expanduser()
    return root / given if not given.is_absolute() and not given.exists() and (root / given).exists() else given


def _read(path: Path, root: Path) -> list[tuple[str, str | None]]:
    """(path relative to the root where it lies below it, label or None) of every line."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read source.labels={path}: {error}") from None
    if path.suffix.lower() == ".json":
        return _objects(text, path)
    lines = [line for line in text.splitlines() if line.strip()]
    if not lines:
        raise DataError(f"source.labels={path} is empty: write one line per video, PATH,LABEL or PATH LABEL")
    rows = _columns(lines)
    place, label = 0, 1 if max(map(len, rows)) > 1 else None
    head = [cell.strip().lower() for cell in rows[0]]
    if any(name in head for name in _PATH_COLUMNS):
        place = next(head.index(name) for name in _PATH_COLUMNS if name in head)
        label = next((head.index(name) for name in _LABEL_COLUMNS if name in head), None)
        rows = rows[1:]
    out: list[tuple[str, str | None]] = []
    for number, row in enumerate(rows, 1):
        if place >= len(row) or (label is not None and label >= len(row)):
            raise DataError(f"source.labels={path}: line {number} has {len(row)} columns, expected PATH,LABEL: {row}")
        name = Path(row[place].strip())
        if name.is_absolute() and name.is_relative_to(root):
            name = name.relative_to(root)
        out.append((name.as_posix(), row[label].strip() if label is not None else None))
    return out


def _objects(text: str, path: Path) -> list[tuple[str, str | None]]:
    """Names and labels of a JSON list of objects."""
    try:
        rows = json.loads(text)
        assert isinstance(rows, list) and all(isinstance(row, dict) for row in rows)
    except (ValueError, AssertionError, RecursionError):
        raise DataError(f"source.labels={path} is no JSON list of objects") from None
    out: list[tuple[str, str | None]] = []
    for number, row in enumerate(rows, 1):
        name = next((row[key] for key in (*_PATH_COLUMNS, "id") if key in row), None)
        # what a template leaves open stands in brackets
        label = next((row[key] for key in ("template", *_LABEL_COLUMNS) if key in row), None)
        if name is None:
            raise DataError(f"source.labels={path}: object {number} has no id, and none of {', '.join(_PATH_COLUMNS)}")
        out.append((str(name), None if label is None else str(label).replace("[", "").replace("]", "")))
    return out


def _columns(lines: list[str]) -> list[list[str]]:
    for mark in (",", "\t", ";"):
        if all(mark in line for line in lines):
            return list(csv.reader(lines, delimiter=mark))
    if all(len(line.rsplit(None, 1)) == 2 and line.rsplit(None, 1)[1].isdigit() for line in lines):
        return [line.rsplit(None, 1) for line in lines]  # a path may hold spaces, the number after it none
    return [[line] for line in lines]


@dataclass(frozen=True)
class Listed:
    """Reads one file of a list."""

    root: Path
    labels: dict[str, int]

    def __call__(self, path: str) -> Sample:
        try:
            data = (self.root / path).read_bytes()
        except OSError as error:
            raise DataError(f"cannot be read: {error.strerror or error}") from None
        return Sample(data, self.labels[path], hashed("original", path), path, media="video")


__all__ = ["Config", "Listed", "open_source"]
