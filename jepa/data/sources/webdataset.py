"""Existing webdataset tars, on local disks or at URLs: indexed in place, or repacked into shards of our own."""

from __future__ import annotations

import glob
import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import braceexpand

from jepa.data import decode, labelmap, remote, storage
from jepa.data.labelmap import LabelMap, MapConfig
from jepa.data.manifest import DECODED, EXTENSIONS, VIDEOS
from jepa.data.remote import Place, Url
from jepa.data.sources.base import References, Sample, Source, TarSample, hashed
from jepa.data.tarindex import Group, Tar, json_value
from jepa.data.video.probe import Facts, probe
from jepa.data.video.scan import decode_whole
from jepa.errors import ConfigError, DataError

Where = tuple[Place, int]  # a tar, and its size in bytes
_MOST_TARS = 1_000_000
_MOST_CLASSES = 1_000_000


@dataclass(frozen=True)
class Config:
    """Which tars, and what in them is what."""

    shards: str | list[str] | dict[str, str] = ""  # pattern(s) with * and {000..099}, or one for each split
    image: str = "auto"  # extension that holds the image or video; auto: a video that is read, else an image
    label: str = "auto"  # cls, another extension, json.KEY or none; auto: cls where there is one
    classes: list[str] | None = None  # names of the classes, needed where labels are words
    original: str | None = None  # json.KEY naming the original image that samples were made from
    targets: dict[str, str] = field(default_factory=dict)  # continuous targets: name -> json.KEY
    maps: dict[str, MapConfig] = field(default_factory=dict)  # label maps, members NAME.png or NAME.npy, by name
    copy: bool = False  # repack into shards of our own instead of reading in place
    verify: bool = False  # decode every image, map and frame while indexing

    def __post_init__(self) -> None:
        if self.image != "auto" and self.image.rpartition(".")[2] not in DECODED:
            raise ConfigError(f"image={self.image!r}: only {', '.join(DECODED)} are decoded; data is never code")
        if self.label.lower() in ("pkl", "pickle", "pyd", "pt", "pth", "npy", "npz"):
            raise ConfigError(f"label={self.label!r}: such files can carry code or need unpacking; use cls or json.KEY")
        named = {"original": self.original, **{f"targets.{k}": v for k, v in self.targets.items()}}
        for where, value in named.items():
            if value is not None and not re.fullmatch(r"json\..+", value):
                raise ConfigError(f"{where}={value!r}: write json.KEY")
        if any(not re.fullmatch(r"[A-Za-z0-9_-]+", name) for name in self.targets):
            raise ConfigError(f"targets: names are letters, digits, - and _, got {', '.join(self.targets)}")
        labelmap.check_names(self.maps)


def open_source(config: Config) -> Source | References:
    """The tars in place, or with `copy` a source that repacks their samples.

    Raises:
        ConfigError: no pattern, or one that is neither a path nor a URL that may be read.
        DataError: a pattern that matches nothing; with `copy` also a compressed or foreign file.
    """
    if not config.shards:
        raise ConfigError("source.shards is empty: give a pattern, e.g. 'source.shards=/data/train-{000..099}.tar'")
    patterns = config.shards if isinstance(config.shards, dict) else {"": config.shards}
    tars = {split: expand(given) for split, given in patterns.items()}
    targets = list(config.targets)
    if not config.copy:
        return References(tars, Indexer(config), config.classes, targets, maps=dict(config.maps))
    return _repacked(config, tars, targets)


