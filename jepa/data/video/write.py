"""Frames -> an mp4 in memory (H.264), made for random access: short groups of pictures and no B-frames.

Shapes: T frames, H W height and width.
"""

from __future__ import annotations

import io
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import av
import numpy as np
import numpy.typing as npt
from av.video.reformatter import VideoReformatter

from jepa.errors import ConfigError, DataError

Frames = npt.NDArray[np.uint8]  # (T, H, W, 3) RGB


@dataclass(frozen=True)
class Coding:
    """How frames are coded."""

    gop: int = 8  # frames from one key frame to the next; a clip decodes fewer than this that it does not take
    crf: int = 18  # constant quality of x264: 0 lossless, 18 hardly visible, 23 usual
    preset: str = "veryfast"  # x264's effort
    full_colour: bool = False  # 4:4:4 instead of 4:2:0: for small drawn pictures; few players show it

    def __post_init__(self) -> None:
        if self.gop < 1 or not 0 <= self.crf <= 51:
            raise ConfigError(f"gop={self.gop}, crf={self.crf}: need gop of at least 1 and crf from 0 to 51")


def write(frames: Frames | Iterable[Frames], fps: float, coding: Coding | None = None) -> bytes:
    """An mp4 of frames (T, H, W, 3), given at once or in parts. Equal frames give equal bytes with equal FFmpeg.

    Odd sides are padded by one repeated row or column, as 4:2:0 needs.

    Raises:
        DataError: no frames, a wrong shape, or fps not above 0.
    """
    coding = coding or Coding()
    if fps <= 0:
        raise DataError(f"fps must be above 0, got {fps:g}")
    rate = Fraction(fps).limit_denominator(1001)
    out, stream, number, turn = io.BytesIO(), None, 0, VideoReformatter()
    with av.open(out, "w", format="mp4") as file:
        for part in [frames] if isinstance(frames, np.ndarray) else frames:
            if part.ndim != 4 or part.shape[-1] != 3 or part.dtype != np.uint8:
                raise DataError(f"expected uint8 frames (T, H, W, 3), got {part.dtype} {part.shape}")
            if not coding.full_colour:
                part = np.pad(part, [(0, 0), (0, part.shape[1] % 2), (0, part.shape[2] % 2), (0, 0)], mode="edge")
            if stream is None:
                stream = _stream(file, rate, part.shape[1], part.shape[2], coding)
            for picture in part:
                frame = _frame(picture, stream.pix_fmt, turn)
                frame.pts, frame.time_base = number, 1 / rate
                number += 1
                file.mux(stream.encode(frame))
        if stream is None or number == 0:
            raise DataError("a video needs at least one frame, got none")
        file.mux(stream.encode())
    return out.getvalue()


def _frame(picture: npt.NDArray[np.uint8], pixel_format: str, turn: VideoReformatter) -> Any:
    """A frame in the coder's own format, its rows' unused ends zeroed: x264 looks at them, and they would be chance."""
    # one thread: several start anew for every frame, and where they meet depends on the machine
    frame = turn.reformat(
        av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24"), format=pixel_format, threads=1
    )
    planes: Any = frame.planes
    for plane in planes:
        rows = np.frombuffer(plane, dtype=np.uint8).reshape(-1, plane.line_size)
        rows[:, plane.width :] = 0
    return frame


def _stream(file: Any, rate: Fraction, height: int, width: int, coding: Coding) -> Any:
    stream = file.add_stream("libx264", rate=rate)
    stream.height, stream.width = height, width
    stream.pix_fmt = "yuv444p" if coding.full_colour else "yuv420p"
    # Key frames at fixed distances only, wherever the picture changes. No looking ahead and no weighted prediction: for
    # these x264 reads memory that nobody filled, and one small video in 500 came out with other bytes the second time.
    fixed = "scenecut=0:weightp=0:rc-lookahead=0:mbtree=0"
    stream.options = {"crf": str(coding.crf), "preset": coding.preset, "bf": "0", "x264-params": fixed}
    stream.codec_context.gop_size = coding.gop
    stream.codec_context.thread_count = 1  # the same bytes on any machine
    stream.codec_context.time_base = 1 / rate
    return stream
