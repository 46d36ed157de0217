"""A run's heartbeat: the number of steps done, on the disk, and a watch over the time that a step takes.

A rank that hangs (in a collective whose other side has died, on storage that does not answer) would keep a whole job
waiting. The watch writes where every thread is and ends the process; whoever started it may start it again.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

from jepa.errors import HUNG
from jepa.progress import Clock

PLACE = "JEPA_FAILURE"  # variable: the file to write to before ending; see jepa.slurm.task
_FILE = ".step"
_FIRST = 600.0  # seconds at least for a first step, which starts decoding processes, NCCL and torch.compile
_TIMES = 10.0  # and at least this multiple of what other steps may take


_here: int | None = None


def here() -> int | None:
    """Steps that the run in this process has done; None before a run."""
    return _here


class Watchdog:
    """Context manager; `tick` after every step. `seconds` None: only the heartbeat. One for each rank."""

    def __init__(self, out: Path, rank: int, seconds: float | None, step: int) -> None:
        self._rank, self._seconds, self._step = rank, seconds, step
        _set_here(step)
        self._report = Path(os.environ.get(PLACE) or out / f"hung-rank{rank}.txt")
        self._beat: int | None = None
        if rank == 0:
            with contextlib.suppress(OSError):  # a folder that may not be written to: the next checkpoint says so
                self._beat = os.open(out / _FILE, os.O_WRONLY | os.O_CREAT, 0o644)
        self._limit: float | None = None  # None: nothing is watched
        self._since = time.monotonic()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> Watchdog:
        if self._seconds is not None:
            self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._over.set()
        if self._thread.is_alive():
            self._thread.join()
        if self._beat is not None:
            os.close(self._beat)

    def tick(self, step: int) -> None:
        """So many steps are done."""
        self._step, self._since, self._limit = step, time.monotonic(), self._seconds
        _set_here(step)
        if self._beat is not None:
            with contextlib.suppress(OSError):  # a full disk: the next checkpoint says so
                os.pwrite(self._beat, b"%-20d\n" % step, 0)

    def expect_slow(self) -> None:
        """The next step is a first one."""
        self._since = time.monotonic()
        self._limit = None if self._seconds is None else max(_FIRST, _TIMES * self._seconds)

    @contextlib.contextmanager
    def aside(self, clock: Clock) -> Iterator[None]:
        """No part of a step, for the clock neither: a checkpoint, a health check. Collectives have their own limit."""
        since, limit = time.perf_counter(), self._limit
        self._limit = None
        yield
        self._since, self._limit = time.monotonic(), limit
        clock.pause(since)

    def _watch(self) -> None:
        assert self._seconds is not None, "the watch was started without a limit"
        every = min(1.0, self._seconds / 4)
        with self._report.open("a", encoding="utf-8") as report:
            while not self._over.wait(every):
                limit = self._limit
                if limit is None:
                    faulthandler.cancel_dump_traceback_later()
                    continue
                if time.monotonic() - self._since > limit:
                    self._end(report, limit)
                # When C code holds on to the interpreter this thread does not run; that timer needs no interpreter.
                faulthandler.dump_traceback_later(limit + 10 * every, exit=True, file=report)
            faulthandler.cancel_dump_traceback_later()
        if not self._report.stat().st_size:
            self._report.unlink()

    def _end(self, report: object, limit: float) -> None:
        words = (
            f"HungError after {self._step} steps: no further one within {limit:g} s "
            f"(train.step_seconds={self._seconds:g})"
        )
        print(f"{words}. Where every thread is:", file=report, flush=True)  # type: ignore[call-overload]
        faulthandler.dump_traceback(file=report, all_threads=True)  # type: ignore[arg-type]
        print(f"error: [rank {self._rank}] {words}. Stacks of all threads: {self._report}", file=sys.stderr, flush=True)
        os._exit(HUNG)  # the main thread is stuck and cannot be asked to


def _set_here(step: int) -> None:
    global _here
    _here = step


def steps_done(out: Path) -> int | None:
    """Steps that the run in `out` has done, also those after its last checkpoint; None: not known."""
    try:
        return int((out / _FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
