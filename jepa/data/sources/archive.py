"""Images or videos in tars and zips, read where they are: one archive, or a folder of them.

A file's path is that of its archive below the folder, without its ending, and the file's own path in it: dogs.zip with
1.jpg is dogs/1.jpg, like a folder. So an archive for each class, each split, or everything all work. Tars inside of a
tar count as folders too, which is how ImageNet's training images come (ILSVRC2012_img_train.tar).
"""

from __future__ import annotations

import functools
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

from jepa.data import storage
from jepa.data.sources import folder, videos
from jepa.data.sources.base import Sample, Source, hashed
from jepa.data.tarindex import Tar
from jepa.errors import ConfigError, DataError

READ = frozenset({".tar", ".zip"})
_PACKED = (".tgz", ".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst", ".7z", ".rar")
_USUAL = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
_MOST_BYTES = 8_000_000_000  # of a file; what claims more is a bomb, or no sample
_IN_ZIP = -1  # offset of a file that is found by its name


@dataclass(frozen=True)
class Config:
    """Which archives, and what in them is what."""

    path: str = ""  # a .tar or .zip, or a folder of them
    inside: str = ""  # folder in them that is taken; the rest is left alone
    splits: dict[str, str] | None = None  # split -> archive or folder in it; null: train, val, test if there is a train
    classes: Literal["auto", "folders", "none"] = "auto"  # auto: folders (and archives) are classes if there are any
    media: Literal["auto", "image", "video"] = "auto"  # auto: what there is; where there are both, say which

    def __post_init__(self) -> None:
        if self.splits is not None and not self.splits:
            raise ConfigError("splits: give at least one split, e.g. {train: train, test: val}, or null")


@dataclass(frozen=True)
class Member:
    """One file in an archive."""

    name: str  # archive's name without ending / path in it
    archive: str  # relative to the source's folder
    size: int  # bytes of the archive
    inner: str  # its own name, for a zip
    offset: int  # in a tar; _IN_ZIP in a zip
    length: int

    def __str__(self) -> str:
        return self.name


def open_source(config: Config) -> Source:
    """The source; tasks are members.

    Raises:
        ConfigError: no path given, or images and videos together.
        DataError: no archive there, or none with a file that is read.
    """
    if not config.path:
        raise ConfigError(
            "source.path is empty: give a .tar or .zip, or a folder of them, e.g. source.path=/my/data.zip"
        )
    path = Path(config.path).expanduser()
    root, archives = _archives(path, config.path)
    unusable: list[tuple[str, str]] = []
    found: list[Member] = []
    for archive in archives:
        found += _members(root, archive, len(archives) > 1 or path.is_dir(), unusable)
    inside = config.inside.strip("/")
    if inside:
        found = [m for m in found if m.name.startswith(f"{inside}/")]
    kinds = {"image": folder.READ, "video": videos.READ}
    by_kind = {kind: [m for m in found if PurePosixPath(m.name).suffix.lower() in read] for kind, read in kinds.items()}
    there = [kind for kind, members in by_kind.items() if members]
    if config.media == "auto" and len(there) > 1:
        raise ConfigError("source.media: the archives hold images and videos. Say which: image or video")
    media: Literal["image", "video"] = (
        config.media if config.media != "auto" else "video" if there == ["video"] else "image"
    )
    if not by_kind[media]:
        seen = Counter(PurePosixPath(m.name).suffix.lower() or "without extension" for m in found)
        listed = ", ".join(f"{n} {suffix}" for suffix, n in seen.most_common(5)) or "nothing"
        said = f". The first problem: {unusable[0][0]}: {unusable[0][1]}" if unusable else ""
        raise DataError(f"no {media}s in {config.path}{f' below {inside}' if inside else ''}: found {listed}{said}")
    splits, depth = _splits(config, sorted(by_kind[media], key=lambda m: m.name), inside)
    classes = _classes(config, splits, depth)
    numbers = {name: i for i, name in enumerate(classes)}
    labels = {split: depth[split] for split in splits}
    maker = Maker(root, numbers, tuple((_prefix(config, split), labels[split]) for split in splits), media)
    return Source(dict(splits), maker, classes, unusable=unusable)


def _archives(path: Path, given: str) -> tuple[Path, list[str]]:
    """The folder, and the archives below it."""
    if not path.exists():
        raise DataError(f"source.path={given!r} does not exist. Give a .tar or .zip, or a folder of them")
    if path.is_file():
        return path.parent, [path.name]
    files = sorted(p.relative_to(path).as_posix() for p in path.rglob("*") if not p.name.startswith("."))
    found = [name for name in files if PurePosixPath(name).suffix.lower() in READ]
    if not found:
        packed = [name for name in files if name.lower().endswith(_PACKED)]
        more = f". {packed[0]} is compressed as a whole: unpack it once, or zip its files" if packed else ""
        raise DataError(f"source.path={given!r} holds no .tar or .zip, on no level{more}")
    return path, found


