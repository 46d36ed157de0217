"""I-JEPA that waits where a test wants to strike, so that a run of few and quick steps can be met at a certain one.

Before the step after K steps each rank waits while there is a file HELD/K and no signal has come. The folder HELD comes
from the environment; the file is on its own, for a job's code is a copy of what is its own.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from types import FrameType
from typing import Any

from torch import Tensor

from jepa.data import Batch
from jepa.masks import Masks
from jepa.methods.base import Output, Schedule
from jepa.methods.ijepa import IJEPA

_LONGEST = 240.0  # seconds; a test that has failed leaves nothing behind
_told: list[int] = []


class Held(IJEPA):
    def forward(self, x: Tensor, masks: Masks | None, schedule: Schedule, batch: Batch | None = None) -> Output:
        if batch is not None and "SLURM_PROCID" in os.environ:  # not where it is only checked
            _listen()
            gate, until = Path(os.environ["HELD"]) / str(batch.step), time.monotonic() + _LONGEST
            while gate.exists() and not _told and time.monotonic() < until:
                time.sleep(0.02)
        return super().forward(x, masks, schedule, batch)


def _listen() -> None:
    """Hear of signals before the training loop does, which acts on them."""
    for number in (signal.SIGTERM, signal.SIGUSR2):
        before: Any = signal.getsignal(number)
        if getattr(before, "__name__", "") != "heard":

            def heard(number: int, frame: FrameType | None, before: Any = before) -> None:
                _told.append(number)
                before(number, frame)

            signal.signal(number, heard)
