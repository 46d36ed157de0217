"""A source's video -> the mp4s that go into a shard: as it is, or shrunk, thinned out, cut into pieces, coded anew.

Shapes: T frames, H W height and width.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from jepa.data.recipe import VideoConfig
from jepa.data.video import with_pyav
from jepa.data.video.backend import Unsuited
from jepa.data.video.probe import Facts, examine, probe
from jepa.data.video.source import opened
from jepa.data.video.write import Coding, write
from jepa.errors import DataError

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

    @property
    def numbers(self) -> tuple[float, float, float]:
        """Frames, frames per second, seconds."""
        line = self.facts.timeline
        return float(len(line)), float(line.fps), float(line.duration)

    def json(self) -> bytes:
        """The facts, for the shard."""
        return json.dumps(self.facts.to_dict(), separators=(",", ":"), sort_keys=True).encode()


def code(video: bytes | npt.NDArray[np.uint8], fps: float, config: VideoConfig) -> Iterator[Coded]:
    """What a source's video becomes.

    Args:
        video: an encoded video, or frames (T, H, W, 3).
        fps: of frames that are not encoded yet.

    Raises:
        DataError: it is broken, or has fewer frames than `config.min_frames`.
    """
    coding = Coding(config.gop or 8, config.crf, full_colour=config.full_colour)
    if isinstance(video, np.ndarray):
        data = write(video, fps, coding)
        yield Coded(data, "mp4", probe(data))
        return
    facts = probe(video)
    if len(facts) < config.min_frames:
        raise DataError(f"it has {len(facts)} frame(s), the recipe asks for video.min_frames={config.min_frames}")
    if not config.recode:
        yield Coded(video, _EXTENSIONS.get(facts.container.split(",")[0], "mp4"), facts)
        return
    for chosen, rate in _pieces(facts, config):
        data = write(_frames(video, facts, chosen, config.resize), rate, coding)
        yield Coded(data, "mp4", probe(data))


def _pieces(facts: Facts, config: VideoConfig) -> Iterator[tuple[npt.NDArray[np.int64], float]]:
    """The frames of each piece and their rate. A rest shorter than `min_frames` is dropped."""
    line = facts.timeline
    rate = config.fps or line.fps or facts.declared_fps
    if rate <= 0:
        raise DataError("nothing says how many frames per second it has; set video.fps in the recipe")
    times = np.arange(max(1, round(line.duration * rate))) / rate
    indices = np.asarray(line.at(times), dtype=np.int64)
    length = len(indices) if config.clip is None else max(1, round(config.clip * rate))
    for start in range(0, len(indices), length):
        part = indices[start : start + length]
        if len(part) >= config.min_frames or start == 0:
            yield part, rate


def _frames(
    video: bytes, facts: Facts, indices: npt.NDArray[np.int64], shorter: int | None
) -> Iterator[npt.NDArray[np.uint8]]:
    """Frames (T, H, W, 3) in parts; `shorter` is the wanted length of the shorter side."""
    with opened(video) as container:
        examine(container)
        for start in range(0, len(indices), _AT_ONCE):
            wanted, inverse = np.unique(indices[start : start + _AT_ONCE], return_inverse=True)
            try:
                found = with_pyav.read(container, facts, wanted)
            except Unsuited as error:
                raise DataError(f"it cannot be decoded: {error}") from None
            height, width = found.shape[1:3]
            if shorter is not None and min(height, width) > shorter:
                scale = shorter / min(height, width)
                size = max(shorter, round(height * scale)), max(shorter, round(width * scale))
                packed = found.permute(0, 3, 1, 2)  # channels last in memory already
                found = torch.nn.functional.interpolate(packed, size, mode="bicubic", antialias=True).permute(
                    0, 2, 3, 1
                )
            yield found.numpy()[inverse]
