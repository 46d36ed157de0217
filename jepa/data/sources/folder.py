"""A folder of images, with class subfolders or without, with train/val/test subfolders or without."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from jepa.data import labelmap
from jepa.data.labelmap import LabelMap, MapConfig
from jepa.data.sources.base import Sample, Source, hashed
from jepa.errors import ConfigError, DataError

READ = frozenset({".jpg", ".jpeg", ".jpe", ".png", ".webp", ".bmp"})
# known as images, but not decoded: named in a note, so that nobody wonders where they went
_OTHER_IMAGES = frozenset({".gif", ".tif", ".tiff", ".heic", ".heif", ".avif", ".jp2", ".jxl", ".svg", ".ppm", ".tga"})
_USUAL = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}


@dataclass(frozen=True)
class MapFolder(MapConfig):
    """Where the label maps are, and what their numbers mean."""

    path: str | dict[str, str] = ""  # folder below source.path that repeats the images' paths, or one for each split
    suffix: str = ".png"  # in place of the image's extension; ends in .png or .npy
    rename: dict[str, str] = field(default_factory=dict)  # parts of a file's name that read differently in the map's

    def __post_init__(self) -> None:
        super().__post_init__()
        if Path(f"x{self.suffix}").suffix not in (".png", ".npy"):
            raise ConfigError(f"suffix={self.suffix!r}: label maps are .png or .npy files")

    def of(self, image: str, subfolders: dict[str, str]) -> str:
        """The path of an image's map; both relative to the source's folder."""
        folder, base = os.path.dirname(image), self.path  # noqa: PTH120 - a Path per file is slow for millions
        if isinstance(base, dict):
            own = {s: sub for s, sub in subfolders.items() if not sub or image.startswith(f"{sub}/")}
            split = max(own, key=lambda s: len(own[s]))
            folder, base = os.path.relpath(folder, own[split] or "."), base[split]
        stem = os.path.splitext(os.path.basename(image))[0]  # noqa: PTH119, PTH122
        for old, new in self.rename.items():
            stem = stem.replace(old, new)
        return os.path.normpath(os.path.join(base, folder, stem + self.suffix)).replace(os.sep, "/")  # noqa: PTH118


@dataclass(frozen=True)
class Config:
    """Where the images are."""

    path: str = ""  # the folder; give it as source.path=/my/images
    splits: dict[str, str] | None = None  # split -> subfolder; null: train, val, test if there is a train, else none
    classes: Literal["auto", "folders", "none"] = "auto"  # auto: subfolders are classes if there are any
    maps: dict[str, MapFolder] = field(default_factory=dict)  # label maps by name, one for every image

    def __post_init__(self) -> None:
        labelmap.check_names(self.maps)
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
    places = {s: "" if sub in ("", ".") else Path(sub).as_posix() for s, sub in (subfolders or {"": ""}).items()}
    found = {split: paths_below(root, sub, wanted, other) for split, sub in places.items()}
    spare = _leave_out_maps(config, found, places)
    empty = [f"{root / sub}" for split, sub in subfolders.items() if not found[split]]
    if empty or not any(found.values()):
        where = ", ".join(empty) or str(root)
        seen = ", ".join(f"{n} {suffix or 'without extension'}" for suffix, n in other.most_common(5)) or "nothing"
        raise DataError(f"no {what} in {where}: looked for {', '.join(sorted(wanted))} at any depth, found {seen}")
    depth = {split: len(Path(sub).parts) for split, sub in (subfolders or {"": ""}).items()}
    classes = _classes(config, found, depth)
    numbers = {name: i for i, name in enumerate(classes)}
    maker = Maker(root, numbers, places, config.maps, "video" if what == "videos" else "image")
    notes = _notes(found, depth, classes, other) + spare
    return Source(splits=dict(found), maker=maker, classes=classes, notes=notes, maps=dict(config.maps))


def _leave_out_maps(config: Config, found: dict[str, list[str]], places: dict[str, str]) -> list[str]:
    """Take label maps that lie among the images out of the list, in place; what is to be noted.

    Raises:
        ConfigError: maps for other splits than there are, or the images themselves as maps.
    """
    notes: list[str] = []
    for name, where in config.maps.items():
        if isinstance(where.path, dict) and set(where.path) != set(places):
            there = ", ".join(places) if "" not in places else "none: give one folder"
            raise ConfigError(f"source.maps.{name}.path names the splits {', '.join(where.path)}; there are {there}")
        images = [p for paths in found.values() for p in paths]
        maps = {place for p in images if (place := where.of(p, places)) != p}
        alone = [p for p in images if p not in maps and where.of(p, places) == p]
        if alone and not maps:
            raise ConfigError(
                f"source.maps.{name} leads from {alone[0]} to itself: say where the maps are with path, suffix, rename"
            )
        if alone:
            notes.append(f"{len(alone)} label maps {name!r} have no image and were left out, such as {alone[0]}")
            maps.update(alone)
        found.update({split: [p for p in paths if p not in maps] for split, paths in found.items()})
    return notes


def _usual_splits(root: Path) -> dict[str, str]:
    if not (root / "train").is_dir():
        return {}
    usual = {split: [n for n in names if (root / n).is_dir()] for split, names in _USUAL.items()}
    return {split: names[0] for split, names in usual.items() if names}


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


def class_of(path: str, depth: int) -> str | None:
    """The first folder below the split's own, if there is one."""
    parts = path.split("/")
    return parts[depth] if len(parts) > depth + 1 else None


def _classes(config: Config, found: dict[str, list[str]], depth: dict[str, int]) -> list[str]:
    if config.classes == "none":
        return []
    names = {class_of(p, depth[split]) for split, paths in found.items() for p in paths}
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
    loose = sum(class_of(p, depth[s]) is None for s, paths in found.items() for p in paths) if classes else 0
    if loose:
        notes.append(f"{loose} images lie beside the class folders and have no label")
    if classes and "train" in found:
        trained = {class_of(p, depth["train"]) for p in found["train"]}
        unseen = [c for c in classes if c not in trained]
        if unseen:
            notes.append(f"{len(unseen)} classes have no training image, such as {', '.join(unseen[:5])}")
    return notes


@dataclass(frozen=True)
class Maker:
    """Reads one file."""

    root: Path
    classes: dict[str, int]
    subfolders: dict[str, str]  # of the splits
    maps: dict[str, MapFolder]
    media: Literal["image", "video"] = "image"  # a file that is something else is left out

    def __call__(self, path: str) -> Sample:
        try:
            data = (self.root / path).read_bytes()
        except OSError as error:
            raise DataError(f"cannot be read: {error.strerror or error}") from None
        maps = tuple(self._map(name, where, path) for name, where in self.maps.items())
        return Sample(data, self._label(path), hashed("original", path), path, maps=maps, media=self.media)

    def _map(self, name: str, where: MapFolder, image: str) -> LabelMap:
        path = where.of(image, self.subfolders)
        try:
            data = (self.root / path).read_bytes()
        except OSError as error:
            raise DataError(f"its label map {name!r} cannot be read: {path}: {error.strerror or error}") from None
        return LabelMap(name, data, where.suffix.rpartition(".")[2], where)

    def _label(self, path: str) -> int:
        if not self.classes:
            return -1
        own = [p for p in self.subfolders.values() if p and path.startswith(f"{p}/")]
        depth = max((len(Path(p).parts) for p in own), default=0)
        name = class_of(path, depth)
        return -1 if name is None else self.classes[name]
