"""Arrays of episodes: numbers that come with the frames of a video, stored beside it as KEY.NAME.npy.

An episode has T frames. An array of kind `frame` has T rows, one for each (proprioception, state); one of kind `action`
has T - 1 rows, row t leading from frame t to frame t + 1 (action, reward, terminated). What its numbers are is said by
`ArrayConfig`, once for the data set; `Array` adds the statistics of the training split.

Shapes: T frames, R rows (T or T - 1), S numbers of a row as stored, W numbers of a row as models get them.
"""

from __future__ import annotations

import dataclasses
import io
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from jepa.errors import ConfigError, DataError

Values = npt.NDArray[Any]  # (R, S)
Kind = Literal["frame", "action"]
DTYPES = ("bool", "int64", "float32", "float64")
_RESERVED = ("cls", "json", "facts", "images")
_MAX_BYTES = 1 << 30  # of one array of one episode


@dataclass(frozen=True)
class ArrayConfig:
    """What the numbers of an array are."""

    kind: Kind = "frame"  # a row for every frame, or for every action between two frames
    size: int = 1  # S, numbers of a row as stored
    dtype: str = "float32"  # one of DTYPES
    names: tuple[str, ...] = ()  # of the numbers (of one step); empty: they have none
    units: tuple[str, ...] = ()  # of the numbers (of one step), e.g. m or rad; empty: not stated
    discrete: int = 0  # choices: the number stored is one of 0 .. discrete - 1, models get it one-hot; 0: continuous
    chunk: Literal["join", "sum", "any"] = "join"  # of kind action: what several steps between two frames become
    pad: Literal["zero", "last"] = "zero"  # of kind action: the row after an episode's end, while its last frame stays
    steps: int = 1  # environment steps side by side in a row

    def __post_init__(self) -> None:
        assert self.dtype in DTYPES, f"{self.dtype} is none of {DTYPES}"
        assert self.size % self.steps == 0, f"{self.size} numbers of {self.steps} steps"

    @property
    def width(self) -> int:
        """W, numbers of a row as models get them: choices are one-hot."""
        return self.discrete * self.size if self.discrete else self.size

    def numbers(self, values: Values) -> npt.NDArray[np.float32]:
        """Stored rows (R, S) as models get them, float32 (R, W)."""
        if not self.discrete:
            return values.astype(np.float32)
        return np.eye(self.discrete, dtype=np.float32)[values.astype(np.int64)].reshape(len(values), self.width)

    def name(self, i: int) -> str:
        """The i-th number of a row, for messages."""
        step = self.size // self.steps
        return f"number {i}" + (f" ({self.names[i % step]})" if self.names else "")


@dataclass(frozen=True)
class Array(ArrayConfig):
    """The same with the statistics of the training split, (W,) each; those of a row's steps are equal."""

    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    min: tuple[float, ...] = ()
    max: tuple[float, ...] = ()
    count: int = 0  # steps they were taken over; 0: the data set has no training split, and so no statistics

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Array:
        """From a manifest. Raises TypeError, ValueError or AssertionError where it is damaged."""
        known = {f.name for f in dataclasses.fields(cls)}
        given: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items() if k in known}
        return cls(**given)


class Statistics:
    """Mean, standard deviation and extremes of an array, one episode after the other, in float64.

    Parts are joined as by Chan, Golub and LeVeque (1979): equal to a pass over everything, and never far from zero
    minus a large number.
    """

    def __init__(self, config: ArrayConfig) -> None:
        self.config, width = config, config.width // config.steps
        self.count, self.mean, self.squares = 0, np.zeros(width), np.zeros(width)
        self.min, self.max = np.full(width, np.inf), np.full(width, -np.inf)

    def add(self, values: Values) -> None:
        """One episode's rows (R, S)."""
        c = self.config
        rows = c.numbers(values).astype(np.float64) if c.discrete else values.astype(np.float64)
        rows = rows.reshape(-1, len(self.mean))
        if not len(rows):
            return
        total, mean = self.count + len(rows), rows.mean(0)
        away = mean - self.mean
        self.squares += ((rows - mean) ** 2).sum(0) + away**2 * self.count * len(rows) / total
        self.mean += away * len(rows) / total
        self.min, self.max = np.minimum(self.min, rows.min(0)), np.maximum(self.max, rows.max(0))
        self.count = total

    def result(self) -> Array:
        """The array with its statistics; without any rows none."""
        found: dict[str, Any] = {}
        if self.count:
            std = np.sqrt(self.squares / self.count)
            columns = {"mean": self.mean, "std": std, "min": self.min, "max": self.max}
            found = {name: tuple(column.tolist()) * self.config.steps for name, column in columns.items()}
        return Array(**dataclasses.asdict(self.config), count=self.count, **found)


def check_names(names: Iterable[str], what: str = "arrays") -> None:
    """Names become parts of file names.

    Raises:
        ConfigError: a name that is none, or that means something else in a shard.
    """
    for name in names:
        if not re.fullmatch(r"[a-z][a-z0-9_-]*", name) or name in _RESERVED:
            raise ConfigError(
                f"{what}: {name!r} cannot be an array's name: small letters, digits, - and _, and not "
                f"{', '.join(_RESERVED)}"
            )


