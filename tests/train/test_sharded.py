"""Sharded training: the same trajectory and the same checkpoints as without, in real processes over gloo."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.train import runs, worker
from tests.train.worker import Job

SHARDED = "train.sharding=fsdp"
EXACT = ("train.precision=fp64", "train.checkpoint_every={steps: 4}", "train.duration={steps: 4}", "train.keep=0")


def close(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor], relative: float = 1e-9) -> None:
    assert a.keys() == b.keys()
    for name, value in a.items():
        gap = (value.double() - b[name].double()).norm()
        assert gap <= relative * value.double().norm() + 1e-15, f"{name}: {gap / value.double().norm():.1e}"


def group(job: Job, world: int = 2) -> None:
    codes = worker.run_group(worker.ranks(job, world))
    error = job.out.parent / f"{job.out.name}.error"
    assert codes == [0] * world, error.read_text() if error.is_file() else codes


def test_the_trajectory_is_that_of_ddp(tiny_data: Path, tmp_path: Path) -> None:
    settings = (*EXACT, "train.micro_batch=2", "optim.clip_norm=0.1", "train.guard={window: 2, std: 50}")
    group(Job(tiny_data, tmp_path / "ddp", settings))
    group(Job(tiny_data, tmp_path / "fsdp", (*settings, SHARDED)))
    close(runs.tensors(tmp_path / "ddp", 4), runs.tensors(tmp_path / "fsdp", 4))
    for ours, theirs in zip(runs.lines(tmp_path / "fsdp"), runs.lines(tmp_path / "ddp"), strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-9)
        assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-9)
    assert runs.trace(tmp_path / "ddp") == runs.trace(tmp_path / "fsdp")
