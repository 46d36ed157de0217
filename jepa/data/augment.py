"""Crops: drawn first as numbers, a pure function of (seed, g, view), then applied to uint8 pixels.

The law is that of the usual random resized crop (Szegedy et al., "Going deeper with convolutions", 2015): share of
the area uniform, logarithm of the aspect ratio uniform, place uniform; after ten boxes that do not fit, the largest
centred box with an allowed ratio. A box depends on the image's size, so the uniform numbers are drawn for a whole
micro-batch at once and turned into a box when the size is known.

Shapes: B samples, H W output height and width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from jepa import keyed

TRIES = 10
_DRAWS = 1 + 4 * TRIES  # flip, then (area, ratio, top, left) for each try
Interpolation = Literal["bilinear", "bicubic"]


class Box(NamedTuple):
    """Part of an image, in its pixels, and whether it is mirrored afterwards."""

    top: int
    left: int
    height: int
    width: int
    flip: bool = False


@dataclass(frozen=True)
class CropLaw:
    """What crops may look like."""

    scale: tuple[float, float] = (0.3, 1.0)  # share of the image's area
    ratio: tuple[float, float] = (3 / 4, 4 / 3)  # width / height
    hflip: float = 0.0  # probability of mirroring


def draw(seed: int, g: npt.NDArray[np.int64], view: int = 0) -> npt.NDArray[np.float64]:
    """The uniform numbers behind the crops of samples `g` (B,): float64 (B, draws)."""
    return keyed.uniform("crop", seed, g, _DRAWS, sub=view)


def box(law: CropLaw, numbers: npt.NDArray[np.float64], height: int, width: int) -> Box:
    """The crop of one image of height x width pixels from its row of `draw`'s numbers."""
    values = numbers.tolist()
    flip = values[0] < law.hflip
    low, high = math.log(law.ratio[0]), math.log(law.ratio[1])
    for k in range(1, _DRAWS, 4):
        area = height * width * (law.scale[0] + values[k] * (law.scale[1] - law.scale[0]))
        ratio = math.exp(low + values[k + 1] * (high - low))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            # numbers lie strictly inside (0, 1), so the place is at most height - h and width - w
            return Box(int(values[k + 2] * (height - h + 1)), int(values[k + 3] * (width - w + 1)), h, w, flip)
    ratio = min(max(width / height, law.ratio[0]), law.ratio[1])
    w, h = min(width, max(1, round(height * ratio))), min(height, max(1, round(width / ratio)))
    return Box((height - h) // 2, (width - w) // 2, h, w, flip)


def centre_box(height: int, width: int, size: tuple[int, int]) -> Box:
    """The largest centred box with the aspect ratio of `size` (H, W); the whole image when the ratios agree.

    Resizing it covers `size` exactly: the same as scaling the image until it covers `size` and cutting the middle.
    """
    return view_box(height, width, size, 0.5)


def view_box(height: int, width: int, size: tuple[int, int], place: float) -> Box:
    """A box as large as `centre_box`, from one end of the image (place 0) to the other (1)."""
    scale = min(height / size[0], width / size[1])
    h, w = min(height, max(1, round(size[0] * scale))), min(width, max(1, round(size[1] * scale)))
    return Box(int((height - h) * place), int((width - w) * place), h, w)


def apply(image: Tensor, part: Box, size: tuple[int, int], interpolation: Interpolation) -> Tensor:
    """Cut `part` out of a uint8 image (3, h, w) and resize it, antialiased, to uint8 (3, H, W).

    Only the box is resized, and its pixels are first packed height-width-channel: the fast path of the resize.
    """
    cut = image[:, part.top : part.top + part.height, part.left : part.left + part.width]
    if (part.height, part.width) != size:
        packed = cut.unsqueeze(0).contiguous(memory_format=torch.channels_last)
        cut = torch.nn.functional.interpolate(packed, size, mode=interpolation, antialias=True)[0]
    return cut.flip(-1) if part.flip else cut
