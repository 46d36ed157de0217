"""The most memory in use while something runs."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType

import torch

_CLEAR, _STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")


class Meter:
    """Context manager; afterwards `megabytes` is the highest use inside it, or None where it cannot be told.

    CUDA: bytes that tensors held. CPU: resident memory of the whole process, whose high-water mark Linux lets a
    process reset.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.megabytes: float | None = None

    def __enter__(self) -> Meter:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        elif _CLEAR.exists():
            try:
                _CLEAR.write_text("5")
            except OSError:  # some containers forbid it; the mark then counts from the process's start
                return self
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.device.type == "cuda":
            self.megabytes = torch.cuda.max_memory_allocated(self.device) / 2**20
        elif _STATUS.exists():
            lines = _STATUS.read_text(encoding="utf-8").splitlines()
            marks = [line.split()[1] for line in lines if line.startswith("VmHWM:")]
            self.megabytes = int(marks[0]) / 1024 if marks else None
