"""Jobs and decoders for the tests of the pool; in a module of their own, which worker processes import."""

from __future__ import annotations

import ctypes
import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from jepa import keyed
from jepa.config import ClipConfig
from jepa.data.augment import centre_box
from jepa.data.video.clips import draw
from jepa.data.video.crew import Crew, Job
from jepa.data.video.pool import ClipDecoder, Row
from jepa.data.video.sample import write_clips
from jepa.errors import ConfigError, DataError, TrainingError


class Acts(Job):
    """Does what a task says."""

    def run(self, task: tuple[str, Any]) -> Any:
        what, value = task
        if what == "give":
            return value
        if what == "pid":
            return os.getpid()
        if what == "sleep":
            time.sleep(value)
            return value
        if what == "hang":  # as a C library that holds Python's lock and hears no signal
            signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM, signal.SIGINT])
            time.sleep(1000)
        if what == "crash":
            ctypes.string_at(0)  # a real segmentation fault
        if what == "exit":
            os._exit(3)
        if what == "bad":
            raise DataError(value)
        raise ValueError(f"no such act: {what}")


class CannotStart(Acts):
    def start(self) -> None:
        raise ConfigError("the decoder is not there")


class DiesAtOnce(Acts):
    def start(self) -> None:
        os._exit(9)


class Films(ClipDecoder):
    """Clips of the videos of a folder, 000.mp4 and on; some indices do other things."""

    def __init__(self, folder: Path, count: int, acts: dict[int, str] | None = None, attempts: int = 20) -> None:
        self.folder, self.count, self.acts, self.attempts = folder, count, acts or {}, attempts
        self.size = (4, 32, 40)
        self.config = ClipConfig(4, stride=2)

    def clip(self, out: Tensor, number: int, index: int) -> Row:
        act = self.acts.get(index)
        if act == "wait":
            time.sleep(0.2)
        elif act == "storage":
            raise TrainingError("the storage fails")
        elif act is not None:
            Acts().run((act, "this video is bad"))
        numbers = draw(0, np.array([number]))[0]
        drawn = write_clips(
            out, self.folder / f"{index:03d}.mp4", self.config, numbers, lambda h, w: centre_box(h, w, (32, 40)),
            backend="pyav",
        )  # fmt: skip
        return Row(index % 3, {"number": number, "index": index, **drawn})

    def index(self, number: int, attempt: int) -> int:
        if attempt == 0:
            return number % self.count
        return int(keyed.uniform("substitute", 0, number, 1, sub=attempt)[0] * self.count)

    def place(self, index: int) -> str:
        return f"video {index}"


if __name__ == "__main__":  # a training process that is killed while its workers hang
    crew = Crew(Acts(), 2, None)
    crew.put(0, ("pid", None))
    crew.get()
    for ticket in range(2):
        crew.put(ticket, ("hang", None))
    print(*crew.pids, flush=True)
    time.sleep(1000)
