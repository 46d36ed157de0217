"""The result of a roll-out as a table for the terminal."""

from __future__ import annotations

from typing import Any

import numpy as np
from rich.markup import escape
from rich.table import Table

Result = dict[str, Any]
COURSES = {
    "open_loop": "open loop", "one_step": "one step", "copy": "last frame copied", "shuffled": "another's actions",
    "zero": "no action", "read_off": "real frames read",
}  # fmt: skip
SHOWN = 4  # most steps in a table: what 80 columns hold


def table(result: Result) -> Table:
    """A line for each course, a column for some steps; below, what it comes to."""
    steps = np.unique(np.linspace(0, result["horizon"] - 1, min(SHOWN, result["horizon"])).round().astype(int)).tolist()
    data = result["dataset"]
    made = Table(
        title=escape(f"{result['suite']} · {result['run']} · {result['checkpoint']}"),
        caption=(
            f"Mean error after h steps, imagined from {result['seen']} frames seen: {data['windows']} windows of "
            f"{data['episodes']} episodes of split {data['split']}; 95 % intervals by episode are in the file. "
            f"Protocol {result['protocol']}. {sentences(result)}"
        ),
    )
    made.add_column("error", no_wrap=True)
    made.add_column("course", no_wrap=True)
    for step in steps:
        made.add_column(f"h = {step + 1}", justify="right")
    groups = [(f"latent, {name}", curves) for name, curves in result["latent"].items()]
    groups += [(f"{s['name']}{', ' + s['unit'] if s['unit'] else ''}", s["curves"]) for s in result["state"]]
    for name, curves in groups:
        for i, (course, words) in enumerate((c, w) for c, w in COURSES.items() if c in curves):
            values = [f"{curves[course]['value'][step]:.3g}" for step in steps]
            shown = f"[bold]{words}[/bold]" if course == "open_loop" else words
            made.add_row(escape(name) if i == 0 else "", shown, *values)
        made.add_section()
    for name, curve in result["ratios"].items():
        words = (
            "open loop / copied" if name == "copy" else {"shuffled": "another's / right", "zero": "none / right"}[name]
        )
        values = [f"{curve['value'][step]:.2f}" for step in steps]
        made.add_row("latent ratio", words, *values)
    return made


def sentences(result: Result) -> str:
    """What the numbers come to."""
    useful, horizon = result["useful_steps"], result["horizon"]
    words = f"Better than the last frame in the first {useful} of {horizon} steps, interval and all."
    doubt = result["uncertainty"]
    if doubt:
        rank = doubt["all"]
        words += (
            f" Uncertainty ranks windows of one horizon by their error with a correlation of {rank['value']:.2f} "
            f"[{rank['low']:.2f}, {rank['high']:.2f}]."
        )
    return words.replace("[", r"\[")
