"""Frames that are missing: blanked at random, so that a world is seen in part.

Which ones is a pure function of a key: (seed, g) of a training window, (episode, frame) of a probed or rolled-out one,
(seed, episode) where plans are made. The first frame is always there, as it is where an episode begins. A blank frame
is black all over; `rssm` takes any frame of one single colour for missing, other methods have to make of it what they
can.

Shapes: B windows, T frames.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from jepa import keyed
from jepa.errors import ConfigError

Bools = npt.NDArray[np.bool_]


def check_share(share: float, where: str) -> None:
    """Raises ConfigError for a share of blank frames that is none."""
    if not 0 <= share < 1:
        raise ConfigError(f"{where}={share:g}: the share of frames that are blank is at least 0 and below 1")


def shown(stream: str, seed: int, index: keyed.Index, frames: int, share: float, *, sub: keyed.Index = 0) -> Bools:
    """Which frames are there: (B, T), or (T,) for a single index. A larger share blanks the same ones and more.

    Args:
        stream, seed, index, sub: the key, as in `jepa.keyed.uniform`.
        frames: T. Asking for more does not change the first ones.
        share: of frames that are blank, beside the first.
    """
    there = keyed.uniform(stream, seed, index, frames, sub=sub) >= share
    there[..., 0] = True
    return there


def since(there: Bools) -> npt.NDArray[np.int64]:
    """Frames since the last one that was there, at every frame: (..., T), 0 where it is there itself."""
    place = np.arange(there.shape[-1])
    last: npt.NDArray[np.int64] = np.maximum.accumulate(np.where(there, place, 0), axis=-1)
    return place - last


__all__ = ["check_share", "shown", "since"]
