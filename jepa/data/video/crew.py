"""Processes that may be killed: a job that hangs, crashes or is killed loses its own task and nothing else.

Video decoders are C code fed with damaged files: they crash, and they hang where no signal but SIGKILL reaches them
(decord holds Python's lock meanwhile). So every worker has a pipe of its own and shares no lock with the others; one
that is past its deadline is killed on the spot, and whatever else was in its pipe goes to the others.

Measured against pebble 5.2.3, whose workers share two locked pipes (2 cores, both busy): a task that does nothing costs
0.52 ms there; a worker that ignores SIGTERM holds up all others for 3 s, because the lock is held while it is killed;
and a worker killed while it has no task breaks the pool (BrokenProcessPool). docs/video-decoding.md has our figures.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
import time
import traceback
import weakref
from abc import ABC, abstractmethod
from collections import deque
from dataclasses import dataclass, field
from multiprocessing import forkserver
from multiprocessing.connection import Connection, wait
from multiprocessing.context import BaseContext
from typing import Any, Literal

import torch

from jepa.errors import JepaError, TrainingError

_AHEAD = 64  # tasks in a worker's pipe; their bytes stay far below what a pipe holds, so that sending never blocks
_START = 300.0  # seconds that a worker may take to import what it needs
_HOPELESS = 10  # workers that may die one after the other without finishing a task
_IDLE = -1.0


class Job(ABC):
    """What a worker does. Pickled once for every worker."""

    def start(self) -> None:
        """Called once in every worker, before its first task and without a deadline. A JepaError ends the crew."""
        return None

    @abstractmethod
    def run(self, task: Any) -> Any:
        """The result of a task, both picklable.

        Raises:
            JepaError: comes out as the task's result.
        """


@dataclass(frozen=True)
class Lost:
    """The result of a task that took its worker with it."""

    kind: Literal["slow", "died"]
    reason: str
    seconds: float  # how long it had run


@dataclass
class _Worker:
    process: Any
    pipe: Connection
    number: int  # its place in the table of starts
    born: float
    tasks: deque[tuple[int, Any]] = field(default_factory=deque)  # sent and unanswered, oldest first
    ready: bool = False


class Crew:
    """Workers that answer tasks in any order. Close it, or use it as a context manager."""

    def __init__(self, job: Job, workers: int, deadline: float | None) -> None:
        """
        Args:
            job: what they do.
            workers: how many, at least 1.
            deadline: seconds that a task may run; None: for ever.
        """
        assert workers >= 1, f"a crew of {workers}"
        self._job, self._deadline = job, deadline
        self._context = _context()
        self._starts = self._context.RawArray("d", [_IDLE] * workers)  # when each worker began its task
        self._waiting: deque[tuple[int, Any]] = deque()  # not sent yet
        self._answers: deque[tuple[int, Any]] = deque()
        self._deaths = 0  # since a task was last finished
        self._workers: list[_Worker] = []
        self._finalizer = weakref.finalize(self, _kill_all, self._workers, os.getpid())
        try:
            for number in range(workers):
                self._workers.append(self._hire(number))
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Crew:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __len__(self) -> int:
        """Tasks that have not been answered by `get`."""
        return len(self._waiting) + len(self._answers) + sum(len(w.tasks) for w in self._workers)

    @property
    def pids(self) -> list[int]:
        """Process numbers of the workers."""
        return [w.process.pid for w in self._workers]

    def put(self, ticket: int, task: Any, first: bool = False) -> None:
        """Hand in a task; `get` gives its result under the same ticket. `first`: before all that wait."""
        (self._waiting.appendleft if first else self._waiting.append)((ticket, task))
        self._send()

    def get(self) -> tuple[int, Any]:
        """A ticket and its result: what the job returned, the JepaError it raised, or Lost.

        Raises:
            TrainingError: workers do not start, or die one after the other.
            JepaError: the job could not start.
            RuntimeError: the job raised something else than a JepaError.
        """
        assert len(self), "no task is left"
        while not self._answers:
            self._look()
            self._send()
        return self._answers.popleft()

    def close(self) -> None:
        """Kill the workers; they keep nothing that could be lost."""
        self._finalizer()

    def _hire(self, number: int) -> _Worker:
        ours, theirs = self._context.Pipe()
        self._starts[number] = _IDLE
        process = self._context.Process(  # type: ignore[attr-defined]  # every context has it, its base does not say so
            target=_work, args=(self._job, theirs, self._starts, number), daemon=True, name=f"decoder-{number}"
        )
        process.start()
        theirs.close()  # or its end would never be seen
        return _Worker(process, ours, number, time.monotonic())

    def _send(self) -> None:
        """Give waiting tasks to the workers with the fewest.

        Half of all tasks lie with the workers, so that they go on while this process does something else; the other
        half is given out when it looks, to those that have got further: videos differ, and so do busy cores.
        """
        most = min(_AHEAD, max(2, -(-len(self) // (2 * len(self._workers)))))
        while self._waiting:
            worker = min(self._workers, key=lambda w: len(w.tasks))
            if len(worker.tasks) >= most:
                return
            ticket, task = self._waiting.popleft()
            worker.tasks.append((ticket, task))
            try:
                worker.pipe.send((ticket, task))
            except OSError:
                return  # it has just died; what it had is handed on when that is noticed

    def _look(self) -> None:
        """Wait until something happens, and take note of it."""
        wait([w.pipe for w in self._workers] + [w.process.sentinel for w in self._workers], self._patience())
        for place, worker in enumerate(self._workers):
            alive = worker.process.is_alive()  # asked first: what it sent before it died is still read
            open_ = self._read(worker)
            lost = None
            if not alive or not open_:
                lost = self._bury(worker)
            elif (late := self._late(worker)) is not None:
                worker.process.kill()
                lost = self._bury(worker, late)
            if lost is not None:
                self._answers.extend(lost)
                self._workers[place] = self._hire(worker.number)

    def _patience(self) -> float | None:
        """Seconds until the next deadline."""
        now, ends = time.monotonic(), []
        for worker in self._workers:
            if not worker.ready:
                ends.append(worker.born + _START)
            elif worker.tasks and self._deadline is not None:
                began = self._starts[worker.number]
                ends.append((began if began > 0 else now) + self._deadline)
        return max(0.0, min(ends) - now) if ends else None

    def _late(self, worker: _Worker) -> float | None:
        """Seconds that a worker's task has run, if that is too long."""
        now, began = time.monotonic(), float(self._starts[worker.number])
        if not worker.ready and now - worker.born > _START:
            raise TrainingError(f"a decoding process did not start within {_START:.0f} s: the machine is overloaded")
        if self._deadline is None or began <= 0 or not worker.tasks or now - began <= self._deadline:
            return None
        return now - began

    def _read(self, worker: _Worker) -> bool:
        """Take a worker's answers; False when its pipe is closed."""
        try:
            while worker.pipe.poll():
                kind, ticket, result = worker.pipe.recv()
                if kind == "ready":
                    worker.ready = True
                elif kind == "failed":
                    raise (
                        result
                        if isinstance(result, JepaError)
                        else RuntimeError(f"a decoding process failed:\n{result}")
                    )
                else:
                    expected, _ = worker.tasks.popleft()
                    assert expected == ticket, f"answered {ticket} instead of {expected}"
                    self._deaths = 0
                    self._answers.append((ticket, result))
        except (EOFError, OSError):
            return False
        return True

    def _bury(self, worker: _Worker, late: float | None = None) -> list[tuple[int, Any]]:
        """The end of a worker: the task it was at is lost, the others wait again. Returns the lost one, if any."""
        worker.process.join(5)
        if worker.process.is_alive():  # it only closed its pipe
            worker.process.kill()
            worker.process.join()
        self._read(worker)  # it may have finished at the last moment
        worker.pipe.close()
        began, code = self._starts[worker.number], worker.process.exitcode
        lost: list[tuple[int, Any]] = []
        if began > 0 and worker.tasks:
            ticket, _ = worker.tasks.popleft()
            lost = [(ticket, _obituary(code, late, self._deadline, time.monotonic() - began))]
        self._waiting.extendleft(reversed(worker.tasks))
        self._deaths += 1
        if self._deaths > max(_HOPELESS, 2 * len(self._workers)):
            raise TrainingError(
                f"{self._deaths} decoding processes died one after the other without finishing anything (the last one: "
                f"{_ending(code)}). Mostly that is for want of memory: use fewer data.workers, then continue with "
                "--resume"
            )
        return lost


