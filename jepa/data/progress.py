"""A progress bar on standard error, only when somebody is looking."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from jepa import verbosity

Advance = Callable[[int], None]


@contextlib.contextmanager
def bar(unit: str, total: int, done: int, show: bool, doing: str = "building") -> Iterator[Advance]:
    """A function that moves the bar on; it does nothing without a terminal, or with `jepa --quiet`."""
    if not show or verbosity.quiet() or not sys.stderr.isatty():
        yield lambda count: None
        return
    columns = (TextColumn(doing), BarColumn(), MofNCompleteColumn(), TextColumn(unit), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as shown:
        line = shown.add_task("", total=total, completed=done)
        yield lambda count: shown.advance(line, count)
