"""The loss guard: outliers are skipped without a trace, on every rank alike, and resuming in its window is exact."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from jepa import checkpoint, optim
from jepa.config import GuardConfig, RunConfig
from jepa.errors import ConfigError, TrainingError
from jepa.guard import Guard
from jepa.train import train
from tests.tiny import run_config
from tests.train import runs, worker
from tests.train.test_loop import _HostReads
from tests.train.worker import Job

GATED, PLAIN = "tests.train.outside:Gated", "tests.train.outside:Mean"
GUARD = "train.guard={std: 6.0, window: 4, patience: 3}"
SETTINGS = ("train.checkpoint_every={steps: 1}", "train.keep=0", "monitor.every={steps: 0}")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Runs set their number of threads for the whole process; put it back."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def spiky(data: Path, *more: str, method: str = GATED) -> RunConfig:
    """Twelve steps of eight; the last picture but one of the eighth is a hundred times too bright."""
    return run_config(data, *SETTINGS, "method.bright=[62]", *more, method=method)


@pytest.mark.parametrize("method", [GATED, PLAIN])
def test_an_outlier_leaves_no_trace(
    method: str, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against the same run with that one update left out by hand."""
    train(spiky(tiny_data, GUARD, method=method), tmp_path / "guarded", quiet=True)
    rows = runs.lines(tmp_path / "guarded")
    assert [row["guarded"] for row in rows] == [0] * 7 + [1] * 5 and rows[7]["loss"] > 100 * rows[6]["loss"]
    assert [row["g"] for row in rows] == [8 * k for k in range(1, 13)], "its samples count as seen"
    before, after = (runs.tensors(tmp_path / "guarded", step) for step in (7, 8))
    runs.assert_bit_equal(before, after)  # weights, teacher, optimiser with its count of steps

    taken, whole = iter(range(12)), optim.take_step

    def left_out(optimizer: Any, *arguments: Any) -> Any:
        if next(taken) != 7:
            return whole(optimizer, *arguments)
        return False, optim.grad_norm(optimizer)

    monkeypatch.setattr(optim, "take_step", left_out)
    train(spiky(tiny_data, method=method), tmp_path / "by-hand", quiet=True)
    runs.assert_bit_equal(runs.tensors(tmp_path / "guarded", 12), runs.tensors(tmp_path / "by-hand", 12))
    plain = [{k: v for k, v in row.items() if k != "guarded"} for row in rows]
    assert plain == runs.lines(tmp_path / "by-hand")


def test_without_outliers_the_guard_changes_nothing(tiny_data: Path, tmp_path: Path) -> None:
    """The shipped method and its teacher, bit for bit; fp64 too, where rounding a verdict would show."""
    for precision in ("fp32", "fp64"):
        off, on = tmp_path / f"{precision}-off", tmp_path / f"{precision}-on"
        train(run_config(tiny_data, f"train.precision={precision}"), off, quiet=True)
        train(run_config(tiny_data, f"train.precision={precision}", "train.guard={std: 50}"), on, quiet=True)
        runs.assert_bit_equal(runs.tensors(off, 12), runs.tensors(on, 12))


def test_ranks_agree(tiny_data: Path, tmp_path: Path) -> None:
    """The outlier is in the second rank's share alone; both skip the step."""
    settings = (*SETTINGS, GUARD, "method.bright=[62]", "train.micro_batch=2")
    one, two = (Job(tiny_data, tmp_path / name, settings, GATED) for name in ("one", "two"))
    assert worker.run(one) == 0
    assert worker.run_group(worker.ranks(two, 2)) == [0, 0]
    assert [r["guarded"] for r in runs.lines(two.out)] == [r["guarded"] for r in runs.lines(one.out)]
    runs.assert_bit_equal(runs.tensors(two.out, 7), runs.tensors(two.out, 8))
    for a, b in zip(runs.lines(one.out), runs.lines(two.out), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)


@pytest.mark.parametrize("stop", [3, 6, 8, 10])
def test_killed_inside_the_window(stop: int, tiny_data: Path, tmp_path: Path) -> None:
    settings = (*SETTINGS, GUARD, "method.bright=[62, 74]", "train.log_every=5")
    whole, cut = (Job(tiny_data, tmp_path / name, settings, GATED) for name in ("whole", "cut"))
    assert worker.run(whole) == 0
    assert worker.run(Job(**{**cut.__dict__, "kill": ("mid-step", stop)})) == -9
    assert worker.run(Job(**{**cut.__dict__, "resume": True})) == 0
    assert runs.lines(cut.out) == runs.lines(whole.out) and runs.lines(whole.out)[-1]["guarded"] == 2
    runs.assert_bit_equal(runs.tensors(cut.out, 12), runs.tensors(whole.out, 12))
    states = [checkpoint.read_state(job.out / "checkpoints" / "step-12")["guard"] for job in (whole, cut)]
    assert states[0] == states[1] and states[0]["seen"] == 10


