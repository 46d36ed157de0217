"""What a decoding library has to do here: give the frames with these numbers, nothing else.

Which frames those are, and when they are shown, is computed by us from the packets (probe.py), so every library gets
plain frame numbers and none of their own notions of time matter.

Shapes: T frames, H W height and width as displayed.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from torch import Tensor

from jepa.data.video.probe import Facts
from jepa.data.video.source import Video

Int64 = npt.NDArray[np.int64]
NAMES = ("torchcodec", "decord", "pyav")  # the order in which "auto" tries them


class Unsuited(Exception):
    """This library cannot give these frames of this video; another one may."""


class Backend(Protocol):
    """A decoding library."""

    name: str  # one of NAMES

    def versions(self) -> dict[str, str]:
        """Versions of the library and of the FFmpeg in it."""

    def frames(self, video: Video, facts: Facts, indices: Int64) -> Tensor:
        """The frames with these numbers, strictly increasing (T,).

        Returns:
            uint8 (T, H, W, 3) RGB, turned as displayed.

        Raises:
            Unsuited: it cannot open, find or decode them.
            OSError: the storage fails.
        """


def close_enough(found: npt.NDArray[np.floating[Any]], expected: npt.NDArray[np.float64], precision: float) -> bool:
    """Whether a library's times (N,) are ours, when both count from the first frame.

    Args:
        precision: relative precision of the library's numbers.
    """
    if len(found) != len(expected):
        return False
    error = np.abs((found - found[:1]).astype(np.float64) - expected)
    return bool((error <= 1e-4 + precision * np.abs(found)).all())