def dtype_of(values: npt.NDArray[Any], name: str) -> str:
    """How an array is stored: bool, int64, float32 (half precision too) or float64.

    Raises:
        DataError: it holds no numbers.
    """
    if values.dtype.kind == "b":
        return "bool"
    if values.dtype.kind in "iu":
        return "int64"
    if values.dtype.kind == "f":
        return "float64" if values.dtype.itemsize > 4 else "float32"
    raise DataError(f"{name!r} holds {values.dtype}, not numbers: leave it out")


def describe(name: str, values: npt.NDArray[Any], kind: Kind, **more: Any) -> ArrayConfig:
    """The schema of an array as found in the first episode: (R,) or (R, ...)."""
    return ArrayConfig(kind, rows_of(values).shape[1], dtype_of(values, name), **more)


def rows_of(values: npt.NDArray[Any]) -> Values:
    """(R,) or (R, ...) as (R, S)."""
    return values.reshape(len(values), math.prod(values.shape[1:])) if values.ndim else values.reshape(1, 1)


def checked(found: Mapping[str, npt.NDArray[Any]], schema: Mapping[str, ArrayConfig], frames: int) -> dict[str, Values]:
    """The arrays of an episode of T `frames`, as they are stored.

    Arrays of kind action may have T rows: the last one, which leads out of the episode, is dropped.

    Raises:
        DataError: one is missing, or has another number of rows or numbers, another type, NaN or infinite numbers, or
            choices that there are not.
    """
    missing = [name for name in schema if name not in found]
    if missing:
        raise DataError(f"it has no array {missing[0]!r}; the others have it. It has: {', '.join(found) or 'none'}")
    return {name: _checked(name, np.asarray(found[name]), config, frames) for name, config in schema.items()}


def _checked(name: str, raw: npt.NDArray[Any], config: ArrayConfig, frames: int) -> Values:
    values = rows_of(raw)
    if values.shape[1] != config.size:
        raise DataError(f"{name!r} has {values.shape[1]} numbers in a row here, {config.size} in the data set")
    wanted = frames if config.kind == "frame" else frames - 1
    if config.kind == "action" and len(values) == frames:
        values = values[:-1]
    if len(values) != wanted:
        rule = f"a row for each, {frames}" if config.kind == "frame" else f"{frames - 1} (or {frames}, the last unused)"
        raise DataError(
            f"{name!r} has {len(values)} rows and the video {frames} frames; an array of kind {config.kind} needs "
            f"{rule}. Frames or rows are missing, or they were recorded at different rates"
        )
    if values.dtype.kind not in "biuf" or (values.dtype.kind == "f" and config.dtype in ("bool", "int64")):
        raise DataError(f"{name!r} holds {values.dtype} here, {config.dtype} in the data set")
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        row, number = np.argwhere(~np.isfinite(values))[0].tolist()
        raise DataError(
            f"{name!r} is {values[row, number]} in row {row} of {len(values)}, {config.name(number)}: repair the "
            "episode or leave it out"
        )
    if config.discrete and len(values) and not (values.min() >= 0 and values.max() < config.discrete):
        odd = values.min() if values.min() < 0 else values.max()
        raise DataError(f"{name!r} holds the choice {odd}; there are 0 to {config.discrete - 1}")
    return np.ascontiguousarray(values.astype(config.dtype))


def to_npy(values: Values) -> bytes:
    """The bytes of a .npy file."""
    buffer = io.BytesIO()
    np.save(buffer, values, allow_pickle=False)
    return buffer.getvalue()


def from_npy(data: bytes, name: str, config: ArrayConfig, rows: int) -> Values:
    """Rows (R, S) from the bytes of a .npy file.

    Raises:
        DataError: no such file, or not the array that the manifest describes.
    """
    file = io.BytesIO(data)
    try:
        np.lib.format.read_magic(file)
        shape, fortran, kind = np.lib.format.read_array_header_1_0(file)
        if shape != (rows, config.size) or kind != np.dtype(config.dtype) or fortran:
            raise ValueError(f"it holds {kind} {shape}, expected {config.dtype} {(rows, config.size)}")
        if len(data) - file.tell() != rows * config.size * kind.itemsize or len(data) > _MAX_BYTES:
            raise ValueError(f"{len(data)} bytes cannot hold {kind} {shape}")
        return np.frombuffer(data, kind, offset=file.tell()).reshape(shape)
    except Exception as error:  # numpy's parser fails on hostile headers in every way there is
        raise DataError(f"array {name!r} cannot be read ({error or type(error).__name__}): build it again") from None


__all__ = [
    "DTYPES", "Array", "ArrayConfig", "Kind", "Statistics", "Values", "check_names", "checked", "describe", "dtype_of",
    "from_npy", "rows_of", "to_npy",
]  # fmt: skip
