"""What `jepa bench interrupt` does to a job, on a real SLURM; the job itself only sleeps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from jepa.bench.interrupt import InterruptSettings, bench_interrupt
from jepa.bench.jobs import Slurm
from jepa.errors import ConfigError
from jepa.slurm.task import SETUP, teardown
from tests.slurm.conftest import Cluster, wait_for

RANDOM = np.random.default_rng(0)


def test_interrupts_a_job_and_sees_it_end(cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_CONF", cluster.env["SLURM_CONF"])
    lines = ["#!/bin/bash", *SETUP, "srun --kill-on-bad-exit=1 sleep 600", *teardown(tmp_path)]
    options = ["-N2", "--ntasks-per-node=1", "--requeue", "--output", tmp_path / "log", "--open-mode=append"]
    number = cluster.sbatch(*options, script="\n".join(lines) + "\n")
    job = Slurm(tmp_path / "config.yaml", tmp_path, 2, "local", "high")
    job.watch(number)
    for times, kind in enumerate(("kill", "usr2", "requeue", "preempt")):
        wait_for(lambda: f"{number}.0" in cluster.run(["squeue", "-hs", "-o", "%i", "-j", number]).stdout, 60)
        job.start()  # SLURM has it already
        assert not job.ended()
        job.interrupt(kind, RANDOM)
        wait_for(job.ended, 60, lambda: cluster.job(number))
        assert not job.failed() and cluster.job(number)["Restarts"] == str(times + 1)
        cluster.run(["scontrol", "update", f"JobId={number}", "StartTime=now+2"])
    wait_for(lambda: cluster.state(number) == "RUNNING", 60)
    began = job.began()
    job.start()
    job.interrupt("term", RANDOM)
    wait_for(job.ended, 60, lambda: cluster.job(number))
    assert cluster.state(number) == "CANCELLED" and not job.failed()
    assert began is not None and abs(began - (tmp_path / "log").stat().st_mtime) < 60


def test_kinds_are_those_of_the_launcher() -> None:
    with pytest.raises(ConfigError, match="requeue is none of kill, term, usr2; requeue and preempt need cluster="):
        bench_interrupt(InterruptSettings(kinds=("requeue",)))
