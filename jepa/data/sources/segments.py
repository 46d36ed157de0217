"""Timed segments of videos: a CSV file with one line per action, each of which becomes a sample of its own.

    file,label,start,stop
    kitchen/one.mp4,open,12.4,14.0
    kitchen/one.mp4,pour,00:00:15.2,00:00:19.0

A sample is the video from `before` seconds ahead of the action to `after` seconds behind its start (null: to its stop),
so that what led to the action can be looked at. The continuous target `onset` says when the action begins in the
sample, in seconds. Labels may be of several kinds (verb, noun, action), each a column or made of columns. Segments of
one video count as one original and stay in one split.
"""

from __future__ import annotations

import csv
import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

from jepa.data.sources.base import Sample, Source, Span, hashed, share
from jepa.errors import ConfigError, DataError

ONSET = "onset"
_COLUMN = re.compile(r"\{([^{}]*)\}")
_TIME = re.compile(r"(?:(?:(\d+):)?(\d+):)?(\d+(?:\.\d*)?)")


@dataclass(frozen=True)
class Config:
    """Where the videos and the list of segments are. Columns go by name, several as in "{one}/{other}.mp4"."""

    path: str = ""  # the folder of the videos; give it as source.path=/my/videos
    segments: str | dict[str, str] = ""  # CSV file with a header, or one for each split
    file: str = "file"  # the video, below the folder
    start: str = "start"  # when the segment begins: seconds, or hours:minutes:seconds
    stop: str = "stop"  # when it ends
    labels: dict[str, str] = field(default_factory=lambda: {"label": "label"})  # kinds of labels; the first counts
    before: float = 0.0  # seconds of video kept ahead of the start, as far as there are any
    after: float | None = None  # seconds kept behind the start; null: to the stop
    missing: Literal["error", "skip"] = "error"  # a listed video that is not there: stop, or leave it out and say so

    def __post_init__(self) -> None:
        if not (0 <= self.before < math.inf) or (self.after is not None and not 0 < self.after < math.inf):
            raise ConfigError(f"before={self.before:g}, after={self.after}: need before >= 0, after above 0 or null")
        if not self.labels or not all(re.fullmatch(r"[A-Za-z0-9_-]+", name) for name in self.labels):
            raise ConfigError(f"labels: give at least one kind, named in letters, digits, - and _; got {self.labels}")


class Task(NamedTuple):
    """One segment."""

    file: str  # below the folder
    start: float  # seconds
    stop: float
    labels: tuple[int, ...]  # class numbers by kind


class _Row(NamedTuple):
    file: str
    start: float
    stop: float
    labels: tuple[str, ...]  # words by kind


def open_source(config: Config) -> Source:
    """The source; tasks are `Task`s, those of one video one after the other.

    Raises:
        ConfigError: no path or list given, or a column that a list has not.
        DataError: the folder or a list is missing or unreadable, a line has no proper times, videos are not there.
    """
    if not config.path or not config.segments:
        raise ConfigError(
            "source.path and source.segments: say where the videos are and which CSV file lists their segments, e.g. "
            "source.path=/my/videos source.segments=/my/segments.csv"
        )
    root = Path(config.path).expanduser()
    if not root.is_dir():
        raise DataError(f"source.path={config.path!r} is not a folder. Give the folder of the listed videos")
    files = {"": config.segments} if isinstance(config.segments, str) else config.segments
    rows = {split: _read(Path(name).expanduser(), config) for split, name in files.items()}
    every = [row for listed in rows.values() for row in listed]
    there = {name: (root / name).is_file() for name in dict.fromkeys(row.file for row in every)}
    gone = [name for name, found in there.items() if not found]
    if gone and config.missing == "error":
        raise DataError(
            f"{len(gone)} of {len(there)} videos listed in {', '.join(files.values())} are not in {root}: "
            f"{', '.join(gone[:3])}{' ...' if len(gone) > 3 else ''}. Mend source.path, source.file or the list, or "
            "leave them out with source.missing=skip"
        )
    kept = {split: [row for row in listed if there[row.file]] for split, listed in rows.items()}
    if not any(kept.values()):
        raise DataError(f"none of the videos listed in {', '.join(files.values())} is in {root}")
    names = list(config.labels)
    kinds = {name: _classes([row.labels[k] for row in every]) for k, name in enumerate(names)}
    numbers = [{word: i for i, word in enumerate(kinds[name])} | {"": -1} for name in names]

    def task(row: _Row) -> Task:
        return Task(
            row.file, row.start, row.stop, tuple(n[_plain(w)] for n, w in zip(numbers, row.labels, strict=True))
        )

    # a keyed order of the videos, so that neighbouring shards differ
    splits = {s: sorted(map(task, rows), key=lambda t: (share(t.file), t)) for s, rows in kept.items()}
    notes = [f"{len(gone)} listed videos are not there and were left out, such as {gone[0]}"] if gone else []
    return Source(
        splits=dict(splits), maker=Segments(root, config.before, config.after), classes=kinds[names[0]],
        targets=[ONSET], notes=notes, identity=lambda t: str(t.file), kinds=kinds, together=True,
    )  # fmt: skip


