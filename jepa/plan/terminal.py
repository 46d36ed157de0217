"""The result of planning as a table for the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.markup import escape
from rich.table import Table

from jepa.plan.protocol import check_comparable

Result = dict[str, Any]


def table(result: Result, beside: Sequence[Result] = ()) -> Table:
    """What `jepa.plan.run.plan` returns as a table, with results of other runs at the same task, and published figures.

    Raises:
        ConfigError: another result is of another task.
    """
    check_comparable([result, *beside])
    task, episodes = result["task"], result["rows"][0]["episodes"]
    made = Table(
        title=escape(f"{result['suite']} · {result['run']} · {result['checkpoint']}"),
        caption=escape(_caption(result, task, episodes)),
    )
    made.add_column("who", min_width=15)  # 80 columns hold the table; the names are what it must not lose
    for name in (r"success \[95 %]", "steps", "final\ndistance", "ms/step\n(p95)", "imagined\na step"):
        made.add_column(name, justify="right", no_wrap=True)
    for other in (result, *beside):
        for row in other["rows"]:
            if row["baseline"] and other is not result:
                continue
            name = row["policy"] if other is result else f"{row['policy']} of {other['run']}"
            made.add_row(*_cells(f"[bold]{escape(name)}[/bold]" if not row["baseline"] else escape(name), row))
    if result["published"]:
        made.add_section()
    for figure in result["published"]:
        made.add_row(
            f"[dim]{escape(figure['model'])} *[/dim]", f"[dim]{100 * figure['value']:.0f} %[/dim]", "", "", "", ""
        )
    return made


def _cells(name: str, row: dict[str, Any]) -> list[str]:
    low, high = (f"{100 * row[k]:.0f}" for k in ("low", "high"))
    took = row.get("planning") or {}
    return [
        name,
        rf"{100 * row['value']:.0f} % [dim]\[{low}, {high}][/dim]",
        "" if row["steps"] is None else f"{row['steps']:.0f}",
        "" if row["distance"] is None else f"{row['distance']:.3g}",
        f"{_ms(took['seconds_per_step'])} ({_ms(took['seconds_per_step_p95'])})" if took else "",
        f"{took['imagined_per_step']:.0f}" if took else "",
    ]


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.{1 if seconds < 0.01 else 0}f}"


def _caption(result: Result, task: dict[str, Any], episodes: int) -> str:
    goals, words = task["goals"], []
    if goals["source"] == "episodes":
        words.append(
            f"{episodes} starts in split {goals['split']} of {goals['dataset']}, goals {goals['offset']} steps later"
        )
    else:
        words.append(f"{episodes} starts of the environment, goals of {goals['source']}")
    words.append(f"budget {task['budget']} steps; steps: mean of the successes; distance: median at the end")
    planning = result["rows"][0].get("planning")
    if planning:
        words.append(
            f"a plan takes {planning['seconds_per_plan']:.3g} s for {planning['rows_per_plan']:.3g} episodes together, "
            "ms/step is for one of them"
        )
    failed = [f"{row['policy']} {row['failed']}" for row in result["rows"] if row["failed"]]
    if failed:
        words.append(f"episodes in which the environment failed, counted as no success: {', '.join(failed)}")
    words += result["notes"]
    sources: dict[str, list[str]] = {}
    for figure in result["published"]:
        note = f" ({figure['note']})" if figure["note"] else ""
        sources.setdefault(figure["source"], []).append(figure["model"] + note)
    if sources:
        words.append("* published: " + "; ".join(f"{', '.join(who)}: {source}" for source, who in sources.items()))
    words.append(f"Protocol {result['protocol']}, task {result['fingerprint']}")
    return ". ".join(words) + "."
