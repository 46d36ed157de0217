"""Contests of every kind of metric, and what probes are called."""

from __future__ import annotations

import pytest

from jepa.report.verdict import Contest, probe_title, short_title


def row(value: float, spread: float = 0.01) -> dict[str, object]:
    return {"encoder": "x", "value": value, "low": value - spread, "high": value + spread}


@pytest.mark.parametrize(
    ("metric", "own", "baselines", "outcome", "best"),
    [
        ("top1", 0.5, (0.3, 0.4), "above", 0.4),
        ("top1", 0.5, (0.3, 0.495), "touching", 0.495),
        ("top1", 0.3, (0.2, 0.4), "not above", 0.4),
        ("rmse", 0.3, (0.5, 0.4), "above", 0.4),
        ("rmse", 0.39, (0.5, 0.4), "touching", 0.4),
        ("rmse", 0.6, (0.5, 0.4), "not above", 0.4),
    ],
)
def test_errors_are_better_when_lower(metric, own, baselines, outcome, best) -> None:
    contest = Contest("suite", "probe", metric, [row(own)], [row(b) for b in baselines])
    assert contest.outcome == outcome
    assert contest.best_baseline is not None and contest.best_baseline["value"] == best


@pytest.mark.parametrize(
    ("probe", "metric", "title", "short"),
    [
        ("linear", "top1", "Linear probe, top-1 accuracy", "Linear probe"),
        ("linear@-2", "top1", "Linear probe, layer -2, top-1 accuracy", "Linear probe, layer -2"),
        ("ridge:x+y", "r2", "Ridge regression of x and y, R²", "Ridge R² x+y"),
        ("attentive:vx", "r2", "Attentive probe of vx, R²", "Attentive probe vx"),
        ("segmentation", "miou", "Linear segmentation, mean IoU", "Segmentation"),
        ("depth", "rmse", "Linear depth, RMSE", "Depth"),
    ],
)
def test_titles(probe: str, metric: str, title: str, short: str) -> None:
    assert (probe_title(probe, metric), short_title(probe)) == (title, short)
