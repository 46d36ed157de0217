"""Jobs that run `jepa.slurm.task.Task` on a cluster, without `jepa submit`."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import yaml
from submitit.slurm.slurm import SlurmExecutor

from jepa.slurm import task
from jepa.slurm.task import Task
from tests import tiny
from tests.slurm.conftest import Cluster, wait_for
from tests.train import runs


class Executor(SlurmExecutor):
    """submitit's, with its program in the environment of the cluster."""


def config(folder: Path, data: Path, method: str | None = None, **train: object) -> Path:
    """The tiny run as a YAML file, with changes under `train`."""
    start = tiny.VALUES if method is None else tiny.VALUES | {"method": {"name": method}}
    values = start | {"data": tiny.VALUES["data"] | {"path": str(data)}, "train": tiny.VALUES["train"] | train}
    file = folder / "tiny.yaml"
    file.write_text(yaml.safe_dump(values))
    return file


@dataclass(frozen=True)
class Submitted:
    """A job and its run folder."""

    cluster: Cluster
    job: str
    run: Path
    logs: Path

    def wait_for_step(self, step: int) -> None:
        def there() -> bool:
            file = self.run / "metrics.jsonl"
            return file.is_file() and any(row["step"] >= step for row in runs.lines(self.run))

        wait_for(there, 120, self.log)

    def wait_for(self, *states: str) -> None:
        """As `Cluster.wait_for_state`, telling more. A requeued job waits 6 s: earlier its credential is revoked."""
        tell = lambda: f"{self.cluster.job(self.job)}\n{self.log()}"  # noqa: E731
        wait_for(lambda: self.cluster.state(self.job) in states, 120, tell)

    def log(self) -> str:
        """Everything that every task has said."""
        return "\n".join(f"{p.name}:\n{p.read_text()}" for p in sorted(self.logs.glob("*_log.*")))


def submit(cluster: Cluster, work: Task, folder: Path, nodes: int = 2, **parameters: object) -> Submitted:
    """Start a task on so many nodes, one process on each."""
    logs = folder / "logs"
    with mock.patch.dict(os.environ, cluster.env | {"ACCELERATE_USE_CPU": "1"}, clear=True):
        executor = Executor(logs, python=sys.executable)
        executor.update_parameters(
            job_name="test", time=20, nodes=nodes, ntasks_per_node=1, srun_args=list(task.SRUN),
            teardown=task.teardown(logs), additional_parameters={"requeue": True}, **parameters,
        )  # fmt: skip
        job = executor.submit(work)
    return Submitted(cluster, str(job.job_id), Path(work.run_dir), logs)
