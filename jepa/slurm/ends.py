"""How the starts of a job have ended, and what follows from it for the next one.

RUN/slurm/ends/JOB.RESTART.json           written by rank 0: when the start began, how it ended if that was in order
RUN/slurm/failures/JOB.RESTART-rankR.txt  written by a rank that failed; its first line names error and step
LOGS/final-JOB.RESTART                    for the batch script: do not requeue after this start
LOGS/ended-JOB.RESTART                    by the batch script: the tasks ended by themselves, it has requeued the job

A start without an orderly end and without failures was killed, or lost its node.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import time
import traceback
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from jepa.errors import CheckpointError, ConfigError, DivergedError, TrainingError


class GivenUpError(TrainingError):
    """A job that has failed too often, or twice in the same way."""


FINAL = (ConfigError, CheckpointError, DivergedError, GivenUpError)  # the same input gives the same error again
KILLED, FAILED, REQUEUED, BY_HAND = "node failure or killed", "failed rank", "requeued", "manual"
PREEMPTED, LIMIT = "preempted", "time limit"
_DUE = re.compile(r"CANCELLED AT (\S+) DUE TO ([A-Z ]+?) \*\*\*")  # slurmstepd, in the error log
_WORDS = {"PREEMPTION": PREEMPTED, "JOB REQUEUE": REQUEUED, "TIME LIMIT": LIMIT, "NODE FAILURE": KILLED}


@dataclass(frozen=True)
class Attempt:
    """One start of a job for a run. `logs`: submitit's folder, which the batch script knows too."""

    run_dir: Path
    job: str
    restart: int = 0  # counts from 0
    logs: Path | None = None

    @property
    def name(self) -> str:
        return f"{self.job}.{self.restart}"

    @property
    def before(self) -> Attempt | None:
        return dataclasses.replace(self, restart=self.restart - 1) if self.restart else None

    @property
    def record(self) -> Path:
        return self.run_dir / "slurm" / "ends" / f"{self.name}.json"

    @property
    def final(self) -> Path | None:
        return self.logs / f"final-{self.name}" if self.logs is not None else None

    @property
    def by_itself(self) -> bool:
        """Whether its tasks have ended without anything from SLURM, and the batch script has requeued it."""
        return self.logs is not None and (self.logs / f"ended-{self.name}").exists()

    def failure(self, rank: int) -> Path:
        return self.run_dir / "slurm" / "failures" / f"{self.name}-rank{rank}.txt"


@dataclass(frozen=True)
class End:
    """What is known about a start."""

    began: float  # seconds since 1970
    how: str = ""  # done, again (stopped by SIGUSR2), stopped (by SIGTERM); empty: it did not end in order
    ended: float = 0.0


def current(run_dir: Path) -> Attempt:
    """The start that this process is in."""
    logs, restart = os.environ.get("SUBMITIT_FOLDER"), int(os.environ.get("SLURM_RESTART_COUNT") or 0)
    return Attempt(run_dir, os.environ.get("SLURM_JOB_ID", "0"), restart, Path(logs) if logs else None)


# --- writing; a full disk here must not turn one end into another -------------------------------------------------


def begin(attempt: Attempt) -> None:
    """Write down that a start begins."""
    _write(attempt.record, json.dumps(dataclasses.asdict(End(time.time()))))


def finish(attempt: Attempt, how: str) -> None:
    """Write down an orderly end."""
    began = (read(attempt) or End(time.time())).began
    _write(attempt.record, json.dumps(dataclasses.asdict(End(began, how, time.time()))))


def close(attempt: Attempt) -> None:
    """Tell the batch script not to requeue."""
    if attempt.final is not None:
        _write(attempt.final, "")


def write_failure(path: Path, error: BaseException, step: int | None) -> None:
    """Error, step and traceback; what faulthandler wrote there before stays below."""
    below = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    _write(path, f"{headline(error, step)}\n{''.join(traceback.format_exception(error))}{below}")


