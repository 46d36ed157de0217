"""A source's video -> the mp4s that go into a shard: as it is, or shrunk, thinned out, cut into pieces, coded anew.

Shapes: T frames, H W height and width.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from jepa.data.recipe import VideoConfig
from jepa.data.sources.base import Span
from jepa.data.video import cut, with_pyav
from jepa.data.video.backend import Unsuited
from jepa.data.video.probe import Facts, probe
from jepa.data.video.source import Video, opened
from jepa.data.video.write import Coding, write
from jepa.errors import ConfigError, DataError

_AT_ONCE = 32  # frames in memory while coding anew
_EXTENSIONS = {  # by FFmpeg's name of the container
    "mov": "mp4", "mp4": "mp4", "matroska": "mkv", "webm": "webm", "avi": "avi", "mpegts": "ts", "mpeg": "mpg",
    "flv": "flv", "ogg": "ogv", "asf": "wmv", "gif": "gif",
}  # fmt: skip


@dataclass(frozen=True)
class Coded:
    """A video as it is written."""

    data: bytes
    extension: str
    facts: Facts


class Keeper(Protocol):
    """Which frames of an episode are written, (K,) in order; raises DataError when they do not fit its arrays."""

    skip: int  # source frames from one kept frame to the next

    def __call__(self, frames: int, /) -> npt.NDArray[np.int64]:
        """Of so many frames, those that are kept."""
        ...


def code(
    video: Video | npt.NDArray[np.uint8],
    fps: float,
    config: VideoConfig,
    span: Span | None = None,
    keeper: Keeper | None = None,
) -> Iterator[Coded]:
    """What a source's video becomes.

    Args:
        video: an encoded video, its file, or frames (T, H, W, 3).
        fps: of frames that are not encoded yet.
        span: seconds of an encoded video that are the sample; None: all of it. A whole one is taken over as it is coded
            where it can be decoded without the rest of the video; what there is of any other is coded anew.
        keeper: of an episode with arrays, chooses frames.

    Raises:
        DataError: it is broken, has fewer frames than `config.min_frames`, or ends before the span does (before it
            begins, if it need not be whole).
        ConfigError: a span, not a whole one, that is to be cut once more.
    """
    coding = Coding(config.gop or 8, config.crf, full_colour=config.full_colour)
    if isinstance(video, np.ndarray):
        if keeper is not None:
            video, fps = video[keeper(len(video))], fps / keeper.skip
        data = write(_smaller(torch.from_numpy(video), config.resize).numpy(), fps, coding)
        yield Coded(data, "mp4", probe(data))
        return
    facts = _probed(video) if isinstance(video, Path) else probe(video)
    if span is not None and not span.whole:
        if config.clip is not None:
            raise ConfigError(f"video.clip={config.clip:g}: segments are cut already; leave it null")
        chosen, rate = _segment(facts, config, span)
        data = write(_frames(video, facts, chosen, config.resize), rate, coding)
        yield Coded(data, "mp4", probe(data))
        return
    first, end = (0, len(facts)) if span is None else cut.frames_of(facts.timeline, (span.start, span.stop))
    if keeper is not None:
        frames = keeper(end - first)
        if len(frames) != end - first or keeper.skip > 1 or config.recode:
            data = write(
                _frames(video, facts, first + frames, config.resize), _rate(facts, config) / keeper.skip, coding
            )
            yield Coded(data, "mp4", probe(data))
            return
    if end - first < config.min_frames:
        raise DataError(f"it has {end - first} frame(s), the recipe asks for video.min_frames={config.min_frames}")
    if end - first < len(facts) and not config.recode:
        part = cut.copied(video, facts, first, end)
        if part is not None and len(found := probe(part)) == end - first:
            yield Coded(part, "mp4", found)
            return
    elif not config.recode:
        data = video.read_bytes() if isinstance(video, Path) else video
        yield Coded(data, _EXTENSIONS.get(facts.container.split(",")[0], "mp4"), facts)
        return
    for chosen, rate in _pieces(facts, config, first, end):
        data = write(_frames(video, facts, chosen, config.resize), rate, coding)
        yield Coded(data, "mp4", probe(data))


@lru_cache(maxsize=16)
def _probed(path: Path) -> Facts:
    """A file with many samples is probed once in every process, as long as it is in use."""
    return probe(path)


def _rate(facts: Facts, config: VideoConfig) -> float:
    rate = config.fps or facts.timeline.fps or facts.declared_fps
    if rate <= 0:
        raise DataError("nothing says how many frames per second it has; set video.fps in the recipe")
    return rate


def _segment(facts: Facts, config: VideoConfig, span: Span) -> tuple[npt.NDArray[np.int64], float]:
    """The frames of what there is of a span, and their rate."""
    line, rate = facts.timeline, _rate(facts, config)
    if len(facts) < config.min_frames:
        raise DataError(f"it has {len(facts)} frame(s), the recipe asks for video.min_frames={config.min_frames}")
    if span.start >= line.duration:
        raise DataError(
            f"the segment from {span.start:.2f} to {span.stop:.2f} s lies behind the video's end at "
            f"{line.duration:.2f} s"
        )
    # a hair is taken off, so that 0.3 s at 10 frames per second are 3 frames and not 4
    count = max(1, math.ceil((min(span.stop, line.duration) - span.start) * rate - 1e-6))
    if count < config.min_frames:
        raise DataError(f"the segment has {count} frame(s), the recipe asks for video.min_frames={config.min_frames}")
    return np.asarray(line.at(span.start + np.arange(count) / rate), dtype=np.int64), rate


def _pieces(facts: Facts, config: VideoConfig, first: int, end: int) -> Iterator[tuple[npt.NDArray[np.int64], float]]:
    """The frames from `first` to before `end`, of each piece, and their rate. A rest under `min_frames` is dropped."""
    line, rate = facts.timeline, _rate(facts, config)
    start = float(line.times[first])
    stop = float(line.times[end]) if end < len(line) else line.duration
    times = start + np.arange(max(1, round((stop - start) * rate))) / rate
    indices = np.clip(line.at(times), first, end - 1)
    length = len(indices) if config.clip is None else max(1, round(config.clip * rate))
    for first in range(0, len(indices), length):
        part = indices[first : first + length]
        if len(part) >= config.min_frames or first == 0:
            yield part, rate


def _frames(
    video: Video, facts: Facts, indices: npt.NDArray[np.int64], shorter: int | None
) -> Iterator[npt.NDArray[np.uint8]]:
    """Frames (T, H, W, 3) in parts; `shorter` is the wanted length of the shorter side."""
    with opened(video) as container:
        for start in range(0, len(indices), _AT_ONCE):
            wanted, inverse = np.unique(indices[start : start + _AT_ONCE], return_inverse=True)
            try:
                found = with_pyav.read(container, facts, wanted)
            except Unsuited as error:
                raise DataError(f"it cannot be decoded: {error}") from None
            yield _smaller(found, shorter).numpy()[inverse]


def _smaller(frames: torch.Tensor, shorter: int | None) -> torch.Tensor:
    """Frames (T, H, W, 3) whose shorter side is at most `shorter`."""
    height, width = frames.shape[1:3]
    if shorter is None or min(height, width) <= shorter:
        return frames
    scale = shorter / min(height, width)
    size = max(shorter, round(height * scale)), max(shorter, round(width * scale))
    packed = frames.permute(0, 3, 1, 2)  # channels last in memory already
    small = torch.nn.functional.interpolate(packed, size, mode="bicubic", antialias=True)
    return small.permute(0, 2, 3, 1).contiguous()
