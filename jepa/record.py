"""Where a run writes its lines: metrics.jsonl and trackers on rank 0, trace-rankR.jsonl on each rank that traces."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jepa import rundir
from jepa.data import Batch
from jepa.masks import Masks
from jepa.progress import Display


class Record:
    """Lines that go on where those of an earlier start end."""

    def __init__(self, out: Path, accelerator: Any, display: Display, trace: bool) -> None:
        self._accelerator, self._display = accelerator, display
        self._metrics = rundir.Lines(out / "metrics.jsonl") if accelerator.is_main_process else None
        self._trackers = True
        self._tracer = rundir.Lines(out / f"trace-rank{accelerator.process_index}.jsonl") if trace else None

    @property
    def tracing(self) -> bool:
        """Whether samples are written down."""
        return self._tracer is not None

    def add(self, row: Mapping[str, Any]) -> None:
        """A line of metrics.jsonl, its numbers to the trackers, its warnings to the user; only on rank 0.

        Raises:
            TrainingError: disk full or not writable.
        """
        if self._metrics is None:
            return
        self._metrics.add(row)
        numbers = {k: v for k, v in row.items() if isinstance(v, int | float) and k != "step"}
        self._tell(numbers, int(row["step"]))
        for warning in row.get("warnings", []):
            self._display.say(f"warning: {warning}", "bold yellow")

    def _tell(self, numbers: dict[str, Any], step: int) -> None:
        """Trackers are for looking on: one that fails is told once and left alone, the run goes on."""
        if not self._trackers:
            return
        try:
            self._accelerator.log(numbers, step=step)
        except Exception as error:  # of whatever library: a full disk, a lost connection, a folder that was deleted
            self._trackers = False
            self._display.say(
                f"warning: a tracker failed at step {step} ({type(error).__name__}: {error}). It gets no more lines; "
                "metrics.jsonl has them all",
                "bold yellow",
            )

    def trace(self, batch: Batch, masks: Masks | None) -> None:
        """A line for each sample of a micro-batch, if tracing."""
        if self._tracer is not None:
            self._tracer.add(*rundir.trace_rows(batch, masks))

    def sync(self, metrics: bool = False) -> None:
        """The trace (or the metrics) onto the disk, so that a checkpoint written next never outlives them."""
        lines = self._metrics if metrics else self._tracer
        if lines is not None:
            lines.sync()

    def close(self) -> None:
        """Close the files."""
        for lines in (self._metrics, self._tracer):
            if lines is not None:
                lines.close()
