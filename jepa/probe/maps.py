"""Label maps: one number for every pixel of a sample, cut and laid out as its image was for the encoder.

A split has names of maps (`map_names`), and a method that reads one (`read_map`). Classes are integers, with `VOID`
where a pixel has none; measures (depth) are floats, not finite or <= 0 where unknown.

Shapes: n samples, H W map, h w token grid, s samples of the map along a token's side.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from jepa.config import unknown_key
from jepa.data import Split
from jepa.data.augment import centre_box
from jepa.data.labelmap import VOID
from jepa.errors import ConfigError, DataError

Ints = npt.NDArray[np.int64]


class Maps:
    """One label map of each chosen sample of a split.

    Args:
        index: (n,) into the split.
        image_size: what the encoder sees: maps are cut to its aspect, in the middle, as images are.

    Raises:
        ConfigError: the data set has no such maps.
    """

    def __init__(self, split: Split, index: Ints, name: str, image_size: tuple[int, int]) -> None:
        if not split.map_names:
            raise ConfigError(
                f"dense probes need a label for every pixel, and data set {split.root} has none in its split "
                f"{split.name!r}: build it with source.maps, or leave them out: probes.segmentation=null "
                "probes.depth=null"
            )
        if name not in split.map_names:
            raise ConfigError(f"map={name}: {unknown_key(name, name, list(split.map_names))}")
        self.split, self.index, self.name, self.image_size = split, index, name, image_size
        self._read = split.read_map

    def __len__(self) -> int:
        return len(self.index)

    def whole(self, place: int) -> npt.NDArray[Any]:
        """The map of one sample, cut but not resized: (H', W').

        Raises:
            DataError: not a map.
        """
        found = np.asarray(self._read(int(self.index[place]), self.name))
        if found.ndim != 2 or found.dtype.kind not in "uif" or not found.size:
            raise DataError(
                f"map {self.name!r} of sample {int(self.index[place])} in split {self.split.name!r} is "
                f"{found.dtype} {found.shape}; expected numbers (height, width)"
            )
        box = centre_box(found.shape[0], found.shape[1], self.image_size)
        return found[box.top : box.top + box.height, box.left : box.left + box.width]

    def sampled(self, grid: tuple[int, int], detail: int) -> npt.NDArray[Any]:
        """Every map at `detail` x `detail` points of each token, nearest neighbour: (n, h s, w s).

        Classes are int16, measures float32, so this is what is held in memory: 2 or 4 bytes a point.
        """
        size = (grid[0] * detail, grid[1] * detail)
        out: npt.NDArray[Any] | None = None
        for place in range(len(self)):
            found = nearest(self.whole(place), size)
            if out is None:
                out = np.empty((len(self), *size), np.float32 if found.dtype.kind == "f" else np.int16)
            out[place] = found
        return np.empty((0, *size), np.int16) if out is None else out

    @cached_property
    def classes(self) -> int:
        """1 + the largest class number of any sample.

        Raises:
            DataError: measures instead of classes, negative numbers, or no class at all.
        """
        most = -1
        for place in range(len(self)):
            found = self.whole(place)
            if found.dtype.kind == "f" or found.min() < 0:
                raise DataError(f"map {self.name!r} holds no class numbers: it is {found.dtype}, from {found.min()}")
            known = found[found != VOID]
            most = max(most, int(known.max()) if known.size else -1)
        if most < 0:
            raise DataError(f"map {self.name!r} of split {self.split.name!r} has no pixel with a class")
        return most + 1


def nearest(values: npt.NDArray[Any], size: tuple[int, int]) -> npt.NDArray[Any]:
    """A map (H, W) read at the centres of `size` (h, w) equal cells."""
    rows, columns = (((np.arange(n) + 0.5) * full / n).astype(int) for n, full in zip(size, values.shape, strict=True))
    return np.asarray(values[rows][:, columns])


def patches(points: Tensor, grid: tuple[int, int]) -> Tensor:
    """Sampled maps (b, h s, w s) to the points of each token (b, h w, s s)."""
    b, (h, w) = len(points), grid
    s = points.shape[1] // h
    return points.view(b, h, s, w, s).transpose(2, 3).reshape(b, h * w, s * s)


def shares(points: Tensor, classes: int) -> Tensor:
    """Class numbers of points (b, N, P) to the share of each class in a token, (b, N, C) float32; void is no class."""
    known = (points >= 0) & (points < classes)
    flat = torch.where(known, points.long(), torch.full_like(points, classes, dtype=torch.long))
    counts = torch.zeros(*points.shape[:2], classes + 1)
    counts.scatter_add_(2, flat, torch.ones_like(flat, dtype=torch.float32))
    return counts[..., :classes] / points.shape[2]


def known_mean(points: Tensor, most: float | None) -> tuple[Tensor, Tensor]:
    """Measures of points (b, N, P) to their mean in each token and the share of points that are known: (b, N) each."""
    known = torch.isfinite(points) & (points > 0)
    if most is not None:
        known &= points <= most
    count = known.sum(dim=2)
    total = torch.where(known, points, torch.zeros_like(points)).double().sum(dim=2)
    return total / count.clamp(min=1), count.double() / points.shape[2]
