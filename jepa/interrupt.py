"""A polite stop: SIGTERM and Ctrl-C set a flag that the loop reads between two steps."""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType
from typing import Any

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_IMPATIENT = 1.0  # seconds after which another Ctrl-C means: now. Launchers pass one on twice within milliseconds


class Interrupts:
    """Context manager; `requested` turns true at the first signal. A second Ctrl-C raises KeyboardInterrupt."""

    def __init__(self) -> None:
        self.requested = False
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
        if not again:
            self._first = time.monotonic()
        elif number == signal.SIGINT and time.monotonic() - self._first > _IMPATIENT:
            raise KeyboardInterrupt
