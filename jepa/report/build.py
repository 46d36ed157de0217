"""From run folders to one HTML file."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

from jepa.data import storage
from jepa.errors import ConfigError
from jepa.report import compare, curves, gallery, imagination, material, numbers, record, verdict
from jepa.report.markup import html, join
from jepa.report.page import Section, render
from jepa.report.read import Run, open_run, open_runs


def build_report(
    runs: Sequence[Path | str],
    out: Path | str | None = None,
    device: str = "cpu",
    chapters: Mapping[str, Sequence[Path | str]] | None = None,
) -> Path:
    """Write the report of one or more runs as one HTML file that needs nothing else, not even a network.

    Args:
        runs: run folders. Several are drawn over each other; those that differ only in seed are averaged.
        out: file to write. Default: report.html in the run's folder, or beside the first of several runs.
        device: where the encoder runs for feature maps and neighbours ("auto", "cpu", "cuda", "mps").
        chapters: more runs by chapter name, on the same page one group after the other and not compared.

    Returns:
        The file written.

    Raises:
        ConfigError: not a run folder, no such device, or a file that cannot be written.
    """
    opened, device = open_runs(runs), material.device(device)
    groups = {name: open_runs(paths) for name, paths in (chapters or {}).items()}
    target = Path(out) if out is not None else _default(opened[0].path, len(opened))
    return _write(target, page_of(opened, groups, lambda group: gallery.sections(group, device)))


def page_of(opened: list[Run], groups: Mapping[str, list[Run]], draw: Callable[[list[Run]], list[Section]]) -> str:
    """The page of runs that were read; `draw` makes the sections of pictures."""
    sections = _sections(opened, draw)
    for name, group in groups.items():
        intro = Section("verdict", "what came out", "", numbers.headlines(group), short="verdict")
        sections += [_in_chapter(name, section) for section in [intro, *_sections(group, draw)]]
    title = opened[0].name if len(opened) == 1 else f"{len(opened)} runs"
    made = datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z")
    footer = html(
        "Made by <code>jepa report</code> from {names} on {made}. Everything is in this one file.",
        names=", ".join(run.name for run in [*opened, *(r for group in groups.values() for r in group)]), made=made,
    )  # fmt: skip
    return render(f"{title} · JEPA report", join([numbers.header(opened), record.about()]), sections, footer)


def _sections(opened: list[Run], draw: Callable[[list[Run]], list[Section]]) -> list[Section]:
    return [
        *compare.sections(opened),
        numbers.probes(opened),
        *imagination.sections(opened),
        curves.curves(opened),
        curves.health(opened),
        *draw(opened),
        curves.speed(opened),
        record.cost(opened),
        record.warnings(opened),
        record.hardware(opened),
        record.config(opened),
        record.reproduce(opened),
    ]


def _in_chapter(name: str, section: Section) -> Section:
    title, short = section.title, section.short or section.title
    return replace(
        section, anchor=f"{name}-{section.anchor}", title=f"{name.capitalize()}: {title}", short=f"{name}: {short}"
    )


def summary(run: Path | str) -> dict[str, Any]:
    """Every headline figure of one run as plain JSON values: steps, curves' ends, health, probes, cost.

    Raises:
        ConfigError: not a run folder.
    """
    return verdict.summary(open_run(run))


def summaries(runs: Sequence[Path | str]) -> dict[str, Any]:
    """`summary` of every run, and mean, standard deviation and range over those that differ only in seed.

    Raises:
        ConfigError: no run, or a path that is not a run folder.
    """
    opened = open_runs(runs)
    groups = verdict.same_but_seed(opened)
    return {
        "runs": [verdict.summary(run) for run in opened],
        "over_seeds": [{"runs": [r.name for r in g], "seeds": [r.config.seed for r in g], "rows": verdict.over_seeds(g)}
                       for g in groups],
    }  # fmt: skip


def _default(run: Path, runs: int) -> Path:
    return run / "report.html" if runs == 1 else run.parent / "report.html"


def _write(path: Path, text: str) -> Path:
    """Whole or not at all: a reader never sees half a page."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        storage.write_atomic(path, text.encode())
    except OSError as error:
        reason = error.strerror or error
        raise ConfigError(
            f"cannot write the report to {path}: {reason}. Make room, or give another file with --out"
        ) from None
    return path
