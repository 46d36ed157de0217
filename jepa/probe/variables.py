"""State variables of episodes as targets of a regression, and how far a prediction is off in their own units.

A variable is some numbers of a named array: a position of two, say. An angle is regressed as its sine and cosine, since
a number that jumps from one end of its range to the other has no linear map; its error is taken around the circle.

Shapes: n samples, C columns that are regressed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from jepa.config import unknown_key
from jepa.errors import ConfigError, DataError


@dataclass(frozen=True)
class VariableConfig:
    """Numbers of an array that belong together."""

    array: str  # of the data set, one row for each frame
    dims: tuple[int, ...] = ()  # which of its numbers; empty: all
    kind: Literal["linear", "angle"] = "linear"  # an angle is regressed as sine and cosine, its error is in degrees
    period: float = 2 * math.pi  # of an angle, in the array's unit: 6.2832 for radians, 360 for degrees
    unit: str = ""  # of a linear variable, for people: px, m, m/s

    def __post_init__(self) -> None:
        if min(self.dims, default=0) < 0 or len(set(self.dims)) < len(self.dims):
            raise ConfigError(f"dims={list(self.dims)}: give different numbers from 0")
        if not 0 < self.period < math.inf:
            raise ConfigError(f"period={self.period}: must be above 0, e.g. 360 for degrees")

    @property
    def shown(self) -> str:
        """The unit of `error`."""
        return "°" if self.kind == "angle" else self.unit

    def columns(self, values: Tensor) -> Tensor:
        """What is regressed (n, C) of rows (n, size) of the array: the numbers, or sines then cosines of angles."""
        picked = self._picked(values)
        if self.kind == "linear":
            return picked
        turn = 2 * math.pi / self.period * picked
        return torch.cat([turn.sin(), turn.cos()], dim=-1)

    def error(self, values: Tensor, predicted: Tensor) -> Tensor:
        """How far predicted columns (..., C) are from rows (..., size) of the array: (...).

        The Euclidean distance in the array's unit; of angles the mean of the shorter ways round, in degrees.
        """
        picked = self._picked(values)
        if self.kind == "linear":
            return (predicted - picked).square().sum(dim=-1).sqrt()
        sine, cosine = predicted.chunk(2, dim=-1)
        away = torch.atan2(sine, cosine) - 2 * math.pi / self.period * picked
        return torch.rad2deg(torch.atan2(away.sin(), away.cos()).abs()).mean(dim=-1)

    def _picked(self, values: Tensor) -> Tensor:
        return values[..., list(self.dims)] if self.dims else values


def check(variables: Mapping[str, VariableConfig], sizes: Mapping[str, int], where: str) -> None:
    """Raise ConfigError where a variable asks for what is not there; `sizes` of the arrays of frames, by name."""
    for name, variable in variables.items():
        place = f"{where}.{name}"
        if variable.array not in sizes:
            raise ConfigError(
                f"{place}: {unknown_key(f'array={variable.array}', variable.array, list(sizes))}. A state variable has "
                "one row for each frame"
            )
        if max(variable.dims, default=0) >= sizes[variable.array]:
            raise ConfigError(
                f"{place}: dims={list(variable.dims)}, but array {variable.array!r} has {sizes[variable.array]} "
                "numbers, counted from 0"
            )


def targets(variables: Mapping[str, VariableConfig], arrays: Mapping[str, Tensor], split: str) -> Tensor:
    """Columns (n, C) of all variables side by side, float64.

    Raises:
        DataError: one that is not finite, or does not vary.
    """
    parts = []
    for name, variable in variables.items():
        part = variable.columns(arrays[variable.array].double())
        spread = part.max(dim=0).values - part.min(dim=0).values
        if not bool(torch.isfinite(part).all()) or bool((spread <= 0).any()):
            raise DataError(
                f"state variable {name!r} cannot be read off in split {split!r}: its numbers must be finite and vary "
                f"({len(part)} frames). Leave it out, or name those that do in dims"
            )
        parts.append(part)
    return torch.cat(parts, dim=1)


def places(variables: Mapping[str, VariableConfig], arrays: Mapping[str, Tensor]) -> dict[str, slice]:
    """Where the columns of each variable lie in `targets`."""
    found, start = {}, 0
    for name, variable in variables.items():
        size = len(variable.dims) or arrays[variable.array].shape[-1]
        width = size * (2 if variable.kind == "angle" else 1)
        found[name] = slice(start, start + width)
        start += width
    return found
