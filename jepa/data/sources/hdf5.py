"""Episodes in HDF5 files, as robomimic and DROID lay them out.

    robomimic    FILE.hdf5: data/demo_0/{actions, rewards, dones, obs/NAME, next_obs/NAME}; mask/train, mask/valid
    droid        EPISODE/trajectory.h5: action/NAME, observation/robot_state/NAME ...; EPISODE/recordings/MP4/CAMERA.mp4

A robomimic episode has a frame more where `next_obs` holds the camera and all arrays: what the last action led to. Else
that action is dropped. Episodes of its masks `train` and `valid` are the splits.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from jepa.data.arrays import ArrayConfig
from jepa.data.sources import recorded
from jepa.data.sources.base import Sample, Source, hashed
from jepa.errors import ConfigError, DataError
from jepa.strict import unknown_key

Layout = Literal["robomimic", "droid"]
_DROID: dict[str, str | list[str]] = {  # where the recipe names none
    "action": ["action/cartesian_velocity", "action/gripper_velocity"],
    "proprio": ["observation/robot_state/cartesian_position", "observation/robot_state/gripper_position"],
}
_SPLITS = {"train": "train", "valid": "val", "test": "test"}


@dataclass(frozen=True)
class Config:
    """Where the files are, which camera and which arrays are taken."""

    path: str = ""  # a file, or a folder that holds files (robomimic) or episodes (droid) somewhere below
    layout: Literal["auto", "robomimic", "droid"] = "auto"  # auto: told by what is there
    camera: str = "auto"  # robomimic: obs/NAME; droid: name of an mp4 or obs key; auto: the only one
    arrays: dict[str, str | list[str]] = field(default_factory=dict)  # name: key, or keys side by side; {}: the usual
    per_action: tuple[str, ...] = recorded.PER_ACTION  # arrays with a row for every action; the others: every frame
    fps: float = 20.0  # written into videos that are made of images

    def __post_init__(self) -> None:
        if self.fps <= 0:
            raise ConfigError(f"fps: must be above 0, got {self.fps:g}")


@dataclass(frozen=True)
class Episode:
    """Where an episode lies: the task of the build."""

    file: str  # relative to the path
    group: str  # in the file; "": all of it

    def __str__(self) -> str:
        return f"{self.file}: {self.group}" if self.group else self.file


def open_source(config: Config) -> Source:
    """The source; tasks are episodes. Camera and arrays are those of the first episode.

    Raises:
        ConfigError: no path, h5py is not installed, or a camera or arrays that are not there.
        DataError: no files, or not laid out in one of these ways.
    """
    if not config.path:
        raise ConfigError("source.path is empty: say where the files are, e.g. source.path=/my/demos.hdf5")
    path = Path(config.path).expanduser()
    root = path.parent if path.is_file() else path
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.suffix in (".h5", ".hdf5"))
    if not files:
        raise DataError(f"{path} has no .h5 or .hdf5 files")
    layout = config.layout if config.layout != "auto" else _layout(files[0])
    if layout == "robomimic":
        splits = _demos(root, files)
    else:
        splits = {"": [Episode(p.relative_to(root).as_posix(), "") for p in files if p.name == "trajectory.h5"]}
    episodes = [episode for found in splits.values() for episode in found]
    if not episodes:
        raise DataError(f"{path} holds no episodes in the layout {layout}")
    camera, where, arrays = _look(root, episodes[0], layout, config)
    seen = [camera, *(key for name, keys in where.items() if name not in config.per_action for key in keys)]
    maker = Maker(root, camera, where, all(key.startswith("obs/") for key in seen), config.fps)
    return Source(dict(splits), maker, [], arrays=arrays, at_once=1)


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """An HDF5 file.

    Raises:
        ConfigError: h5py is not installed.
        DataError: it cannot be read; also for what is read inside the block.
    """
    try:
        import h5py
    except ImportError as error:
        raise ConfigError(f"HDF5 files need h5py ({error}): pip install 'jepa[hdf5]'") from None
    try:
        with h5py.File(path, "r") as file:
            yield file
    except (OSError, KeyError, RuntimeError, ValueError) as error:
        raise DataError(f"{path.name} cannot be read: {error}") from None


def keys_of(group: Any) -> list[str]:
    """Full names of all data sets below a group."""
    import h5py

    found: list[str] = []
    group.visititems(lambda name, item: found.append(name) if isinstance(item, h5py.Dataset) else None)
    return found


def _layout(path: Path) -> Layout:
    with opened(path) as file:
        if "data" in file and any("actions" in file["data"][name] for name in list(file["data"])[:1]):
            return "robomimic"
        if "action" in file and "observation" in file:
            return "droid"
        there = ", ".join(list(file)[:10])
    raise DataError(
        f"{path} has neither robomimic's layout (data/demo_0/actions) nor DROID's (action/, observation/): {there}"
    )


def _demos(root: Path, files: list[Path]) -> dict[str, list[Episode]]:
    """Robomimic's episodes by split, in the order of their numbers."""
    splits: dict[str, list[Episode]] = {}
    for path in files:
        with opened(path) as file:
            masks = {
                demo: ours
                for mask, ours in _SPLITS.items()
                for demo in (file[f"mask/{mask}"][()].astype(str).tolist() if f"mask/{mask}" in file else [])
            }
            for demo in sorted(file["data"], key=lambda name: (len(name), name)):
                episode = Episode(path.relative_to(root).as_posix(), f"data/{demo}")
                splits.setdefault(masks.get(demo, "train") if masks else "", []).append(episode)
    return splits


