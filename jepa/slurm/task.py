"""What submitit pickles and runs on every task of a job."""

from __future__ import annotations

import importlib
import os
from dataclasses import dataclass


@dataclass(frozen=True)
class Task:
    """One verb with its arguments, run on every task of a job."""

    argv: tuple[str, ...]
    run_dir: str
    max_restarts: int = 100
    step_seconds: float | None = None

    def __call__(self) -> int:
        several = int(os.environ["SLURM_NTASKS"]) > 1
        for name, own in (
            (("RANK", "SLURM_PROCID"), ("WORLD_SIZE", "SLURM_NTASKS"), ("LOCAL_RANK", "SLURM_LOCALID"))
            if several
            else ()
        ):
            os.environ[name] = os.environ[own]
        code: int = importlib.import_module("jepa.cli").main(list(self.argv))
        if code:
            raise SystemExit(code)
        return code
