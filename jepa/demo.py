"""The whole job on the embedded digits: data, training, probe, report, summary. What was done is not done again."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console

from jepa import config, report, rundir
from jepa.data.build import build
from jepa.monitor import Monitor
from jepa.probe import terminal
from jepa.probe.run import probe
from jepa.train import train

SUITE = "digits"


def demo(
    out: Path,
    seed: int = 0,
    *,
    recipe: list[str] | None = None,
    overrides: list[str] | None = None,
    suite: list[str] | None = None,
) -> dict[str, Any] | None:
    """Build the data, train, probe and report into `out`; a demo that was killed goes on where it was.

    Args:
        out: the run folder. The data set goes to ``out/data``.
        seed: of the training; the data set is the same for every seed.
        recipe: ``key=value`` settings over datasets/digits.yaml; `overrides` over configs/demo.yaml; `suite` over
            eval/digits.yaml.

    Returns:
        What ``out/summary.json`` holds: the run's figures (see `jepa.report.summary`), all rows of the probe, and the
        seconds that each stage took this time. None when a signal stopped the training.

    Raises:
        JepaError: whatever a stage finds wrong.
    """
    console = Console()
    seconds: dict[str, float] = {}
    with _stage("data", seconds, console):
        build("digits", out / "data", overrides=recipe)
    settings = config.load("demo", [f"data.path={out / 'data'}", f"seed={seed}", *(overrides or [])])
    with _stage("train", seconds, console):
        if train(settings, out, resume=rundir.has_run(out), monitor=Monitor).stopped:
            return None
    with _stage("probe", seconds, console):
        result = probe(out, SUITE, suite)
    with _stage("report", seconds, console):
        page = report.build_report([out])
    summary = report.summary(out) | {"probe_rows": result["rows"], "stage_seconds": seconds}
    (out / "summary.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    console.print(terminal.table(result))
    console.print(f"report:  {page}\nfigures: {out / 'summary.json'}", soft_wrap=True, highlight=False)
    return summary


@contextmanager
def _stage(name: str, seconds: dict[str, float], console: Console) -> Iterator[None]:
    start = time.perf_counter()
    console.print(f"[bold]{name}[/bold]")
    yield
    seconds[name] = round(time.perf_counter() - start, 1)
    console.print(f"  {seconds[name]:.0f} s", highlight=False)