def expand(given: str | list[str]) -> list[Place]:
    """The tars that patterns name: braces are expanded, then wildcards; each tar once, sorted within a pattern."""
    found: dict[Place, None] = {}
    for pattern in [given] if isinstance(given, str) else given:
        if remote.is_url(pattern):
            remote.checked(pattern)
        ranges = re.findall(r"\{(\d+)\.\.(\d+)", pattern)
        if math.prod(abs(int(last) - int(first)) + 1 for first, last in ranges) > _MOST_TARS:
            raise ConfigError(f"source.shards={pattern!r} names more than {_MOST_TARS} files")
        try:
            names = list(braceexpand.braceexpand(pattern))
        except ValueError as error:
            raise ConfigError(f"source.shards={pattern!r}: {error}") from None
        for name in names:
            if remote.is_url(name):
                found |= dict.fromkeys(remote.listed(name) if "*" in name else [Url(name)])
                continue
            path = Path(name).expanduser()
            matches = [path] if path.exists() else [Path(m) for m in sorted(glob.glob(str(path)))]  # noqa: PTH207
            if not matches:
                raise DataError(f"source.shards={pattern!r}: there is no {name}")
            found |= dict.fromkeys(matches)
    return list(found)


@dataclass(frozen=True)
class Indexer:
    """Turns a tar into the places and labels of its samples."""

    config: Config
    probing: bool = True  # find out where the frames of videos lie

    def __call__(self, path: Path) -> Iterator[TarSample | tuple[str, str]]:
        """The samples of a tar; for one that cannot be used, its name and why.

        Raises:
            DataError: compressed, unreadable, or not a tar.
        """
        tar = Tar(path)
        try:
            for group in tar.groups():
                try:
                    yield self._sample(tar, group)
                except DataError as error:
                    yield f"{path.name}/{group.key}", str(error)
            if tar.broken is not None:
                yield str(path), tar.broken
        finally:
            tar.close()

    def _sample(self, tar: Tar, group: Group) -> TarSample:
        extension = self._image_extension(group)
        offset, length = group.files[extension]
        last = extension.rpartition(".")[2]
        if length == 0:
            raise DataError(f"the {'video' if last in VIDEOS else 'image'} is empty (0 bytes)")
        size, video, facts = (0, 0), (0.0, 0.0, 0.0), b""
        if last in VIDEOS and self.probing:
            found = self._facts(tar, group, extension)
            size, video, facts = (found.height, found.width), found.numbers, found.to_json()
        elif last not in VIDEOS and self.config.verify:
            _, *shape = decode.decode(tar.read((offset, length))).shape
            size = (shape[0], shape[1])
        maps = self._maps(tar, group, size)
        name = f"{tar.path.name}/{group.key}"
        original = name if self.config.original is None else str(self._field(tar, group, self.config.original))
        targets = tuple(_number(self._field(tar, group, k), n) for n, k in self.config.targets.items())
        kind, label = EXTENSIONS.index(last), self._label(tar, group)
        return TarSample(
            group.key, offset, length, kind, label, hashed("original", original), targets, size, name, video, facts,
            maps,
        )  # fmt: skip

    def _facts(self, tar: Tar, group: Group, extension: str) -> Facts:
        """What is known of a video: a tar of our own has it beside the video, another one is probed.

        Raises:
            DataError: it is broken, or with `verify` does not decode to its end.
        """
        kept = group.files.get("facts.json")
        if kept is not None and not self.config.verify:
            try:
                return Facts.from_dict(json.loads(tar.read(kept)))
            except (DataError, ValueError, AttributeError):
                pass  # somebody else's facts
        data = tar.read(group.files[extension])
        facts = probe(data)
        if self.config.verify:
            decode_whole(data, facts)
        return facts

    def _maps(self, tar: Tar, group: Group, size: tuple[int, int]) -> tuple[tuple[int, int, int], ...]:
        """The places of the label maps; with `verify` also read and compared with the image's size."""
        places = []
        for name, config in self.config.maps.items():
            there = [e for e in labelmap.EXTENSIONS if f"{name}.{e}" in group.files]
            if not there:
                raise DataError(f"no label map {name}.png or {name}.npy; there are {', '.join(group.files)}")
            place = group.files[f"{name}.{there[0]}"]
            if self.config.verify:
                labelmap.check(LabelMap(name, tar.read(place), there[0], config), size)
            places.append((*place, labelmap.EXTENSIONS.index(there[0])))
        return tuple(places)

    def _image_extension(self, group: Group) -> str:
        if self.config.image != "auto":
            if self.config.image not in group.files:
                raise DataError(f"no .{self.config.image} file; there are {', '.join(group.files)}")
            return self.config.image
        maps = {f"{name}.{e}" for name in self.config.maps for e in labelmap.EXTENSIONS}
        found = [e for e in group.files if e not in maps and e.rpartition(".")[2] in DECODED]
        # an image beside a video is its preview
        found.sort(key=lambda e: e.rpartition(".")[2] not in VIDEOS)
        if not found:
            raise DataError(
                f"no image or video that is decoded ({', '.join(DECODED)}); there are {', '.join(group.files)}"
            )
        return found[0]

    def _label(self, tar: Tar, group: Group) -> int:
        wanted = self.config.label
        if wanted == "none" or (wanted == "auto" and "cls" not in group.files):
            return -1
        value = self._field(tar, group, "cls" if wanted == "auto" else wanted)
        classes = self.config.classes
        if isinstance(value, str) and classes is not None and value.strip() in classes:
            return classes.index(value.strip())
        try:
            number = int(value)
            if number != value and not isinstance(value, str):
                raise ValueError
        except (TypeError, ValueError, OverflowError):
            shown = str(value)[:40]
            raise DataError(f"label {shown!r} is not a number; list the names under source.classes") from None
        most = len(classes) if classes is not None else _MOST_CLASSES
        if number >= most:
            raise DataError(f"label {number} is too large: there are {most} classes")
        return max(number, -1)

    def _field(self, tar: Tar, group: Group, where: str) -> Any:
        extension, dot, key = where.partition(".") if where.startswith("json.") else (where, "", "")
        if extension not in group.files:
            raise DataError(f"no .{extension} file; there are {', '.join(group.files)}")
        text = tar.text(group.files[extension])
        return json_value(text, key) if dot else text.strip()


