"""Samples that are not built yet: a folder, an archive, a list of videos, or whatever a recipe names.

They are opened as `jepa data build` opens them, so what is said of them, and by which name, holds for the build.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from jepa.data import decode, labelmap, recipe, sources
from jepa.data.check.look import Look, digest, odd_frames, odd_rows, odd_shape
from jepa.data.checkup import broken, image_verdict, with_oddity
from jepa.data.manifest import IMAGES, VIDEOS
from jepa.data.sources.base import Maker, Sample, Source, hashed
from jepa.data.video.crew import Job
from jepa.data.video.decode import decode as decode_video
from jepa.data.video.probe import probe
from jepa.data.video.scan import ScanConfig, Verdict, find_videos, look_at_video, pattern_of
from jepa.data.video.source import is_video
from jepa.errors import ConfigError, DataError

_KINDS = {"folder": IMAGES, "videos": VIDEOS, "archive": ("tar", "zip")}  # which kind of source reads which files


def find(place: Path, changes: Sequence[str] = ()) -> list[Source]:
    """The sources that a folder, a file or a recipe holds.

    Args:
        changes: KEY=VALUE for a recipe.

    Raises:
        DataError: nothing there that is read.
        ConfigError: something is wrong in the recipe, or it is of a kind that is checked when it is built.
    """
    if place.suffix in (".yaml", ".yml") or not place.exists():
        return [_named(place, changes)]
    if changes:
        raise unchangeable(place, changes)
    if place.is_dir():
        there = {p.suffix[1:].lower() for p in place.rglob("*") if not p.name.startswith(".")}
        kinds = [kind for kind, wanted in _KINDS.items() if there & set(wanted)]
        found = [sources.open_source(*sources.configure({"kind": kind, "path": str(place)})) for kind in kinds]
        if found:
            return [source for source in found if isinstance(source, Source)]
    elif place.suffix[1:].lower() in _KINDS["archive"]:
        found = [sources.open_source(*sources.configure({"kind": "archive", "path": str(place)}))]
        return [source for source in found if isinstance(source, Source)]
    listed = [str(path) for path in find_videos(place)]
    return [Source({"": listed}, _Files(), [])]


def unchangeable(place: Path, changes: Sequence[str]) -> ConfigError:
    """The error for settings that are none of the check, where there is no recipe that they could be of."""
    return ConfigError(f"{', '.join(changes)}: no setting of a check, and {place} is no recipe to be changed")


def _named(place: Path, changes: Sequence[str]) -> Source:
    try:
        wanted = recipe.load(str(place), list(changes))
    except ConfigError as error:
        if place.suffix not in (".yaml", ".yml") and place.parent != Path():
            raise DataError(
                f"{place} does not exist: give a folder, an archive, a list of videos or a recipe"
            ) from None
        raise error
    source = sources.open_source(*sources.configure(wanted.source))
    if not isinstance(source, Source):
        raise ConfigError(
            f"{place}: tars that are read in place are checked as a data set: `jepa data build` it, which only indexes "
            "them, then `jepa data check` its folder"
        )
    return source


@dataclass(frozen=True)
class _Files:
    """Videos by their paths."""

    def __call__(self, path: str) -> Sample:
        return Sample(Path(path), -1, hashed("original", path), path, media="video")


class Made(Job):
    """The worker's side. Samples are numbered through all sources and their splits."""

    def __init__(self, found: Sequence[Source], config: ScanConfig) -> None:
        self.config = config
        self.classes = list(dict.fromkeys(name for source in found for name in source.classes))
        numbers = {name: i for i, name in enumerate(self.classes)}
        self.makers: list[tuple[Maker, list[int]]] = [(s.maker, [numbers[c] for c in s.classes]) for s in found]
        self.splits = list(dict.fromkeys(split for source in found for split in source.splits))
        self.tasks: list[tuple[int, Any]] = []
        split = []
        for part, source in enumerate(found):
            for name, tasks in source.splits.items():
                self.tasks += [(part, task) for task in tasks]
                split.append(np.full(len(tasks), self.splits.index(name), dtype=np.uint8))
        self.split = np.concatenate(split) if split else np.empty(0, dtype=np.uint8)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"tasks": [], "split": None}  # a worker is handed its tasks

    def __len__(self) -> int:
        return len(self.tasks)

    def start(self) -> None:
        """Import what takes long, before the first deadline."""
        for maker, _ in self.makers:
            begin = getattr(maker, "start", None)
            if begin is not None:
                begin()

    def place(self, number: int) -> str:
        """What a sample is, for people."""
        return str(self.tasks[number][1])

    def picture(self, number: int) -> Tensor:
        """A sample's image, or a frame from the middle of its video, (3, H, W) uint8.

        Raises:
            DataError, OSError: it cannot be read.
        """
        part, task = self.tasks[number]
        sample = _first(self.makers[part][0](task))
        if isinstance(sample.image, np.ndarray):
            return _frames(sample.image)[len(_frames(sample.image)) // 2]
        if isinstance(sample.image, bytes) and not _video(sample):
            return decode.decode(sample.image)
        facts = probe(sample.image, strict=False)
        return decode_video(sample.image, [len(facts) // 2], facts=facts).pixels[0]

    def run(self, task: tuple[int, Any]) -> Verdict:
        """What is to be said of a sample.

        Raises:
            VideoError: its video cannot be used.
        """
        start = time.perf_counter()
        part, inner = task
        maker, classes = self.makers[part]
        try:
            sample = _first(maker(inner))
        except (DataError, OSError) as error:
            return broken(str(inner), error)
        name, label = sample.source, classes[sample.label] if 0 <= sample.label < len(classes) else sample.label
        strange = "; ".join(filter(None, (odd_rows(rows, array) for array, rows in sample.arrays.items())))
        image = sample.image
        if isinstance(image, np.ndarray):
            return with_oddity(self._drawn(name, _frames(image), label, digest(image), start), strange)
        try:
            if isinstance(image, bytes) and not _video(sample):
                pixels = decode.decode(image)
                for found in sample.maps:
                    labelmap.check(found, (pixels.shape[1], pixels.shape[2]))
                look = Look(name, label, digest(image))
                return image_verdict(name, pixels, look, len(image), self.config, start)
        except DataError as error:
            return broken(name, error)
        return with_oddity(look_at_video(name, image, self.config, name, label), strange)

    def _drawn(self, name: str, frames: Tensor, label: int, key: bytes, start: float) -> Verdict:
        """Of pixels that a source drew, (T, 3, H, W)."""
        if len(frames) == 1:
            return image_verdict(name, frames[0], Look(name, label, key), frames.numel(), self.config, start)
        chosen = [frames[i] for i in np.unique(np.linspace(0, len(frames) - 1, 4).round().astype(int)).tolist()]
        height, width = frames.shape[2:]
        strange = odd_frames(chosen) or odd_shape(height, width, self.config.min_side, self.config.max_aspect)
        facts = {"frames": len(frames), "height": height, "width": width, "bytes": frames.numel()}
        look = Look(name, label, key, pattern_of(chosen))
        return with_oddity(Verdict(name, "ok", facts=facts, seconds=time.perf_counter() - start, look=look), strange)


def _first(made: Sample | list[Sample]) -> Sample:
    return made if isinstance(made, Sample) else made[0]


def _video(sample: Sample) -> bool:
    assert isinstance(sample.image, bytes)
    return sample.media == "video" or (not sample.media and is_video(sample.image))


def _frames(pixels: np.ndarray[Any, Any]) -> Tensor:
    """(H, W), (H, W, 3) or (T, H, W, 3) as (T, 3, H, W)."""
    whole = torch.from_numpy(np.ascontiguousarray(pixels))
    if whole.ndim == 2:
        whole = whole.unsqueeze(-1).expand(-1, -1, 3)
    return (whole if whole.ndim == 4 else whole.unsqueeze(0)).permute(0, 3, 1, 2)


__all__ = ["Made", "find"]
