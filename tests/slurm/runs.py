"""Training runs on the private cluster: submitted, watched and disturbed."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import yaml

from jepa import cli
from tests import tiny
from tests.slurm.conftest import Cluster, wait_for
from tests.train import runs

STEPS, EVERY = 40, 10
NODES = ("127.0.0.1", "127.0.0.2")
PATIENCE = 120.0  # seconds for a start on a busy machine: Python, torch, the process group, the first step
_ONE_AT_A_TIME = threading.Lock()  # submissions read the environment of this process


def settings(data: Path, *, steps: int = STEPS) -> dict[str, Any]:
    """The tiny run with more steps, a checkpoint every 10 and two micro-batches on each of two ranks."""
    return tiny.VALUES | {
        "data": tiny.VALUES["data"] | {"path": str(data)},
        "train": tiny.VALUES["train"]
        | {
            "batch": 16,
            "micro_batch": 4,
            "duration": {"steps": steps},
            "checkpoint_every": {"steps": EVERY},
            "keep": 0,  # all of them
        },
        "monitor": {"every": {"steps": 1000}, "samples": 8, "knn_bank": 16, "knn_k": 3},
    }


def write_config(folder: Path, data: Path, *, steps: int = STEPS, method: str | None = None) -> Path:
    """`settings` as a file; `method` in place of I-JEPA, with its settings."""
    values = settings(data, steps=steps)
    if method is not None:
        values["method"] = values["method"] | {"name": method}
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def submit(
    cluster: Cluster,
    config: Path,
    run: Path,
    *words: str,
    nodes: int = 2,
    settings: Sequence[str] = (),
    held: Path | None = None,
) -> int:
    """`jepa submit` in this process. `settings` are of the profile, `held` is the folder of a `Held` run."""
    start = ["submit", "--cluster", str(cluster.profile)]
    for setting in (f"nodes={nodes}", "memory=2G", *settings):
        start += ["--set", setting]
    own = {"SLURM_CONF", "PYTHONPATH", "OMP_NUM_THREADS"}
    variables = {name: value for name, value in cluster.env.items() if name in own} | {"HELD": str(held)}
    with _ONE_AT_A_TIME, mock.patch.dict(os.environ, variables):
        return cli.main([*start, "train", str(config), "--out", str(run), "--trace", *words])


@dataclass
class Run:
    """A submitted training run."""

    cluster: Cluster
    folder: Path
    job: str
    held: Path | None = None

    @classmethod
    def submit(
        cls,
        cluster: Cluster,
        config: Path,
        folder: Path,
        *words: str,
        nodes: int = 2,
        settings: Sequence[str] = (),
        held: Sequence[int] = (),
    ) -> Run:
        """Submit, by `jepa submit`. A `Held` run waits after each of the `held` numbers of steps."""
        gates = folder.parent / f"{folder.name}-held"
        gates.mkdir(exist_ok=True)
        for step in held:
            (gates / str(step)).touch()
        code = submit(cluster, config, folder, *words, nodes=nodes, settings=settings, held=gates)
        assert code == 0, f"jepa submit has ended with {code}"
        return cls.of(cluster, folder, gates)

    @classmethod
    def of(cls, cluster: Cluster, folder: Path, held: Path | None = None) -> Run:
        """The newest job of a run folder."""
        last = (folder / "slurm" / "jobs.jsonl").read_text().splitlines()[-1]
        return cls(cluster, folder, json.loads(last)["job"], held)

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
        """Wait until a step is done, where the run is held."""
        wait_for(lambda: self.step() >= step or self.ended(), PATIENCE, self.tell)
        assert not self.ended() and self.step() == step, self.tell()

    def release(self, step: int) -> None:
        """Let a run go on that is held there, or that comes by again after it was killed."""
        assert self.held is not None
        (self.held / str(step)).unlink()

    def starts(self) -> list[dict[str, Any]]:
        """Lines of restarts.jsonl."""
        path = self.folder / "restarts.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def ended(self) -> bool:
        return self.cluster.state(self.job) in ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")

    def requeued(self, times: int, *changes: str) -> None:
        """Wait until SLURM has put the job back into the queue; then it may start soon, as by `jepa jobs requeue`.

        `changes`: of what it asks for, such as NumNodes=1.
        """
        wait_for(lambda: int(self.cluster.job(self.job)["Restarts"]) >= times, 90, self.tell)
        wait_for(lambda: self.cluster.state(self.job) in ("PENDING", "RUNNING"), 30, self.tell)
        self.cluster.run(["scontrol", "update", f"JobId={self.job}", "StartTime=now+2", *changes], check=bool(changes))

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
        of_cluster = f"SLURM_CONF={self.cluster.dir}/".encode()
        found = []
        for entry in Path("/proc").iterdir():
            try:
                own = set((entry / "environ").read_bytes().split(b"\0")) if entry.name.isdigit() else set()
                line = (
                    (entry / "cmdline").read_bytes().split(b"\0")
                    if wanted <= own and any(v.startswith(of_cluster) for v in own)
                    else []
                )
            except OSError:
                continue
            if any(b"python" in word for word in line[:1]):
                found.append(int(entry.name))
        assert found, f"rank {rank} of job {self.job} has no process: {self.tell()}"
        return min(found)

    def log(self) -> str:
        """Everything that its processes have said."""
        logs = sorted((self.folder / "slurm").rglob("*.err")) + sorted((self.folder / "slurm").rglob("*.out"))
        return "\n".join(f"{path.name}: {path.read_text(errors='replace')}" for path in logs)

    def tell(self) -> str:
        """For messages of failed tests: the job and its logs."""
        return f"{self.cluster.job(self.job)}\nstep {self.step()}, saved {self.saved()}\n{self.starts()}\n{self.log()}"


def assert_same_run(run: Path, whole: Path, steps: int = STEPS) -> None:
    """Weights and optimiser state bit for bit, and every sample once with its crop and masks."""
    assert_same_samples(run, whole)
    runs.assert_bit_equal(runs.tensors(run, steps), runs.tensors(whole, steps))
    assert runs.lines(run) == runs.lines(whole)


def assert_same_samples(run: Path, whole: Path, steps: int = STEPS) -> None:
    """Every sample once, with its crop and masks."""
    numbers = [row["g"] for row in runs.trace(run)]
    assert numbers == list(range(steps * 16)), "samples were repeated or lost"
    assert runs.trace(run) == runs.trace(whole)
