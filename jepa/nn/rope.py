"""Rotary positions in time, rows and columns (V-JEPA 2, arXiv 2506.09985, section 2.1).

A head's features are cut into three equal parts of even width, one each for time, row and column; a part's pair i of
neighbouring features is turned by position * 10000^(-i / pairs). What is left over of the head is not turned.

The published V-JEPA 2 weights were trained with the frequencies laid out *tiled* (0 1 2 0 1 2 over the features of a
part with 3 pairs), so that the two features of a pair are turned by different angles. V-JEPA 2.1 lays them out
*paired* (0 0 1 1 2 2), which is a rotation. The layout belongs to the weights: neither works with the other's.

The angles of a grid are computed once, in float64. Attention does not depend on the order of tokens, so nothing is
sorted: the tables are gathered for the tokens that are kept.

Shapes: B batch, N = T * H * W tokens, S packed rows, h heads, d features of a head that are turned.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from jepa.errors import ConfigError

Layout = Literal["tiled", "paired"]
Grid = tuple[int, int, int]
Rotary = tuple[Tensor, Tensor]  # cosines, and sines with the sign of their feature; broadcast against queries and keys


def turned(qkv: Tensor, rotary: Rotary) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values (..., 3, h, D / h), the first two turned by tables of shape (..., 1, 1, d).

    Returns:
        Each (..., h, D / h).
    """
    cosine, sine = (table.to(qkv.dtype) for table in rotary)
    q, k, v = _Turn.apply(qkv, cosine, sine)
    return q, k, v


class _Turn(torch.autograd.Function):
    """The rotation with its gradient written into one (..., 3, h, D / h), as the map before it wants it.

    Left to autograd, the cut into queries, keys and values alone would fill three such tensors and add them up.
    """

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, cosine: Tensor, sine: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        ctx.save_for_backward(cosine, sine)
        q, k = _rotated(qkv[..., :2, :, :], cosine, sine).unbind(-3)
        return q, k, qkv[..., 2, :, :]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        cosine, sine = ctx.saved_tensors
        out = grads[0].new_empty(*grads[0].shape[:-2], 3, *grads[0].shape[-2:])
        for i, grad in enumerate(grads[:2]):
            # swapping is its own inverse, so swapping back what the sines weigh undoes it
            out[..., i, :, :] = _rotated(grad, cosine.squeeze(-3), sine.squeeze(-3), swap_last=True)
        out[..., 2, :, :] = grads[2]
        return out, None, None


def _rotated(x: Tensor, cosine: Tensor, sine: Tensor, swap_last: bool = False) -> Tensor:
    width = cosine.shape[-1]
    if width < x.shape[-1]:  # a head of odd width
        return torch.cat([_rotated(x[..., :width], cosine, sine, swap_last), x[..., width:]], dim=-1)
    if swap_last:
        return (x * cosine).add_(_swapped(x * sine))
    return (x * cosine).addcmul_(_swapped(x), sine)


def _swapped(x: Tensor) -> Tensor:
    """The other feature of each pair."""
    return x.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)  # type: ignore[no-untyped-call, no-any-return]


class RotaryTables:
    """Tables for heads of one width, on any grid, device and type; each is made once."""

    def __init__(self, head_width: int, layout: Layout, base_grid: int | None = None) -> None:
        """`base_grid`: rows and columns are rescaled to a grid of this side (V-JEPA 2.1: 256 px / 16 px = 16)."""
        if head_width < 6:
            raise ConfigError(
                f"attention heads of width {head_width} are too narrow for rotary positions in three dimensions: "
                "at least 6 is needed; use fewer heads, a larger width, or method.position.kind=sincos"
            )
        self.head_width, self.layout, self.base_grid = head_width, layout, base_grid
        self._made: dict[tuple[Grid, int, torch.device, torch.dtype], Rotary] = {}

    def of(self, grid: Grid, like: Tensor) -> Rotary:
        """Cosines and sines (N, d) on the device of `like`, in the type that attention computes in there."""
        return self._of(grid, 0, like)

    def of_frames(self, grid: Grid, before: int, like: Tensor) -> Rotary:
        """The same of frames that begin with `before` tokens of no place in the image: (T, before + H * W, d).

        Such tokens, of an action for example, are turned by their time alone. Columns are rescaled to the number of
        rows, which V-JEPA 2-AC does with images that are not square.
        """
        cosine, sine = self._of(grid, before, like)
        return cosine.unflatten(0, (grid[0], -1)), sine.unflatten(0, (grid[0], -1))  # type: ignore[no-untyped-call]

    def _of(self, grid: Grid, before: int, like: Tensor) -> Rotary:
        device = like.device
        autocast = device.type != "meta" and torch.is_autocast_enabled(device.type)  # counted there, see jepa.cost
        dtype = torch.get_autocast_dtype(device.type) if autocast else like.dtype
        key = (grid, before, device, dtype)
        if key not in self._made:
            places = _frame_places(grid, before) if before else _places(grid, self.base_grid)
            cosine, sine = _tables(self.head_width, places, self.layout)
            with torch.inference_mode(False):  # made while evaluating, they serve training too
                self._made[key] = torch.from_numpy(cosine).to(device, dtype), torch.from_numpy(sine).to(device, dtype)
        return self._made[key]


def _places(grid: Grid, base_grid: int | None) -> npt.NDArray[np.float64]:
    """Time, row and column of every token: (T * H * W, 3)."""
    places = np.stack(np.meshgrid(*(np.arange(n, dtype=np.float64) for n in grid), indexing="ij"), -1).reshape(-1, 3)
    if base_grid is not None:
        places[:, 1:] *= [(base_grid - 1) / max(1, side - 1) for side in grid[1:]]
    return places


def _frame_places(grid: Grid, before: int) -> npt.NDArray[np.float64]:
    """The same (T * (before + H * W), 3) with tokens at (t, 0, 0) before each frame's own."""
    places = _places(grid, None).reshape(grid[0], -1, 3)
    places[:, :, 2] *= grid[1] / grid[2]
    return np.concatenate([places[:, :1] * np.repeat([[[1.0, 0.0, 0.0]]], before, axis=1), places], axis=1).reshape(
        -1, 3
    )


def _tables(
    head_width: int, places: npt.NDArray[np.float64], layout: Layout
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    part = head_width // 3 // 2 * 2  # features for each of time, row, column
    frequencies = 10000.0 ** (-np.arange(part // 2) / (part / 2))
    order = np.tile(frequencies, 2) if layout == "tiled" else np.repeat(frequencies, 2)  # of the features of a part
    angles = np.zeros((len(places), head_width // 2 * 2))
    angles[:, : 3 * part] = (places[:, :, None] * order).reshape(len(places), -1)
    sign = np.where(np.arange(angles.shape[1]) % 2 == 0, -1.0, 1.0)
    return np.cos(angles), np.sin(angles) * sign
