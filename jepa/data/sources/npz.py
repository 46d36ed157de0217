"""Folders of .npz files, one for an episode: an array of frames, and arrays of numbers beside it.

    PATH/*.npz, also in folders below; or PATH/train/*.npz, PATH/val/*.npz, PATH/test/*.npz, which are the splits

    np.savez("episode.npz", frames=uint8 (T, H, W, 3), action=(T - 1, A) or (T, A), state=(T, S), ...)

Files are read without pickle. An action that leads out of the last frame (a T-th row) is dropped.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from jepa.data.arrays import ArrayConfig
from jepa.data.sources import recorded
from jepa.data.sources.base import Sample, Source, hashed
from jepa.errors import ConfigError, DataError

_SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}


@dataclass(frozen=True)
class Config:
    """Where the files are, and which arrays are taken."""

    path: str = ""  # folder of .npz files, or of a folder for each split
    frames: str = "frames"  # array of the frames
    arrays: dict[str, str | list[str]] = field(default_factory=dict)  # name: key, or keys side by side; {}: all
    per_action: tuple[str, ...] = recorded.PER_ACTION  # arrays with a row for every action; the others: every frame
    fps: float = 10.0  # written into the videos

    def __post_init__(self) -> None:
        if self.fps <= 0:
            raise ConfigError(f"fps: must be above 0, got {self.fps:g}")


def open_source(config: Config) -> Source:
    """The source; tasks are files. Arrays are those of the first file that can be read.

    Raises:
        ConfigError: no path, or arrays that are not there.
        DataError: no files, or none that can be read.
    """
    if not config.path:
        raise ConfigError("source.path is empty: say where the files are, e.g. source.path=/my/episodes")
    root = Path(config.path).expanduser()
    splits = {ours: sorted((root / name).rglob("*.npz")) for name, ours in _SPLITS.items() if (root / name).is_dir()}
    files = {name: found for name, found in splits.items() if found} or {"": sorted(root.rglob("*.npz"))}
    if not any(files.values()):
        raise DataError(f"{root} has no .npz files, nor have the folders in it")
    where, arrays = _look([path for found in files.values() for path in found], config)
    tasks = {name: [path.relative_to(root).as_posix() for path in found] for name, found in files.items()}
    return Source(dict(tasks), Maker(root, config, where), [], arrays=arrays, at_once=1)


def _look(paths: list[Path], config: Config) -> tuple[recorded.Places, dict[str, ArrayConfig]]:
    for path in paths:
        try:
            with _opened(path) as file:
                keys = {name: file[name] for name in file.files if name != config.frames}
                where = recorded.places(config.arrays or recorded.usual(keys), keys, config.per_action)
                return where, recorded.schema(recorded.gather(where, keys.__getitem__), config.per_action)
        except DataError as error:
            first = error
    raise DataError(f"none of {len(paths)} files can be read. The last: {first}")


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with np.load(path, allow_pickle=False) as file:
            if not hasattr(file, "files"):
                raise ValueError("it is no archive of arrays")
            yield file
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise DataError(f"{path.name} cannot be read: {error}") from None


@dataclass(frozen=True)
class Maker:
    """Reads a file."""

    root: Path
    config: Config
    where: recorded.Places

    def __call__(self, task: str) -> Sample:
        with _opened(self.root / task) as file:
            for name in (self.config.frames, *(key for keys in self.where.values() for key in keys)):
                if name not in file.files:
                    raise DataError(f"it has no array {name!r}; it has {', '.join(file.files)}")
            frames = recorded.pictures(file[self.config.frames], self.config.frames)
            arrays = recorded.gather(self.where, file.__getitem__)
        return Sample(frames, -1, hashed("npz", task), task, fps=self.config.fps, arrays=arrays)


__all__ = ["Config", "Maker", "open_source"]
