"""The whole job on the embedded digits: data, training, probe, report, summary. What was done is not done again.

Two chapters: I-JEPA on pictures of digits, then V-JEPA on videos of digits that move. The second one's probe has the
first one's encoder among its baselines: what can be read from a single frame.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from jepa import config, report, rundir
from jepa.data.build import build
from jepa.monitor import Monitor
from jepa.probe import terminal
from jepa.probe.run import probe
from jepa.train import train

WORKERS = 2  # that draw and encode videos


@dataclass(frozen=True)
class Chapter:
    """One job: a recipe, a configuration, a suite, and ``key=value`` changes to each."""

    name: str
    data: str
    config: str
    suite: str
    folder: str = "."  # of the run, in the demo's; its data goes to "data" in it
    recipe: tuple[str, ...] = ()
    overrides: tuple[str, ...] = ()
    probes: tuple[str, ...] = ()


IMAGES = Chapter("images", "digits", "demo", "digits")
VIDEO = Chapter("video", "moving-digits", "demo-video", "moving-digits", "video")


def demo(out: Path, seed: int = 0, chapters: Sequence[Chapter] = (IMAGES, VIDEO)) -> dict[str, Any] | None:
    """Build the data, train, probe and report into `out`; a demo that was killed goes on where it was.

    Args:
        out: the run folder of the first chapter; the others' are inside it.
        seed: of the training; the data sets are the same for every seed.

    Returns:
        What ``out/summary.json`` holds: of the first chapter the run's figures (see `jepa.report.summary`) and all
        rows of the probe; under "chapters" the same of the others by name; and the seconds that each stage took this
        time. None when a signal stopped the training.

    Raises:
        JepaError: whatever a stage finds wrong.
    """
    console, seconds = Console(), dict[str, float]()
    runs: list[Path] = []
    results: list[dict[str, Any]] = []
    for chapter in chapters:
        label = "" if len(chapters) == 1 else f"{chapter.name} "
        run = out / chapter.folder
        with _stage(f"{label}data", seconds, console):
            build(chapter.data, run / "data", overrides=list(chapter.recipe), workers=WORKERS)
        settings = config.load(chapter.config, [f"data.path={run / 'data'}", f"seed={seed}", *chapter.overrides])
        with _stage(f"{label}train", seconds, console):
            if train(settings, run, resume=rundir.has_run(run), monitor=Monitor).stopped:
                return None
        rivals = [f"baselines.runs=[{{path: {json.dumps(str(out))}, name: image encoder (one frame)}}]"] if runs else []
        with _stage(f"{label}probe", seconds, console):
            results.append(probe(run, chapter.suite, [*rivals, *chapter.probes]))
        runs.append(run)
    with _stage("report", seconds, console):
        page = report.build_report(
            runs[:1], chapters={c.name: [r] for c, r in zip(chapters[1:], runs[1:], strict=True)}
        )
    figures = [report.summary(r) | {"probe_rows": found["rows"]} for r, found in zip(runs, results, strict=True)]
    others = {c.name: f for c, f in zip(chapters[1:], figures[1:], strict=True)}
    summary = figures[0] | {"chapters": others, "stage_seconds": seconds}
    (out / "summary.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    for found in results:
        console.print(terminal.table(found))
    console.print(f"report:  {page}\nfigures: {out / 'summary.json'}", soft_wrap=True, highlight=False)
    return summary


@contextmanager
def _stage(name: str, seconds: dict[str, float], console: Console) -> Iterator[None]:
    start = time.perf_counter()
    console.print(f"[bold]{name}[/bold]")
    yield
    seconds[name] = round(time.perf_counter() - start, 1)
    console.print(f"  {seconds[name]:.0f} s", highlight=False)
