"""Runs as rich renderables: a panel each with curves side by side, or a row each in a table where there are many."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import timedelta

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from jepa.watch.read import Curve, RunFolder

PANEL = 46  # columns that a panel needs
_BLOCKS = " ▁▂▃▄▅▆▇█"
_ROWS = 4  # height of a curve
_EVENTS = 5
_STATES = {"running": "green", "finished": "cyan", "quiet": "yellow"}
_KINDS = {"warn": ("!", "yellow"), "stop": ("✗", "bold red"), "rollback": ("↶", "magenta"), "start": ("▶", "blue")}
# title, metric or quantity of the monitor, colour, format
_CURVES = (
    ("loss", "loss", "cyan", "{:.4f}"),
    ("gradient norm", "grad_norm", "blue", "{:.3g}"),
    ("effective rank, centred", "health:effective_rank_centred", "green", "{:.1f}"),
    ("online kNN", "health:knn_top1", "green", "{:.1%}"),
    ("samples/s", "images_per_s", "magenta", "{:.0f}"),
    ("waiting for data", "data_wait", "magenta", "{:.0%}"),
)


def page(runs: Sequence[RunFolder], width: int) -> RenderableType:
    """Panels side by side as far as they fit in `width` columns, else a table."""
    across = max(1, width // PANEL)
    if len(runs) > 2 * across:
        return table(runs, width)
    across = min(across, len(runs))
    grid = Table.grid(expand=True)
    for _ in range(across):
        grid.add_column(ratio=1)
    each = width // across
    for i in range(0, len(runs), across):
        row = [panel(run, each) for run in runs[i : i + across]]
        grid.add_row(*row, *[""] * (across - len(row)))
    return grid


def panel(run: RunFolder, width: int) -> Panel:
    """One run."""
    inside = width - 4
    parts: list[RenderableType] = [_progress(run, inside), Text(_speed(run), style="dim", no_wrap=True)]
    half = inside >= 2 * 30
    curves = [
        c for c in (_curve(run, *spec, (inside - 2) // 2 if half else inside) for spec in _CURVES) if c is not None
    ]
    grid = Table.grid(expand=True, padding=(0, 1))
    for _ in range(1 + half):
        grid.add_column(ratio=1)
    for i in range(0, len(curves), 1 + half):
        grid.add_row(*curves[i : i + 1 + half])
    parts += [Text(), grid] if curves else [Text("no line of metrics yet", style="dim")]
    parts += [Text(), *_events(run)]
    state = run.state
    quiet = f" for {_time(run.idle)}" if state == "quiet" else ""
    title = Text.assemble((run.name, "bold"), "  ", (state + quiet, _STATES[state]))
    return Panel(Group(*parts), title=title, title_align="left", border_style=_STATES[state], width=width)


def table(runs: Sequence[RunFolder], width: int) -> Table:
    """One row for each run."""
    made = Table(box=None, pad_edge=False, header_style="bold", expand=True)
    for name, right in (("run", False), ("state", False), ("step", True), ("loss", True), ("", False), ("rank", True),
                        ("kNN", True), ("samples/s", True), ("ETA", True), ("last event", False)):  # fmt: skip
        last = name == "last event"
        made.add_column(name, justify="right" if right else "left", no_wrap=True, ratio=1 if last else None,
                        overflow="ellipsis")  # fmt: skip
    for run in runs:
        loss, rank, knn = run.curve("loss"), run.health("effective_rank_centred"), run.health("knn_top1")
        rate, happened = run.curve("images_per_s"), run.happened
        sign, style = _KINDS.get(happened[-1][1], ("·", "")) if happened else ("", "")
        event = Text(f"{sign} {happened[-1][0]}: {happened[-1][2]}", style=style) if happened else Text("")
        made.add_row(
            Text(run.name), Text(run.state, style=_STATES[run.state]), f"{run.step}/{run.total or '?'}",
            f"{loss[-1][1]:.4f}" if loss else "", Text(spark(loss, 16), style="cyan"),
            f"{rank[-1][1]:.1f}" if rank else "", f"{knn[-1][1]:.1%}" if knn else "",
            f"{rate[-1][1]:.0f}" if rate else "", _time(run.eta) if run.eta is not None else "", event,
        )  # fmt: skip
    return made


def _progress(run: RunFolder, width: int) -> RenderableType:
    total = run.total
    share = min(1.0, run.step / total) if total else 0.0
    words = f" {run.step}/{total or '?'} {share:4.0%}"
    phase = f" · {run.lines[-1]['phase']}" if run.lines and "phase" in run.lines[-1] else ""
    attempt = f" · attempt {run.lines[-1]['attempt']}" if run.lines and "attempt" in run.lines[-1] else ""
    text = words + phase + attempt
    grid = Table.grid()
    bar = ProgressBar(total=total or 1, completed=min(run.step, total or 1), width=max(8, width - len(text)))
    grid.add_row(bar, Text(text, no_wrap=True))
    return grid


def _speed(run: RunFolder) -> str:
    if not run.lines:
        return ""
    last, parts = run.lines[-1], []
    if run.eta is not None:
        parts.append(f"ETA {_time(run.eta)}")
    if run.step_seconds:
        parts.append(f"{run.step_seconds:.3g} s/step")
    if isinstance(last.get("lr"), float):
        parts.append(f"lr {last['lr']:.1e}")
    if isinstance(last.get("device_seconds"), float):
        parts.append(f"spent {_time(last['device_seconds'])}")
    if isinstance(last.get("joules"), float):
        about = "≈" if "estimated" in str(last.get("energy_source")) else ""
        parts.append(f"{about}{_energy(last['joules'])}")
    return " · ".join(parts)


def _curve(run: RunFolder, title: str, key: str, colour: str, form: str, width: int) -> RenderableType | None:
    kind, _, quantity = key.partition(":")
    found = run.health(quantity) if kind == "health" and quantity else run.curve(key)
    if not found:
        return None
    lines, values = draw(found, width, _ROWS, run.step), [value for _, value in found]
    head = Text.assemble((title, "bold"), "  ", form.format(values[-1]), no_wrap=True)
    low, high = form.format(min(values)), form.format(max(values))
    head.append(f"  ({low} to {high})", style="dim")
    head.truncate(width)
    return Group(head, *(Text(line, style=colour, no_wrap=True) for line in lines))


def _events(run: RunFolder) -> list[Text]:
    out = []
    for step, kind, words in run.happened[-_EVENTS:]:
        sign, style = _KINDS.get(kind, ("·", ""))
        out.append(Text(f"{sign} {step}: {words}", style=style, no_wrap=True, overflow="ellipsis"))
    return out or [Text("no events", style="dim")]


def draw(curve: Curve, width: int, rows: int, last: int | None = None) -> list[str]:
    """A curve as lines of blocks, the upper one first; the lowest value still shows one eighth of a block.

    Columns are equal parts of the steps from 0 to `last` (default: the curve's), so that curves of one run lie below
    each other whatever they are measured at.
    """
    columns = _columns(curve, width, max(1, curve[-1][0] if last is None else last))
    known = [value for value in columns if value is not None]
    low, high = min(known), max(known)
    span = high - low
    levels = [0 if v is None else 1 + round((v - low) / span * (8 * rows - 1)) if span else 4 * rows for v in columns]
    return ["".join(_BLOCKS[min(8, max(0, level - 8 * row))] for level in levels) for row in reversed(range(rows))]


def spark(curve: Curve, width: int) -> str:
    """A curve in one line."""
    return draw(curve, width, 1)[0] if curve else ""


def _columns(curve: Curve, width: int, last: int) -> list[float | None]:
    """Means of what lies in each column, of an empty one what is before it; nothing before the first value."""
    inside: list[list[float]] = [[] for _ in range(width)]
    for step, value in curve:
        inside[min(width - 1, max(0, math.ceil(step / last * width) - 1))].append(value)
    out: list[float | None] = []
    for values in inside:
        out.append(math.fsum(values) / len(values) if values else out[-1] if out else None)
    return out


def _energy(joules: float) -> str:
    hours = joules / 3600
    return f"{joules:.3g} J" if hours < 0.1 else f"{hours:.3g} Wh" if hours < 1e3 else f"{hours / 1e3:.3g} kWh"


def _time(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
