"""Which frames a clip takes: drawn first as numbers, a pure function of (seed, source, g, view), then applied.

A clip is `frames` frames of a video, spaced by a rate (fps), a step in frames (stride) or a length in seconds
(duration) over which they are spread. Times count from the first frame; a time takes the frame that is shown then.

Where a clip starts: for training anywhere from the start of the video to the last place where the clip still fits,
uniformly; for evaluation the clips are spread evenly over that range, from its first to its last place (a single clip
in the middle). A video is short when no place fits; then `short` decides:

    pad    the clip starts with the video, and the last frame stays until the clip is full
    loop   the clip starts with the video, and the video starts again until the clip is full
    skip   the video counts as unreadable: a substitute takes its place and it is written down

Shapes: B samples, N frames of a video, C clips of a video, T frames of a clip.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from jepa import keyed
from jepa.config import ClipConfig
from jepa.data.augment import Box, Interpolation
from jepa.data.video.source import VideoError
from jepa.data.video.timeline import Timeline

Int64 = npt.NDArray[np.int64]
Float64 = npt.NDArray[np.float64]


def draw(seed: int, g: Int64, clips: int = 1, view: int = 0, source: str = "") -> Float64:
    """The uniform numbers behind the places of the clips of samples `g` (B,): float64 (B, C).

    Args:
        source: name of the data set, where a run mixes several that each count their own g.
    """
    return keyed.uniform(f"clip.{source}" if source else "clip", seed, g, clips, sub=view)


def evenly(clips: int) -> Float64:
    """Numbers that spread `clips` clips evenly over a video, (C,): the middle, or from the first place to the last."""
    return np.linspace(0, 1, clips) if clips > 1 else np.array([0.5])


def spacing(config: ClipConfig) -> float:
    """Seconds from one frame of the clip to the next; only without a stride."""
    if config.fps is not None:
        return 1 / config.fps
    assert config.duration is not None, f"{config} goes by frames, not by seconds"
    return config.duration / config.frames


def fits(config: ClipConfig, timeline: Timeline) -> bool:
    """Whether a video is long enough for a clip."""
    if config.stride is not None:
        return (config.frames - 1) * config.stride < len(timeline)
    return (config.frames - 1) * spacing(config) < max(timeline.duration, float(timeline.base))


def place(config: ClipConfig, timeline: Timeline, numbers: Float64) -> Int64:
    """The frames of clips, (C, T).

    Args:
        timeline: when the video's frames are shown.
        numbers: where each clip lies, from 0 (as early as possible) to 1 (as late as possible), (C,): a row of `draw`
            for training, `evenly` for evaluation.

    Raises:
        VideoError: the video is too short, and the policy is to skip it.
    """
    short = not fits(config, timeline)
    if short and config.short == "skip":
        raise VideoError(f"too short: it has {_length(timeline)}, a clip takes {_needs(config)}", "short")
    numbers = np.asarray(numbers, dtype=np.float64)[:, None]
    steps = np.arange(config.frames)
    if config.stride is not None:
        room = max(0, len(timeline) - 1 - (config.frames - 1) * config.stride)  # the last place
        start = np.minimum((numbers * (room + 1)).astype(np.int64), room)
        wanted: Int64 = start + config.stride * steps
        return wanted % len(timeline) if config.short == "loop" else np.minimum(wanted, len(timeline) - 1)
    late = max(0.0, timeline.duration - config.frames * spacing(config))
    times = numbers * late + spacing(config) * steps
    if short and config.short == "loop" and timeline.duration > 0:
        half = float(timeline.base) / 2  # as tolerant as `at`, so that rounding shows no last frame for a first one
        times = (times + half) % timeline.duration - half
    return timeline.at(times)


def ending(config: ClipConfig, timeline: Timeline, end: float) -> Int64:
    """The frames of the one clip whose last frame is shown `end` seconds after the video's first, (1, T).

    No later frame is in it. Where the video begins too late for a whole clip its first frame is held, as V-JEPA 2's
    evaluation code does, or with `short: skip` the video counts as unreadable.

    Raises:
        VideoError: the video begins too late, and the policy is to skip it; or it begins after `end`.
    """
    if end < -float(timeline.base) / 2:
        raise VideoError(f"too short: it begins {-end:.2f} s after the clip has to end", "short")
    back: Int64 = np.arange(config.frames, dtype=np.int64)[::-1]
    if config.stride is not None:
        wanted: Int64 = timeline.at([end]) - config.stride * back
        early = bool(wanted[0] < 0)
        found = np.maximum(wanted, 0)
    else:
        times: Float64 = end - spacing(config) * back.astype(np.float64)
        early = bool(times[0] < -float(timeline.base) / 2)
        found = timeline.at(times)
    if early and config.short == "skip":
        raise VideoError(f"too short: {end:.2f} s are there, a clip takes {_needs(config)}", "short")
    return found[None]


def _length(timeline: Timeline) -> str:
    return f"{len(timeline)} frames in {timeline.duration:.2f} s"


def _needs(config: ClipConfig) -> str:
    if config.stride is not None:
        return f"{(config.frames - 1) * config.stride + 1} frames ({config.frames}, stride {config.stride})"
    return f"{config.frames * spacing(config):.2f} s ({config.frames} frames)"


def fit(frames: Tensor, part: Box, size: tuple[int, int], interpolation: Interpolation = "bilinear") -> Tensor:
    """Cut `part` out of all frames uint8 (T, 3, h, w) and resize it, antialiased.

    Returns:
        uint8 (3, T, H, W), stored time-height-width-channel.
    """
    cut = frames[:, :, part.top : part.top + part.height, part.left : part.left + part.width]
    if (part.height, part.width) != size:
        packed = cut.contiguous(memory_format=torch.channels_last)
        cut = torch.nn.functional.interpolate(packed, size, mode=interpolation, antialias=True)
    return (cut.flip(-1) if part.flip else cut).transpose(0, 1)
