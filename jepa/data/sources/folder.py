"""A folder of images, with class subfolders or without, with train/val/test subfolders or without."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from jepa.data.sources.base import Sample, Source, hashed
from jepa.errors import ConfigError, DataError

READ = frozenset({".jpg", ".jpeg", ".jpe", ".png", ".webp", ".bmp"})
# known as images, but not decoded: named in a note, so that nobody wonders where they went
_OTHER_IMAGES = frozenset({".gif", ".tif", ".tiff", ".heic", ".heif", ".avif", ".jp2", ".jxl", ".svg", ".ppm", ".tga"})
_USUAL = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}


@dataclass(frozen=True)
class Config:
    """Where the images are."""

    path: str = ""  # the folder; give it as source.path=/my/images
    splits: dict[str, str] | None = None  # split -> subfolder; null: train, val, test if there is a train, else none
    classes: Literal["auto", "folders", "none"] = "auto"  # auto: subfolders are classes if there are any

    def __post_init__(self) -> None:
        if self.splits is not None and not self.splits:
            raise ConfigError("splits: give at least one split, e.g. {train: train, test: val}, or null")


def open_source(config: Config) -> Source:
    """The source; tasks are paths relative to the folder, with / between parts.

    Raises:
        ConfigError: no path given.
        DataError: the folder is missing, unreadable, or holds no images.
    """
    if not config.path:
        raise ConfigError("source.path is empty: say where the images are, e.g. source.path=/my/images")
    root = Path(config.path).expanduser()
    if not root.is_dir():
        state = "is not a folder" if root.exists() else "does not exist"
        raise DataError(f"source.path={config.path!r} {state}. Give a folder of {', '.join(sorted(READ))} images")
    return listing(config, root, READ, "images")


def listing(config: Config, root: Path, wanted: frozenset[str], what: str) -> Source:
    """The files below `root` with a wanted extension, as a source; `what` they are, for messages."""
    subfolders = config.splits if config.splits is not None else _usual_splits(root)
    other: Counter[str] = Counter()
    found = {split: paths_below(root, sub, wanted, other) for split, sub in (subfolders or {"": ""}).items()}
    empty = [f"{root / sub}" for split, sub in subfolders.items() if not found[split]]
    if empty or not any(found.values()):
        where = ", ".join(empty) or str(root)
        seen = ", ".join(f"{n} {suffix or 'without extension'}" for suffix, n in other.most_common(5)) or "nothing"
        raise DataError(f"no {what} in {where}: looked for {', '.join(sorted(wanted))} at any depth, found {seen}")
    depth = {split: len(Path(sub).parts) for split, sub in (subfolders or {"": ""}).items()}
    classes = _classes(config, found, depth)
    maker = Maker(root, {name: i for i, name in enumerate(classes)}, tuple(sorted(_prefixes(subfolders))))
    return Source(splits=dict(found), maker=maker, classes=classes, notes=_notes(found, depth, classes, other))


def _usual_splits(root: Path) -> dict[str, str]:
    if not (root / "train").is_dir():
        return {}
    usual = {split: [n for n in names if (root / n).is_dir()] for split, names in _USUAL.items()}
    return {split: names[0] for split, names in usual.items() if names}


def _prefixes(subfolders: dict[str, str]) -> set[str]:
    return {Path(sub).as_posix() for sub in subfolders.values()}


def paths_below(root: Path, sub: str, wanted: frozenset[str], other: Counter[str]) -> list[str]:
    """Sorted paths with a wanted extension below a subfolder, relative to the root; the rest is counted in `other`."""
    start = root / sub
    if not start.is_dir():
        raise DataError(f"{start} does not exist or is not a folder; source.splits says that a split is there")
    found, seen = [], set()

    def unreadable(error: OSError) -> None:
        raise DataError(f"cannot list {error.filename}: {error.strerror}. Make it readable, or move it away") from None

    for folder, subs, files in os.walk(start, followlinks=True, onerror=unreadable):
        status = Path(folder).stat()
        if (status.st_dev, status.st_ino) in seen:  # a link back up would never end
            subs.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        subs[:] = sorted(s for s in subs if not s.startswith(".") and s != "__MACOSX")
        for name in files:
            suffix = os.path.splitext(name)[1].lower()  # noqa: PTH122 - a Path per file is slow for millions
            if name.startswith("."):
                continue
            if suffix in wanted:
                found.append(os.path.relpath(os.path.join(folder, name), root).replace(os.sep, "/"))  # noqa: PTH118
            else:
                other[suffix] += 1
    return sorted(found)


def _class_of(path: str, depth: int) -> str | None:
    """The first folder below the split's own, if there is one."""
    parts = path.split("/")
    return parts[depth] if len(parts) > depth + 1 else None


def _classes(config: Config, found: dict[str, list[str]], depth: dict[str, int]) -> list[str]:
    if config.classes == "none":
        return []
    names = {_class_of(p, depth[split]) for split, paths in found.items() for p in paths}
    classes = sorted(n for n in names if n is not None)
    if config.classes == "folders" and not classes:
        raise DataError("source.classes=folders, but the images lie in no subfolders. Use source.classes=none")
    return classes


def _notes(found: dict[str, list[str]], depth: dict[str, int], classes: list[str], other: Counter[str]) -> list[str]:
    notes = []
    unread = {suffix: n for suffix, n in other.items() if suffix in _OTHER_IMAGES}
    if unread:
        listed = ", ".join(f"{n} {suffix}" for suffix, n in sorted(unread.items()))
        notes.append(f"image formats that are not read: {listed}; convert them to png or jpg to include them")
    loose = sum(_class_of(p, depth[s]) is None for s, paths in found.items() for p in paths) if classes else 0
    if loose:
        notes.append(f"{loose} images lie beside the class folders and have no label")
    if classes and "train" in found:
        trained = {_class_of(p, depth["train"]) for p in found["train"]}
        unseen = [c for c in classes if c not in trained]
        if unseen:
            notes.append(f"{len(unseen)} classes have no training image, such as {', '.join(unseen[:5])}")
    return notes


@dataclass(frozen=True)
class Maker:
    """Reads one file."""

    root: Path
    classes: dict[str, int]
    prefixes: tuple[str, ...]  # the splits' subfolders

    def __call__(self, path: str) -> Sample:
        try:
            data = (self.root / path).read_bytes()
        except OSError as error:
            raise DataError(f"cannot be read: {error.strerror or error}") from None
        return Sample(data, self._label(path), hashed("original", path), path)

    def _label(self, path: str) -> int:
        if not self.classes:
            return -1
        own = [p for p in self.prefixes if path.startswith(f"{p}/")]
        depth = max((len(Path(p).parts) for p in own), default=0)
        name = _class_of(path, depth)
        return -1 if name is None else self.classes[name]
