"""``jepa bench memory``: whether a run grows. A small model trains for 2000 steps with each decoder.

Memory is what all processes of the run have written, shared memory counted once (resident size where the system does
not tell that apart), looked at while it trains. Mapped files, libraries above all, are left out: what a process has of
them changes with whoever else on the machine uses them. Caches fill at first, so what counts is the median over the
last fifth of the steps against that over the second fifth.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import yaml

from jepa.bench import small
from jepa.bench.disturb import Watched
from jepa.bench.result import Result, hardware
from jepa.data.video import choose
from jepa.errors import ConfigError, TrainingError

IMAGES = "images"
_POLL = 0.1


@dataclass(frozen=True)
class MemorySettings:
    """What is done."""

    decoders: tuple[str, ...] = ()  # images, pyav, torchcodec, decord; default: all that work here
    steps: int = 2000
    batch: int = 4
    workers: int = 1  # decoding processes; 0: decoding in the training process


def bench_memory(settings: MemorySettings | None = None) -> Result:
    """Run the benchmark in a temporary folder.

    Returns:
        Figures per decoder D: D.growth_percent, D.early_mib and D.late_mib (of all processes), D.seconds.

    Raises:
        ConfigError: a decoder that is not there, or too few steps.
        TrainingError: a run failed.
    """
    wanted = settings or MemorySettings()
    there = (IMAGES, *choose.versions())
    decoders = wanted.decoders or there
    odd = [name for name in decoders if name not in there]
    if odd or wanted.steps < 50 or wanted.batch < 1 or wanted.workers < 0:
        raise ConfigError(
            f"decoders={list(decoders)}, steps={wanted.steps}, batch={wanted.batch}, workers={wanted.workers}: "
            f"allowed: decoders {', '.join(there)}; steps from 50, batch from 1, workers from 0"
        )
    result = Result("memory", {"steps": wanted.steps, "batch": wanted.batch, "workers": wanted.workers}, hardware())
    with tempfile.TemporaryDirectory(prefix="jepa-bench-") as place:
        for name in decoders:
            _measure(result, Path(place), name, wanted)
    return result


def _measure(result: Result, folder: Path, name: str, wanted: MemorySettings) -> None:
    media: small.Media = "images" if name == IMAGES else "clips"
    data = folder / media
    if not data.exists():
        small.build_small(media, data, 64)
    config = folder / f"{name}.yaml"
    config.write_text(yaml.safe_dump(_settings(media, data, name, wanted)), encoding="utf-8")
    begun = time.perf_counter()
    seen = _watch(config, folder / name, wanted.steps)
    fifth = wanted.steps / 5
    early = [mib for step, mib in seen if fifth <= step < 2 * fifth]
    late = [mib for step, mib in seen if step >= 4 * fifth]
    if not early or not late:
        raise TrainingError(f"{name}: the run was over before its memory was looked at twice; give more steps")
    before, after = statistics.median(early), statistics.median(late)
    result.add(f"{name}.growth_percent", 100 * (after / before - 1), "%", "last fifth of the steps over the second one")
    result.add(f"{name}.early_mib", before, "MiB", "second fifth, median")
    result.add(f"{name}.late_mib", after, "MiB", "last fifth, median")
    result.add(f"{name}.seconds", time.perf_counter() - begun, "s", "the whole run")


def _settings(media: small.Media, data: Path, name: str, wanted: MemorySettings) -> dict[str, Any]:
    start = small.values(media, data)
    decoder = {} if media == "images" else {"decoder": name}
    every = {"steps": wanted.steps // 10}
    return start | {
        "data": start["data"] | decoder | {"workers": wanted.workers},
        "optim": {"warmup": {"steps": 10}},
        "train": {
            "batch": wanted.batch, "duration": {"steps": wanted.steps}, "checkpoint_every": every, "threads": 1,
            "log_every": max(1, wanted.steps // 200), "precision": "fp32",
        },
        "monitor": {"every": every, "samples": 16, "knn_bank": 32},
        "health": {"starvation": {"act": "ignore"}},
    }  # fmt: skip


def _watch(config: Path, run: Path, steps: int) -> list[tuple[int, float]]:
    """(step, MiB of all processes) as the run goes on."""
    command = [sys.executable, "-m", "jepa", "--quiet", "train", str(config), "--out", str(run)]
    seen: list[tuple[int, float]] = []
    watched = Watched(run)
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        while process.poll() is None:
            step = watched.steps_done()
            if step:
                seen.append((step, _mib(process.pid)))
            time.sleep(_POLL)
        errors = process.stderr.read() if process.stderr else ""
    if process.returncode:
        raise TrainingError(f"the run of {config.stem} failed: {errors.strip()[-500:]}")
    return [(step, mib) for step, mib in seen if mib and step < steps]


def _mib(pid: int) -> float:
    """Of a process and those it has started; 0 when it has just ended."""
    try:
        top = psutil.Process(pid)
        return sum(_written(process) for process in [top, *top.children(recursive=True)]) / 2**20
    except (psutil.Error, OSError):
        return 0.0


def _written(process: psutil.Process) -> float:
    """Bytes of memory behind no file, its share of what it has in common with others."""
    told = Path(f"/proc/{process.pid}/smaps_rollup")
    if told.exists():
        lines = (line.split() for line in told.read_text(encoding="ascii").splitlines())
        sizes = {line[0]: int(line[1]) for line in lines if line[0].startswith("Pss")}
        if "Pss_Anon:" in sizes:
            return 1024 * (sizes["Pss_Anon:"] + sizes["Pss_Shmem:"])
    return float(process.memory_info().rss)


__all__ = ["MemorySettings", "bench_memory"]
