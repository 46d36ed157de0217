"""Energy: read from the machine's counters where it has some, estimated and marked so elsewhere.

    nvml       the GPU's own counter of this process's device (extra `energy`), from Volta on
    rapl       Intel's and AMD's counters of the processor packages, where the system lets them be read
    estimated  power x time: of a GPU its rated board power over all of the time; of a CPU 10 W for each core that was
               busy, by the time that this process and its workers had on it

Counters are of whole devices and packages: what others do there at the same time is counted too. Not counted: memory
beside the package, fans, disks, the network, cooling. Of a run on GPUs only theirs is counted.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import psutil
import torch

Source = Literal["nvml", "rapl", "estimated"]
POWERCAP = Path("/sys/class/powercap")
CORE_WATTS = 10.0  # an assumption: server processors have 3 to 10 W of rated power a core, laptops 3 to 8
GPU_WATTS = 400.0  # of a model that is not listed
# Rated board power in watts, by the makers' data sheets; the first name that occurs in the device's name counts.
BOARDS = {"GB200": 1200, "B200": 1000, "H200": 700, "H100 PCIe": 350, "H100 NVL": 400, "H100": 700, "A100-PCIE": 250,
          "A100 80GB PCIe": 300, "A100": 400, "L40S": 350, "L40": 300, "L4": 72, "A10": 150, "V100-PCIE": 250,
          "V100": 300, "T4": 70, "RTX 4090": 450, "RTX 3090": 350}  # fmt: skip
Counter = Callable[[], float]  # joules since some point in time


class Meter:
    """Joules of one device since the last reading."""

    def __init__(self, device: torch.device | str = "cpu", counts: bool = True) -> None:
        """`counts`: False gives 0 always, for a second process of the same processor."""
        self.source, self._count = _counter(torch.device(device), counts)
        self._last = self._first = self._count()
        self._began = time.perf_counter()

    def cost(self) -> dict[str, Any]:
        """Since the start, as a result file holds it: device_seconds, joules, energy_source."""
        return {
            "device_seconds": round(time.perf_counter() - self._began, 3),
            "joules": round(max(0.0, self._count() - self._first), 3), "energy_source": self.source,
        }  # fmt: skip

    def read(self) -> float:
        """Joules since the last reading, or since the start. Waits for nothing."""
        now = self._count()
        joules, self._last = max(0.0, now - self._last), now
        return joules


class Spent:
    """What a run has cost so far, over all its starts: seconds of all devices, and joules."""

    def __init__(self, accelerator: Any, saved: Mapping[str, Any]) -> None:
        """`saved`: what `state` gave."""
        self._world = int(accelerator.num_processes)
        device = accelerator.device
        # a processor's counters are of the machine: one process of each reads them, an estimate is of each one's own
        self._meter = Meter(device, device.type == "cuda" or accelerator.is_local_main_process)
        self._device_seconds = float(saved.get("device_seconds", 0.0))
        self._joules = float(saved.get("joules", 0.0))
        sources = set(saved.get("energy_source", "").split("+")) | {self._meter.source}
        self._source = "+".join(sorted(sources - {""}))  # a run that moved from one machine to another
        self._wait = 0.0

    def given(self) -> tuple[float, float]:
        """What this rank adds to an exchange: joules since the last one, share of waiting in the line before."""
        return self._meter.read(), self._wait

    def add(self, seconds: float, wait: float, joules: float) -> None:
        """A line's seconds in steps and waiting of this rank, and joules as the mean over ranks."""
        self._device_seconds += seconds * self._world
        self._wait = wait
        self._joules += joules * self._world

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"device_seconds": self._device_seconds, "joules": self._joules, "energy_source": self._source}

    def row(self) -> dict[str, Any]:
        """As metrics."""
        return self.state()


def _counter(device: torch.device, counts: bool) -> tuple[Source, Counter]:
    if device.type == "cuda":
        counter = _nvml(device)
        if counter is not None:
            return "nvml", counter
        watts = board_watts(torch.cuda.get_device_name(device))
        return "estimated", lambda: watts * time.perf_counter()
    files = _packages()
    if files and device.type == "cpu":
        return "rapl", _Rapl(files) if counts else (lambda: 0.0)
    return "estimated", lambda: CORE_WATTS * _busy_seconds()


def board_watts(name: str) -> float:
    """Rated power of a GPU by its name."""
    return float(next((watts for part, watts in BOARDS.items() if part in name), GPU_WATTS))


def _busy_seconds() -> float:
    """Core seconds of this process and of its children, the ended ones too."""
    times = os.times()
    busy = times.user + times.system + times.children_user + times.children_system
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):  # it has just ended
            of = child.cpu_times()
            busy += of.user + of.system
    return busy


def _nvml(device: torch.device) -> Counter | None:
    """The counter of a GPU, or None without the bindings, on an old GPU, or on a part of one."""
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
        uuid = str(torch.cuda.get_device_properties(device).uuid)
        handle = pynvml.nvmlDeviceGetHandleByUUID(uuid if uuid.startswith("GPU-") else f"GPU-{uuid}")
        pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    except (pynvml.NVMLError, AttributeError):
        return None

    def joules() -> float:
        return float(pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)) / 1000.0

    return joules


def _packages() -> list[Path]:
    """Readable counters of processor packages; those of parts of them (cores, memory) would count twice."""
    found = []
    for file in sorted(POWERCAP.glob("*-rapl:*/energy_uj")):
        if file.parent.name.count(":") == 1 and os.access(file, os.R_OK):
            found.append(file)
    return found


class _Rapl:
    """Sum of the packages' counters, which start over at their range."""

    def __init__(self, files: list[Path]) -> None:
        self._files, self._last, self._sum = files, [self._look(f) for f in files], 0.0

    def __call__(self) -> float:
        for i, file in enumerate(self._files):
            now = self._look(file)
            step = now - self._last[i]
            if step < 0:
                step += int((file.parent / "max_energy_range_uj").read_text())
            self._last[i] = now
            self._sum += step * 1e-6
        return self._sum

    @staticmethod
    def _look(file: Path) -> int:
        return int(file.read_text())


__all__ = ["Meter", "Spent", "board_watts"]
