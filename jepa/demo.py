"""The whole job on the embedded data: data, training, probe, plan, report, summary. What was done is not done again.

Three chapters: I-JEPA on pictures of digits; V-JEPA on videos of digits that move, whose probe has the first one's
encoder among its baselines (what can be read from a single frame); and a world model of two rooms, which is rolled out
and planned with. Each can be had alone.
"""

from __future__ import annotations

import importlib.util
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
from jepa.errors import ConfigError
from jepa.monitor import Monitor
from jepa.plan import run as planning
from jepa.plan import terminal as plan_table
from jepa.probe import terminal as probe_table
from jepa.probe.run import probe
from jepa.rollout import run as imagination
from jepa.rollout import terminal as rollout_table
from jepa.train import train

WORKERS = 2  # that draw and encode videos, or play episodes


@dataclass(frozen=True)
class Chapter:
    """One job: a recipe, a configuration, suites, and ``key=value`` changes to each."""

    name: str
    data: str
    config: str
    suite: str  # of probes
    folder: str = "."  # of the run, in the demo's; its data goes to "data" in it
    recipe: tuple[str, ...] = ()
    overrides: tuple[str, ...] = ()
    probes: tuple[str, ...] = ()
    rollout: str | None = None  # suite of roll-outs, of a world model
    rollouts: tuple[str, ...] = ()
    plan: str | None = None  # suite of plans
    plans: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()  # modules of extra packages
    extras: str = ""  # what to install for them


IMAGES = Chapter("images", "digits", "demo", "digits")
VIDEO = Chapter("video", "moving-digits", "demo-video", "moving-digits", "video", needs=("av",), extras="video")
WORLD = Chapter(
    *("world", "tworoom", "demo-world", "tworoom-state", "world"),
    recipe=("source.episodes={train: 300, val: 30, test: 50}",),
    probes=("probes.frames.episodes=80",),
    rollout="tworoom-rollout",
    rollouts=("state.episodes=80", "pictures.decoder_steps=600"),
    plan="tworoom-demo",
    needs=("av", "stable_worldmodel", "imageio"),
    extras="envs,video",
)
CHAPTERS = (IMAGES, VIDEO, WORLD)


def chosen(names: Sequence[str]) -> tuple[Chapter, ...]:
    """The chapters of these names, in their order; all without names.

    Raises:
        ConfigError: no such chapter.
    """
    known = {chapter.name: chapter for chapter in CHAPTERS}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ConfigError(f"the demo has no chapter {unknown[0]!r}; it has: {', '.join(known)}")
    return tuple(chapter for chapter in CHAPTERS if not names or chapter.name in names)


def demo(out: Path, seed: int = 0, chapters: Sequence[Chapter] = CHAPTERS) -> dict[str, Any] | None:
    """Build the data, train, probe and report into `out`; a demo that was killed goes on where it was.

    Args:
        out: folder of the first chapter's run; the others' are inside it.
        seed: of the training; the data sets are the same for every seed.

    Returns:
        What ``out/summary.json`` holds: of the first chapter the run's figures (see `jepa.report.summary`) and all
        rows of the probe; under "chapters" the same of the others by name; and the seconds that each stage took this
        time. None when a signal stopped the training.

    Raises:
        ConfigError: a package that a chapter needs is missing; before anything is begun.
        JepaError: whatever a stage finds wrong.
    """
    _check_installed(chapters)
    console, seconds = Console(), dict[str, float]()
    runs: list[Path] = []
    results: list[tuple[list[Any], dict[str, Any]]] = []
    for chapter in chapters:
        label = "" if len(chapters) == 1 else f"{chapter.name} "
        run = out / chapter.folder
        with _stage(f"{label}data", seconds, console):
            build(chapter.data, run / "data", overrides=list(chapter.recipe), workers=WORKERS)
        settings = config.load(chapter.config, [f"data.path={run / 'data'}", f"seed={seed}", *chapter.overrides])
        with _stage(f"{label}train", seconds, console):
            if train(settings, run, resume=rundir.has_run(run), monitor=Monitor).stopped:
                return None
        with _stage(f"{label}probe", seconds, console):
            found = probe(run, chapter.suite, [*_rivals(chapter, out), *chapter.probes])
        tables = [probe_table.table(found)]
        figures: dict[str, Any] = {"probe_rows": found["rows"]}
        if chapter.rollout is not None:
            with _stage(f"{label}roll-out", seconds, console):
                imagined = imagination.rollout(run, chapter.rollout, list(chapter.rollouts))
            tables.append(rollout_table.table(imagined))
            figures |= {"rollout": {k: imagined[k] for k in ("latent", "state", "ratios", "useful_steps")}}
        if chapter.plan is not None:
            with _stage(f"{label}plan", seconds, console):
                planned = planning.plan(run, chapter.plan, list(chapter.plans))
            tables.append(plan_table.table(planned))
            figures |= {"plan_rows": planned["rows"]}
        runs.append(run)
        results.append((tables, figures))
    with _stage("report", seconds, console):
        page = report.build_report(
            runs[:1], out / "report.html",
            chapters={c.name: [r] for c, r in zip(chapters[1:], runs[1:], strict=True)},
        )  # fmt: skip
    each = [report.summary(run) | shown for run, (_, shown) in zip(runs, results, strict=True)]
    others = {c.name: f for c, f in zip(chapters[1:], each[1:], strict=True)}
    summary: dict[str, Any] = each[0] | {"chapters": others, "stage_seconds": seconds}
    (out / "summary.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    for tables, _ in results:
        for table in tables:
            console.print(table)
    console.print(f"report:  {page}\nfigures: {out / 'summary.json'}", soft_wrap=True, highlight=False)
    return summary


def _check_installed(chapters: Sequence[Chapter]) -> None:
    for chapter in chapters:
        missing = [name for name in chapter.needs if importlib.util.find_spec(name) is None]
        if missing:
            raise ConfigError(
                f"the demo's chapter {chapter.name!r} needs {' and '.join(missing)}: pip install "
                f"'jepa[{chapter.extras}]'. Or choose chapters that need nothing else: jepa demo --chapter images"
            )


def _rivals(chapter: Chapter, out: Path) -> list[str]:
    """The image encoder beside the video's, where it was trained."""
    if chapter.name != VIDEO.name or not rundir.has_run(out):
        return []
    return [f"baselines.runs=[{{path: {json.dumps(str(out))}, name: image encoder (one frame)}}]"]


@contextmanager
def _stage(name: str, seconds: dict[str, float], console: Console) -> Iterator[None]:
    start = time.perf_counter()
    console.print(f"[bold]{name}[/bold]")
    yield
    seconds[name] = round(time.perf_counter() - start, 1)
    console.print(f"  {seconds[name]:.0f} s", highlight=False)