def _classes(words: list[str]) -> list[str]:
    """Class names: numbers up to the largest, or the words in order."""
    used = {_plain(word) for word in words} - {""}
    if used and all(word.isdigit() for word in used):
        return [str(i) for i in range(max(map(int, used)) + 1)]
    return sorted(used)


def _plain(word: str) -> str:
    return str(int(word)) if word.isascii() and word.isdigit() else word


def _read(path: Path, config: Config) -> list[_Row]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream)
            head, lines = reader.fieldnames, list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"cannot read source.segments={path}: {error}") from None
    if not head or not lines:
        raise DataError(f"source.segments={path} lists nothing: write a header and one line per segment")
    for key, template in {"file": config.file, "start": config.start, "stop": config.stop, **config.labels}.items():
        named = _COLUMN.findall(template) if "{" in template else [template]
        wrong = [name for name in named if name not in head]
        if wrong:
            place = f"source.labels.{key}" if key in config.labels else f"source.{key}"
            raise ConfigError(
                f"{place}={template!r}: {path} has no column {', '.join(wrong)}; it has {', '.join(head)}"
            )
    rows = []
    for number, line in enumerate(lines, 2):
        values = {name: (line[name] or "").strip() for name in head}
        start, stop = (_seconds(_filled(t, values)) for t in (config.start, config.stop))
        if start is None or stop is None or stop <= start:
            raise DataError(
                f"source.segments={path}: line {number} runs from {_filled(config.start, values)!r} to "
                f"{_filled(config.stop, values)!r}; write seconds or hours:minutes:seconds, the stop after the start"
            )
        words = tuple(_filled(template, values) for template in config.labels.values())
        rows.append(_Row(Path(_filled(config.file, values)).as_posix(), start, stop, words))
    return rows


def _filled(template: str, values: dict[str, str]) -> str:
    """A column's value, or a text with the values of the columns in braces."""
    return values[template] if "{" not in template else _COLUMN.sub(lambda found: values[found[1]], template)


def _seconds(text: str) -> float | None:
    found = _TIME.fullmatch(text)
    if found is None:
        return None
    hours, minutes, seconds = (float(part or 0) for part in found.groups())
    return 3600 * hours + 60 * minutes + seconds


@dataclass(frozen=True)
class Segments:
    """Names the part of the file; the build cuts it out."""

    root: Path
    before: float
    after: float | None

    def __call__(self, task: Task) -> Sample:
        begin = max(0.0, task.start - self.before)
        end = task.stop if self.after is None else task.start + self.after
        return Sample(
            self.root / task.file, task.labels[0], hashed("original", task.file),
            f"{task.file} from {task.start:g} s", (task.start - begin,),
            span=Span(begin, end, whole=False), kinds=task.labels,
        )  # fmt: skip


__all__ = ["ONSET", "Config", "Segments", "Task", "open_source"]
