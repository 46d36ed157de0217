"""A method that fails where an environment variable says: FAIL=STEP:WHAT:RANK, WHAT being error, hang or kill."""

from __future__ import annotations

import os
import signal
import time

from torch import Tensor

from jepa import masks
from jepa.data import Batch
from jepa.methods.base import Output, Schedule
from tests.train import outside

VARIABLE = "FAIL"


class Failing(outside.Mean):
    def forward(self, x: Tensor, masks: masks.Masks | None, schedule: Schedule, batch: Batch | None = None) -> Output:
        step, what, rank = (os.environ.get(VARIABLE) or "-1:none:0").split(":")
        if batch is not None and int(step) >= 0 and batch.step == int(step) and os.environ.get("RANK", "0") == rank:
            if what == "error":
                raise RuntimeError(f"on purpose, in process {os.getpid()}")
            if what == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(600)
        return super().forward(x, masks, schedule)
