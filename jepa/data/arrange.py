"""Images and videos as people hand them over, to batches as encoders take them.

Shapes: B batch, T frames, H W image, h w image before it is resized.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from jepa.data.augment import Interpolation, centre_box
from jepa.errors import ConfigError

_IMAGES = {"CHW": 3, "HWC": 3, "BCHW": 4, "BHWC": 4}
_VIDEOS = {"CTHW": 4, "TCHW": 4, "THWC": 4, "BCTHW": 5, "BTCHW": 5, "BTHWC": 5}
LAYOUTS = _IMAGES | _VIDEOS


def arrange(given: Any, video: bool, layout: str | None = None) -> Tensor:
    """Images to (B, 3, h, w), videos to (B, 3, T, h, w); uint8 or floating point, values as they were.

    Args:
        given: a tensor, an array, a PIL image, or a list of those of one size; colour is the axis of length 3.
        video: whether four axes are one video of T images, or B images.
        layout: the axes, one of `LAYOUTS`; None: what the shape tells.

    Raises:
        ConfigError: another shape or type, or a shape that can be read in two ways.
    """
    x = _tensor(given)
    if x.dtype != torch.uint8 and not x.is_floating_point():
        raise ConfigError(f"got pixels of type {x.dtype}; use uint8 (0..255) or floats (0..1)")
    axes = layout or _guess(x, video)
    if axes not in LAYOUTS or LAYOUTS[axes] != x.ndim or x.shape[axes.index("C")] != 3:
        raise ConfigError(
            f"got an array of shape {tuple(x.shape)}"
            + (f" as layout {axes!r}" if layout else "")
            + f"; images and videos have one of the layouts {', '.join(LAYOUTS)}, with 3 colours (C)"
        )
    if "B" not in axes:
        x, axes = x.unsqueeze(0), "B" + axes
    return x.permute([axes.index(axis) for axis in ("BCTHW" if "T" in axes else "BCHW")])


def _tensor(given: Any) -> Tensor:
    if isinstance(given, Tensor):
        return given
    if isinstance(given, list | tuple):
        parts = [_tensor(one) for one in given]
        shapes = sorted({tuple(part.shape) for part in parts})
        if len(shapes) != 1:
            raise ConfigError(f"got a list of arrays of shapes {shapes[:4]}; a batch has one size, resize them first")
        return torch.stack(parts)
    if hasattr(given, "convert"):  # a PIL image: grey, palette and alpha become colours
        given = given.convert("RGB")
    try:
        return torch.from_numpy(np.array(given))
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"got a {type(given).__name__}, which is no image: {error}. Give a tensor, an array, a PIL image or a list "
            "of those"
        ) from None


def _guess(x: Tensor, video: bool) -> str:
    """The layout that the shape tells. Colour first wins over colour last, and both over colour after time."""
    wanted = [axes for axes, ndim in LAYOUTS.items() if ndim == x.ndim and x.shape[axes.index("C")] == 3]
    if x.ndim == 4:
        wanted = [axes for axes in wanted if ("T" in axes) == video]
    if len(wanted) > 1:
        raise ConfigError(
            f"an array of shape {tuple(x.shape)} may be {' or '.join(wanted)}: say which by layout={wanted[0]!r}"
        )
    return wanted[0] if wanted else ""


def fit(x: Tensor, size: tuple[int, int], interpolation: Interpolation) -> Tensor:
    """(B, 3, [T,] h, w) to (B, 3, [T,] H, W): the largest centred part of that aspect ratio, resized, antialiased.

    The same arithmetic as for images of an evaluation: bytes stay bytes.
    """
    height, width = x.shape[-2:]
    part = centre_box(height, width, size)
    cut = x[..., part.top : part.top + part.height, part.left : part.left + part.width]
    if cut.shape[-2:] == size:
        return cut
    clips = cut.ndim == 5
    flat = cut.transpose(1, 2).flatten(0, 1) if clips else cut
    flat = F.interpolate(flat.contiguous(memory_format=torch.channels_last), size, mode=interpolation, antialias=True)
    if flat.is_floating_point():
        flat = flat.clamp(0, 1)  # bicubic overshoots at edges; bytes are clamped too
    return flat.view(len(x), x.shape[2], *flat.shape[1:]).transpose(1, 2) if clips else flat


__all__ = ["LAYOUTS", "arrange", "fit"]
