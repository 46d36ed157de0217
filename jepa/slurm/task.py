"""What submitit pickles and runs on every task of a job, and what the batch script does after all of them.

A job goes on after whatever ends it: everything is read from the run folder again, so that neither the submitting
process nor submitit's pickle is asked for anything. The tasks only say how they ended. It is the batch script that
requeues (see `teardown`), once, when no task is running any more: nothing is killed that is still being saved, no two
ranks ask for it, and a job that the user or SLURM itself ends is left alone.
"""

from __future__ import annotations

import faulthandler
import importlib
import os
import shlex
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from jepa.errors import AGAIN, INTERRUPTED, JepaError
from jepa.slurm import ends

DONE = -1  # instead of an exit code: the verb has come to its end
# Lines of the batch script before srun.
SETUP = (
    # a job may come back on another number of nodes than it was submitted for, but keeps that number of tasks
    'export SLURM_NTASKS=$((SLURM_JOB_NUM_NODES * SLURM_NTASKS_PER_NODE)); export SLURM_NPROCS="$SLURM_NTASKS"',
    "trap : TERM",  # what that means is asked below; srun, and so this script, ends soon after it
)


def teardown(logs: Path | str) -> list[str]:
    """Lines of the batch script after srun: requeue, unless all is done or a task has said that it makes no sense.

    Only SLURM knows whether a job has been ended, by scancel, a requeue, a time limit. SIGTERM alone does not say it: a
    node that was dead may hear only when the job runs there again that an earlier start has to end.

    Args:
        logs: submitit's folder of this submission.
    """
    folder, start = shlex.quote(str(logs)), "$SLURM_JOB_ID.${SLURM_RESTART_COUNT:-0}"
    return [
        "code=$?",
        f'if [ "$code" -ne 0 ] && [ ! -e {folder}/final-{start} ]; then',
        '  case "$(scontrol --oneliner show job "$SLURM_JOB_ID")" in',
        f'    *JobState=RUNNING*) echo "$code" > {folder}/ended-{start}; scontrol requeue "$SLURM_JOB_ID" ;;',
        "  esac",
        "fi",
        'exit "$code"',
    ]


@dataclass(frozen=True)
class Task:
    """One verb with its arguments, run on every task of a job.

    Attributes:
        argv: as on the command line, without `jepa`.
        run_dir: absolute; where slurm/ and restarts.jsonl are.
        max_restarts: requeues after failures; those after a signal or by the scheduler do not count.
        step_seconds: see `train.step_seconds`; None: as configured.
    """

    argv: tuple[str, ...]
    run_dir: str
    max_restarts: int = 100
    step_seconds: float | None = None

    def __call__(self) -> int:
        """Run the verb; a job that was requeued goes on with it.

        Raises:
            SystemExit: with the exit code of the task, unless everything is done. submitit then leaves no result, for
                the job may not be over.
        """
        attempt, rank = ends.current(Path(self.run_dir)), int(os.environ.get("SLURM_PROCID", "0"))
        failure = attempt.failure(rank)
        failure.parent.mkdir(parents=True, exist_ok=True)
        with _Early() as early, failure.open("a", encoding="utf-8") as crash:
            faulthandler.enable(crash)  # for what kills the interpreter
            try:
                code = self._run(attempt, rank, failure)
            except SystemExit as stop:  # a signal before the verb has begun
                code = stop.code if isinstance(stop.code, int) else 1
            finally:
                faulthandler.disable()
            code = _end(attempt, rank, code, early.seen)
        if failure.is_file() and not failure.stat().st_size:
            failure.unlink()
        if code != DONE:
            raise SystemExit(code)
        return 0

    def checkpoint(self, *_: Any, **__: Any) -> Any:
        """For submitit, when SIGUSR2 comes before `__call__`: the same task again."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)

    def _run(self, attempt: ends.Attempt, rank: int, failure: Path) -> int:
        os.environ["JEPA_FAILURE"] = str(failure)
        caught: list[BaseException] = []
        try:
            # after the handlers, for this loads torch; and by name, as `python -m jepa` would: it is below in the order
            cli, ranks = (importlib.import_module(f"jepa.{name}") for name in ("cli", "slurm.ranks"))
            if rank == 0:
                ends.check(attempt, self.max_restarts)
                os.environ["JEPA_RESTART_REASON"] = ends.reason(attempt)
                ends.begin(attempt)
            ranks.join()
            code = int(cli.main(list(self.arguments(attempt)), caught.append))
        except JepaError as error:
            print(f"error: {error}", file=sys.stderr, flush=True)
            caught, code = [error], 2
        if caught:
            step = importlib.import_module("jepa.watchdog").here()
            ends.write_failure(failure, caught[0], step)
            spent = ends.count(attempt) >= self.max_restarts
            if isinstance(caught[0], ends.FINAL) or spent or ends.repeats(attempt):
                ends.close(attempt)
        elif code not in (0, AGAIN, INTERRUPTED):  # a mistake in the arguments, or what a verb has found
            ends.close(attempt)
        return code

    def arguments(self, attempt: ends.Attempt) -> tuple[str, ...]:
        """Of this start. Training that this job has begun goes on from its run folder, however it was asked for."""
        argv = self.argv
        if argv[0] != "train":
            return argv
        if attempt.restart and self._begun(attempt):
            argv = ("train", self.run_dir, "--resume", *(word for word in argv if word == "--trace"))
        if self.step_seconds is not None and not any(word.startswith("train.step_seconds=") for word in argv):
            argv = (*argv, f"train.step_seconds={self.step_seconds:g}")
        return argv

    def _begun(self, attempt: ends.Attempt) -> bool:
        """Whether an earlier start of this job has got as far as a first checkpoint."""
        rows = importlib.import_module("jepa.restarts").read(attempt.run_dir)
        return any(row.get("job") == attempt.job for row in rows)


class _Early:
    """Signals while no training loop looks after them: the process ends at once, for there is nothing to save."""

    def __init__(self) -> None:
        self.seen: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> _Early:
        for number in (signal.SIGTERM, signal.SIGUSR2):
            self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, _: FrameType | None) -> None:
        if self.seen is None:
            self.seen = number
            raise SystemExit(AGAIN if number == signal.SIGUSR2 else INTERRUPTED)


def _end(attempt: ends.Attempt, rank: int, code: int, early: int | None) -> int:
    """Write down an orderly end. Returns the exit code of the task, or DONE."""
    alone = os.environ.get("WORLD_SIZE", "1") == "1"
    if code == 0:
        if rank == 0:
            ends.finish(attempt, "done")
    elif code == AGAIN:
        if rank == 0:
            ends.finish(attempt, "again")
    elif code == INTERRUPTED and (early is None or alone) and rank == 0:
        # before the loop several tasks get SIGTERM also because another one has failed; then it says nothing
        ends.finish(attempt, "stopped")
    if code in (AGAIN, INTERRUPTED) and early is None and rank:
        return 0  # all have saved; rank 0 speaks for them, and srun must not end it for another one's exit code
    return code or DONE


__all__ = ["SETUP", "Task", "teardown"]
