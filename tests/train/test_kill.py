"""SIGKILL at named points, again and again, and the run still ends as if nothing had happened."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.train import runs, worker
from tests.train.worker import Job

# 24 steps of 8 over 64 pictures: three epochs, whose edges are at steps 8 and 16. Checkpoints every 3 steps.
SETTINGS = ("train.duration={steps: 24}", "train.checkpoint_every={steps: 3}", "train.micro_batch=4")
KILLS = [
    ("mid-step", 1),
    ("mid-accumulation", 2),
    ("in-weights", 3),
    ("before-complete", 3),
    ("before-rename", 3),
    ("before-prune", 6),
    ("before-step", 8),  # the edge of the first epoch
    ("before-optimizer", 10),
    ("after-line", 12),
    ("mid-accumulation", 13),
    ("mid-step", 15),
    ("before-step", 16),  # and of the second
    ("in-weights", 21),
    ("after-line", 24),
]


@pytest.fixture(scope="module")
def undisturbed(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    assert worker.run(Job(tiny_data, out, SETTINGS)) == 0
    return out


def test_killed_fourteen_times_in_one_run(undisturbed: Path, tiny_data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    for number, point in enumerate(KILLS):
        settings = (*SETTINGS, f"data.workers={number % 3}")  # 0, 1 and 2 decoding processes in turn
        code = worker.run(Job(tiny_data, out, settings, resume=number > 0, kill=point))
        assert code == -signal.SIGKILL, f"{point}: the process ended with {code} instead of being killed there"
    assert worker.run(Job(tiny_data, out, SETTINGS, resume=True)) == 0

    assert runs.lines(out) == runs.lines(undisturbed)
    assert len(runs.lines(out)) == 24
    runs.assert_bit_equal(runs.tensors(out, 24), runs.tensors(undisturbed, 24))
    assert runs.trace(out) == runs.trace(undisturbed)
    assert [row["g"] for row in runs.trace(out)] == list(range(24 * 8))
    assert sorted(p.name for p in (out / "checkpoints").iterdir()) == ["step-21", "step-24"]


def test_two_processes_killed_and_resumed(tiny_data: Path, tmp_path: Path) -> None:
    settings = ("train.duration={steps: 9}", "train.checkpoint_every={steps: 3}", "train.micro_batch=2")
    whole, out = tmp_path / "whole", tmp_path / "run"
    assert worker.run_group(worker.ranks(Job(tiny_data, whole, settings), 2)) == [0, 0]
    for number, (point, victim) in enumerate(
        [(("mid-accumulation", 1), 1), (("in-weights", 3), 0), (("mid-step", 4), 1), (("before-step", 8), 0)]
    ):
        jobs = worker.ranks(Job(tiny_data, out, settings, resume=number > 0), 2)
        jobs[victim] = Job(**{**jobs[victim].__dict__, "kill": point})
        codes = worker.run_group(jobs)
        assert codes[victim] == -signal.SIGKILL, f"{point} on rank {victim}: {codes}"
    assert worker.run_group(worker.ranks(Job(tiny_data, out, settings, resume=True), 2)) == [0, 0]

    assert runs.lines(out) == runs.lines(whole)
    runs.assert_bit_equal(runs.tensors(out, 9), runs.tensors(whole, 9))
    assert runs.trace(out) == runs.trace(whole)


def test_two_then_one_then_three_processes(tiny_data: Path, tmp_path: Path) -> None:
    """Samples, crops and masks are those of the undisturbed run on one process; batch 12 divides by 1, 2 and 3."""
    settings = ("train.batch=12", "train.duration={steps: 9}", "train.checkpoint_every={steps: 3}", "data.lanes=2")
    whole, out = tmp_path / "whole", tmp_path / "run"
    assert worker.run(Job(tiny_data, whole, settings)) == 0
    for number, (world, stop) in enumerate([(2, 4), (1, 7)]):
        jobs = worker.ranks(Job(tiny_data, out, settings, resume=number > 0, kill=("before-step", stop)), world)
        assert -signal.SIGKILL in worker.run_group(jobs)
    assert worker.run_group(worker.ranks(Job(tiny_data, out, settings, resume=True), 3)) == [0, 0, 0]
    assert len(list(out.glob("trace-rank*.jsonl"))) == 3

    assert runs.trace(out) == runs.trace(whole)
    assert [row["g"] for row in runs.trace(out)] == list(range(9 * 12))
    assert [row["step"] for row in runs.lines(out)] == list(range(1, 10))
    for ours, theirs in zip(runs.lines(out), runs.lines(whole), strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], abs=2e-5)


def test_first_loss_is_equal_on_any_number_of_processes(tiny_data: Path, tmp_path: Path) -> None:
    settings = ("train.batch=12", "train.duration={steps: 1}", "train.precision=fp64", "optim.warmup={steps: 0}")
    first = {}
    for world, micro in [(1, 12), (1, 4), (2, 6), (3, 2)]:
        out = tmp_path / f"world-{world}-{micro}"
        jobs = worker.ranks(Job(tiny_data, out, (*settings, f"train.micro_batch={micro}")), world)
        assert set(worker.run_group(jobs)) == {0}
        first[world, micro] = runs.lines(out)[0]
    losses = [row["loss"] for row in first.values()]
    assert max(losses) - min(losses) < 1e-9, losses
    norms = [row["grad_norm"] for row in first.values()]
    assert max(norms) - min(norms) < 1e-9, norms
