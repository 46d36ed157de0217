"""Encoded image bytes -> uint8 (3, H, W) RGB. Data is not code: only the formats listed here are decoded.

Rules for what is not plain 8-bit RGB: grey is repeated over the channels; palettes are looked up; CMYK is converted;
16-bit samples keep their high byte; transparency is composited on white, the usual page; EXIF orientation is applied;
of an animation the first frame is taken.
"""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageFile, ImageOps
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg

from jepa.errors import DataError

FORMATS = ("jpg", "png", "webp", "bmp")
MAX_PIXELS = 100_000_000  # a larger picture is taken for a decompression bomb
_PIL_NAMES = {"jpg": "JPEG", "png": "PNG", "webp": "WEBP", "bmp": "BMP"}
# JPEG start-of-frame markers; C4, C8 and CC are tables and extensions
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}


@dataclass(frozen=True)
class Header:
    """What the first bytes say."""

    format: str  # one of FORMATS
    height: int
    width: int
    plain: bool  # an 8-bit grey or RGB JPEG: the fast decoder handles it


def header(data: bytes) -> Header:
    """Format and size from the first bytes, without decoding; the name's extension is never trusted.

    Raises:
        DataError: empty, of no known format, damaged, or too large.
    """
    if not data:
        raise DataError("the image is empty (0 bytes)")
    try:
        found = _sniff(data)
    except (struct.error, IndexError):
        raise DataError(f"the image is truncated inside its header ({len(data)} bytes)") from None
    if found.height < 1 or found.width < 1:
        raise DataError(f"the image has no pixels ({found.width}x{found.height})")
    if found.height * found.width > MAX_PIXELS:
        raise DataError(f"the image claims {found.width}x{found.height} pixels, at most {MAX_PIXELS} are decoded")
    return found


def _sniff(data: bytes) -> Header:
    if data[:2] == b"\xff\xd8":
        return _jpeg_header(data)
    if data[:8] == b"\x89PNG\r\n\x1a\n":
        # not plain: torchvision's decode_png ends the process on some damaged files, and PIL is as fast
        width, height = struct.unpack(">II", data[16:24])
        return Header("png", height, width, plain=False)
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return _pil_header(data, "webp")
    if data[:2] == b"BM":
        return _pil_header(data, "bmp")
    raise DataError(f"not a {', '.join(FORMATS)} image (it starts with {data[:8]!r})")


def _jpeg_header(data: bytes) -> Header:
    place = 2
    while True:
        if data[place] != 0xFF:
            raise DataError("the JPEG header is damaged")
        while data[place] == 0xFF:  # fill bytes may stand before a marker
            place += 1
        marker = data[place]
        if marker in _FRAMES:
            depth, height, width, channels = struct.unpack(">BHHB", data[place + 3 : place + 9])
            return Header("jpg", height, width, plain=depth == 8 and channels in (1, 3))
        (length,) = struct.unpack(">H", data[place + 1 : place + 3])
        place += 1 + length


def _pil_header(data: bytes, format: str) -> Header:
    with open_as(data, format) as image:
        return Header(format, image.height, image.width, plain=False)


def decode(data: bytes) -> Tensor:
    """uint8 (3, H, W) RGB, stored height-width-channel (a permuted view), which the resize likes best.

    Raises:
        DataError: empty, corrupt, truncated, of no known format, or too large.
    """
    found = header(data)
    if found.plain:
        buffer = torch.frombuffer(bytearray(data), dtype=torch.uint8)  # copied: torch wants writable memory
        try:
            image: Tensor = decode_jpeg(buffer, mode=ImageReadMode.RGB, apply_exif_orientation=True)
            return image
        except RuntimeError:
            pass  # rare flavours; the other decoder knows more of them and gives better messages
    if found.format == "png":
        check_png(data)
    return _decode_pil(data, found.format)


def check_png(data: bytes) -> None:
    """Compare the checksums of a PNG's pixels; the decoder does not, and paints noise where the data is damaged.

    Raises:
        DataError: damaged or truncated.
    """
    view, place = memoryview(data), 8
    while place + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, place)
        end = place + 12 + length
        if end > len(data):
            break
        if kind[:1].isupper() and zlib.crc32(view[place + 4 : end - 4]) != struct.unpack_from(">I", data, end - 4)[0]:
            raise DataError(f"the png image is damaged: wrong checksum of its {kind.decode('ascii', 'replace')} part")
        if kind == b"IEND":
            return
        place = end
    raise DataError(f"the png image is truncated ({len(data)} bytes)")


def _decode_pil(data: bytes, format: str) -> Tensor:
    with open_as(data, format) as file:
        try:
            file.load()
            image = _to_rgb(ImageOps.exif_transpose(file))
        except Exception as error:  # decoders fail on hostile bytes in every way there is
            raise DataError(f"the {format} image cannot be decoded: {error or type(error).__name__}") from None
        pixels = np.array(image)
    return torch.from_numpy(pixels).permute(2, 0, 1)


def open_as(data: bytes, format: str) -> ImageFile.ImageFile:
    """Open an image as one of FORMATS and no other.

    Raises:
        DataError: it is none.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our own limit is checked on the header
            return Image.open(io.BytesIO(data), formats=[_PIL_NAMES[format]])
    except Exception as error:
        raise DataError(f"the {format} image cannot be opened: {error or type(error).__name__}") from None


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit grey
        high = (np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8)
        return Image.fromarray(high).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        layer = image.convert("RGBA")
        page = Image.new("RGBA", layer.size, (255, 255, 255, 255))
        return Image.alpha_composite(page, layer).convert("RGB")
    return image.convert("RGB")
