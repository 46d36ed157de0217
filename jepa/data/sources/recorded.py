"""What sources of recorded episodes share: which arrays are taken, under which names, and from which episode on.

An array is a key of an episode's file, or several keys side by side. Whether it has a row for every frame or for every
action is said by its name: those in `per_action` are of actions.

Shapes: T frames of an episode.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from jepa.data.arrays import ArrayConfig, check_names, describe, rows_of
from jepa.errors import ConfigError, DataError
from jepa.strict import unknown_key

Places = dict[str, tuple[str, ...]]  # array: keys in the file
Read = Callable[[str], npt.NDArray[Any]]  # the values under a key
PER_ACTION = ("action", "reward", "terminated", "truncated")
_USUAL = {"actions": "action", "rewards": "reward", "dones": "terminated", "terminals": "terminated"}
_WIDEST = 1024  # numbers in a row that are taken without being asked for


def places(arrays: Mapping[str, str | list[str]], keys: Iterable[str], per_action: Sequence[str]) -> Places:
    """The keys of every array, as the recipe has them.

    Args:
        keys: those that there are.

    Raises:
        ConfigError: a key that is not there, or a name that cannot be one.
    """
    check_names(arrays, "source.arrays")
    known = list(keys)
    found: Places = {}
    for name, where in arrays.items():
        found[name] = (where,) if isinstance(where, str) else tuple(where)
        for key in found[name]:
            if key not in known:
                raise ConfigError(f"source.arrays.{name}: {unknown_key(key, key, known)}")
    unknown = [name for name in per_action if name not in found and name not in PER_ACTION]
    if unknown:
        raise ConfigError(f"source.per_action: {unknown_key(unknown[0], unknown[0], list(found))}")
    return found


def usual(values: Mapping[str, npt.NDArray[Any]]) -> dict[str, str | list[str]]:
    """Arrays where the recipe names none: all that hold rows of numbers, by plain names."""
    found: dict[str, str | list[str]] = {}
    for key, value in values.items():
        if value.ndim >= 1 and value.dtype.kind in "biuf" and len(value) and value[0].size <= _WIDEST:
            name = re.sub(r"[^a-z0-9_-]+", "_", key.split("/")[-1].lower()).strip("_-")
            name = _USUAL.get(name, name)
            if re.match(r"[a-z]", name) and name not in found:
                found[name] = key
    return found


def gather(where: Places, read: Read) -> dict[str, npt.NDArray[Any]]:
    """The arrays of an episode, (rows, numbers).

    Raises:
        DataError: a key is missing, or those of one array have different numbers of rows.
    """
    found = {}
    for name, keys in where.items():
        parts = [rows_of(np.asarray(read(key))) for key in keys]
        if len({len(part) for part in parts}) > 1:
            rows = ", ".join(f"{key} {len(part)}" for key, part in zip(keys, parts, strict=True))
            raise DataError(f"array {name!r} is made of keys with different numbers of rows: {rows}")
        found[name] = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)
    return found


def schema(found: Mapping[str, npt.NDArray[Any]], per_action: Sequence[str]) -> dict[str, ArrayConfig]:
    """What the arrays are, by those of one episode.

    Raises:
        DataError: one holds no numbers.
        ConfigError: there are none.
    """
    if not found:
        raise ConfigError("source.arrays: no array of numbers is there; name those that are wanted")
    return {name: describe(name, value, "action" if name in per_action else "frame") for name, value in found.items()}


def pictures(values: npt.NDArray[Any], name: str) -> npt.NDArray[np.uint8]:
    """Frames uint8 (T, H, W, 3), of (T, H, W, 3), (T, 3, H, W) or grey (T, H, W, 1).

    Raises:
        DataError: they are something else.
    """
    if values.ndim == 4 and values.shape[-1] not in (1, 3) and values.shape[1] in (1, 3):
        values = np.moveaxis(values, 1, -1)
    if values.dtype != np.uint8 or values.ndim != 4 or values.shape[-1] not in (1, 3):
        raise DataError(
            f"{name!r} holds {values.dtype} {values.shape}; frames are uint8 (frames, height, width, 3 colours)"
        )
    if not len(values):
        raise DataError("the episode is empty: it has no frames")
    return np.ascontiguousarray(np.repeat(values, 3, axis=-1) if values.shape[-1] == 1 else values)


__all__ = ["PER_ACTION", "Places", "Read", "gather", "pictures", "places", "schema", "usual"]
