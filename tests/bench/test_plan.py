"""The planning benchmark at tiny sizes: same costs as stable-worldmodel's models, figures that fit together."""

from __future__ import annotations

import importlib
import json
from typing import Any

import pytest
import torch

from jepa import cli
from jepa.bench import plan_reference
from jepa.bench.plan import PlanSettings, bench_plan
from jepa.errors import ConfigError

TINY: dict[str, Any] = {"samples": 4, "elites": 2, "iterations": 2, "horizon": 4, "image_size": 28, "rounds": 1}


@pytest.mark.parametrize(("method", "frames"), [("lewm", 1), ("lewm", 3)])
def test_figures(method: Any, frames: int) -> None:
    pytest.importorskip("stable_worldmodel", exc_type=ImportError)
    result = bench_plan(PlanSettings(**TINY, method=method, frames=frames, environments=2), "cpu")
    assert 0 <= result["cost_difference"] < 1e-3
    assert result["plan_ms"] == pytest.approx(2 * result["iteration_ms"])
    assert result["speedup"] == pytest.approx(result["reference_plan_ms"] / result["plan_ms"])
    assert result["roll_outs_per_s"] == pytest.approx(2 * 4 * 2 / result["plan_ms"] * 1e3)


def test_other_weights_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("stable_worldmodel", exc_type=ImportError)
    build = plan_reference.lewm

    def other(ours: Any, *rest: Any) -> Any:
        found = build(ours, *rest)
        with torch.no_grad():
            ours.predictor.positions.mul_(1.5)
        return found

    monkeypatch.setattr(plan_reference, "lewm", other)
    with pytest.raises(AssertionError, match="costs differ by"):
        bench_plan(PlanSettings(**TINY), "cpu")


def test_on_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    small = [
        "samples=4",
        "iterations=1",
        "horizon=2",
        "image_size=28",
        "rounds=1",
        "reference=false",
        "clock=processor",
    ]
    assert cli.main(["bench", "plan", *small, "--device", "cpu", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["figures"]["parameters"]["value"] > 15e6 and "speedup" not in found["figures"]
    assert found["settings"]["elites"] == 2
    assert cli.main(["bench", "plan", "frames=0", "--device", "cpu"]) == 2
    assert "frames=0" in capsys.readouterr().err


def test_without_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.import_module

    def missing(name: str) -> Any:
        if name.startswith("stable_worldmodel"):
            raise ImportError("No module named 'stable_worldmodel'")
        return real(name)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(ConfigError, match=r"pip install 'jepa\[envs\]', or measure ours alone with reference=false"):
        bench_plan(PlanSettings(**TINY), "cpu")
