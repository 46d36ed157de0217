"""Data sets of stable-worldmodel: its HDF5 files, and through the package itself its folders, videos and Lance tables.

    FILE.h5    a column for everything, all episodes one after the other; ep_len and ep_offset say where each lies

In these data sets row t of `action` leads from frame t to frame t + 1 (the last row is filled with NaN and dropped),
while row t of reward, terminated and truncated came with frame t, so that their first row belongs to no action.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from jepa.data.arrays import ArrayConfig
from jepa.data.sources import recorded
from jepa.data.sources.base import Sample, Source, hashed
from jepa.data.sources.hdf5 import opened
from jepa.errors import ConfigError, DataError, JepaError
from jepa.strict import unknown_key

Columns = Mapping[str, npt.NDArray[Any]]
Format = Literal["hdf5", "folder", "video", "lance"]


@dataclass(frozen=True)
class Config:
    """Where the data set is, and which columns are taken."""

    path: str = ""  # its file or folder
    format: Literal["auto", "hdf5", "folder", "video", "lance"] = "auto"  # auto: told by what is there
    camera: str = "pixels"  # column of the frames
    arrays: dict[str, str | list[str]] = field(default_factory=dict)  # name: column, or columns side by side; {}: all
    per_action: tuple[str, ...] = recorded.PER_ACTION  # arrays with a row for every action; the others: every frame
    fps: float = 10.0  # written into the videos

    def __post_init__(self) -> None:
        if self.fps <= 0:
            raise ConfigError(f"fps: must be above 0, got {self.fps:g}")


def open_source(config: Config) -> Source:
    """The source; tasks are numbers of episodes. Arrays are those of the first.

    Raises:
        ConfigError: no path, stable-worldmodel or h5py is missing, or columns that are not there.
        DataError: no such data set, or damaged.
    """
    if not config.path:
        raise ConfigError("source.path is empty: say where the data set is, e.g. source.path=/my/pusht.h5")
    path = Path(config.path).expanduser()
    if not path.exists():
        raise DataError(f"there is no {path}")
    kind = _format(path) if config.format == "auto" else config.format
    count = _count(path, kind)
    if not count:
        raise DataError(f"{path} holds no episodes")
    first = _episode(path, kind, 0, None)
    if config.camera not in first:
        raise ConfigError(f"source.camera: {unknown_key(config.camera, config.camera, list(first))}")
    numbers = {name: column for name, column in first.items() if name != config.camera}
    where = recorded.places(config.arrays or recorded.usual(numbers), numbers, config.per_action)
    arrays: dict[str, ArrayConfig] = recorded.schema(recorded.gather(where, first.__getitem__), config.per_action)
    maker = Maker(path, kind, config.camera, where, config.per_action, config.fps)
    return Source({"": range(count)}, maker, [], identity=lambda number: f"episode {number}", arrays=arrays, at_once=1)


def _format(path: Path) -> Format:
    if path.is_file() and path.suffix in (".h5", ".hdf5"):
        return "hdf5"
    if path.is_dir() and (path / "ep_len.npz").is_file():
        return "video" if any(path.glob("*/*.mp4")) else "folder"
    if path.is_dir() and (path.suffix == ".lance" or any(path.glob("*.lance"))):
        return "lance"
    raise DataError(
        f"{path} is no data set of stable-worldmodel: neither an .h5 file, no folder with ep_len.npz, no Lance table"
    )


def _count(path: Path, kind: Format) -> int:
    if kind != "hdf5":
        return len(_reader(path, kind).lengths)
    with opened(path) as file:
        if "ep_len" not in file or "ep_offset" not in file:
            raise DataError(f"{path} is no data set of stable-worldmodel: it has no ep_len and ep_offset")
        return len(file["ep_len"])


@lru_cache(maxsize=2)
def _reader(path: Path, kind: Format) -> Any:
    """The package's own reader, one in every process."""
    try:
        from stable_worldmodel import data
    except ImportError as error:
        raise ConfigError(
            f"data sets of the format {kind} are read with stable-worldmodel ({error}): pip install 'jepa[envs]'"
        ) from None
    try:
        return data.get_format(kind).open_reader(str(path))
    except Exception as error:  # whatever its readers raise
        raise DataError(f"{path} cannot be read as {kind}: {type(error).__name__}: {error}") from None


def _episode(path: Path, kind: Format, number: int, wanted: list[str] | None) -> Columns:
    """Columns of an episode, those `wanted` or all that hold numbers."""
    if kind != "hdf5":
        try:
            found = _reader(path, kind).load_episode(number)
        except JepaError:
            raise
        except Exception as error:  # whatever its readers raise
            raise DataError(f"it cannot be read: {type(error).__name__}: {error}") from None
        return {name: np.asarray(column) for name, column in found.items() if hasattr(column, "shape")}
    with opened(path) as file:
        start = int(file["ep_offset"][number])
        end = start + int(file["ep_len"][number])
        names = wanted or [name for name in file if name not in ("ep_len", "ep_offset")]
        missing = [name for name in names if name not in file]
        if missing:
            raise DataError(f"it has no column {missing[0]!r}")
        return {name: np.asarray(file[name][start:end]) for name in names}


@dataclass(frozen=True)
class Maker:
    """Reads an episode."""

    path: Path
    kind: Format
    camera: str
    where: recorded.Places
    per_action: tuple[str, ...]
    fps: float

    def __call__(self, number: int) -> Sample:
        keys = [self.camera, *(key for keys in self.where.values() for key in keys)]
        found = _episode(self.path, self.kind, number, keys)
        for key in keys:
            if key not in found:
                raise DataError(f"it has no column {key!r}")
        arrays = recorded.gather(self.where, found.__getitem__)
        late = [name for name in arrays if name in self.per_action and name != "action"]
        arrays |= {name: arrays[name][1:] for name in late}  # they came with the frame that their action led to
        frames = recorded.pictures(found[self.camera], self.camera)
        return Sample(frames, -1, hashed("swm", number), f"episode {number}", fps=self.fps, arrays=arrays)


__all__ = ["Config", "Maker", "open_source"]
