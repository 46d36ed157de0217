"""The arrays that come with a window of an episode: T frames, and between them T - 1 actions of `stride` steps each.

Shapes: T frames, k = clip.stride, A = k * W numbers of a model's action.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from jepa.config import ClipConfig, StepsConfig
from jepa.data.arrays import Array
from jepa.data.episode import merged, padded
from jepa.data.manifest import Split
from jepa.errors import ConfigError, DataError
from jepa.strict import unknown_key

Float32 = npt.NDArray[np.float32]


class Steps:
    """Reads the arrays of windows. Picklable.

    Attributes:
        arrays: what is read, by its name in `Batch.steps`: "action", "proprio" if there is one, and the others.
    """

    def __init__(self, split: Split, clip: ClipConfig | None, config: StepsConfig, where: str = "data") -> None:
        """
        Args:
            where: the section that the configuration stands in, for messages.

        Raises:
            ConfigError: the data set has no arrays or not these, or the clip is none that arrays can follow.
        """
        if not split.arrays:
            raise ConfigError(
                f"{where}.steps is set, but {split.root} has no arrays: it holds no episodes with actions. Build one "
                "from a source that has (rollouts, lerobot, hdf5, swm, npz), or leave data.steps out"
            )
        if clip is None or clip.stride is None:
            raise ConfigError(
                f"{where}.steps needs a clip that goes by frames, as actions do: give {where}.clip.stride, e.g. "
                f"{where}.clip={{frames: 4, stride: 5, short: pad}}, instead of fps or duration"
            )
        if clip.short == "loop":
            raise ConfigError(
                f"{where}.clip.short=loop: no action leads from an episode's end to its start; choose pad or skip"
            )
        names = {"action": config.action} | ({"proprio": config.proprio} if config.proprio is not None else {})
        for name in config.also:
            if names.setdefault(name, name) != name:
                raise ConfigError(f"{where}.steps.also: {name} is taken by {where}.steps.{name}={names[name]}")
        for key, name in names.items():
            if name not in split.arrays:
                raise ConfigError(f"{where}.steps: {unknown_key(name, name, list(split.arrays))}")
            kind = {"action": "action", "proprio": "frame"}.get(key, split.arrays[name].kind)
            if split.arrays[name].kind != kind:
                raise ConfigError(
                    f"{where}.steps.{key}={name}: it has a row for every {split.arrays[name].kind}, needed is one for "
                    f"every {kind}"
                )
        self.split, self.frames, self.stride, self._names = split, clip.frames, int(clip.stride), names
        self.arrays: dict[str, Array] = {
            key: replace(split.arrays[name], chunk="join") if key == "action" else split.arrays[name]
            for key, name in names.items()
        }

    @property
    def sizes(self) -> dict[str, int]:
        """Numbers of a row in the batch, by name."""
        return {key: array.width * self._times(array) for key, array in self.arrays.items()}

    def scale(self, key: str) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Mean and standard deviation of a row's numbers, those of the training split, (size,) each.

        They are those of a single step, also where several steps are side by side.

        Raises:
            DataError: the data set has no training split to take them from.
        """
        array = self.arrays[key]
        if not array.count:
            raise DataError(f"{self.split.root} has no split train, and so no statistics of {self._names[key]!r}")
        times = self._times(array)
        return np.tile(array.mean, times), np.tile(array.std, times)

    def read(self, i: int, start: int) -> dict[str, Float32]:
        """The arrays of the window of episode i that begins at frame `start`.

        Behind the episode's end its last frame stays, and actions are as the array's `pad` says.

        Returns:
            Of kind frame (T, size), of kind action (T - 1, size).

        Raises:
            DataError, OSError: as `Split.read_array`.
        """
        return {key: self._rows(i, start, name, self.arrays[key]) for key, name in self._names.items()}

    def _rows(self, i: int, start: int, name: str, array: Array) -> Float32:
        values = self.split.read_array(i, name)
        if array.kind == "frame":
            return array.numbers(values[np.minimum(start + self.stride * np.arange(self.frames), len(values) - 1)])
        wanted = self.stride * (self.frames - 1)
        part = values[start : start + wanted]
        if len(part) < wanted:
            part = padded(values, start + wanted - len(values), array)[start:]
        if array.discrete:
            part = array.numbers(part)
        return merged(part, self.stride, array).astype(np.float32)

    def _times(self, array: Array) -> int:
        return self.stride if array.kind == "action" and array.chunk == "join" else 1


__all__ = ["Steps"]
