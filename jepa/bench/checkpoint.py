"""``jepa bench checkpoint``: how long a save holds up training, at once and in the background.

A step is the one of ``jepa bench step``; after one step in `every` the weights and optimiser state are saved, by turns
in rounds without saves, with saves at once (`train.checkpoint_async=false`) and in the background (`true`), with the
functions that training uses. A background save costs the copy into main memory and, while the writer works, what it
takes from the steps: both are measured.
"""

from __future__ import annotations

import tempfile
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch

from jepa import checkpoint, config
from jepa.bench.result import Result, hardware, median, native_bf16, pick_device, synchronise
from jepa.bench.step import Ours
from jepa.config import RunConfig
from jepa.errors import ConfigError


@dataclass(frozen=True)
class CheckpointSettings:
    """What is measured."""

    size: str | None = None  # of I-JEPA's encoder; default: small on a CPU, large on CUDA
    batch: int | None = None  # default: 4 on a CPU, 128 on CUDA
    image_size: int = 224
    every: int = 6  # steps in a round, one of which is followed by a save
    rounds: int = 4
    folder: str | None = None  # where checkpoints go; default: the system's folder for temporary files


def bench_checkpoint(settings: CheckpointSettings | None = None, device: str | None = None) -> Result:
    """Run the benchmark.

    Returns:
        Figures: step_ms, sync.stall_ms, async.stall_ms, async.first_stall_ms (memory is allocated then),
        async.write_ms, async.step_ms (while a write goes on), sync.overhead_ms and async.overhead_ms (what a save adds
        to a round of steps, median), checkpoint_mb, memory_mb.

    Raises:
        ConfigError: settings that no model can have, or a device that is not there.
    """
    wanted, where = settings or CheckpointSettings(), pick_device(device)
    if wanted.every < 2 or wanted.rounds < 2:
        raise ConfigError(f"every={wanted.every} and rounds={wanted.rounds}: at least 2 each")
    gpu = where.type == "cuda"
    size, batch = wanted.size or ("large" if gpu else "small"), wanted.batch or (128 if gpu else 4)
    shown = {"model": f"ViT-{size}/16", "batch": batch, "every": wanted.every, "rounds": wanted.rounds}
    result = Result("checkpoint", shown, hardware(where))
    method = {"name": "ijepa", "encoder": {"size": size}}
    run = config.build(RunConfig, {"method": method, "data": {"image_size": wanted.image_size}})
    options = {"name": "ijepa", "encoder": {"size": size}}
    ours = Ours(options, run.data.size, where, torch.bfloat16 if gpu and native_bf16(where) else torch.float32)
    with tempfile.TemporaryDirectory(dir=wanted.folder) as folder:
        _Bench(wanted, run, ours, batch, Path(folder)).measure(result)
    return result


class _Bench:
    def __init__(self, wanted: CheckpointSettings, run: RunConfig, ours: Ours, batch: int, folder: Path) -> None:
        self.wanted, self.run, self.ours, self.folder = wanted, run, ours, folder
        self.example = ours.example(batch)
        self.memory = checkpoint.Staging()
        self.saves = 0

    def measure(self, result: Result) -> None:
        rounds: dict[str, list[float]] = {"none": [], "sync": [], "async": []}
        stalls: dict[str, list[float]] = {"sync": [], "async": []}
        steps: dict[str, list[float]] = {"none": [], "async": []}
        writes: list[float] = []
        with ThreadPoolExecutor(1) as thread:
            for number in range(-1, self.wanted.rounds):  # the first one warms up
                names = ["none", "sync", "async"]
                for name in names if number % 2 else reversed(names):
                    spent, stall, each, write = self._round(name, thread)
                    if number < 0:
                        if name == "async":
                            first = stall
                        continue
                    rounds[name].append(spent)
                    if name != "none":
                        stalls[name].append(stall)
                    if name in steps:
                        steps[name] += each
                    writes += [write] if write else []
        path = checkpoint.latest(self.folder)
        add = result.add
        add("step_ms", 1e3 * median(steps["none"]), "ms", "a step without saves")
        add("sync.stall_ms", 1e3 * median(stalls["sync"]), "ms", "training stands still for a save at once")
        add("async.stall_ms", 1e3 * median(stalls["async"]), "ms", "... for the copy of one in the background")
        add("async.first_stall_ms", 1e3 * first, "ms", "... for the first copy, when its memory is allocated")
        add("async.write_ms", 1e3 * median(writes), "ms", "how long the background write takes beside the steps")
        if steps["async"]:
            add("async.step_ms", 1e3 * median(steps["async"]), "ms", "a step at whose beginning it goes on")
        for name in ("sync", "async"):
            more = [a - b for a, b in zip(rounds[name], rounds["none"], strict=True)]
            add(f"{name}.overhead_ms", 1e3 * median(more), "ms", f"what a save adds to {self.wanted.every} steps")
        total = sum(f.stat().st_size for f in path.iterdir())
        add("checkpoint_mb", total / 2**20, "MiB", "on the disk")
        add("memory_mb", self.memory.bytes / 2**20, "MiB", "main memory of a copy; a second one when saves are close")

    def _round(self, name: str, thread: ThreadPoolExecutor) -> tuple[float, float, list[float], float]:
        """Seconds of the round (a background write's end is not waited for), of the stall, of each step while a write
        goes on (of every step without saves), and of the write."""
        stall, each, ended = 0.0, [], [0.0]
        write: Future[None] | None = None
        synchronise(self.ours.device)
        start = time.perf_counter()
        for step in range(self.wanted.every):
            before, writing = time.perf_counter(), write is not None and not write.done()
            self.ours.step(*self.example)
            synchronise(self.ours.device)
            if name == "none" or writing:
                each.append(time.perf_counter() - before)
            if step == 0 and name != "none":
                before = time.perf_counter()
                write = self._save(name, thread, ended)
                stall = time.perf_counter() - before
        spent = time.perf_counter() - start
        if write is not None:
            write.result()
        return spent, stall, each, ended[0]

    def _save(self, name: str, thread: ThreadPoolExecutor, ended: list[float]) -> Future[None] | None:
        self.saves += 1
        host = self.memory if name == "async" else checkpoint.on_host
        taken = checkpoint.take(self.saves, self.ours.method, self.ours.optimiser, {}, self.run, host)
        if name == "sync":
            checkpoint.write(self.folder, taken, keep=1)
            return None
        begin = time.perf_counter()

        def write() -> None:
            checkpoint.write(self.folder, taken, keep=1)
            ended[0] = time.perf_counter() - begin

        return thread.submit(write)
