"""Several runs of one configuration (training seeds), summed up."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jepa.errors import ConfigError

Result = dict[str, Any]
Row = dict[str, Any]
LOWER_IS_BETTER = {"rmse", "error"}  # of the metrics


def summarise(results: Sequence[Result]) -> dict[str, Any]:
    """Several runs of one suite (training seeds) as one: the mean over runs and the range from lowest to highest.

    Rows are matched by role, so that "target (step 800)" of each run is one row, and so is a random initialisation,
    whose seed is the run's.

    Returns:
        {"protocol", "suite", "runs", "seeds", "rows": [{"encoder", "role", "baseline", "probe", "metric", "mean",
        "min", "max", "values", "low", "high", "protocol"}], "margins": [...]}. "low" is the lowest of the runs'
        interval ends and "high" the highest. A margin says, for each probe, how far the worst run's encoder is above
        the best baseline of any run, and whether every interval of the encoder lies above every interval of the
        baselines; for a metric of which less is better, below.

    Raises:
        ConfigError: no result, or results that cannot be compared (other suite, protocol, data set or rows).
    """
    if not results:
        raise ConfigError("no probe result to sum up; give at least one")
    for what in ("protocol", "suite"):
        _same(what, [result[what] for result in results])
    _same("dataset", [result["dataset"]["hash"] for result in results])
    tables = [{_key(row): row for row in result["rows"]} for result in results]
    _same("rows", [sorted(table) for table in tables])
    rows = []
    for key, first in tables[0].items():
        found = [table[key] for table in tables]
        values = [float(row["value"]) for row in found]
        rows.append({
            "encoder": key[1], "role": first["role"], "baseline": first["baseline"], "probe": first["probe"],
            "metric": first["metric"], "mean": sum(values) / len(values), "min": min(values), "max": max(values),
            "values": values, "low": min(row["low"] for row in found), "high": max(row["high"] for row in found),
            "protocol": results[0]["protocol"],
        })  # fmt: skip
    return {
        "protocol": results[0]["protocol"],
        "suite": results[0]["suite"],
        "runs": [result["run"] for result in results],
        "seeds": [result["seed"] for result in results],
        "rows": rows,
        "margins": _margins(rows),
    }


def _margins(rows: list[Row]) -> list[dict[str, Any]]:
    out = []
    for probe, metric in dict.fromkeys((row["probe"], row["metric"]) for row in rows):
        here = [row for row in rows if (row["probe"], row["metric"]) == (probe, metric)]
        own = next((row for row in here if not row["baseline"]), None)
        baselines = [row for row in here if row["baseline"]]
        if own is None or not baselines:
            continue
        less = metric in LOWER_IS_BETTER
        worst, end = (own["max"], "min") if less else (own["min"], "max")
        best = _best(baselines, less)
        out.append({
            "probe": probe, "metric": metric, "worst_run": worst, "best_baseline": best["encoder"],
            "best_baseline_value": best[end], "margin": best[end] - worst if less else worst - best[end],
            "apart": all(own["high"] < row["low"] if less else own["low"] > row["high"] for row in baselines),
        })  # fmt: skip
    return out


def _best(rows: list[Row], less: bool) -> Row:
    return min(rows, key=lambda row: float(row["min"])) if less else max(rows, key=lambda row: float(row["max"]))


def _key(row: Row) -> tuple[str, str, str]:
    """Probe, metric, and the encoder without what differs between runs: its step."""
    name = str(row["encoder"])
    return (
        str(row["probe"]) + " " + str(row["metric"]),
        name.split(" (")[0] if row["role"] == "run" else name,
        row["role"],
    )


def _same(what: str, values: list[Any]) -> None:
    if any(value != values[0] for value in values[1:]):
        shown = sorted({str(value)[:200] for value in values})
        raise ConfigError(f"these probe results cannot be summed up: their {what} differs: {'; '.join(shown)}")