def _number(value: Any, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise DataError(f"target {name!r} is {value!r}, not a finite number")
    return float(value)


def _repacked(config: Config, tars: dict[str, list[Place]], targets: list[str]) -> Source:
    tasks: dict[str, list[Any]] = {}
    bad: list[tuple[str, str]] = []
    most = -1
    for split, paths in tars.items():
        tasks[split] = []
        for tar in paths:
            path = remote.local(tar)
            where = (tar, path.stat().st_size)
            for found in Indexer(config, probing=False)(path):
                if isinstance(found, TarSample):
                    most = max(most, found.label)
                    tasks[split].append((where, found))
                else:
                    bad.append(found)
    classes = config.classes if config.classes is not None else [str(i) for i in range(most + 1)]
    maker = Repacker(dict(config.maps))
    return Source(dict(tasks), maker, classes, targets, unusable=bad, identity=_task_name, maps=maker.maps)


def _task_name(task: tuple[Where, TarSample]) -> str:
    return str(task[1].original)  # two cuts of one picture must not end up in two splits


@dataclass(frozen=True)
class Repacker:
    """Reads single samples out of tars."""

    maps: dict[str, MapConfig]

    def __call__(self, task: tuple[Where, TarSample]) -> Sample:
        (tar, size), found = task
        places = [(found.offset, found.length), *(place[:2] for place in found.maps)]
        try:
            data, *maps = (storage.read(tar, size, offset, length) for offset, length in places)
        except OSError as error:
            raise DataError(f"cannot read {tar}: {error.strerror or error}") from None
        kinds = [labelmap.EXTENSIONS[place[2]] for place in found.maps]
        listed = zip(self.maps.items(), maps, kinds, strict=True)
        labelled = tuple(LabelMap(name, content, kind, meant) for (name, meant), content, kind in listed)
        return Sample(data, found.label, found.original, found.name, found.targets, maps=labelled)
