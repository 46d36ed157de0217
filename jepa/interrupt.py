"""A polite stop: SIGTERM, SIGUSR2 and Ctrl-C set flags that the loop reads between two steps.

SIGUSR2 is what schedulers send before a time limit: stop, save, and start again later. The others: stop and save.
"""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType
from typing import Any

import torch

_AGAIN = getattr(signal, "SIGUSR2", None)  # Windows has none
_SIGNALS = (signal.SIGTERM, signal.SIGINT, *([_AGAIN] if _AGAIN is not None else []))
_IMPATIENT = 1.0  # seconds after which another Ctrl-C means: now. Launchers pass one on twice within milliseconds
_SECONDS, _STEPS = 5.0, 100  # processes ask each other at least this often, whichever comes first


class Interrupts:
    """Context manager; `requested` turns true at the first signal. A second Ctrl-C raises KeyboardInterrupt.

    `again`: one of them was SIGUSR2. It stays so when SIGTERM follows, as it does at the limit itself.
    """

    def __init__(self) -> None:
        self.requested = False
        self.again = False
        self._first = 0.0
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():  # Python allows handlers nowhere else
            for number in _SIGNALS:
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, _: FrameType | None) -> None:
        again, self.requested = self.requested, True
        self.again |= number == _AGAIN
        if not again:
            self._first = time.monotonic()
        elif number == signal.SIGINT and time.monotonic() - self._first > _IMPATIENT:
            raise KeyboardInterrupt


class Agreement:
    """Whether to stop after a step, the same answer on every rank.

    One process looks at its flags after every step. Several have to exchange theirs, which waits for the device: they
    do so with every line of metrics, and between lines every 100 steps or about 5 seconds. How many steps that is
    follows from rank 0's clock, read in the exchange before; rank 0's number plus zeros is the same sum everywhere,
    so that no rank waits for another in vain.
    """

    def __init__(self, interrupts: Interrupts, accelerator: Any, step: int) -> None:
        self._interrupts, self._accelerator = interrupts, accelerator
        self.again = False  # stop, and start again later
        self.soon(step)

    def soon(self, step: int) -> None:
        """Exchange after the next step, because how long it takes is not known."""
        self._next = step + 1
        self._last, self._since = step, time.monotonic()

    def after(self, step: int) -> bool:
        """Whether to stop after `step` steps, which no line of metrics is due after."""
        if self._accelerator.num_processes == 1:
            self.again = self._interrupts.again
            return self._interrupts.requested
        if step < self._next:
            return False
        numbers = torch.tensor(self.given(step), device=self._accelerator.device)
        return self.settle(step, *self._accelerator.reduce(numbers, reduction="mean").tolist())

    def given(self, step: int) -> tuple[float, float, float]:
        """What this rank adds to an exchange: stop, start again, seconds of a step."""
        seconds = (time.monotonic() - self._since) / max(1, step - self._last)
        return (
            float(self._interrupts.requested),
            float(self._interrupts.again),
            seconds if self._accelerator.is_main_process else 0.0,
        )

    def settle(self, step: int, stop: float, again: float, seconds: float) -> bool:
        """The answer from the means of what all ranks have given."""
        seconds *= self._accelerator.num_processes
        self._next = step + max(1, min(_STEPS, int(_SECONDS / max(seconds, 1e-6))))
        self._last, self._since = step, time.monotonic()
        self.again = again > 0
        return stop > 0
