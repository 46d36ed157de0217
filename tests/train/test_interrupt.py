"""When ranks agree to stop, and what a run writes down about its starts."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
import torch

from jepa import checkpoint, restarts, watchdog
from jepa.interrupt import Agreement, Interrupts
from tests.train import runs, worker
from tests.train.worker import Job


class Ranks:
    """What accelerate says on one of so many ranks; a sum over them is given by the test."""

    device = torch.device("cpu")

    def __init__(self, count: int, main: bool = True) -> None:
        self.num_processes, self.is_main_process = count, main


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR2])
def test_a_signal_to_one_rank_stops_both_between_distant_lines(number: int, tiny_data: Path, tmp_path: Path) -> None:
    """With a line every 4000 steps ranks still agree within 100, at the same step."""
    out = tmp_path / "run"
    settings = ("train.duration={steps: 8000}", "train.log_every=4000", "train.checkpoint_every={steps: 8000}")
    children = [worker.start(job) for job in worker.ranks(Job(tiny_data, out, settings, trace=False), 2)]
    deadline = time.monotonic() + worker.LIMIT
    while (watchdog.steps_done(out) or 0) < 20:
        assert time.monotonic() < deadline, "the run did not get going"
        time.sleep(0.02)
    assert children[1].pid is not None
    os.kill(children[1].pid, number)
    at = watchdog.steps_done(out) or 0
    assert [worker.finish(child) for child in children] == [0, 0]
    assert 0 < checkpoint.steps(out)[-1] <= at + 150


def test_the_next_exchange_follows_from_the_clock_of_rank_0() -> None:
    with Interrupts() as interrupts:
        main, other = (Agreement(interrupts, Ranks(4, main), 10) for main in (True, False))
        assert other.given(10)[2] == 0.0 < main.given(10)[2]
        for seconds, steps in ((0.001, 100), (0.5, 10), (2.0, 2), (60.0, 1)):
            for each in (main, other):
                assert not each.settle(20, 0.0, 0.0, seconds / 4)
                assert not any(each.after(20 + k) for k in range(1, steps))
                assert each._next == 20 + steps
        assert other.settle(40, 0.25, 0.25, 0.0) and other.again


def test_sigusr2_means_again_also_when_sigterm_follows() -> None:
    with Interrupts() as interrupts:
        os.kill(os.getpid(), signal.SIGUSR2)
        os.kill(os.getpid(), signal.SIGTERM)
        one = Agreement(interrupts, Ranks(1), 0)
        assert one.after(1) and one.again
    with Interrupts() as interrupts:
        os.kill(os.getpid(), signal.SIGTERM)
        one = Agreement(interrupts, Ranks(1), 0)
        assert one.after(1) and not one.again


def test_starts_are_written_down_without_slurm_too(tiny_data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert worker.run(Job(tiny_data, out, kill=("before-step", 8))) == -signal.SIGKILL
    assert worker.run(Job(tiny_data, out, resume=True)) == 0
    assert worker.run(Job(tiny_data, out, resume=True)) == 0  # finished: no start
    rows = [(row["attempt"], row["reason"], row["step"], row["lost"], row["world"]) for row in restarts.read(out)]
    assert rows == [(1, "start", 0, 0, 1), (2, "manual", 5, 3, 1)]
    assert restarts.tally(out).row() == {"restarts": 1, "lost_steps": 3}
    assert [row["step"] for row in runs.lines(out, "restarts")] == list(range(6, 13))


def test_damaged_lines_of_starts_are_left_out(tmp_path: Path) -> None:
    (tmp_path / restarts.FILE).write_text('{"attempt": 1, "lost": 0}\n{"atte')
    assert len(restarts.read(tmp_path)) == 1
    assert restarts.record(tmp_path, 5, 2).restarts == 1


def test_a_watchdog_leaves_other_work_alone(tmp_path: Path) -> None:
    from jepa.progress import Clock

    with watchdog.Watchdog(tmp_path, 0, 0.2, 3) as dog:
        time.sleep(0.5)  # before the first step nothing is expected
        dog.tick(4)
        with dog.aside(Clock()):
            time.sleep(0.5)
        dog.expect_slow()
        time.sleep(0.5)
    assert watchdog.steps_done(tmp_path) == 4 == watchdog.here()
    assert not list(tmp_path.glob("hung-*"))
