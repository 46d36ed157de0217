"""What a recipe's `episode` section does to the frames and arrays of an episode before it is written.

Every `frame_skip`-th frame is kept. The steps between two kept frames stay: actions side by side, rewards summed, ends
as whether there was one. Then the last frame may be held for a while, so that windows reach past an episode's end as
planners do that have arrived.

Shapes: T frames of the source, K kept ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import numpy.typing as npt

from jepa.data import arrays
from jepa.data.arrays import ArrayConfig, Values
from jepa.errors import ConfigError, DataError
from jepa.strict import unknown_key

Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class FactsConfig:
    """What is known of an array beside what the source says."""

    names: tuple[str, ...] = ()  # of its numbers, one for each
    units: str | list[str] = ""  # of its numbers: one for all, or one for each, e.g. m, rad, px
    size: int | None = None  # numbers of a row; the build stops when the source has another count
    discrete: int | None = None  # choices, of an array that holds whole numbers; null: as the source says


@dataclass(frozen=True)
class EpisodeConfig:
    """How episodes are kept."""

    action: str = "action"  # array of the actions: steps between two frames stay side by side
    frame_skip: int = 1  # every so many-th frame is kept, with all actions
    hold: int = 0  # kept frames by which the last one is held at the end
    pad: Literal["zero", "last"] = "zero"  # the action while it is held: zeros for relative actions, last for absolute
    arrays: dict[str, FactsConfig] = field(default_factory=dict)  # names and units by array

    def __post_init__(self) -> None:
        if self.frame_skip < 1 or self.hold < 0:
            raise ConfigError(f"frame_skip={self.frame_skip}, hold={self.hold}: need frame_skip from 1, hold from 0")


def schema(found: Mapping[str, ArrayConfig], config: EpisodeConfig) -> dict[str, ArrayConfig]:
    """The arrays of a source as the recipe describes them, before `frame_skip`.

    Raises:
        ConfigError: an array that the source has not, or another number of names, units or numbers than it has.
    """
    for name in (*config.arrays, *([config.action] if config.action != EpisodeConfig.action else [])):
        if name not in found:
            raise ConfigError(f"episode: {unknown_key(name, name, list(found))}")
    arrays.check_names(found)
    return {name: _described(name, given, config) for name, given in found.items()}


def _described(name: str, found: ArrayConfig, config: EpisodeConfig) -> ArrayConfig:
    facts, where = config.arrays.get(name, FactsConfig()), f"episode.arrays.{name}"
    if facts.size is not None and facts.size != found.size:
        raise ConfigError(f"{where}.size={facts.size}, but the source's {name!r} has {found.size} numbers in a row")
    units = (facts.units,) * found.size if isinstance(facts.units, str) else tuple(facts.units)
    for what, given in (("names", facts.names), ("units", units)):
        if given and len(given) != found.size:
            raise ConfigError(f"{where}.{what} has {len(given)} entries, {name!r} has {found.size} numbers in a row")
    discrete = found.discrete if facts.discrete is None else facts.discrete
    if discrete and (found.dtype != "int64" or found.size != 1):
        raise ConfigError(f"{where}.discrete={discrete}: {name!r} holds {found.size} {found.dtype}, not one choice")
    found = replace(found, names=facts.names or found.names, discrete=discrete)
    if any(units):
        found = replace(found, units=units)
    if found.kind == "frame":
        return found
    if name == config.action:
        return replace(found, chunk="join", pad=config.pad)
    return replace(found, chunk="any" if found.dtype == "bool" else "sum")


def stored(found: Mapping[str, ArrayConfig], config: EpisodeConfig) -> dict[str, ArrayConfig]:
    """The same arrays as they are written, after `frame_skip`."""
    k = config.frame_skip
    return {
        name: replace(c, size=c.size * k, steps=c.steps * k) if c.kind == "action" and c.chunk == "join" else c
        for name, c in found.items()
    }


def kept(frames: int, config: EpisodeConfig) -> Int64:
    """The frames that are written, (K + hold,); a rest of fewer than `frame_skip` steps at the end is dropped."""
    last = (frames - 1) // config.frame_skip * config.frame_skip
    taken = np.arange(0, last + 1, config.frame_skip)
    return np.concatenate([taken, np.full(config.hold, last, dtype=np.int64)])


def thinned(
    found: Mapping[str, npt.NDArray[np.generic]], given: Mapping[str, ArrayConfig], frames: int, config: EpisodeConfig
) -> dict[str, Values]:
    """The arrays of an episode of T `frames` as they are written.

    Raises:
        DataError: see `arrays.checked`; or there is no frame at all.
    """
    if frames < 1:
        raise DataError("the episode is empty: it has no frames")
    values = arrays.checked(found, given, frames)
    wanted = kept(frames, config)
    return {name: _thinned(values[name], given[name], wanted, config) for name in given}


def _thinned(values: Values, given: ArrayConfig, wanted: Int64, config: EpisodeConfig) -> Values:
    if given.kind == "frame":
        return np.ascontiguousarray(values[wanted])
    own = values[: (len(wanted) - 1 - config.hold) * config.frame_skip]
    return merged(padded(own, config.hold * config.frame_skip, given), config.frame_skip, given)


def padded(values: Values, count: int, given: ArrayConfig) -> Values:
    """With `count` rows after the end, for as long as the last frame stays."""
    if count <= 0:
        return values
    last = values[-1:] if given.pad == "last" and len(values) else np.zeros((1, values.shape[1]), values.dtype)
    return np.concatenate([values, np.repeat(last, count, axis=0)])


def merged(values: Values, count: int, given: ArrayConfig) -> Values:
    """Every `count` rows of kind action as one: (R * count, S) to (R, S), or (R, count * S) for those joined."""
    if count == 1:
        return values
    parts = values.reshape(len(values) // count, count, values.shape[1])
    if given.chunk == "join":
        return parts.reshape(len(parts), count * values.shape[1])
    return np.asarray(parts.any(1) if given.chunk == "any" else parts.sum(1)).astype(values.dtype)


__all__ = ["EpisodeConfig", "FactsConfig", "kept", "merged", "padded", "schema", "stored", "thinned"]
