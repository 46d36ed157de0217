"""Real videos made on the spot. Every frame shows its number as eight blocks, dark for 0 and light for 1.

The number survives any coding, turning and colour conversion that is done right, so a test knows which frame it got
without asking a second decoder. Behind it a smooth picture moves.
"""

from __future__ import annotations

import io
import os
import struct
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from typing import Any

import av
import numpy as np
from av.bitstream import BitStreamFilterContext

SIZE = (48, 64)  # height and width; the blocks are 8x8 in the upper left corner
DARK, LIGHT = 48, 208


def picture(number: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    """Frame `number`, uint8 (H, W, 3)."""
    y, x = np.mgrid[: size[0], : size[1]].astype(np.float64)
    waves = [np.sin(x / 9 + number / 5), np.cos(y / 7 - number / 8), np.sin((x + y) / 12)]
    frame = np.stack([128 + 60 * w for w in waves], -1)
    for bit in range(8):
        frame[0:8, 8 * bit : 8 * bit + 8] = LIGHT if number >> bit & 1 else DARK
    return frame.round().astype(np.uint8)


def number_of(frame: np.ndarray) -> int:
    """The number that a frame (H, W, 3) shows, modulo 256."""
    blocks = frame[0:8, 0:64].reshape(8, 8, 8, 3).mean((0, 2, 3))
    assert np.abs(blocks - np.where(blocks > 128, LIGHT, DARK)).max() < 50, f"no number in the picture: {blocks}"
    return int(sum(1 << bit for bit, value in enumerate(blocks) if value > 128))


@contextmanager
def same_scheduling() -> Iterator[None]:
    """The calling thread is scheduled as before: SVT-AV1, run by root, makes it SCHED_FIFO, ahead of all else."""
    if not hasattr(os, "sched_getscheduler"):
        yield
        return
    policy, parameters = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        yield
    finally:
        os.sched_setscheduler(0, policy, parameters)


@same_scheduling()
def film(
    frames: int = 60,
    *,
    codec: str = "libx264",
    container: str = "mp4",
    size: tuple[int, int] = SIZE,
    rate: int | Fraction = 30,
    ticks: Iterable[int] | None = None,
    base: Fraction | None = None,
    pixels: str = "yuv420p",
    gop: int = 12,
    b_frames: int = 2,
    rotation: int = 0,
    colours: dict[str, Any] | None = None,
    options: dict[str, str] | None = None,
    flags: dict[str, str] | None = None,
    colour: tuple[int, int, int] | None = None,
    sound: float = 0.0,
) -> bytes:
    """An encoded video.

    Args:
        ticks: presentation times of the frames in units of `base`; none: constant `rate`.
        rotation: degrees counter-clockwise, as metadata.
        colours: colorspace and color_range of the frames.
        options: of the encoder. flags: of the muxer.
        colour: paint all frames in it, instead of numbers.
        sound: seconds of silence beside it.
    """
    out = io.BytesIO()
    with av.open(out, "w", format=container, options=flags or {}) as file:
        defaults = {"preset": "veryfast", "crf": "10", "threads": "1"} if codec.startswith("libx26") else {}
        stream = file.add_stream(codec, rate=rate, options=defaults | (options or {}))
        assert isinstance(stream, av.VideoStream)
        (stream.height, stream.width), stream.pix_fmt, stream.gop_size = size, pixels, gop
        if codec not in ("gif", "mjpeg", "libvpx-vp9", "prores_ks"):
            stream.codec_context.max_b_frames = b_frames
        if codec in ("mpeg4", "mpeg2video", "mjpeg"):
            stream.codec_context.bit_rate = 4_000_000
        if base is not None:
            stream.time_base = stream.codec_context.time_base = base
        for name, value in (colours or {}).items():
            setattr(stream.codec_context, name, value)
        if rotation:
            stream.set_display_rotation(rotation)
        voice = file.add_stream("aac", rate=16000, layout="mono") if sound else None
        for number, tick in zip(range(frames), ticks if ticks is not None else range(frames), strict=False):
            shown = picture(number, size) if colour is None else np.full((*size, 3), colour, dtype=np.uint8)
            frame = av.VideoFrame.from_ndarray(shown, format="rgb24")
            frame.pts, frame.time_base = tick, base or 1 / Fraction(rate)
            if colours:
                target = {"colorspace": "dst_colorspace", "color_range": "dst_color_range"}
                frame = frame.reformat(format=pixels, **{target[k]: v for k, v in colours.items() if k in target})
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
        if voice is not None:
            assert isinstance(voice, av.AudioStream)
            for start in range(0, round(16000 * sound), 1024):
                silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
                silence.sample_rate, silence.pts = 16000, start
                file.mux(voice.encode(silence))
            file.mux(voice.encode())
    return out.getvalue()


def sound_only() -> bytes:
    """An mp4 without a picture."""
    out = io.BytesIO()
    with av.open(out, "w", format="mp4") as file:
        voice = file.add_stream("aac", rate=16000, layout="mono")
        assert isinstance(voice, av.AudioStream)
        for start in range(0, 16000, 1024):
            silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            silence.sample_rate, silence.pts = 16000, start
            file.mux(voice.encode(silence))
        file.mux(voice.encode())
    return out.getvalue()


def copied(data: bytes, container: str, drop: float = 0.0, flags: dict[str, str] | None = None) -> bytes:
    """The same packets in another container; `drop`: cut at this many seconds, hiding what is needed before (mp4)."""
    out = io.BytesIO()
    with av.open(io.BytesIO(data)) as source, av.open(out, "w", format=container, options=flags or {}) as file:
        stream = source.streams.video[0]
        made = file.add_stream_from_template(stream)
        annexb = BitStreamFilterContext("h264_mp4toannexb", stream) if container == "avi" else None
        assert stream.time_base is not None
        shift = round(drop / stream.time_base)
        for packet in source.demux(stream):
            if packet.dts is None or packet.pts is None:
                continue
            packet.pts, packet.dts = packet.pts - shift, packet.dts - shift
            for ready in annexb.filter(packet) if annexb is not None else [packet]:
                ready.stream = made
                file.mux(ready)
    return out.getvalue()


def index_first(data: bytes) -> bytes:
    """The same mp4 with its index (moov) before the frames, as players want it."""
    boxes, place = {}, 0
    while place < len(data):
        size, name = struct.unpack_from(">I4s", data, place)
        boxes[name] = data[place : place + size]
        place += size
    moov, moved = bytearray(boxes[b"moov"]), len(boxes[b"moov"])
    table = moov.index(b"stco") + 4
    for entry in range(struct.unpack_from(">I", moov, table + 4)[0]):
        (offset,) = struct.unpack_from(">I", moov, table + 8 + 4 * entry)
        struct.pack_into(">I", moov, table + 8 + 4 * entry, offset + moved)
    return boxes.pop(b"ftyp") + bytes(moov) + b"".join(box for name, box in boxes.items() if name != b"moov")


def long_film(hours: float, fps: int = 1) -> bytes:
    """A video of many hours in little time: one picture, stored again and again."""
    with av.open(io.BytesIO(film(2, codec="mjpeg", container="avi", size=(48, 64), pixels="yuvj420p"))) as source:
        stream = source.streams.video[0]
        pictures = [bytes(p) for p in source.demux(stream) if p.size]
    out = io.BytesIO()
    with av.open(out, "w", format="matroska") as file:
        made = file.add_stream("mjpeg", rate=fps)
        assert isinstance(made, av.VideoStream)
        made.height, made.width, made.pix_fmt = 48, 64, "yuvj420p"
        for number in range(round(hours * 3600 * fps)):
            packet = av.Packet(pictures[number % 2])
            packet.pts = packet.dts = number
            packet.duration, packet.time_base, packet.stream, packet.is_keyframe = 1, Fraction(1, fps), made, True
            file.mux(packet)
    return out.getvalue()
