"""Where a token of a clip is: settings shared by encoder and predictor, and sine-cosine tables for other grids.

Shapes: N = T * H * W tokens, D width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor
from torch.nn import functional as F

from jepa.errors import ConfigError
from jepa.nn.rope import Grid, Layout


@dataclass(frozen=True)
class PositionConfig:
    """How tokens know where they are."""

    kind: Literal["rope", "sincos"] = "rope"  # rope: rotary attention (V-JEPA 2); sincos: a fixed table (V-JEPA 1)
    layout: Layout = "tiled"  # rope: tiled belongs to V-JEPA 2's weights, paired (a true rotation) to those of 2.1
    base_grid: int | None = None  # rope: rescale rows and columns to a grid of this side (V-JEPA 2.1: 16)
    uniform: bool = True  # sincos: time, rows, columns share the width equally; false: half, quarter, quarter

    def __post_init__(self) -> None:
        if self.base_grid is not None and self.base_grid < 2:
            raise ConfigError(f"base_grid: got {self.base_grid}, allowed: at least 2, or null for no rescaling")


def table_for(table: Tensor, made_for: Grid, grid: Grid) -> Tensor:
    """A sine-cosine table (1, N, D) for another grid: its first time steps, or interpolated (as official)."""
    if grid == made_for:
        return table
    if grid[1:] == made_for[1:] and grid[0] < made_for[0]:
        return table[:, : grid[0] * grid[1] * grid[2]]
    volume = table.reshape(1, *made_for, -1).permute(0, 4, 1, 2, 3)
    return F.interpolate(volume, size=grid, mode="trilinear").flatten(2).transpose(1, 2)
