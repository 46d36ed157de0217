"""When a run is saved and what stays: checkpoints of one process or of all their parts, at once or in the background.

With `train.checkpoint_async` a save copies weights and optimiser state into main memory and the run goes on; a thread
of rank 0 writes the copy with the same protocol (COMPLETE last, one rename). One write is going on at a time; the next
one waits in a second copy, and only a third one makes the run wait. What a write could not do is raised on every rank:
at the next step of a run of one process, else with the next line of metrics or save, where ranks talk anyway.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from jepa import checkpoint, launch, sharding
from jepa.config import RunConfig
from jepa.errors import ConfigError
from jepa.methods.base import Method
from jepa.prepare import Plan


@dataclass
class _Slot:
    """Memory for one save, and the write of it."""

    memory: checkpoint.Staging
    write: Future[Path] | None = None


class Saver:
    """Saves of one run. Every rank has one and calls the same methods; rank 0 writes.

    Attributes:
        good: the newest checkpoint that is complete, or None.
        best: ``{"metric", "value", "step"}`` of the best checkpoint by `train.keep_best`, or None.
    """

    def __init__(
        self,
        plan: Plan,
        out: Path,
        accelerator: Any,
        method: Method,
        optimizer: torch.optim.Optimizer,
        resumed: Path | None,
        best: Mapping[str, Any] | None = None,
    ) -> None:
        """`resumed`: the checkpoint that the run goes on from. `best`: what its state says."""
        self.plan, self.out, self.accelerator = plan, out, accelerator
        self.method, self.optimizer = method, optimizer
        self.main = bool(accelerator.is_main_process)
        self.good = resumed
        self._asked = resumed.name if resumed is not None else ""
        self.metric, self._sign = _metric(plan.config, method), 1 if plan.config.train.keep_best_mode == "max" else -1
        self.best = dict(best) if best and best["metric"] == self.metric else None
        self._failure: BaseException | None = None
        self._background = plan.config.train.checkpoint_async
        self._slots = [_Slot(checkpoint.Staging()), _Slot(checkpoint.Staging())]
        self._thread = ThreadPoolExecutor(1, "checkpoint") if self._background and self.main else None

    # --- saving -----------------------------------------------------------------------------------------------------

    def path(self, step: int) -> Path:
        """Where the checkpoint of a step is."""
        return self.out / checkpoint.folder.FOLDER / f"step-{step}"

    def save(
        self,
        step: int,
        state: Callable[[], Mapping[str, Any]],
        config: RunConfig,
        sync: Callable[[], None],
        healthy: int | None = None,
    ) -> None:
        """A checkpoint of this step, unless there is one. Every rank raises what rank 0 could not do.

        Args:
            state: what a resumed run needs besides weights and optimiser state.
            sync: done on rank 0 before; brings onto the disk what a checkpoint must not outlive.
            healthy: steps after which all was well: the newest checkpoint of then is kept, to go back to.

        Raises:
            TrainingError: weights that are not finite, a full disk; with background writes also that of an earlier one.
        """
        if self._asked == f"step-{step}":
            return
        finite = launch.all_finite(self.method)  # says the same on every rank
        shared = sharding.sharded(self.method)
        slot = self._slots[0]

        def prepare() -> None:
            self._raise()
            if not finite:
                raise launch.not_finite(self.good, f"weights are not finite after step {step}")
            if slot.write is not None:
                slot.write.exception()  # the run is two saves ahead of the disk
                self._raise()
            sync()

        if self._background or shared:
            launch.everywhere(self.accelerator, self.main, prepare)
        kept: checkpoint.Snapshot | None = None

        def take() -> None:
            nonlocal kept
            host = checkpoint.dropped if not self.main else slot.memory if self._background else checkpoint.on_host
            more = dict(state()) | ({"best": self.best} if self.best else {})
            kept = checkpoint.take(step, self.method, self.optimizer, more, config, host)

        def write() -> None:
            if not (self._background or shared):
                prepare()
                take()
            assert kept is not None, "nothing was taken"
            self._write(kept, healthy)

        if self._background or shared:
            take()
        if self._thread is not None:
            assert kept is not None, "nothing was taken"
            slot.write = self._thread.submit(self._attempt, kept, healthy)
            self._slots.reverse()
        elif not self._background:
            launch.everywhere(self.accelerator, self.main, write)
        self._asked = f"step-{step}"

    def _attempt(self, snapshot: checkpoint.Snapshot, healthy: int | None) -> Path:
        """In the thread. After a failure nothing more is written."""
        if self._failure is not None:
            raise self._failure
        try:
            return self._write(snapshot, healthy)
        except BaseException as error:
            self._failure = error
            raise

    def _write(self, snapshot: checkpoint.Snapshot, healthy: int | None) -> Path:
        train, best = self.plan.config.train, snapshot.state.get("best")
        stay = [*self.plan.ends, *([int(best["step"])] if best else [])]
        stay += [n for n in checkpoint.steps(self.out) if n <= (-1 if healthy is None else healthy)][-1:]
        self.good = checkpoint.write(
            self.out, snapshot, keep=train.keep, keep_every=self.plan.keep_every, keep_at=stay
        )  # fmt: skip
        return self.good

    # --- background writes ------------------------------------------------------------------------------------------

    @property
    def failed(self) -> bool:
        """Whether a background write went wrong; known on rank 0 only."""
        return self._failure is not None

    def check(self, failed: bool) -> None:
        """Raise on every rank what a background write could not do, if one `failed`, which all ranks must agree on."""
        if failed:
            launch.everywhere(self.accelerator, self.main, self._raise)

    def finish(self) -> None:
        """Wait until everything is written. Every rank raises what could not be."""
        if not self._background:
            return

        def wait() -> None:
            for slot in self._slots:
                if slot.write is not None:
                    slot.write.exception()
            self._raise()

        launch.everywhere(self.accelerator, self.main, wait)

    def close(self) -> None:
        """Wait for what is being written, whatever has become of the run."""
        if self._thread is not None:
            self._thread.shutdown(wait=True)

    @property
    def memory(self) -> int:
        """Bytes of main memory that copies take on this rank."""
        return sum(slot.memory.bytes for slot in self._slots)

    def _raise(self) -> None:
        if self._failure is not None:
            raise self._failure

    # --- the best one -----------------------------------------------------------------------------------------------

    def judge(self, measured: Mapping[str, Any] | None, step: int) -> bool:
        """Whether the weights after `step` steps are the best so far, and so to be kept; all ranks agree on it.

        Args:
            measured: what the health check of this step found; on rank 0.

        Raises:
            ConfigError: `train.keep_best` names nothing that is measured.
        """
        if self.metric is None:
            return False
        found: list[float] = []

        def read() -> None:
            if measured is None:
                raise ConfigError(
                    f"train.keep_best={self.plan.config.train.keep_best} needs health checks: give `monitor`"
                )
            value = measured.get(self.metric or "")
            if value is None:
                raise ConfigError(
                    f"train.keep_best={self.plan.config.train.keep_best}: the health check does not measure "
                    f"{self.metric}. It measures {', '.join(sorted(measured)) or 'nothing'}; kNN needs labels, "
                    "monitor.split and monitor.knn_bank"
                )
            found.append(float(value))

        launch.everywhere(self.accelerator, self.main, read)
        (value,) = launch.agree(self.accelerator, found)
        if not math.isfinite(value) or (self.best and self._sign * value <= self._sign * self.best["value"]):
            return False
        self.best = {"metric": self.metric, "value": value, "step": step}
        return True


def _metric(config: RunConfig, method: Method) -> str | None:
    """The metric that `train.keep_best` means."""
    name = config.train.keep_best
    if name == "knn":
        return f"health/{method.exported()}/knn_top1"
    return name


__all__ = ["Saver"]
