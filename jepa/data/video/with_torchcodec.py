"""Decoding with torchcodec, which uses the FFmpeg of the system.

It turns frames as displayed by itself. Where seeking is approximate (AVI, transport and program streams) it may start
decoding after the key frame, so those files are left to the other libraries.
"""

from __future__ import annotations

import json

import numpy as np
import torch
import torchcodec
from torch import Tensor
from torchcodec.decoders import VideoDecoder

from jepa.data.video.backend import Int64, Unsuited
from jepa.data.video.probe import Facts
from jepa.data.video.source import Video, address, reason

name = "torchcodec"
_CONTAINERS = ("mp4", "matroska", "flv", "gif")


def versions() -> dict[str, str]:
    """Versions of the library and of the FFmpeg it found."""
    found = torchcodec.ffmpeg_major_version  # the whole version is nowhere public
    return {"torchcodec": torchcodec.__version__, "ffmpeg": str(found)}


def frames(video: Video, facts: Facts, indices: Int64) -> Tensor:
    """See backend.Backend."""
    if not any(c in facts.container for c in _CONTAINERS):
        raise Unsuited(f"torchcodec does not find frames in {facts.container} reliably")
    try:
        decoder = VideoDecoder(
            video if isinstance(video, bytes) else address(video),
            stream_index=facts.stream,
            dimension_order="NHWC",
            num_ffmpeg_threads=1,
            device="cpu",
            custom_frame_mappings=_mapping(facts),  # our index of the packets: the file is not read through again
        )
        batch = decoder.get_frames_at(torch.from_numpy(indices))
    except (RuntimeError, ValueError, IndexError) as error:
        raise Unsuited(reason(error)) from None
    expected = facts.timeline.times[indices] + facts.timeline.start
    found = batch.pts_seconds.numpy()
    if np.abs(found - expected).max() > 1e-6 + float(facts.timeline.base) / 2:
        raise Unsuited(f"it gives the frames at {found.tolist()} s for those at {expected.tolist()} s")
    data: Tensor = batch.data
    return data


def _mapping(facts: Facts) -> str:
    ticks = facts.timeline.ticks
    durations = np.append(np.diff(ticks), max(1, facts.timeline.last))
    keys = np.zeros(len(ticks), dtype=np.int64)
    keys[facts.keys] = 1
    columns = zip(ticks.tolist(), durations.tolist(), keys.tolist(), strict=True)
    return json.dumps({"frames": [{"pts": p, "duration": d, "key_frame": k} for p, d, k in columns]})