def _members(root: Path, archive: str, named: bool, unusable: list[tuple[str, str]]) -> Iterator[Member]:
    """The plain files of an archive; what is wrong with it goes to `unusable`.

    Raises:
        DataError: it is compressed as a whole.
    """
    path = root / archive
    base = f"{PurePosixPath(archive).with_suffix('').as_posix()}/" if named else ""
    size = path.stat().st_size
    try:
        listed = _in_zip(path) if zipfile.is_zipfile(path) else _in_tar(path, unusable)
        for name, offset, length in listed:
            parts = PurePosixPath(name).parts
            if any(part.startswith(".") or part == "__MACOSX" for part in parts):
                continue
            if length > _MOST_BYTES:
                unusable.append((f"{base}{name}", f"it claims {length} bytes, at most {_MOST_BYTES} are read"))
                continue
            inner = name if offset == _IN_ZIP else ""
            yield Member(f"{base}{'/'.join(parts)}", archive, size, inner, offset, length)
    except (OSError, zipfile.BadZipFile, NotImplementedError) as error:
        unusable.append((archive, f"it cannot be read: {error}"))


def _in_zip(path: Path) -> Iterator[tuple[str, int, int]]:
    with zipfile.ZipFile(path) as file:
        for info in file.infolist():
            if not info.is_dir():
                yield info.filename, _IN_ZIP, info.file_size


def _in_tar(path: Path, unusable: list[tuple[str, str]]) -> Iterator[tuple[str, int, int]]:
    tar = Tar(path)
    try:
        inner = []
        for name, offset, length in tar.members():
            if name.lower().endswith(".tar"):
                inner.append((name[: -len(".tar")], offset))
            else:
                yield name, offset, length
        if tar.broken is not None:
            unusable.append((path.name, tar.broken))
        for base, start in inner:
            yield from ((f"{base}/{name}", offset, length) for name, offset, length in tar.members(start))
            if tar.broken is not None:
                unusable.append((f"{path.name}/{base}.tar", tar.broken))
    finally:
        tar.close()


def _prefix(config: Config, split: str) -> str:
    """Where a split's files lie, as the configuration says it."""
    given = (config.splits or {}).get(split, "")
    return (
        str(PurePosixPath(given).with_suffix("")) if PurePosixPath(given).suffix.lower() in READ else given.strip("/")
    )


def _splits(config: Config, found: list[Member], inside: str) -> tuple[dict[str, list[Member]], dict[str, int]]:
    """Members by split, and how many folders lie above each split's classes."""
    start = len(PurePosixPath(inside).parts) if inside else 0
    if config.splits is not None:
        prefixes = {split: _prefix(config, split) for split in config.splits}
        splits = {s: [m for m in found if not p or m.name.startswith(f"{p}/")] for s, p in prefixes.items()}
        empty = [f"{split} ({config.splits[split]})" for split, members in splits.items() if not members]
        if empty:
            tops = sorted({m.name.partition("/")[0] for m in found})
            raise DataError(
                f"source.splits: nothing for {', '.join(empty)}; at the top there are {', '.join(tops[:8])}"
            )
        return splits, {split: len(PurePosixPath(p).parts) if p else start for split, p in prefixes.items()}
    paths = [m.name.split("/") for m in found]
    shared = start
    while all(len(parts) > shared + 1 and parts[shared] == paths[0][shared] for parts in paths):
        shared += 1
    for level in range(start, shared + 1):  # one folder around everything is usual
        usual = {parts[level] for parts in paths if len(parts) > level + 1} & set(_USUAL)
        if "train" in usual:
            by_split: dict[str, list[Member]] = {}
            for member, parts in zip(found, paths, strict=True):
                if len(parts) > level + 1 and parts[level] in usual:
                    by_split.setdefault(_USUAL[parts[level]], []).append(member)
            return by_split, dict.fromkeys(by_split, level + 1)
    return {"": found}, {"": start}


def _classes(config: Config, splits: dict[str, list[Member]], depth: dict[str, int]) -> list[str]:
    if config.classes == "none":
        return []
    names = {folder.class_of(m.name, depth[split]) for split, members in splits.items() for m in members}
    classes = sorted(name for name in names if name is not None)
    if config.classes == "folders" and not classes:
        raise DataError("source.classes=folders, but the files lie in no folders. Use source.classes=none")
    return classes


@dataclass(frozen=True)
class Maker:
    """Reads one file out of an archive."""

    root: Path
    classes: dict[str, int]
    depths: tuple[tuple[str, int], ...]  # prefix of each split and how many folders lie above its classes
    media: Literal["image", "video"]

    def __call__(self, member: Member) -> Sample:
        path = self.root / member.archive
        try:
            if member.offset == _IN_ZIP:
                data = _zip(str(path), member.size).read(member.inner)
            else:
                data = storage.read(path, member.size, member.offset, member.length)
        except (
            OSError,
            zipfile.BadZipFile,
            zlib.error,
            EOFError,
            RuntimeError,
            NotImplementedError,
            KeyError,
        ) as error:
            raise DataError(f"it cannot be read out of {member.archive}: {error}") from None
        label = self._label(member.name)
        return Sample(data, label, hashed("original", member.name), member.name, media=self.media)

    def _label(self, name: str) -> int:
        depth = max((d for prefix, d in self.depths if not prefix or name.startswith(f"{prefix}/")), default=0)
        found = folder.class_of(name, depth) if self.classes else None
        return -1 if found is None else self.classes[found]


@functools.lru_cache(maxsize=8)
def _zip(path: str, size: int) -> zipfile.ZipFile:
    """An open zip; its list of files is read once in every process."""
    if Path(path).stat().st_size != size:
        raise DataError(f"{path} was replaced since it was listed")
    return zipfile.ZipFile(path)


__all__ = ["Config", "Maker", "Member", "open_source"]
