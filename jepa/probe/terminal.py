"""The rows of a probe's result as a table for the terminal."""

from __future__ import annotations

from typing import Any

from rich.table import Table

Row = dict[str, Any]


def table(result: dict[str, Any]) -> Table:
    """Encoders down, probes across; each cell a value with its 95 % interval, accuracies in percent.

    `result` is what `jepa.probe.run.probe` returns.
    """
    rows: list[Row] = result["rows"]
    columns = list(dict.fromkeys((str(row["probe"]), str(row["metric"])) for row in rows))
    clusters = max((int(row["n_clusters"]) for row in rows), default=0)
    samples = max((int(row["n_test"]) for row in rows), default=0)
    made = Table(
        title=f"{result['suite']}: {result['run']}, {result['checkpoint']}",
        caption=f"test split: {samples} images of {clusters} originals; 95 % intervals by bootstrap over originals",
    )
    made.add_column("encoder", no_wrap=True)
    for name, metric in columns:
        made.add_column(f"{name} {'R²' if metric == 'r2' else metric}", justify="right", no_wrap=True)
    for encoder in dict.fromkeys(str(row["encoder"]) for row in rows):
        own = {(str(r["probe"]), str(r["metric"])): r for r in rows if r["encoder"] == encoder}
        made.add_row(encoder, *(_cell(own.get(column)) for column in columns))
    return made


def _cell(row: Row | None) -> str:
    if row is None:
        return "-"
    scale, decimals = (1, 2) if row["metric"] == "r2" else (100, 1)
    value, low, high = (f"{scale * row[key]:.{decimals}f}" for key in ("value", "low", "high"))
    return f"{value} [{low}, {high}]".replace("[", "\\[")  # an opening bracket is markup to rich