def _obituary(code: int | None, late: float | None, deadline: float | None, seconds: float) -> Lost:
    if late is not None:
        return Lost("slow", f"decoding took longer than {deadline:g} s and was stopped", late)
    return Lost("died", f"the decoder {_ending(code)}", seconds)


def _ending(code: int | None) -> str:
    if code is not None and code < 0:
        name = signal.Signals(-code).name if -code in signal.valid_signals() else f"signal {-code}"
        return f"was killed ({name})" if -code in (signal.SIGKILL, signal.SIGTERM) else f"crashed ({name})"
    return f"ended its process (exit code {code})"


def _context() -> BaseContext:
    """How processes are started: never by copying this one, whose threads may hold locks."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    # a server process with torch loaded makes a worker in milliseconds; it matters only before the first one is made
    context.set_forkserver_preload(["__main__", "jepa.data.video.crew"])
    return context


def _kill_all(workers: list[_Worker], owner: int) -> None:
    if os.getpid() != owner:
        return  # a copy in a forked process has no business with them
    for worker in workers:
        worker.process.kill()
    for worker in workers:
        worker.process.join()
        worker.pipe.close()
    workers.clear()


def _work(job: Job, pipe: Connection, starts: Any, number: int) -> None:
    """A worker's life."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the training process's to handle
    # as in workers.py: a job scheduler signals everybody, while a step still needs its batches; a second one is obeyed
    signal.signal(signal.SIGTERM, lambda *_: signal.signal(signal.SIGTERM, signal.SIG_DFL))
    _die_with_parent()
    torch.set_num_threads(1)
    try:
        job.start()
        pipe.send(("ready", 0, None))
        while True:
            ticket, task = pipe.recv()
            starts[number] = time.monotonic()
            try:
                result = job.run(task)
            except JepaError as error:
                result = error
            starts[number] = _IDLE
            pipe.send(("done", ticket, result))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return  # the training process is gone or wants no more
    except JepaError as error:
        pipe.send(("failed", 0, error))
    except BaseException:
        pipe.send(("failed", 0, traceback.format_exc()))


def _die_with_parent() -> None:
    """Ask Linux to end this process with the one that made it: a hung decoder notices nothing by itself.

    The server process made it, and lives as long as anybody holds a certain pipe. Workers do not, as they make no
    processes; so the server ends with the training process, however that ends, and they end with the server.
    """
    if sys.platform != "linux":
        return
    server = getattr(forkserver, "_forkserver", None)
    alive = getattr(server, "_forkserver_alive_fd", None)
    if alive is not None:
        os.close(alive)
        server._forkserver_alive_fd = None  # type: ignore[union-attr]  # what it is called is checked above
    with_parent = 1  # PR_SET_PDEATHSIG
    ctypes.CDLL(None).prctl(with_parent, signal.SIGKILL)
