"""Training runs on the private cluster: submitted, watched and disturbed."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests import tiny
from tests.slurm.conftest import Cluster, wait_for
from tests.train import runs

STEPS, EVERY = 600, 50
NODES = ("127.0.0.1", "127.0.0.2")
PATIENCE = 120.0  # seconds for a start on a busy machine: Python, torch, the process group, the first step


def write_config(folder: Path, data: Path, *, steps: int = STEPS) -> Path:
    """The tiny run with more steps, a checkpoint every 50 and room to strike between them."""
    values = tiny.VALUES | {
        "data": tiny.VALUES["data"] | {"path": str(data)},
        "train": tiny.VALUES["train"]
        | {
            "batch": 16,
            "micro_batch": 2,
            "duration": {"steps": steps},
            "checkpoint_every": {"steps": EVERY},
            "keep": 0,  # all of them
        },
        "monitor": {"every": {"steps": 1000}, "samples": 8, "knn_bank": 16, "knn_k": 3},
    }
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def submit_words(
    cluster: Cluster, config: Path, run: Path, *words: str, nodes: int = 2, settings: Sequence[str] = ()
) -> list[str]:
    """The command line of a submission; `settings` are of the profile."""
    start = [sys.executable, "-m", "jepa", "submit", "--cluster", str(cluster.profile)]
    for setting in (f"nodes={nodes}", "memory=2G", *settings):
        start += ["--set", setting]
    return [*start, "train", str(config), "--out", str(run), "--trace", *words]


@dataclass
class Run:
    """A submitted training run."""

    cluster: Cluster
    folder: Path
    job: str

    @classmethod
    def submit(
        cls, cluster: Cluster, config: Path, folder: Path, *words: str, nodes: int = 2, settings: Sequence[str] = ()
    ) -> Run:
        """Submit, by `jepa submit`."""
        cluster.run(submit_words(cluster, config, folder, *words, nodes=nodes, settings=settings))
        return cls.of(cluster, folder)

    @classmethod
    def of(cls, cluster: Cluster, folder: Path) -> Run:
        """The newest job of a run folder."""
        last = (folder / "slurm" / "jobs.jsonl").read_text().splitlines()[-1]
        return cls(cluster, folder, json.loads(last)["job"])

    def step(self) -> int:
        """The last step that metrics.jsonl knows of."""
        path = self.folder / "metrics.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        rows = [json.loads(line) for line in lines if line.startswith("{") and line.endswith("}")]
        return max((row["step"] for row in rows if "loss" in row), default=0)

    def saved(self) -> int:
        """Step of the newest complete checkpoint."""
        found = self.folder.glob("checkpoints/step-*/COMPLETE")
        return max((int(path.parent.name.removeprefix("step-")) for path in found), default=0)

    def reach(self, step: int) -> None:
        """Wait until a step is done."""
        wait_for(lambda: self.step() >= step or self.ended(), PATIENCE, self.tell)
        assert not self.ended(), self.tell()

    def starts(self) -> list[dict[str, Any]]:
        """Lines of restarts.jsonl."""
        path = self.folder / "restarts.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def ended(self) -> bool:
        return self.cluster.state(self.job) in ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")

    def requeued(self, times: int) -> None:
        """Wait until SLURM has put the job back into the queue.

        Its delay before the start (seconds on this cluster) is left alone: a job that is pushed at once may start with
        a credential of before, which is revoked.
        """
        wait_for(lambda: int(self.cluster.job(self.job)["Restarts"]) >= times, 90, self.tell)
        wait_for(lambda: self.cluster.state(self.job) in ("PENDING", "RUNNING"), 30, self.tell)

    def finish(self) -> None:
        """Wait for the end, which must be a good one."""
        wait_for(self.ended, 2 * PATIENCE, self.tell)
        assert self.cluster.state(self.job) == "COMPLETED", self.tell()

    def kill_rank(self, rank: int) -> None:
        """SIGKILL to a rank's process."""
        os.kill(self.process(rank), signal.SIGKILL)

    def process(self, rank: int) -> int:
        """Pid of a rank: of the processes with its variables the one that SLURM started."""
        wanted = {f"SLURM_JOB_ID={self.job}".encode(), f"SLURM_PROCID={rank}".encode()}
        found = []
        for entry in Path("/proc").iterdir():
            try:
                own = set((entry / "environ").read_bytes().split(b"\0")) if entry.name.isdigit() else set()
                line = (entry / "cmdline").read_bytes().split(b"\0") if wanted <= own else []
            except OSError:
                continue
            if any(b"python" in word for word in line[:1]):
                found.append(int(entry.name))
        assert found, f"rank {rank} of job {self.job} has no process: {self.tell()}"
        return min(found)

    def tell(self) -> str:
        """For messages of failed tests: the job and the end of its logs."""
        logs = sorted((self.folder / "slurm").rglob("*.err")) + sorted((self.folder / "slurm").rglob("*.out"))
        tails = "\n".join(f"{path.name}: {path.read_text(errors='replace')[-1500:]}" for path in logs)
        return f"{self.cluster.job(self.job)}\nstep {self.step()}, saved {self.saved()}\n{self.starts()}\n{tails}"


def assert_same_run(run: Path, whole: Path, steps: int = STEPS) -> None:
    """Weights and optimiser state bit for bit, and every sample once with its crop and masks."""
    numbers = [row["g"] for row in runs.trace(run)]
    assert numbers == list(range(steps * 16)), "samples were repeated or lost"
    assert runs.trace(run) == runs.trace(whole)
    runs.assert_bit_equal(runs.tensors(run, steps), runs.tensors(whole, steps))
