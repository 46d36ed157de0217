"""Label maps: a number for every pixel of an image, stored beside it as KEY.NAME.png or KEY.NAME.npy.

A PNG holds whole numbers: grey of 1, 8 or 16 bits, or indices into a palette, whose colours mean nothing here. A .npy
file holds whole numbers or floats (H, W) and is read without pickle. Files are stored as they are; what their numbers
mean is said by `MapConfig` and applied when a map is read.

Shapes: H W height and width.
"""

from __future__ import annotations

import colorsys
import io
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from jepa.data import decode
from jepa.errors import ConfigError, DataError

EXTENSIONS = ("png", "npy")  # order is part of the format: map-X.npy stores positions
VOID = 255  # a pixel without a class
_DEPTHS = {0: (1, 8, 16), 3: (1, 2, 4, 8)}  # bits of grey and palette PNGs whose numbers come out unchanged


@dataclass(frozen=True)
class MapConfig:
    """What the numbers of a label map mean: classes, or a measure such as depth."""

    first: int = 0  # number that stands for class 0; smaller ones mean no class, as 255 does
    scale: float | None = None  # what 1 stands for, e.g. 0.001 for depth in mm; null: whole numbers are classes

    def __post_init__(self) -> None:
        if self.scale is not None and not (self.scale > 0 and math.isfinite(self.scale)):
            raise ConfigError(f"scale: must be above 0, or null for classes, got {self.scale}")
        if not 0 <= self.first < VOID or (self.first and self.scale is not None):
            raise ConfigError(f"first={self.first}, scale={self.scale}: first is for classes, from 0 to {VOID - 1}")


@dataclass(frozen=True)
class LabelMap:
    """The map of one sample, as its file has it."""

    name: str
    data: bytes
    extension: str  # one of EXTENSIONS
    config: MapConfig


def check_names(names: Iterable[str]) -> None:
    """Names become parts of file names.

    Raises:
        ConfigError: a name that is none, or that means something else in a shard.
    """
    for name in names:
        if not re.fullmatch(r"[a-z][a-z0-9_-]*", name) or name in ("cls", "json", "facts"):
            raise ConfigError(
                f"maps: {name!r} cannot be a map's name: small letters, digits, - and _, and not cls, json or facts"
            )


def read(found: LabelMap) -> npt.NDArray[Any]:
    """The map (H, W): uint8 classes from 0 with 255 for none, or a float32 measure.

    Raises:
        DataError: damaged, too large, no map of numbers, or numbers that are no classes.
    """
    values = _png(found.data) if found.extension == "png" else _npy(found.data)
    try:
        return _meant(values, found.config)
    except DataError as error:
        raise DataError(f"label map {found.name!r}: {error}") from None


def _meant(values: npt.NDArray[Any], config: MapConfig) -> npt.NDArray[Any]:
    if config.scale is not None:
        return (values * config.scale).astype(np.float32)
    if values.dtype.kind == "f":
        return values.astype(np.float32)
    if config.first > 0 or values.dtype.kind == "b":
        shifted = values.astype(np.int64) - config.first
        values = np.where((shifted < 0) | (values == VOID), VOID, shifted)
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > VOID:
        raise DataError(
            f"it holds the number {low if low < 0 else high}, classes lie between 0 and {VOID - 1}. If it is a "
            "measure, say with maps.NAME.scale what 1 stands for"
        )
    return values.astype(np.uint8)


def check(found: LabelMap, image: tuple[int, int]) -> None:
    """Read a map and compare it with its image (height, width).

    Raises:
        DataError: as `read`, or as `check_shape`.
    """
    check_shape(found.name, read(found).shape, image)


def check_shape(name: str, shape: tuple[int, ...], image: tuple[int, int]) -> None:
    """Compare the shape of a map with that of its image (height, width).

    Another resolution is fine, as an image may have been shrunk since; another aspect means another picture.

    Raises:
        DataError: they are not of one picture.
    """
    (h, w), (height, width) = shape, image
    if abs(h * width - w * height) > max(h + w, height + width):  # sides rounded to pixels may be 1 off
        raise DataError(f"label map {name!r} has {h}x{w} pixels, its image {height}x{width} (height x width)")


def _png(data: bytes) -> npt.NDArray[Any]:
    found = decode.header(data)
    if found.format != "png":
        raise DataError(f"the label map is a {found.format} file named .png; numbers do not survive it")
    depth, colour = data[24], data[25]
    if depth not in _DEPTHS.get(colour, ()):
        kind = {0: "grey", 2: "colour", 3: "palette", 4: "grey and transparency", 6: "colour and transparency"}
        raise DataError(
            f"the label map holds {kind.get(colour, 'unknown values')} of {depth} bits, not one number for every "
            "pixel: write it as grey of 8 or 16 bits"
        )
    decode.check_png(data)
    with decode.open_as(data, "png") as image:
        try:
            image.load()
            return np.asarray(image)
        except Exception as error:  # decoders fail on hostile bytes in every way there is
            raise DataError(f"the label map cannot be decoded: {error or type(error).__name__}") from None


def _npy(data: bytes) -> npt.NDArray[Any]:
    file = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(file)
        reader = np.lib.format.read_array_header_1_0 if version[0] == 1 else np.lib.format.read_array_header_2_0
        shape, _, kind = reader(file)
        if len(shape) != 2 or kind.kind not in "uifb" or not math.prod(shape):
            raise ValueError(f"it holds {kind} {shape}, expected numbers (height, width)")
        if math.prod(shape) > decode.MAX_PIXELS or len(data) != file.tell() + math.prod(shape) * kind.itemsize:
            raise ValueError(f"{len(data)} bytes cannot hold {kind} {shape}")
        file.seek(0)
        found: npt.NDArray[Any] = np.load(file, allow_pickle=False)
        return found
    except Exception as error:  # numpy's parser fails on hostile headers in every way there is
        raise DataError(f"the label map is no .npy file that can be read: {error or type(error).__name__}") from None


def picture(values: npt.NDArray[Any]) -> Tensor:
    """A map for people, uint8 (3, H, W): a colour for each class, none black; measures from dark to light."""
    if values.dtype.kind == "f":
        known = np.isfinite(values) & (values > 0)
        most = float(values[known].max()) if known.any() else 1.0
        grey = np.where(known, 40 + 215 * np.where(known, values, 0) / most, 0).astype(np.uint8)
        return torch.from_numpy(grey).expand(3, -1, -1)
    hues = [colorsys.hsv_to_rgb(i * 0.618 % 1, 0.45 + 0.4 * (i % 2), 0.95 - 0.25 * (i % 3)) for i in range(VOID)]
    colours = (np.array([*hues, (0.0, 0.0, 0.0)]) * 255).astype(np.uint8)
    return torch.from_numpy(colours[values]).permute(2, 0, 1)
