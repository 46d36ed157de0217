"""What was submitted for a run: RUN/slurm/jobs.jsonl, one line for each job."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from jepa import jsonl, rundir
from jepa.errors import ConfigError
from jepa.slurm import queue
from jepa.slurm.queue import Seen

FILE = Path("slurm") / "jobs.jsonl"


@dataclass(frozen=True)
class Entry:
    """A job as it was submitted."""

    run_dir: Path
    values: Mapping[str, Any]  # the line

    @property
    def job(self) -> str:
        """Its id: 12, or 12_3 in an array."""
        return str(self.values["job"])

    @property
    def key(self) -> str:
        return str(self.values["key"])

    @property
    def time(self) -> datetime:
        return datetime.fromisoformat(self.values["time"])

    @property
    def comment(self) -> str:
        return queue.comment(str(self.values["stamp"]), Path(self.values["root"]))

    def seen(self, jobs: Mapping[str, Seen]) -> Seen | None:
        """What `queue.mine` found of it; None when SLURM has forgotten it and what has its id now is another job."""
        found = jobs.get(self.job)
        return found if found is not None and found.comment == self.comment else None

    def log(self, task: int = 0, errors: bool = False) -> Path:
        """Of one of its processes, as submitit names them."""
        return Path(self.values["logs"]) / f"{self.job}_{task}_log.{'err' if errors else 'out'}"


def add(run_dir: Path, values: Mapping[str, Any]) -> Entry:
    """Write a line down.

    Raises:
        TrainingError: a full disk; the job is submitted all the same.
    """
    path = run_dir / FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = rundir.Lines(path)
    try:
        lines.add(values)
    finally:
        lines.close()
    return Entry(run_dir, dict(values))


def read(run_dir: Path) -> list[Entry]:
    """Every job of a run, the newest last. A line that was cut off by a crash is left out."""
    needed = {"job", "key", "time", "stamp", "root", "logs"}
    rows = jsonl.read(run_dir / FILE)
    return [Entry(run_dir.absolute(), values) for values in rows if needed <= values.keys()]


def free(run_dir: Path, key: str, jobs: Mapping[str, Seen]) -> None:
    """Whether no live job of a run does some work; `jobs` is what `queue.mine` found.

    Raises:
        ConfigError: one does; names its id.
    """
    for entry in read(run_dir):
        found = entry.seen(jobs)
        if entry.key == key and found is not None and found.live:
            raise ConfigError(
                f"{run_dir}: job {entry.job} ({found.state.lower()}) already does `jepa {key}` there. Wait for it "
                f"(jepa jobs logs {run_dir} --follow), end it (jepa jobs cancel {run_dir}), or use another --out"
            )


__all__ = ["FILE", "Entry", "add", "free", "read"]
