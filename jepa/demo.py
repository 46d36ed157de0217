"""The whole job on the embedded digits: data, training, probe, report, summary. What was done is not done again."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from jepa import checkpoint, config, report
from jepa.data.build import build
from jepa.probe.run import probe
from jepa.train import train

SUITE = "digits"


def demo(
    out: Path,
    seed: int = 0,
    *,
    overrides: list[str] | None = None,
    recipe: list[str] | None = None,
    suite: list[str] | None = None,
) -> dict[str, Any]:
    """Build the data, train, probe and report into `out`; a run that was killed goes on where it was.

    Args:
        out: the run folder. The data set goes to ``out/data``.
        seed: of the training; the data set is the same for every seed.
        overrides: ``key=value`` settings over configs/demo.yaml; `recipe` over datasets/digits.yaml; `suite` over
            eval/digits.yaml.

    Returns:
        What ``out/summary.json`` holds: the run's figures (see `jepa.report.summary`), all rows of the probe, and the
        seconds that each stage took this time.

    Raises:
        JepaError: whatever a stage finds wrong.
    """
    console = Console()
    seconds: dict[str, float] = {}
    with _stage("data", seconds, console):
        build("digits", out / "data", overrides=recipe)
    settings = config.load("demo", [f"data.path={out / 'data'}", f"seed={seed}", *(overrides or [])])
    with _stage("train", seconds, console):
        train(settings, out, resume=checkpoint.latest(out) is not None)
    with _stage("probe", seconds, console):
        result = probe(out, SUITE, overrides=suite)
    with _stage("report", seconds, console):
        page = report.build_report([out])
    summary = report.summary(out) | {"probe_rows": result["rows"], "stage_seconds": seconds}
    (out / "summary.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    console.print(_table(result["rows"]))
    console.print(f"report:  {page}\nfigures: {out / 'summary.json'}", soft_wrap=True, highlight=False)
    return summary


@contextmanager
def _stage(name: str, seconds: dict[str, float], console: Console) -> Iterator[None]:
    start = time.perf_counter()
    console.print(f"[bold]{name}[/bold]")
    yield
    seconds[name] = round(time.perf_counter() - start, 1)
    console.print(f"  {seconds[name]:.0f} s", highlight=False)


def _table(rows: list[dict[str, Any]]) -> Table:
    """Encoders down, probes across, each cell a value with its 95 % interval."""
    probes = list(dict.fromkeys((str(row["probe"]), str(row["metric"])) for row in rows))
    table = Table(title="digits, test split, 95 % intervals by original image")
    table.add_column("encoder")
    for probe_name, metric in probes:
        table.add_column(f"{probe_name} {metric}", justify="right")
    for encoder in dict.fromkeys(str(row["encoder"]) for row in rows):
        own = {(r["probe"], r["metric"]): r for r in rows if r["encoder"] == encoder}
        table.add_row(encoder, *(_cell(own.get(key)) for key in probes))
    return table


def _cell(row: dict[str, Any] | None) -> str:
    if row is None:
        return ""
    scale, digits = (100, 1) if row["metric"] == "top1" else (1, 2)
    value, low, high = (f"{scale * row[key]:.{digits}f}" for key in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"
