"""Dataset recipes: a YAML file saying where images come from, how they are split, and how they are sharded."""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from jepa import config, resources
from jepa.data.episode import EpisodeConfig
from jepa.errors import ConfigError, DataError


@dataclass(frozen=True)
class SplitsConfig:
    """How splits are made that the source does not give by itself."""

    fractions: dict[str, float] = field(default_factory=lambda: {"val": 0.1, "test": 0.1})  # {}: everything is train
    seed: int = 0  # of the keyed hash that chooses them, and of the order in which samples go to shards

    def __post_init__(self) -> None:
        if "train" in self.fractions:
            raise ConfigError("fractions: train is what the others leave; give only the others, e.g. {val: 0.1}")
        if any(not 0 < share < 1 for share in self.fractions.values()) or sum(self.fractions.values()) >= 1:
            raise ConfigError(f"fractions: each must lie between 0 and 1 and their sum below 1, got {self.fractions}")
        for name in self.fractions:
            check_name(name, "split")


@dataclass(frozen=True)
class ShardsConfig:
    """How samples are packed into tars; a tar is closed when either limit is reached."""

    max_samples: int = 1000  # samples in a tar
    max_bytes: int = 300_000_000  # bytes in a tar
    shuffle: bool = True  # samples go to shards in a keyed random order, so that neighbours are not of one class

    def __post_init__(self) -> None:
        if self.max_samples < 1 or self.max_bytes < 1:
            raise ConfigError(f"max_samples={self.max_samples} and max_bytes={self.max_bytes} must be at least 1")


@dataclass(frozen=True)
class ImageConfig:
    """What is done to an image before it is written."""

    resize: int | None = None  # shorter side in pixels; larger images are shrunk to it, smaller ones left alone
    format: Literal["keep", "jpeg", "png", "webp"] = "keep"  # keep: the source's own bytes where nothing changes them
    quality: int = 90  # of jpeg and webp; jpeg from 95 on keeps full colour resolution (4:4:4)
    verify: bool = True  # decode every image, so that broken ones are found now and not while training

    def __post_init__(self) -> None:
        if self.resize is not None and self.resize < 1:
            raise ConfigError(f"resize: the shorter side must be at least 1 pixel, got {self.resize}")
        if not 1 <= self.quality <= 100:
            raise ConfigError(f"quality: allowed are 1 to 100, got {self.quality}")


@dataclass(frozen=True)
class VideoConfig:
    """What is done to a video before it is written. Null leaves a property as it is; all null keeps the bytes."""

    resize: int | None = None  # shorter side in pixels; larger videos are shrunk to it, smaller ones left alone
    fps: float | None = None  # frames per second; the frame shown at each time is taken
    clip: float | None = None  # seconds: longer videos are cut into pieces of this length, each a sample of its own
    gop: int | None = None  # frames from key frame to key frame; few make reading at random quick. When coded anew: 8
    crf: int = 18  # quality of videos that are coded anew: 0 lossless, 18 hardly visible, 23 usual
    full_colour: bool = False  # code all colours (4:4:4) instead of a quarter: for small drawn pictures
    min_frames: int = 2  # shorter videos are left out

    def __post_init__(self) -> None:
        for name in ("resize", "fps", "clip", "gop"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ConfigError(f"{name}: must be above 0, or null, got {value:g}")
        if not 0 <= self.crf <= 51 or self.min_frames < 1:
            raise ConfigError(f"crf={self.crf}, min_frames={self.min_frames}: need crf 0 to 51, min_frames from 1")

    @property
    def recode(self) -> bool:
        """Whether videos are coded anew."""
        return any(v is not None for v in (self.resize, self.fps, self.clip, self.gop))


@dataclass(frozen=True)
class Recipe:
    """One dataset. `source` holds its kind and that kind's own options."""

    name: str  # of the data set and its shards
    source: dict[str, Any]  # kind, and that kind's own options: see below
    licence: str = "not stated"  # copied into the manifest
    splits: SplitsConfig = field(default_factory=SplitsConfig)  # splits that the source does not give by itself
    shards: ShardsConfig = field(default_factory=ShardsConfig)  # how samples are packed
    image: ImageConfig = field(default_factory=ImageConfig)  # what is done to an image before it is written
    video: VideoConfig = field(default_factory=VideoConfig)  # what is done to a video before it is written
    episode: EpisodeConfig | None = None  # how episodes with arrays are kept; null: as they are
    clean: str | None = None  # file that lists the samples to use, as `jepa data check` writes it; null: all

    def __post_init__(self) -> None:
        check_name(self.name, "dataset")


@functools.lru_cache(maxsize=1)  # every worker reads it once
def listed(path: str) -> frozenset[str]:
    """The names in a clean list.

    Raises:
        DataError: it cannot be read, or is empty.
    """
    try:
        text = Path(path).expanduser().read_bytes().decode("utf-8", "surrogateescape")
    except OSError as error:
        raise DataError(f"cannot read clean={path}: {error.strerror or error}") from None
    names = frozenset(text.split("\n")) - {""}
    if "\0" in text:
        raise DataError(f"clean={path} is no list of samples: it lists the samples to use, one name a line")
    if not names:
        raise DataError(f"clean={path} is empty: it lists the samples to use, one name a line")
    return names


def check_name(name: str, what: str) -> None:
    """Names become file names, so they are kept plain.

    Raises:
        ConfigError: anything but letters, digits, dot, dash and underscore.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise ConfigError(
            f"{what} name {name!r}: use letters, digits, '.', '-' and '_', starting with one of the first"
        )


def load(name: str | Path, overrides: list[str] | None = None) -> Recipe:
    """A recipe from a file or a shipped name, with ``a.b=value`` overrides applied.

    Raises:
        ConfigError: no such recipe, or something wrong in it, with the place.
    """
    path = resources.find("datasets", name)
    values = config.override(config.read(path, kind="datasets"), overrides or [])
    values.setdefault("name", path.stem)
    try:
        return config.build(Recipe, values)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
