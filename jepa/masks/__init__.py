"""Mask samplers: which tokens are the context and which are the targets.

`image` has the blocks of I-JEPA, `video` the space-time blocks of V-JEPA; each has an exact sampler, whose masks do
not depend on the batch, and a reference sampler that repeats the official draws.
"""

from jepa.masks.base import Masks, Sampler
from jepa.masks.image import ExactSampler, MultiBlockConfig, ReferenceSampler, make_sampler
from jepa.masks.video import (
    BlockSpec,
    VideoExactSampler,
    VideoMasksConfig,
    VideoReferenceSampler,
    make_video_sampler,
)

__all__ = [
    "BlockSpec",
    "ExactSampler",
    "Masks",
    "MultiBlockConfig",
    "ReferenceSampler",
    "Sampler",
    "VideoExactSampler",
    "VideoMasksConfig",
    "VideoReferenceSampler",
    "make_sampler",
    "make_video_sampler",
]
