"""The result of a probe as a table for the terminal."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

Result = dict[str, Any]
_SHARES = ("top", "recall", "miou")  # metrics that begin like this are shown in per cent


def print_table(result: Result, console: Console | None = None) -> None:
    """Print what `jepa.probe.run.probe` returns; see `table`."""
    (console or Console()).print(table(result))


def table(result: Result) -> Table:
    """What `jepa.probe.run.probe` returns as a table: a line for each probe and encoder, published figures below.

    The last column is how far the trained encoder is above the baseline of that line, with a paired interval.
    """
    splits = result["dataset"]["splits"]
    confidence = result["settings"]["bootstrap"]["confidence"]
    made = Table(
        title=escape(f"{result['suite']} · {result['run']} · {result['checkpoint']}"),
        caption=(
            f"Chosen on {splits['val']['n']} validation samples, reported on {splits['test']['n']} test samples of "
            f"{splits['test']['originals']} originals, with {confidence:.0%} intervals by original. "
            f"Protocol {result['protocol']}.{of_state(result)}"
        ),
    )
    for name, right in (("probe", False), ("encoder", False), (r"value \[interval]", True), ("trained − this", True)):
        made.add_column(name, justify="right" if right else "left", no_wrap=right)
    probes = list(dict.fromkeys((row["probe"], row["metric"]) for row in result["rows"]))
    for probe, metric in probes:
        rows = [row for row in result["rows"] if (row["probe"], row["metric"]) == (probe, metric)]
        for i, row in enumerate(rows):
            name = escape(row["encoder"])
            name = name if row["baseline"] else f"[bold]{name}[/bold]"
            gap = _figure(row["gap"], metric, sign=True) if "gap" in row else ""
            made.add_row(f"{probe} {metric}" if i == 0 else "", name, _figure(row, metric), gap)
        for figure in result["published"]:
            if (figure["probe"], figure["metric"]) == (probe, metric):
                note = f"; {figure['note']}" if figure["note"] else ""
                words = escape(f"{figure['encoder']} (published: {figure['source']}{note})")
                made.add_row("", f"[dim]{words}[/dim]", f"[dim]{_value(figure['value'], metric)}[/dim]", "")
        made.add_section()
    return made


def of_state(result: Result) -> str:
    """What the state probe left out and how new its test states are, in words; empty without a state probe."""
    state = result.get("state")
    if not state:
        return ""
    names = ", ".join(f"{name} ({facts['entropy']:.2f})" for name, facts in state["left_out"].items())
    return (
        f" State variables left out, entropy below {state['min_entropy']:g} nats: {names or 'none'}. "
        f"{state['known']:.1%} of the test samples have a state that a training sample has too."
    )


def _value(value: float, metric: str, sign: bool = False) -> str:
    return (
        f"{100 * value:{'+' if sign else ''}.1f} %"
        if metric.startswith(_SHARES)
        else f"{value:{'+' if sign else ''}.3f}"
    )


def _figure(ends: dict[str, Any], metric: str, sign: bool = False) -> str:
    low, high = (_value(ends[k], metric).removesuffix(" %") for k in ("low", "high"))
    return rf"{_value(ends['value'], metric, sign)} [dim]\[{low}, {high}][/dim]"
