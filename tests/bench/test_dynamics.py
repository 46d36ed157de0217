"""The training benchmark of world models at tiny sizes: same losses as stable-worldmodel's models."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from jepa import cli
from jepa.bench import plan_reference
from jepa.bench.dynamics import DynamicsSettings, bench_dynamics

TINY: dict[str, Any] = {"batch": 2, "image_size": 28, "rounds": 1}


@pytest.mark.parametrize("method", ["lewm", "dinowm"])
def test_figures(method: Any) -> None:
    pytest.importorskip("stable_worldmodel", exc_type=ImportError)
    result = bench_dynamics(DynamicsSettings(**TINY, method=method), "cpu")
    assert 0 <= result["loss_difference"] < 1e-3
    assert result["windows_per_s"] == pytest.approx(2 / result["step_ms"] * 1e3)
    assert result["speedup"] == pytest.approx(result["reference_step_ms"] / result["step_ms"])


def test_another_loss_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("stable_worldmodel", exc_type=ImportError)
    build = plan_reference.lewm

    def other(ours: Any, *rest: Any) -> Any:
        found = build(ours, *rest)
        with torch.no_grad():
            ours.predictor.positions.mul_(1.5)
        return found

    monkeypatch.setattr(plan_reference, "lewm", other)
    with pytest.raises(AssertionError, match="losses differ by"):
        bench_dynamics(DynamicsSettings(**TINY), "cpu")


def test_on_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    small = ["batch=2", "image_size=28", "rounds=1", "reference=false", "clock=processor"]
    assert cli.main(["bench", "dynamics", *small, "--device", "cpu", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["figures"]["parameters"]["value"] > 15e6 and "speedup" not in found["figures"]
    assert cli.main(["bench", "dynamics", "batch=1", "--device", "cpu"]) == 2
    assert "batch=1" in capsys.readouterr().err