def _look(
    root: Path, first: Episode, layout: Layout, config: Config
) -> tuple[str, recorded.Places, dict[str, ArrayConfig]]:
    """Camera, keys and arrays, by the first episode."""
    with opened(root / first.file) as file:
        group = file[first.group] if first.group else file
        keys = keys_of(group)
        images = [k for k in keys if group[k].ndim == 4 and not k.startswith("next_obs/")]
        films = _films(root / first.file) if layout == "droid" else []
        camera = _camera(config.camera, images + films)
        numbers = {k: np.asarray(group[k][:1]) for k in keys if k not in images and group[k].ndim in (1, 2)}
        numbers = {k: v for k, v in numbers.items() if not k.startswith("next_obs/") and v.dtype.kind in "biuf"}
        if layout == "robomimic":
            numbers = {k: v for k, v in numbers.items() if k.startswith("obs/") or k in ("actions", "rewards", "dones")}
        usual = {n: k for n, k in _DROID.items() if set(k) <= set(keys)} if layout == "droid" else None
        where = recorded.places(config.arrays or usual or recorded.usual(numbers), keys, config.per_action)
        found = recorded.gather(where, lambda key: np.asarray(group[key][:2]))
        return camera, where, recorded.schema(found, config.per_action)


def _films(file: Path) -> list[str]:
    return [p.stem for p in sorted((file.parent / "recordings" / "MP4").glob("*.mp4")) if "stereo" not in p.stem]


def _camera(wanted: str, there: list[str]) -> str:
    if wanted == "auto":
        if len(there) == 1:
            return there[0]
        state = f"choose one of {', '.join(there)}" if there else "there are neither images nor recordings/MP4/*.mp4"
        raise ConfigError(f"source.camera=auto takes the only camera; {state}")
    for name in (wanted, f"obs/{wanted}"):
        if name in there:
            return name
    raise ConfigError(f"source.camera: {unknown_key(wanted, wanted, there)}")


@dataclass(frozen=True)
class Maker:
    """Reads an episode."""

    root: Path
    camera: str
    where: recorded.Places
    observed: bool  # all that comes with frames is below obs/, so that next_obs may hold a further row of it
    fps: float

    def __call__(self, episode: Episode) -> Sample:
        path = self.root / episode.file
        original = hashed("hdf5", episode)
        with opened(path) as file:
            group = file[episode.group] if episode.group else file
            read = self._reader(group)
            arrays = recorded.gather(self.where, read)
            if self.camera in group:
                frames = recorded.pictures(read(self.camera), self.camera)
                return Sample(frames, -1, original, str(episode), fps=self.fps, arrays=arrays)
        film = path.parent / "recordings" / "MP4" / f"{self.camera}.mp4"
        if not film.is_file():
            raise DataError(f"it has no recordings/MP4/{self.camera}.mp4")
        return Sample(film, -1, original, str(episode), media="video", arrays=arrays)

    def _reader(self, group: Any) -> recorded.Read:
        """Reads keys; with what the last action led to, where `next_obs` holds it for all that are observed."""
        keys = [self.camera, *(key for keys in self.where.values() for key in keys)]
        observed = [key for key in keys if key.startswith("obs/")]
        further = self.observed and all(f"next_{key}" in group for key in observed)

        def read(key: str) -> npt.NDArray[Any]:
            if key not in group:
                raise DataError(f"it has no {key!r}")
            values: npt.NDArray[Any] = group[key][()]
            return np.concatenate([values, group[f"next_{key}"][-1:]]) if further and key in observed else values

        return read


__all__ = ["Config", "Episode", "Maker", "keys_of", "open_source", "opened"]
