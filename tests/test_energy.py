"""Energy: counters that start over, what is estimated, and that a run's sum goes on where it was."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from jepa import energy
from jepa.energy import CORE_WATTS, Meter, Spent, board_watts


def package(folder: Path, name: str, microjoules: int, most: int = 1_000_000) -> Path:
    """A counter as the kernel shows it."""
    at = folder / name
    at.mkdir(exist_ok=True)
    (at / "energy_uj").write_text(f"{microjoules}\n")
    (at / "max_energy_range_uj").write_text(f"{most}\n")
    return at


def test_an_estimate_is_of_the_cores_that_were_busy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(energy, "POWERCAP", tmp_path)
    meter = Meter()
    assert meter.source == "estimated"
    time.sleep(0.3)
    idle = meter.read()
    busy, end = time.process_time(), time.process_time() + 0.3
    while time.process_time() < end:
        pass
    used = meter.read()
    assert idle < 0.1 * CORE_WATTS
    assert used == pytest.approx(CORE_WATTS * (time.process_time() - busy), rel=0.2)


def test_counters_of_packages(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Packages are added up, parts of them left out, and a counter that starts over goes on."""
    monkeypatch.setattr(energy, "POWERCAP", tmp_path)
    first, second = package(tmp_path, "intel-rapl:0", 900_000), package(tmp_path, "intel-rapl:1", 100_000)
    package(tmp_path, "intel-rapl:0:0", 5)
    meter, silent = Meter(), Meter("cpu", counts=False)
    assert meter.source == "rapl" and meter.read() == 0.0
    (first / "energy_uj").write_text("950000")
    (second / "energy_uj").write_text("300000")
    assert meter.read() == pytest.approx(0.25)
    (first / "energy_uj").write_text("50000")  # over its range of 1 J: 0.1 J more
    assert meter.read() == pytest.approx(0.1) and meter.cost()["joules"] == pytest.approx(0.35)
    assert silent.read() == 0.0


def test_a_run_adds_up_over_ranks_and_starts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(energy, "POWERCAP", tmp_path)
    where: Any = SimpleNamespace(num_processes=4, device=torch.device("cpu"), is_local_main_process=True)
    spent = Spent(where, {})
    spent.add(seconds=2.0, wait=0.25, joules=10.0)  # means over the four ranks
    assert spent.state() == {"device_seconds": 8.0, "joules": 40.0, "energy_source": "estimated"}
    assert spent.given()[1] == 0.25
    package(tmp_path, "intel-rapl:0", 0)
    again = Spent(where, spent.state())
    again.add(seconds=1.0, wait=0.0, joules=1.0)
    assert again.row() == {"device_seconds": 12.0, "joules": 44.0, "energy_source": "estimated+rapl"}


@pytest.mark.parametrize(
    ("name", "watts"),
    [("NVIDIA H200", 700), ("NVIDIA H100 PCIe", 350), ("NVIDIA A100-SXM4-80GB", 400), ("Some GPU", 400)],
)
def test_rated_power(name: str, watts: float) -> None:
    assert board_watts(name) == watts