def test_too_many_in_a_row_stop_the_run(tiny_data: Path, tmp_path: Path) -> None:
    with pytest.raises(
        TrainingError, match=r"skipped 3 steps in a row before step 10.*step-9.*larger train\.guard\.std"
    ):
        train(spiky(tiny_data, GUARD, "method.bright=[62, 66, 74]"), tmp_path / "run", quiet=True)
    train(spiky(tiny_data, GUARD, "method.bright=[50, 62, 74, 82]"), tmp_path / "apart", quiet=True)
    assert runs.lines(tmp_path / "apart")[-1]["guarded"] == 4


def test_nothing_is_read_back_inside_a_step(tiny_data: Path, tmp_path: Path) -> None:
    counts = []
    for steps in (6, 12):
        quiet = (f"train.duration={{steps: {steps}}}", "train.checkpoint_every={steps: 100}", "train.log_every=100")
        with _HostReads() as reads:
            train(run_config(tiny_data, *quiet, GUARD), tmp_path / str(steps), quiet=True)
        counts.append(reads.seen)
    assert counts[0] == counts[1]


def test_a_new_phase_starts_a_new_window(tiny_data: Path, tmp_path: Path) -> None:
    """Pictures that are all brighter from a phase on are no outliers there."""
    bright = f"method.bright={list(range(64, 112))}"
    phase = "phases.bright={duration: {steps: 6}, optim: {}}"
    train(spiky(tiny_data, GUARD, bright, "train.duration={steps: 8}", phase), tmp_path / "run", quiet=True)
    assert runs.lines(tmp_path / "run")[-1]["guarded"] == 0


# --- the verdict ------------------------------------------------------------------------------------------------------


def verdicts(guard: Guard, losses: list[float]) -> list[float]:
    return [float(guard.verdict(torch.tensor(loss))) for loss in losses]


def test_the_verdict_is_mean_plus_k_standard_deviations_of_the_window() -> None:
    guard = Guard(GuardConfig(std=2.0, window=4, patience=5), torch.device("cpu"))
    assert verdicts(guard, [1.0, 9.0, 3.0, 3.0]) == [1, 1, 1, 1], "nothing is judged before the window is full"
    # mean 4, standard deviation 3: the bound is 10
    assert verdicts(guard, [10.01, 1e9, 10.0]) == [0, 0, 1]
    # 10 took the place of 1, the oldest; skipped losses took none: 10 9 3 3, mean 6.25, standard deviation 3.269
    assert verdicts(guard, [12.8, 12.7]) == [0, 1]
    assert [int(x) for x in guard.figures()] == [3, 2]


def test_a_loss_that_is_not_a_number_is_left_to_the_check_for_that() -> None:
    guard = Guard(GuardConfig(std=2.0, window=2), torch.device("cpu"))
    assert verdicts(guard, [1.0, 2.0, float("nan")]) == [1, 1, 1]


def test_a_high_share_is_reported_and_counted_over_a_resume() -> None:
    """Looked at every hundred steps, wherever the lines fall and the run was stopped."""
    guard = Guard(GuardConfig(std=3.0, window=4, patience=99), torch.device("cpu"))
    found = []
    for step in range(1, 221):
        guard.verdict(torch.tensor(100.0 if 20 <= step < 30 or step == 150 else 1.0 + step % 2))
        if step % 10 == 0:
            found.append(guard.report([float(x) for x in guard.figures()], step, None))
        if step == 77:
            guard = Guard(guard.config, torch.device("cpu"), guard.state())
    told = [(10 * (i + 1), words) for i, (_, words) in enumerate(found) if words]
    assert len(told) == 1 and told[0][0] == 100
    assert "skipped 10 of the last 100 steps (10%)" in told[0][1][0]
    assert found[-1][0] == {"guarded": 11}


@pytest.mark.parametrize("change", ["std: 0", "window: 1", "patience: 0", "std: .inf", "sdt: 3"])
def test_settings_out_of_range(change: str, tiny_data: Path) -> None:
    with pytest.raises(ConfigError, match=r"train\.guard"):
        run_config(tiny_data, f"train.guard={{{change}}}")


# --- fp16 -------------------------------------------------------------------------------------------------------------


def test_the_guard_beside_a_loss_scale() -> None:
    """A guarded step takes no optimiser step, but its overflow still lowers the scale."""
    for gradient, scale in ((1.0, 8.0), (float("inf"), 4.0)):
        model = torch.nn.Linear(2, 2)
        optimizer = optim.build_optimizer(model, RunConfig().optim)
        scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
        before = model.weight.detach().clone()
        for keep in (0.0, 1.0):
            factor = scaler.scale(torch.ones(())).item()
            for parameter in model.parameters():
                parameter.grad = torch.full_like(parameter, gradient * factor if not keep else factor)
            taken, _ = optim.take_step(optimizer, scaler, keep=torch.tensor(keep))
            assert taken == bool(keep) and torch.equal(model.weight, before) != taken
            assert scaler.get_scale() == scale


def test_an_optimiser_without_the_switch_is_guarded_too() -> None:
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, fused=False)
    before = model.weight.detach().clone()
    for keep in (0.0, 1.0):
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        assert optim.take_step(optimizer, keep=torch.tensor(keep))[0] == bool(keep)
        assert torch.equal(model.weight, before) == (keep == 0.0)
