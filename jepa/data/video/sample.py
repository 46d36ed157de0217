"""The clips of one video, from its bytes to cropped pixels.

Shapes: C clips, T frames, H W height and width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from jepa.config import ClipConfig
from jepa.data.augment import Box, Interpolation
from jepa.data.video.backend import Backend
from jepa.data.video.clips import Float64, fit, place
from jepa.data.video.decode import decode
from jepa.data.video.probe import Facts, probe
from jepa.data.video.source import Video


def write_clips(
    out: Tensor,
    video: Video,
    config: ClipConfig,
    numbers: Float64,
    box: Callable[[int, int], Box],
    *,
    interpolation: Interpolation = "bilinear",
    backend: Backend | str = "auto",
    facts: Facts | None = None,
) -> dict[str, Any]:
    """Write C clips of a video to `out`; a frame that several of them share is decoded once.

    Args:
        out: uint8 (C, 3, T, H, W), or (3, T, H, W) for a single clip; any layout.
        config: what a clip is.
        numbers: where the clips lie, (C,): see `clips.place`.
        box: the part to cut out of frames of a height and width, e.g. `augment.box` with its numbers filled in.
        facts: what is known of the video; without them it is probed first.

    Returns:
        For --trace: the frames of each clip, the crop, the library.

    Raises:
        VideoError: the video cannot be used, or is too short and the policy is to skip it.
        OSError: the storage fails.
    """
    known = facts or probe(video, strict=False)
    indices = place(config, known.timeline, numbers)
    found = decode(video, indices.ravel(), backend=backend, facts=known)
    part = box(known.height, known.width)
    size = (int(out.shape[-2]), int(out.shape[-1]))
    clips = out if out.ndim == 5 else out.unsqueeze(0)
    assert len(clips) == len(indices) and clips.shape[2] == indices.shape[1], f"{tuple(out.shape)} for {indices.shape}"
    for clip, frames in zip(clips, found.pixels.view(*indices.shape, *found.pixels.shape[1:]), strict=True):
        clip.copy_(fit(frames, part, size, interpolation))
    crop = [part.top, part.left, part.height, part.width]
    return {"frames": indices.tolist(), "crop": crop, "flip": part.flip, "decoder": found.backend}
