"""What every mask sampler gives, and the pieces they share. Pure functions of (seed, step, sample number g).

Shapes: B samples, N tokens, K kept tokens.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from jepa import keyed

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Masks:
    """Token indices, row-major over the grid (time, rows, columns), strictly increasing in each row."""

    context: list[Tensor]  # each (B, Kc) int64
    target: list[Tensor]  # each (B, Kt) int64

    def to(self, device: torch.device | str, non_blocking: bool = True) -> Masks:
        """The same masks on another device."""
        return Masks(
            [m.to(device, non_blocking=non_blocking) for m in self.context],
            [m.to(device, non_blocking=non_blocking) for m in self.target],
        )

    def slice(self, start: int, stop: int) -> Masks:
        """Rows start:stop, as views."""
        return Masks([m[start:stop] for m in self.context], [m[start:stop] for m in self.target])


class Sampler(Protocol):
    """Masks of the samples `g` (B,) at a step, as CPU tensors; the same arguments give the same masks."""

    def __call__(self, step: int, g: Ints) -> Masks: ...


def random_subset(candidates: Bools, count: int, stream: str, seed: int, g: Ints) -> Ints:
    """A uniformly random subset of `count` candidates (B, N) per sample, keyed by (seed, g), sorted: (B, count)."""
    n = candidates.shape[1]
    words = keyed.words(stream, seed, g, -(-n // 2))  # two 16-bit scores to a word
    scores = words.astype(np.uint32).view(np.uint16)[:, :n].astype(np.int32)
    rank = scores * n + np.arange(n, dtype=np.int32) if n < 32768 else scores.astype(np.int64) * n + np.arange(n)
    rank[~candidates] = np.iinfo(rank.dtype).max
    last = np.partition(rank, count - 1, axis=1)[:, count - 1 : count]
    return np.nonzero(rank <= last)[1].reshape(len(g), count)


def cut_to_shortest(rows: list[Tensor], all_rows: Iterable[list[Tensor]]) -> Tensor:
    """Rows (each of its own length) cut in raster order to the shortest of `all_rows`, as the official samplers do."""
    shortest = min(len(row) for block in all_rows for row in block)
    return torch.stack([row[:shortest] for row in rows])