def headline(error: BaseException, step: int | None) -> str:
    """A failure in one line; up to the colon it is the same for two of a kind at the same step."""
    where = "before the first step" if step is None else f"after {step} steps"
    return f"{type(error).__name__} {where}: {next(iter(str(error).splitlines()), '')}"


def _write(path: Path, text: str) -> None:
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


# --- reading ------------------------------------------------------------------------------------------------------


def failures(run_dir: Path, attempt: Attempt | None = None) -> list[Path]:
    """Files of the ranks that failed, the earliest first; of the newest start that has any, unless one is given."""
    found = [path for path in (run_dir / "slurm" / "failures").glob("*-rank*.txt") if path.stat().st_size]
    found.sort(key=lambda path: path.stat().st_mtime_ns)
    if not found:
        return []
    name = attempt.name if attempt is not None else found[-1].name.rpartition("-rank")[0]
    return [path for path in found if path.name.startswith(f"{name}-rank")]


def read(attempt: Attempt) -> End | None:
    """What is known about a start; None: nothing."""
    try:
        return End(**json.loads(attempt.record.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def reason(attempt: Attempt) -> str:
    """Why this start follows the one before; empty for the first one of a job."""
    before = attempt.before
    if before is None:
        return ""
    end = read(before)
    if end is not None and end.how == "again":  # by SIGUSR2; "JOB REQUEUE" is what the batch script did after it
        told = _told(before, end)
        return told if told and told != REQUEUED else LIMIT
    if end is not None and end.how:
        return _told(before, end) or REQUEUED
    if before.final is not None and before.final.exists():
        return BY_HAND
    if failures(attempt.run_dir, before):
        return FAILED
    told = _told(before, end) if end is not None else ""
    return KILLED if told == REQUEUED and before.by_itself else told or KILLED


def check(attempt: Attempt, most: int) -> None:
    """Whether it makes sense to start again after a failure.

    Raises:
        GivenUpError: more than `most` failures, or the last two starts failed in the same way at the same step.
    """
    before = attempt.before
    if before is None or reason(attempt) not in (KILLED, FAILED):
        return
    number = count(attempt)
    if number > most:
        raise GivenUpError(f"{number} starts of job {attempt.job} have failed, allowed: {most} (max_restarts)")
    same = repeats(before)
    if same:
        raise GivenUpError(
            f"the last two starts of job {attempt.job} failed in the same way ({same}), so a third one would too. Put "
            f"it right, then start it again: scontrol requeue {attempt.job}"
        )


def count(attempt: Attempt) -> int:
    """Starts of this job before this one that failed or were killed."""
    reasons = [reason(dataclasses.replace(attempt, restart=n)) for n in range(1, attempt.restart + 1)]
    return sum(why in (KILLED, FAILED) for why in reasons)


def repeats(attempt: Attempt) -> str:
    """Kind and step of a failure that this start and the one before it have in common; else empty."""
    if attempt.before is None:
        return ""
    kinds = [_kind(path) for one in (attempt.before, attempt) for path in failures(attempt.run_dir, one)[:1]]
    return kinds[0] if len(kinds) == 2 and kinds[0] == kinds[1] else ""


def _kind(path: Path) -> str:
    """Without the message, which may name ports and processes: they differ every time."""
    return path.read_text(encoding="utf-8", errors="replace").partition("\n")[0].partition(":")[0]


def _told(attempt: Attempt, end: End) -> str:
    """What SLURM has written into the log about the end of a start; empty: nothing that is known here."""
    array, number = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    name = f"{array}_{number}" if array else attempt.job
    found = ""
    try:
        text = ((attempt.logs or Path()) / f"{name}_0_log.err").read_text(encoding="utf-8", errors="replace")
        for when, what in _DUE.findall(text):
            if datetime.fromisoformat(when).timestamp() >= int(end.began):
                found = _WORDS.get(what, "")
                break
    except (OSError, ValueError):
        pass
    return found


__all__ = [
    "FINAL", "Attempt", "GivenUpError", "begin", "check", "close", "count", "current", "failures", "finish", "read",
    "reason", "repeats", "write_failure",
]  # fmt: skip
