"""What is kept of a sample that was looked at: who it is, a digest of its bytes, a hash of how it looks.

Perceptual hash: N. Krawetz's dHash ("Kind of like that", 2013), of rows and of columns, with a margin so that flat
areas give zeros and not noise. Measured on 64-pixel emoji, 28-pixel digits and 224-pixel cuts of photographs: the same
picture as a JPEG of quality 50 or at half the size differs in at most 8 of the 242 bits (95 % of 80 pictures each),
cuts of one photograph in 25 and more.

Shapes: H W image height and width.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

SIDE = 11  # rows and columns that are compared
BITS = 2 * SIDE * SIDE
PATTERN = -(-BITS // 64) * 8  # bytes
_MARGIN = 2.0  # grey levels by which a neighbour must be brighter
_FLAT = 2.0  # standard deviation, in grey levels, of a picture that is one colour (as a JPEG too)
_NOISE = 24  # grey levels by which coding alone may change a pixel from frame to frame
_BLACK = 16.0  # mean grey level below which one colour is called black; video's own black is 16


@dataclass(frozen=True)
class Look:
    """One sample."""

    name: str  # in its source: what a clean list holds
    label: int = -1
    digest: bytes = b""  # of its encoded bytes (16), or of its pixels; empty: not known
    pattern: bytes = b""  # perceptual hash (PATTERN); empty: one colour, or not looked at


def digest(data: bytes | npt.NDArray[np.uint8]) -> bytes:
    """16 bytes that are equal for equal content."""
    content = data if isinstance(data, bytes) else np.ascontiguousarray(data).data
    return hashlib.blake2b(content, digest_size=16).digest()


def pattern(image: Tensor) -> bytes:
    """The perceptual hash of an image (3, H, W) uint8: which of its neighbouring parts grow brighter."""
    grey = image.float().mean(0)[None, None]
    rows = F.interpolate(grey, (SIDE, SIDE + 1), mode="bilinear", antialias=True)[0, 0]
    columns = F.interpolate(grey, (SIDE + 1, SIDE), mode="bilinear", antialias=True)[0, 0]
    brighter = [rows[:, 1:] - rows[:, :-1] > _MARGIN, columns[1:] - columns[:-1] > _MARGIN]
    return np.packbits(torch.cat([b.flatten() for b in brighter]).numpy()).tobytes().ljust(PATTERN, b"\0")


def one_colour(image: Tensor) -> str:
    """ "black" or "one colour" for an image (3, H, W) uint8 that is; else nothing."""
    pixels = image.float().flatten(1)
    if float(pixels.std(1, correction=0).max()) >= _FLAT:
        return ""
    return "black" if float(pixels.mean()) <= _BLACK else "one colour"


def odd_shape(height: int, width: int, min_side: int, max_aspect: float) -> str:
    """Why a picture's size is odd; empty if it is not."""
    if min(height, width) < min_side:
        return f"it has {height}x{width} pixels (height x width), less than min_side={min_side}"
    if max(height, width) > max_aspect * min(height, width):
        return f"it has {height}x{width} pixels (height x width), longer than max_aspect={max_aspect:g} allows"
    return ""


def odd_frames(frames: list[Tensor]) -> str:
    """Why frames taken from a video, (3, H, W) uint8 each, are odd; empty if they are not."""
    plain = [one_colour(frame) for frame in frames]
    if frames and all(plain):
        return f"all {len(frames)} frames looked at are {plain[0] if len(set(plain)) == 1 else 'one colour'}"
    apart = [int((frame.int() - frames[0].int()).abs().max()) for frame in frames[1:]]
    if apart and max(apart) <= _NOISE:
        return f"its picture stands still: the {len(frames)} frames looked at are the same"
    return ""


def odd_rows(rows: npt.NDArray[np.generic], name: str) -> str:
    """Why an array of an episode, (T, numbers), is odd; empty if it is not."""
    values = np.asarray(rows, dtype=np.float64)
    if not np.isfinite(values).all():
        return f"array {name!r} holds {int((~np.isfinite(values)).sum())} numbers that are not finite"
    if name == "action" and len(values) > 1 and (values == values[0]).all():
        return f"array {name!r} never changes in its {len(values)} rows"
    return ""


__all__ = ["BITS", "PATTERN", "Look", "digest", "odd_frames", "odd_rows", "odd_shape", "one_colour", "pattern"]
