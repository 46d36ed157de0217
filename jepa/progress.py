"""What the user sees while a run goes on, and the numbers behind it.

`Window` adds up losses on the device, so that nothing is read back inside a step. `Clock` splits wall time into
training, waiting for data, and everything else. `Display` shows it: a live bar on a terminal, plain lines elsewhere.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn
from torch import Tensor

from jepa import verbosity

T = TypeVar("T")
_PLAIN_EVERY = 10.0  # seconds between lines when the output is not a terminal


class Window:
    """Means of 0-d device tensors over the steps since the last line."""

    def __init__(self, device: torch.device, saved: Mapping[str, Any] | None = None) -> None:
        """`saved`: what `state` gave when a run was stopped between two lines."""
        self.dtype = torch.float32 if device.type == "mps" else torch.float64  # MPS has no float64
        self.device = device
        self.steps = int(saved["steps"]) if saved else 0
        sums = saved["sums"] if saved else {}
        self._sums = {k: torch.full((), v, dtype=self.dtype, device=device) for k, v in sums.items()}
        self._step: dict[str, Tensor] = {}

    def add(self, values: Mapping[str, Tensor], share: float) -> None:
        """One micro-batch's values; `share` is its part of the step."""
        for name, value in values.items():
            part = value.detach().to(self.dtype) * share
            self._step[name] = self._step[name] + part if name in self._step else part

    def close_step(self) -> None:
        """The step's micro-batches are complete; an abandoned step never gets here and is not counted."""
        for name, value in self._step.items():
            self._sums[name] = self._sums[name] + value if name in self._sums else value
        self._step = {}
        self.steps += 1

    def now(self, name: str) -> Tensor:
        """One value of the step that is going on, so far."""
        return self._step[name]

    def vector(self, *extra: Tensor | float) -> Tensor:
        """All sums and further values as one tensor, to be read (and averaged over ranks) at once."""
        numbers = [
            e.detach().to(self.dtype) if isinstance(e, Tensor) else torch.full((), e, dtype=self.dtype) for e in extra
        ]
        return torch.stack([v.to(self.device) for v in (*self._sums.values(), *numbers)])

    def means(self, values: Iterable[float]) -> dict[str, float]:
        """The read `vector` as means per step, and a fresh window."""
        out = {name: value / max(1, self.steps) for name, value in zip(self._sums, values, strict=False)}
        self._sums, self.steps = {}, 0
        return out

    def state(self) -> dict[str, Any] | None:
        """What a checkpoint between two lines keeps; None right after a line."""
        if not self.steps:
            return None
        return {"steps": self.steps, "sums": {k: float(v) for k, v in self._sums.items()}}


class Clock:
    """Seconds of training and of waiting for data since the last line; `pause` leaves other work out."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Start a new line's measurement."""
        self._start, self._wait, self._out = time.perf_counter(), 0.0, 0.0

    def waiting(self, items: Iterable[T]) -> Iterator[T]:
        """The items, with the time it takes to get each one counted as waiting."""
        iterator = iter(items)
        while True:
            start = time.perf_counter()
            try:
                item = next(iterator)
            except StopIteration:
                return
            self._wait += time.perf_counter() - start
            yield item

    def pause(self, since: float) -> None:
        """Leave out the time from `since` (a `time.perf_counter` value) to now."""
        self._out += time.perf_counter() - since

    def read(self) -> tuple[float, float]:
        """(seconds in steps, share of them spent waiting for data), then start anew."""
        seconds = max(1e-9, time.perf_counter() - self._start - self._out)
        wait = min(1.0, self._wait / seconds)
        self.reset()
        return seconds, wait

    def rates(self, steps: int, samples: int) -> tuple[float, dict[str, float]]:
        """Seconds as `read` gives them, and the metrics of `steps` steps of so many samples (images or clips)."""
        seconds, wait = self.read()
        speed = {"images_per_s": steps * samples / seconds, "step_seconds": seconds / max(1, steps), "data_wait": wait}
        return seconds, speed


class Display:
    """Progress on standard error: one live line on a terminal, a log line now and then elsewhere; only on rank 0."""

    def __init__(self, total: int, done: int, shown: bool = True) -> None:
        shown = shown and not verbosity.quiet()
        self.console = Console(stderr=True, quiet=not shown)
        self.total, self._begin_step, self._begin = total, done, time.perf_counter()
        self._last = -math.inf
        self._bar: Progress | None = None
        if shown and self.console.is_terminal:
            self._bar = Progress(
                SpinnerColumn(),
                TextColumn("step {task.completed:.0f}/{task.total:.0f}"),
                BarColumn(),
                TaskProgressColumn(),
                TextColumn("{task.description}"),
                TimeElapsedColumn(),
                console=self.console,
                transient=False,
            )
            self._task = self._bar.add_task("starting", total=total, completed=done)

    def __enter__(self) -> Display:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def say(self, text: str, style: str | None = None) -> None:
        """A sentence for the user, above the bar."""
        self.console.print(text, style=style, highlight=False, soft_wrap=True, markup=False)

    def stopped(self, step: int, checkpoint: Path, run: Path) -> None:
        """What a signal has led to."""
        self.say(
            f"Stopped by a signal after step {step} of {self.total}; everything is saved in {checkpoint}. Go on with: "
            f"jepa train {run} --resume"
        )

    def tick(self, step: int) -> None:
        """Move the bar without reading any number from the device."""
        if self._bar is not None:
            self._bar.update(self._task, completed=step)

    def line(self, row: Mapping[str, Any]) -> None:
        """Show a line of metrics.jsonl."""
        step = int(row["step"])
        phase = f"{row['phase']} · " if "phase" in row else ""
        text = (
            f"{phase}loss {row['loss']:.4f} · lr {row['lr']:.2e} · {row['images_per_s']:.1f} images/s · "
            f"data wait {row['data_wait']:.0%} · ETA {self._eta(step)}"
        )
        if self._bar is not None:
            self._bar.update(self._task, completed=step, description=text)
            return
        now = time.perf_counter()
        if now - self._last >= _PLAIN_EVERY or step >= self.total:
            self._last = now
            self.say(f"step {step}/{self.total} · {text}")

    def _eta(self, step: int) -> str:
        done = step - self._begin_step
        if done <= 0:
            return "?"
        left = (time.perf_counter() - self._begin) / done * (self.total - step)
        return str(timedelta(seconds=round(left)))
