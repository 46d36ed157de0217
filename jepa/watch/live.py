"""The loop around the view: one frame, or a live one until all runs are over or Ctrl-C."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console, RenderableType
from rich.live import Live

from jepa.watch import view
from jepa.watch.read import RunFolder, find

_LOOK = 15.0  # seconds between looks for further runs in a folder of runs
_PLAIN = 100  # columns where the output is no terminal


def frame(runs: Sequence[RunFolder], width: int) -> RenderableType:
    """What is shown of the runs now, `width` columns wide."""
    return view.page(runs, width)


def console() -> Console:
    """Standard output; without colour, and of a fixed width, where that is no terminal."""
    made = Console(highlight=False)
    return made if made.is_terminal else Console(width=_PLAIN, highlight=False, color_system=None)


def watch(folders: Sequence[Path], *, once: bool = False, every: float = 1.0, out: Console | None = None) -> None:
    """Show runs until all of them are over; Ctrl-C ends it. Runs that appear in a folder of runs join in.

    Args:
        folders: run folders, or folders of them.
        once: one frame, and end; so it is where the output is no terminal.
        every: seconds between frames.

    Raises:
        ConfigError: no such folder, or no run in it.
    """
    out = out or console()
    runs = [RunFolder(path) for path in find(folders)]
    if once or not out.is_terminal:
        out.print(frame(runs, out.width))
        return
    looked = time.monotonic()
    with (
        contextlib.suppress(KeyboardInterrupt),
        Live(console=out, auto_refresh=False, vertical_overflow="crop") as live,
    ):
        while True:
            live.update(frame(runs, out.width), refresh=True)
            if all(run.state == "finished" for run in runs):
                return
            time.sleep(every)
            if time.monotonic() - looked > _LOOK:
                looked, known = time.monotonic(), {run.path for run in runs}
                runs += [RunFolder(path) for path in find(folders) if path not in known]
            for run in runs:
                run.refresh()
