"""What runs in a job: how it ends, what follows from that, and that a job which starts again loses nothing."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from jepa import restarts
from jepa.slurm import ends
from jepa.slurm.task import Task
from tests.slurm import jobs
from tests.slurm.conftest import Cluster
from tests.train import runs, worker
from tests.train.worker import Job

STEPS = 400
TRAIN = {"duration": {"steps": STEPS}, "checkpoint_every": {"steps": 100}, "log_every": 10}


def train(folder: Path, data: Path, **changes: object) -> Task:
    file = jobs.config(folder, data, **(TRAIN | changes))
    return Task(("train", str(file), "--out", str(folder / "run"), "--trace"), str(folder / "run"))


def starts(run: Path, *keys: str) -> list[tuple[object, ...]]:
    return [tuple(row[key] for key in keys) for row in restarts.read(run)]


def test_signals_and_requeues_lose_nothing(cluster: Cluster, tiny_data: Path, tmp_path: Path) -> None:
    """SIGUSR2 as at the time limit, then `scontrol requeue`; two nodes as one run that nobody disturbed."""
    settings = (f"train.duration={{steps: {STEPS}}}", "train.checkpoint_every={steps: 100}", "train.log_every=10")
    whole = tmp_path / "whole"
    assert worker.run_group(worker.ranks(Job(tiny_data, whole, settings), 2)) == [0, 0]

    job = jobs.submit(cluster, train(tmp_path, tiny_data), tmp_path)
    job.wait_for_step(50)
    cluster.run(["scancel", "--signal=USR2", job.job])
    job.wait_for("PENDING")
    job.wait_for("RUNNING")
    first = restarts.read(job.run)
    job.wait_for_step(max(200, int(first[-1]["step"]) + 50))
    cluster.run(["scontrol", "requeue", job.job])
    job.wait_for("COMPLETED")

    assert starts(job.run, "attempt", "reason", "world") == [(1, "start", 2), (2, "time limit", 2), (3, "requeued", 2)]
    assert starts(job.run, "nodes", "lost")[:2] == [(["127.0.0.1", "127.0.0.2"], 0)] * 2
    runs.assert_bit_equal(runs.tensors(job.run, STEPS), runs.tensors(whole, STEPS))
    assert runs.trace(job.run) == runs.trace(whole)
    assert runs.lines(job.run) == runs.lines(whole)
    assert f"{job.run} is at step {STEPS}" in job.log()
