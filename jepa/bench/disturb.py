"""Runs to interrupt: processes of this machine, watched from outside by what they write into their run folder."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from jepa.checkpoint import folder as checkpoints
from jepa.errors import TrainingError

LIMIT = 300.0  # seconds for anything to happen on a busy machine
_POLL = 0.003
T = TypeVar("T")


class Watched:
    """A run folder as seen from outside.

    Lines past the newest checkpoint are cut off when a run goes on, so they count only for a process that has
    written environment.json, which comes after that.
    """

    def __init__(self, run: Path) -> None:
        self.run = run

    def steps_done(self, since: float = 0.0) -> int:
        """The last step that a process started at `since` (a time of the clock) or later has written a line of."""
        try:
            if (self.run / "environment.json").stat().st_mtime < since:
                return 0
            with (self.run / "metrics.jsonl").open("rb") as stream:
                stream.seek(max(0, stream.seek(0, os.SEEK_END) - 8192))
                lines = stream.read().split(b"\n")[:-1]
        except FileNotFoundError:
            return 0
        for line in reversed(lines):
            if b'"loss"' in line:
                return int(json.loads(line)["step"])
        return 0

    def saved(self) -> tuple[int, float]:
        """Step of the newest complete checkpoint, 0 without one, and the time it was complete."""
        found = checkpoints.steps(self.run)
        if not found:
            return 0, 0.0
        path = self.run / checkpoints.FOLDER / f"step-{found[-1]}"
        return found[-1], (path / checkpoints.COMPLETE).stat().st_mtime

    def trace(self) -> list[dict[str, Any]]:
        """Rows of every rank's trace, by sample number."""
        files = sorted(self.run.glob("trace-rank*.jsonl"))
        rows = [json.loads(line) for path in files for line in path.read_text(encoding="utf-8").splitlines()]
        return sorted(rows, key=lambda row: int(row["g"]))


class Local:
    """`jepa train` as a group of processes, one per rank, without any launcher."""

    kinds: tuple[str, ...] = ("kill", "term", "usr2")

    def __init__(self, config: Path, run: Path, processes: int) -> None:
        self.config, self.run, self.processes = config, run, processes
        self._children: list[subprocess.Popen[bytes]] = []

    def start(self) -> None:
        """Start the run, or go on with it when it has begun."""
        begun = (self.run / "config.yaml").is_file()
        what = [str(self.run), "--resume"] if begun else [str(self.config), "--out", str(self.run)]
        with (self.run.parent / f"{self.run.name}.log").open("ab") as log:
            self._children = [
                subprocess.Popen(
                    [sys.executable, "-m", "jepa", "train", *what, "--trace"],
                    env={**os.environ, **place}, stdout=log, stderr=log,
                )
                for place in _places(self.processes)
            ]  # fmt: skip

    def interrupt(self, kind: str, generator: np.random.Generator) -> None:
        """A signal to every rank; SIGKILL to one of them, and then, as a launcher would, to the others."""
        children = self._children
        if kind == "kill":
            children = [self._children[int(generator.integers(len(self._children)))]]
        for child in children:
            child.send_signal({"kill": signal.SIGKILL, "term": signal.SIGTERM, "usr2": signal.SIGUSR2}[kind])
        if kind == "kill":
            children[0].wait(LIMIT)
            self.end()

    def ended(self) -> bool:
        """Whether every process has ended."""
        return all(child.poll() is not None for child in self._children)

    def failed(self) -> bool:
        """Whether one of them ended otherwise than by a signal or a polite stop, without being asked to."""
        return any(child.poll() not in (None, 0) for child in self._children)

    def began(self) -> float | None:
        """None: nobody else starts them."""
        return None

    def end(self) -> None:
        """SIGKILL to those that are left."""
        for child in self._children:
            child.kill()
            child.wait()

    def log(self) -> str:
        """The end of what the processes printed."""
        return (self.run.parent / f"{self.run.name}.log").read_text(encoding="utf-8", errors="replace")[-1000:]


def _places(processes: int) -> Iterator[dict[str, str]]:
    """Environment of each rank; none for a single process."""
    if processes == 1:
        yield {}
        return
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    for rank in range(processes):
        yield {
            "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes),
            "LOCAL_WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
        }  # fmt: skip


def wait_for(ready: Callable[[], T], what: str, tell: Callable[[], str]) -> T:
    """What `ready` returns as soon as that is true.

    Raises:
        TrainingError: it did not become true, and what `tell` says did not change, for too long; with what it says.
    """
    until, words = time.monotonic() + LIMIT, tell()
    while not (value := ready()):
        if time.monotonic() > until:
            if (now := tell()) == words:  # as long as it talks it goes on, on a busy machine
                raise TrainingError(f"{what} did not happen within {LIMIT:.0f} s. The run's last words: {now}")
            until, words = time.monotonic() + LIMIT, now
        time.sleep(_POLL)
    return value
