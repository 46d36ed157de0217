"""SLURM's own programs: what is queued and running, what has ended, to cancel and to requeue.

A job is known by its id and by the comment it was submitted with. Ids begin at 1 again where a cluster is set up anew,
so an id alone may be somebody else's job.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from jepa.errors import ConfigError

# What squeue says of jobs that may still do something.
LIVE = (
    *("PENDING", "RUNNING", "SUSPENDED", "COMPLETING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED"),
    *("SIGNALING", "STAGE_OUT", "STOPPED", "RESIZING", "SPECIAL_EXIT", "RESV_DEL_HOLD"),
)
_TIMEOUT = 60.0  # seconds; a busy controller answers late, not never
_MARK = "jepa"
_SKEW = timedelta(minutes=2)  # between this machine's clock and the controller's


@dataclass(frozen=True)
class Seen:
    """What SLURM says of a job now, or said at its end."""

    state: str
    node: str = ""
    reason: str = ""  # why it waits
    comment: str = ""  # empty from sacct

    @property
    def live(self) -> bool:
        return self.state in LIVE


def comment(stamp: str, root: Path) -> str:
    """What a submission is marked with: when, and the folder it belongs to."""
    return f"{_MARK}:{stamp}:{root}"


def root_of(text: str) -> Path | None:
    """The folder in a comment; None for jobs of others."""
    mark, _, rest = text.partition(":")
    return Path(rest.partition(":")[2]) if mark == _MARK and rest.partition(":")[2] else None


def available() -> bool:
    """Whether this machine has SLURM's programs."""
    return shutil.which("sbatch") is not None and shutil.which("squeue") is not None


def needed() -> None:
    """Raises:
    ConfigError: this machine has no SLURM.
    """
    if not available():
        raise ConfigError(
            "there is no SLURM on this machine: sbatch was not found. Use a login node of your cluster, or try it here "
            "with `slurm/dev-cluster up` from the repository; `jepa submit --dry-run` needs none"
        )


def environment() -> dict[str, str]:
    """Of SLURM's programs. Inside of a job its own variables are left out, or a new job would inherit them."""
    if "SLURM_JOB_ID" not in os.environ:
        return dict(os.environ)
    return {
        k: v for k, v in os.environ.items() if k == "SLURM_CONF" or not k.startswith(("SLURM", "SRUN_", "SUBMITIT"))
    }


def call(*command: str) -> str:
    """What one of SLURM's programs prints.

    Raises:
        ConfigError: it failed; in its own words.
    """
    needed()
    try:
        done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=_TIMEOUT)
    except subprocess.TimeoutExpired:
        raise ConfigError(
            f"{command[0]} did not answer within {_TIMEOUT:.0f} s. Is the controller up? Try sinfo"
        ) from None
    except OSError as error:
        raise ConfigError(f"cannot run {command[0]}: {error.strerror or error}") from None
    if done.returncode:
        raise ConfigError(f"{command[0]}: {words(done.stderr) or words(done.stdout) or f'exit {done.returncode}'}")
    return done.stdout


def words(text: str) -> str:
    """SLURM's own words, without the name of the program before each line."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    for prefix in ("error: ", "fatal: "):
        lines = [line.partition(prefix)[2] if prefix in line else line for line in lines]
    return "; ".join(dict.fromkeys(lines))


def mine() -> dict[str, Seen]:
    """My jobs that are queued, running, or ended some minutes ago, by id (12, or 12_3 in an array).

    Raises:
        ConfigError: no SLURM, or it does not answer.
    """
    text = call("squeue", "--me", "--noheader", "--array", "--states=all", "--format=%i|%T|%N|%r|%k")
    found = {}
    for line in text.splitlines():
        job, state, node, reason, remark = line.split("|", 4)
        found[job] = Seen(state, node, "" if reason == "None" else reason, "" if remark == "(null)" else remark)
    return found


def ended(jobs: Iterable[tuple[str, str, datetime]]) -> dict[str, Seen]:
    """What accounting remembers of jobs, given as (id, name, time of submission); empty where it is not kept.

    Jobs of another name, or submitted before, are others that had the same id.
    """
    wanted = {job: (name, since) for job, name, since in jobs}
    if not wanted or shutil.which("sacct") is None:
        return {}
    columns = "JobID,State,NodeList,JobName,Submit"
    try:
        # without a start time sacct looks at today only
        since = min(when for _, when in wanted.values()) - _SKEW
        text = call(
            "sacct", "--noheader", "--parsable2", "--allocations", f"--format={columns}", f"--jobs={','.join(wanted)}",
            f"--starttime={since.astimezone():%Y-%m-%dT%H:%M:%S}",
        )  # fmt: skip
    except ConfigError:  # "Slurm accounting storage is disabled"
        return {}
    found = {}
    for line in text.splitlines():
        job, state, node, name, submitted = line.split("|", 4)
        if job not in wanted or name != wanted[job][0]:
            continue
        try:
            when = datetime.fromisoformat(submitted).astimezone()
        except ValueError:
            continue
        if when >= wanted[job][1] - _SKEW:
            found[job] = Seen(state.split()[0], "" if node == "None assigned" else node)  # CANCELLED by 1000
    return found


def test(script: str) -> str:
    """Ask SLURM whether it would take a batch script; what it says of the start, or "".

    Raises:
        ConfigError: it would not; in its own words.
    """
    needed()
    command = ["sbatch", "--test-only"]
    try:
        done = subprocess.run(
            command, input=script, env=environment(), capture_output=True, text=True, timeout=_TIMEOUT
        )
    except subprocess.TimeoutExpired:
        raise ConfigError(f"sbatch did not answer within {_TIMEOUT:.0f} s. Is the controller up? Try sinfo") from None
    said = words(done.stderr)
    # Nodes that are down or reserved now: the job waits for them, and sbatch itself has the last word.
    if done.returncode and "available now" not in said:
        raise ConfigError(f"SLURM refuses the job: {said or f'sbatch --test-only ended with {done.returncode}'}")
    return said.partition("sbatch: ")[2] or said


__all__ = ["LIVE", "Seen", "available", "call", "comment", "ended", "environment", "mine", "needed", "root_of", "test"]
