"""Every flavour of picture is decoded as a person would see it, or refused with a reason."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from jepa.data.decode import MAX_PIXELS, decode, header
from jepa.errors import DataError
from tests.data.conftest import encoded, picture

RGB = picture(3, 24, 32)


def seen(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("RGB")).astype(int).transpose(2, 0, 1)


def difference(data: bytes, expected: Image.Image) -> int:
    found = decode(data)
    assert found.dtype == torch.uint8 and found.shape == (3, expected.height, expected.width)
    return int(np.abs(found.numpy().astype(int) - seen(expected)).max())


@pytest.mark.parametrize(("format", "extension"), [("PNG", "png"), ("BMP", "bmp"), ("JPEG", "jpg"), ("WEBP", "webp")])
def test_plain_formats(format: str, extension: str) -> None:
    data = encoded(RGB, format)
    reopened = Image.open(io.BytesIO(data))
    assert header(data).format == extension and (header(data).height, header(data).width) == (24, 32)
    assert difference(data, reopened) <= 1
    assert difference(data, RGB) <= 60, "the picture itself must come out, not only what PIL makes of the file"


@pytest.mark.parametrize("format", ["PNG", "JPEG"])
def test_grey_is_repeated(format: str) -> None:
    data = encoded(RGB.convert("L"), format)
    found = decode(data)
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])
    assert difference(data, Image.open(io.BytesIO(data))) <= 1


def test_cmyk_jpeg() -> None:
    data = encoded(RGB.convert("CMYK"), "JPEG", quality=95)
    assert not header(data).plain
    assert difference(data, RGB) < 60


def test_palette() -> None:
    indexed = RGB.quantize(16)
    assert difference(encoded(indexed), indexed) == 0


def test_one_bit_picture() -> None:
    assert difference(encoded(RGB.convert("1")), RGB.convert("1")) == 0


def test_transparency_is_composited_on_white() -> None:
    image = Image.new("RGBA", (2, 1), (0, 0, 0, 0))
    image.putpixel((1, 0), (200, 0, 0, 255))
    for format in ("PNG", "WEBP"):
        found = decode(encoded(image, format, **({"lossless": True} if format == "WEBP" else {})))
        assert found[:, 0, 0].tolist() == [255, 255, 255] and found[:, 0, 1].tolist() == [200, 0, 0]


def test_transparent_palette_colour_is_white() -> None:
    image = Image.new("P", (2, 1), 0)
    image.putpalette([10, 20, 30, 200, 0, 0])
    image.putpixel((1, 0), 1)
    found = decode(encoded(image, "PNG", transparency=0))
    assert found[:, 0, 0].tolist() == [255, 255, 255] and found[:, 0, 1].tolist() == [200, 0, 0]


def test_16_bit_grey_keeps_the_high_byte() -> None:
    values = np.array([[0, 255, 256, 32768, 65535]], dtype=np.uint16)
    found = decode(encoded(Image.fromarray(values)))
    assert found[0, 0].tolist() == [0, 0, 1, 128, 255] and torch.equal(found[0], found[2])


def png(colour: int, depth: int, width: int, height: int, rows: bytes) -> bytes:
    """A PNG written by hand, for kinds that PIL does not write."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def test_16_bit_rgb_keeps_the_high_byte() -> None:
    data = png(2, 16, 2, 1, b"\0" + struct.pack(">6H", 0, 256, 65535, 32768, 511, 1000))
    assert decode(data).flatten(1).T.tolist() == [[0, 1, 255], [128, 1, 3]]


def test_a_bomb_is_refused_by_its_header() -> None:
    side = int(MAX_PIXELS**0.5) + 1
    with pytest.raises(DataError, match=f"claims {side}x{side} pixels"):
        decode(png(0, 8, side, side, b""))
    with pytest.raises(DataError, match="no pixels"):
        decode(png(0, 8, 0, 5, b""))


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("turn", range(1, 9))
def test_orientation_is_applied(format: str, turn: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = turn
    data = encoded(RGB, format, exif=exif)
    plain = Image.open(io.BytesIO(data)).convert("RGB")
    operations = [None, Image.Transpose.FLIP_LEFT_RIGHT, Image.Transpose.ROTATE_180, Image.Transpose.FLIP_TOP_BOTTOM]
    operations += [Image.Transpose.TRANSPOSE, Image.Transpose.ROTATE_270, Image.Transpose.TRANSVERSE]
    operations += [Image.Transpose.ROTATE_90]
    wanted = operations[turn - 1]
    assert difference(data, plain if wanted is None else plain.transpose(wanted)) <= 1


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "BMP"])
@pytest.mark.parametrize("share", [0.02, 0.2, 0.5, 0.9])
def test_a_truncated_picture_is_refused(format: str, share: float) -> None:
    data = encoded(picture(1, 64, 64), format)
    with pytest.raises(DataError):
        decode(data[: int(len(data) * share)])


@pytest.mark.parametrize(
    ("data", "message"),
    [(b"", "empty"), (b"hello", "not a jpg"), (b"\x80\x04K\x01.", "not a jpg"), (b"GIF89a" + bytes(40), "not a jpg")],
)
def test_what_is_no_picture_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        decode(data)


starts = st.sampled_from([encoded(RGB, f) for f in ("JPEG", "PNG", "WEBP", "BMP")])


@settings(deadline=None, max_examples=150)
@given(data=starts, place=st.integers(0, 400), junk=st.binary(min_size=1, max_size=30))
def test_damaged_bytes_give_a_picture_or_a_clear_error(data: bytes, place: int, junk: bytes) -> None:
    damaged = data[:place] + junk + data[place + len(junk) :]
    try:
        found = decode(damaged)
    except DataError as error:
        assert str(error)
    else:
        assert found.dtype == torch.uint8 and found.shape[0] == 3 and found.numel() > 0


@pytest.mark.parametrize("place", [0.3, 0.5, 0.9])
def test_a_png_with_damaged_pixels_is_refused(place: float) -> None:
    """PIL would paint noise: PNG carries checksums, so nobody has to train on that."""
    data = bytearray(encoded(picture(5, 40, 40)))
    data[int(len(data) * place)] ^= 0x10
    with pytest.raises(DataError):
        decode(bytes(data))
