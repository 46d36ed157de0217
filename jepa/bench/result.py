"""What every benchmark gives: named figures with units, the settings and the hardware they belong to.

Also the one way of timing them all: variants in alternating order within the same run, medians over the rounds, so
that a busy neighbour or a warming CPU touches all variants alike.
"""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from jepa import __version__
from jepa.errors import ConfigError


@dataclass(frozen=True)
class Figure:
    """One measured or computed number."""

    value: float
    unit: str
    note: str = ""


@dataclass
class Result:
    """Figures of one benchmark run."""

    bench: str
    settings: dict[str, Any]
    hardware: dict[str, Any]
    figures: dict[str, Figure] = field(default_factory=dict)

    def add(self, name: str, value: float, unit: str, note: str = "") -> None:
        assert name not in self.figures, f"figure {name!r} is given twice"
        self.figures[name] = Figure(float(value), unit, note)

    def __getitem__(self, name: str) -> float:
        return self.figures[name].value

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; ``figures`` maps a name to {"value", "unit", "note"}."""
        figures = {
            name: {"value": f.value, "unit": f.unit} | ({"note": f.note} if f.note else {})
            for name, f in self.figures.items()
        }
        return {
            "bench": self.bench,
            "version": __version__,
            "settings": self.settings,
            "hardware": self.hardware,
            "figures": figures,
        }

    def table(self) -> Table:
        """The figures as a table for the terminal."""
        settings = ", ".join(f"{k} {v}" for k, v in self.settings.items())
        machine = ", ".join(f"{k} {v}" for k, v in self.hardware.items())
        table = Table(title=f"jepa bench {self.bench}", caption=f"{settings}\n{machine}")
        table.add_column("figure", overflow="fold")
        table.add_column("value", justify="right", no_wrap=True)
        table.add_column("unit", no_wrap=True)
        table.add_column("what it is", overflow="fold")
        for name, f in self.figures.items():
            table.add_row(name, show(f.value), f.unit, f.note)
        return table


def show(value: float) -> str:
    """A number with about three significant digits."""
    if value == int(value) and abs(value) < 1e7:
        return str(int(value))
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def hardware(device: torch.device | None = None) -> dict[str, Any]:
    """The machine, as far as it bears on speed."""
    found: dict[str, Any] = {
        "cpu": _cpu_name(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    if device is not None and device.type == "cuda":
        found["gpu"] = torch.cuda.get_device_name(device)
    return found


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def pick_device(name: str | None) -> torch.device:
    """The device asked for; without a name CUDA where there is one, else the CPU.

    Raises:
        ConfigError: the device does not exist here.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = (str(error).splitlines() or ["unknown"])[0]
        raise ConfigError(
            f"device {name!r} cannot be used here ({reason}): give cpu, or cuda where there is one"
        ) from None
    return device


def native_bf16(device: torch.device) -> bool:
    """Whether the hardware multiplies in bfloat16 (a CPU without it emulates it, more slowly than float32)."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type != "cpu":
        return False
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def synchronise(device: torch.device) -> None:
    """Wait for the device's queue, so that a clock read next counts finished work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def interleaved(
    variants: dict[str, Callable[[], object]],
    rounds: int,
    *,
    warmup: int = 1,
    device: torch.device | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds of every variant in every round; odd rounds run them in reverse order.

    Args:
        variants: name -> a function that does the work once.
        rounds: how often each is timed.
        warmup: untimed rounds before.
        device: synchronised around each timing.
        clock: seconds that pass; ``time.process_time`` counts only this process's work, for what one thread computes
            without waiting.

    Returns:
        name -> list of `rounds` seconds.
    """
    if rounds < 1:
        raise ConfigError(f"rounds={rounds}: a benchmark needs at least 1 round")
    where = device or torch.device("cpu")
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(-warmup, rounds):
        names = list(variants) if number % 2 == 0 else list(reversed(variants))
        for name in names:
            synchronise(where)
            start = clock()
            variants[name]()
            synchronise(where)
            if number >= 0:
                seconds[name].append(clock() - start)
    return seconds


def median(seconds: list[float]) -> float:
    return statistics.median(seconds)
