"""Decoding with decord, which brings an FFmpeg of 2018 and reads whole files to index them.

It counts frames that an edit list hides, loses its place in transport and program streams and in open groups of
pictures (usual in HEVC), and knows no AV1. So its index is compared with ours first, and such files are left to the
other libraries. A hang inside it holds Python's lock
and ignores SIGTERM: use it in processes that can be killed (pool.py).
"""

from __future__ import annotations

import io

import decord
import numpy as np
import torch
from torch import Tensor

from jepa.data.video.backend import Int64, Unsuited, close_enough
from jepa.data.video.probe import Facts
from jepa.data.video.source import Video, address, reason

name = "decord"
_CONTAINERS = ("mp4", "matroska", "avi", "flv")

decord.logging.set_level(decord.logging.QUIET)


def versions() -> dict[str, str]:
    """Versions of the library and of the FFmpeg in it."""
    return {"decord": decord.__version__, "ffmpeg": "4.1"}


def frames(video: Video, facts: Facts, indices: Int64) -> Tensor:
    """See backend.Backend."""
    if not any(c in facts.container for c in _CONTAINERS):
        raise Unsuited(f"decord does not find frames in {facts.container} reliably")
    if facts.open_groups:
        raise Unsuited("decord does not find frames where groups of pictures are open")
    try:
        reader = decord.VideoReader(
            io.BytesIO(video) if isinstance(video, bytes) else address(video), ctx=decord.cpu(0), num_threads=1
        )
        if len(reader) != len(facts):
            raise Unsuited(f"decord counts {len(reader)} frames, the packets make {len(facts)}")
        times = reader.get_frame_timestamp(np.arange(len(reader)))[:, 0]  # float32
        if not close_enough(times, facts.timeline.times, 1e-6):
            raise Unsuited("decord has other time stamps than the packets")
        batch: Tensor = torch.from_numpy(reader.get_batch(indices).asnumpy())
    except (decord.DECORDError, RuntimeError, AssertionError, IndexError) as error:
        raise Unsuited(reason(error)) from None
    return batch
