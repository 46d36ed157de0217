"""When the frames of a video are shown: exact, in ticks of the file's clock, in the order they are shown.

Seconds count from the first frame, whatever the file calls its start.

Shapes: N frames, K key frames.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from jepa.errors import DataError

MAX_FRAMES = 5_000_000  # 10 hours at 120 frames per second and some; more is taken for damage
Int64 = npt.NDArray[np.int64]
Float64 = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Timeline:
    """Presentation times of N >= 1 frames."""

    ticks: Int64  # (N,) presentation times, strictly increasing
    base: Fraction  # seconds in a tick
    last: int  # ticks for which the last frame is shown; 0 where the file does not say

    @classmethod
    def constant(cls, frames: int, fps: float | Fraction) -> Timeline:
        """`frames` frames at a constant rate, starting at 0."""
        gap = 1 / Fraction(fps).limit_denominator(1_000_000)
        return cls(np.arange(frames, dtype=np.int64) * gap.numerator, Fraction(1, gap.denominator), gap.numerator)

    def __len__(self) -> int:
        return len(self.ticks)

    @cached_property
    def times(self) -> Float64:
        """Seconds from the first frame, (N,)."""
        elapsed: Int64 = self.ticks - self.ticks[0]
        # multiplied first: as exact as float64 is, and equal however the file counts
        return elapsed.astype(np.float64) * self.base.numerator / self.base.denominator

    @property
    def start(self) -> float:
        """Presentation time of the first frame in seconds, as the file has it."""
        return float(int(self.ticks[0]) * self.base)

    @property
    def duration(self) -> float:
        """Seconds from the first frame until the last one is gone."""
        return float((int(self.ticks[-1] - self.ticks[0]) + self.last) * self.base)

    @property
    def fps(self) -> float:
        """Average frames per second; 0 for a single frame of unknown duration."""
        if len(self) > 1:
            return float((len(self) - 1) / (int(self.ticks[-1] - self.ticks[0]) * self.base))
        return float(1 / (self.last * self.base)) if self.last else 0.0

    @cached_property
    def gap(self) -> float:
        """Median seconds between frames; 0 for a single frame of unknown duration."""
        return (
            float(float(np.median(np.diff(self.ticks))) * self.base) if len(self) > 1 else float(self.last * self.base)
        )

    @cached_property
    def variable(self) -> bool:
        """Whether some frame is shown clearly longer or shorter than the usual one (more than rounding explains)."""
        if len(self) < 3:
            return False
        gaps = np.diff(self.ticks)
        usual = float(np.median(gaps))
        return bool(np.abs(gaps - usual).max() > max(1.5, 0.1 * usual))

    def at(self, seconds: Sequence[float] | Float64) -> Int64:
        """The frame shown at each time (T,): the last one that starts at or before it, within half a tick.

        Times before the first frame give the first, times past the end the last.
        """
        half = float(self.base) / 2
        found = np.searchsorted(self.times, np.asarray(seconds, dtype=np.float64) + half, side="right") - 1
        return np.clip(found, 0, len(self) - 1).astype(np.int64)

    def to_dict(self) -> dict[str, Any]:
        """Plain values; equal gaps are counted, so a constant rate takes a few bytes."""
        gaps = np.diff(self.ticks)
        edges = np.flatnonzero(np.diff(gaps)) + 1
        runs = [[int(run[0]), len(run)] for run in np.split(gaps, edges) if len(run)]
        return {
            "base": [self.base.numerator, self.base.denominator],
            "first": int(self.ticks[0]),
            "gaps": runs,
            "last": self.last,
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Timeline:
        """What `to_dict` gave.

        Raises:
            DataError: the values are no timeline.
        """
        try:
            runs = np.asarray(values["gaps"], dtype=np.int64).reshape(-1, 2)
            if (runs[:, 1] < 1).any() or runs[:, 1].sum() >= MAX_FRAMES:
                raise ValueError("impossible counts of frames")
            gaps = np.repeat(runs[:, 0], runs[:, 1])
            if (gaps < 1).any():
                raise ValueError("frames that do not follow each other")
            ticks = np.concatenate([[0], np.cumsum(gaps)]).astype(np.int64) + int(values["first"])
            numerator, denominator = values["base"]
            return cls(ticks, Fraction(int(numerator), int(denominator)), int(values["last"]))
        except (KeyError, TypeError, ValueError, ZeroDivisionError, OverflowError) as error:
            raise DataError(f"not the times of a video ({error}): build the dataset again") from None
