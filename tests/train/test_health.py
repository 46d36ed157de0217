"""Alarms: what they notice, stopping, going back, and that a run killed around a roll-back goes on bit for bit."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from jepa import attempts, checkpoint, config, health, keyed
from jepa.cli import main
from jepa.config import HealthConfig
from jepa.data.order import Order
from jepa.errors import UNHEALTHY, AlarmError, ConfigError
from jepa.health import Alarms
from jepa.methods.base import Method
from jepa.monitor import Monitor
from jepa.train import train
from tests import tiny
from tests.train import runs, worker
from tests.train.worker import Job

# a learning rate thirty times too high and a teacher that is nearly the student: collapsed within a dozen steps
COLLAPSE = ("optim.lr=3e-2", "optim.start_lr=3e-2", "method.ema=[0.5, 0.5]", "train.checkpoint_every={steps: 4}")
BACK = (*COLLAPSE, "train.duration={steps: 20}", "health.collapse.act=rollback")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Runs set their number of threads for the whole process; put it back."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def told(run: Path) -> list[dict[str, Any]]:
    """Lines of alarms."""
    return runs.lines(run, "alarm")


# --- going back -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that collapses, goes back and is not interrupted."""
    out = tmp_path_factory.mktemp("back") / "whole"
    train(tiny.run_config(tiny_data, *BACK), out, monitor=Monitor, quiet=True, trace=True)
    return out


def test_a_collapse_goes_back_and_on_with_what_was_declared(whole: Path) -> None:
    (made,) = attempts.read(whole)
    assert (made.number, made.alarm, made.at, made.to, made.lr, made.teacher) == (1, "collapse", 12, 4, 0.5, 0.5)
    (back,) = told(whole)
    assert (back["step"], back["from"], back["attempt"], back["act"]) == (4, 12, 1, "rollback")
    assert "learning rate times 0.5" in back["warnings"][0]
    first = [json.loads(x) for x in (whole / attempts.ABANDONED).read_text().splitlines()]
    before, after = ({row["step"]: row for row in rows if "loss" in row} for rows in (first, runs.lines(whole)))
    assert before.keys() == set(range(5, 13)) and after.keys() == set(range(1, 21))
    for step in before:
        assert after[step]["lr"] == pytest.approx(before[step]["lr"] / 2)
        assert after[step]["momentum"] == 0.75 and before[step]["momentum"] == 0.5
    assert [json.loads(x)["reason"] for x in (whole / "restarts.jsonl").read_text().splitlines()] == [
        "start", "roll-back 1: collapse"
    ]  # fmt: skip
    assert checkpoint.read_state(whole / "checkpoints" / "step-20")["attempt"] == 1


def test_the_order_after_it_is_another_one_and_repeats_nothing(whole: Path, tiny_data: Path) -> None:
    seen = [row["index"] for row in runs.trace(whole)]
    assert sorted(seen[:64]) == sorted(seen[64:128]) == list(range(64))
    plain = Order(tiny.run_config(tiny_data).seed, np.array([16] * 4))(np.arange(64)).tolist()
    assert seen[:32] == plain[:32] and seen[32:64] != plain[32:]


def _before_settling(_: int) -> None:
    """The roll-back is written down, nothing of it is done."""
    worker._around(attempts, "settle", lambda out, g: bool(attempts.read(out)), after=False)


def _after_settling(_: int) -> None:
    """Old checkpoints are gone, the run has not gone on."""
    worker._around(attempts, "settle", lambda out, g: bool(attempts.read(out)), after=True)


def _in_attempt(step: int) -> None:
    """In the middle of a step after the roll-back."""
    from jepa import train as loop

    worker._around(loop.Run, "finish_step", lambda run: run.step == step and run.attempts.number == 1, after=False)


worker.POINTS |= {"before-settling": _before_settling, "after-settling": _after_settling, "in-attempt": _in_attempt}


def _child(point: str, step: int, data: Path, out: Path) -> None:
    """In a process of its own: train until the named point, and die there."""
    globals()[f"_{point.replace('-', '_')}"](step)
    train(tiny.run_config(data, *BACK), out, monitor=Monitor, quiet=True, trace=True)


@pytest.mark.parametrize(
    ("point", "step"), [("before-settling", 0), ("after-settling", 0), ("in-attempt", 6), ("in-attempt", 14)]
)
def test_killed_around_a_roll_back(point: str, step: int, tiny_data: Path, whole: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut"
    child = worker._SERVER.Process(target=_child, args=(point, step, tiny_data, cut))
    child.start()
    assert worker.finish(child) == -signal.SIGKILL
    train(tiny.run_config(tiny_data, *BACK), cut, monitor=Monitor, resume=True, quiet=True, trace=True)
    runs.assert_bit_equal(runs.tensors(cut, 20), runs.tensors(whole, 20))
    assert runs.lines(cut) == runs.lines(whole) and runs.trace(cut) == runs.trace(whole)
    assert runs.lines(cut, "health/target/cosine") == runs.lines(whole, "health/target/cosine")
    assert told(cut) == told(whole) and len(attempts.read(cut)) == 1
    states = [checkpoint.read_state(run / "checkpoints" / "step-20")["alarms"] for run in (cut, whole)]
    assert states[0] == states[1]


class Seeds:
    """A health check that writes down what the method's noise is keyed by."""

    found: ClassVar[list[tuple[int, int]]] = []

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def run(self, method: Method, step: int) -> tuple[dict[str, float], list[str]]:
        self.found.append((step, method.seed))
        return {}, []


def test_model_noise_is_of_the_attempt(tiny_data: Path, tmp_path: Path) -> None:
    settings = ("train.checkpoint_every={steps: 2}", "monitor.every={steps: 1}", "train.duration={steps: 3}")
    made = tiny.run_config(tiny_data, *settings)
    train(made, tmp_path / "run", quiet=True, monitor=Seeds)
    plain = config.RollbackConfig(lr=1.0, teacher=1.0)
    attempts.make(tmp_path / "run", plain, alarm="drift", text="far.", at=3, healthy=2, spent={})
    train(made, tmp_path / "run", quiet=True, resume=True, monitor=Seeds)
    assert Seeds.found == [(step, made.seed) for step in range(4)] + [(3, keyed.again(made.seed, 1))]
    (before,) = [json.loads(x) for x in (tmp_path / "run" / attempts.ABANDONED).read_text().splitlines() if "lr" in x]
    after = runs.lines(tmp_path / "run")[-1]
    assert before["step"] == after["step"] == 3 and before["lr"] == after["lr"] and before["loss"] != after["loss"]


def test_two_processes_go_back_together(tiny_data: Path, tmp_path: Path) -> None:
    job = Job(tiny_data, tmp_path / "two", BACK, options={"monitor": Monitor})
    assert worker.run_group(worker.ranks(job, 2)) == [0, 0]
    (made,) = attempts.read(job.out)
    assert made.to == 4 and len(runs.lines(job.out)) == 20
    assert [row["g"] for row in runs.trace(job.out)] == list(range(160))


def test_a_loss_that_is_not_finite_goes_back_until_it_has_been_enough(tiny_data: Path, tmp_path: Path) -> None:
    outside = {"name": "tests.train.outside:Mean", "nan_loss_at": 7}
    settings = ("train.checkpoint_every={steps: 3}", "health.divergence.act=rollback", "health.rollback.lr=0.1")
    made = tiny.run_config(tiny_data, *settings, "monitor.every={steps: 0}", method=outside)
    with pytest.raises(AlarmError, match=r"the loss became nan .* 3 roll-backs did not help, the run stops at step 8"):
        train(made, tmp_path / "run", quiet=True)
    tries = attempts.read(tmp_path / "run")
    assert [(t.number, t.at, t.to) for t in tries] == [(1, 8, 6), (2, 8, 3), (3, 8, 3)]
    assert [t.lr for t in tries] == pytest.approx([0.1, 0.01, 0.001])
    assert len({t.spent["device_seconds"] for t in tries}) == 3, "what was in vain counts"
    with pytest.raises(AlarmError):  # a resumed run does not get three more
        train(made, tmp_path / "run", resume=True, quiet=True)
    assert len(attempts.read(tmp_path / "run")) == 3


def test_the_healthy_checkpoint_is_kept(tiny_data: Path, tmp_path: Path) -> None:
    """Whatever `train.keep` says: here the newest one alone, and all looks but the first have signs."""
    settings = (*BACK, "train.keep=1", "health.collapse.looks=4", "train.checkpoint_every={steps: 1}")
    train(tiny.run_config(tiny_data, *settings), tmp_path / "run", monitor=Monitor, quiet=True)
    made = attempts.read(tmp_path / "run")
    assert made and all(a.to < a.at - 8 for a in made)


def test_a_checkpoint_damaged_after_the_roll_back_to_it(tiny_data: Path, tmp_path: Path) -> None:
    """The attempt then begins at the one before, and again is written down."""
    out = tmp_path / "run"
    rollback = config.RollbackConfig()
    train(tiny.run_config(tiny_data, "train.keep=0"), out, quiet=True)
    attempts.make(out, rollback, alarm="drift", text="far.", at=12, healthy=11, spent={})
    (out / "checkpoints" / "step-10" / "model.safetensors").write_bytes(b"damaged")
    train(tiny.run_config(tiny_data, "train.keep=0"), out, quiet=True, resume=True)
    assert [(a.number, a.to) for a in attempts.read(out)] == [(1, 10), (1, 5)]
    assert [row["attempt"] for row in runs.lines(out) if row["step"] > 5] == [1] * 7
    assert all("attempt" not in row for row in runs.lines(out) if row["step"] <= 5)


# --- stopping, warning ------------------------------------------------------------------------------------------------


def test_stopped_by_an_alarm_is_exit_code_3(
    tiny_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = tiny.run_config(tiny_data, *COLLAPSE, "train.duration={steps: 20}", "health.collapse.act=stop")
    (tmp_path / "c.yaml").write_text(config.to_yaml(made))
    assert main(["train", str(tmp_path / "c.yaml"), "--out", str(tmp_path / "run")]) == UNHEALTHY
    said = " ".join(capsys.readouterr().err.split())
    assert "health.collapse stopped the run at step 12: the target encoder is collapsing onto few directions" in said
    assert "Without a sign of it were the first 4 steps; the last checkpoint is" in said
    assert [row["act"] for row in told(tmp_path / "run")] == ["stop"]


def test_by_default_alarms_only_warn_and_change_nothing(tiny_data: Path, tmp_path: Path) -> None:
    ignore = [f"health.{name}.act=ignore" for name in (*health.LOOKS, *health.LINES)]
    for name, more in (("warn", ()), ("ignore", ignore)):
        made = tiny.run_config(tiny_data, *COLLAPSE, "train.duration={steps: 12}", *more)
        train(made, tmp_path / name, monitor=Monitor, quiet=True)
    runs.assert_bit_equal(runs.tensors(tmp_path / "warn", 12), runs.tensors(tmp_path / "ignore", 12))
    assert [row["alarm"] for row in told(tmp_path / "warn")] == ["collapse"] and not told(tmp_path / "ignore")
    looks = [runs.lines(tmp_path / name, "health/target/cosine") for name in ("warn", "ignore")]
    assert ["warnings" in row for row in looks[0]] == [False, False, False, True]
    assert not any("warnings" in row for row in looks[1])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("health.collapse.act=halt", "halt"),
        ("health.starvation.act=rollback", "rollback"),
        ("health.rollback.lr=2", r"rollback\.lr: got 2, allowed: above 0, at most 1"),
        ("health.drift.distance=-1", r"drift\.distance: got -1"),
        ("health.colapse.act=stop", "collapse"),
    ],
)
def test_settings_out_of_range(change: str, words: str, tiny_data: Path) -> None:
    with pytest.raises(ConfigError, match=words):
        tiny.run_config(tiny_data, change)


def test_an_alarm_of_the_monitor_needs_the_monitor(tiny_data: Path, tmp_path: Path) -> None:
    made = tiny.run_config(tiny_data, "health.dead.act=stop", "monitor.every={steps: 0}")
    with pytest.raises(ConfigError, match=r"health\.dead\.act=stop needs health checks: set monitor\.every"):
        train(made, tmp_path / "run", quiet=True)


# --- noticing ---------------------------------------------------------------------------------------------------------


def settings(**changes: Any) -> HealthConfig:
    return config.build(HealthConfig, changes)


def test_divergence_is_judged_by_the_median_of_lines_without_a_sign() -> None:
    alarms = Alarms(settings(divergence={"loss": 3.0, "lines": 2, "act": "stop"}))
    losses = [1.0] * 30 + [3.1, 1.0, 3.1, 50.0, 50.0, 1.0, 9.0, 9.0]
    found = [a for i, x in enumerate(losses, 1) for a in alarms.line(i, {"loss": x, "grad_norm": 1.0}, 0.0)]
    assert [(a.name, a.step, a.healthy) for a in found] == [("divergence", 34, 32), ("divergence", 38, 36)]
    assert "the loss is 50, 50.0 times its median (1)" in found[0].text
    stays = Alarms(settings())
    for step, loss in enumerate([1.0] * 20 + [50.0] * 40):
        stays.line(step, {"loss": loss, "grad_norm": 1.0}, 0.0)
    assert stays.state()["seen"]["divergence"]["row"] == 40, "losses with a sign do not move the median"
    few = Alarms(settings())
    assert not any(few.line(i, {"loss": 10.0**i, "grad_norm": 1.0}, 0.0) for i in range(1, 20)), "too few to judge by"


def test_spikes_of_the_gradient() -> None:
    alarms = Alarms(settings(divergence={"grad_norm": 10.0, "lines": 1}))
    norms = [0.5] * 25 + [float("nan"), 4.9, 5.1, float("inf")]
    found = [a.step for i, x in enumerate(norms, 1) for a in alarms.line(i, {"loss": 1.0, "grad_norm": x}, 0.0)]
    assert found == [28]


def test_starvation_dead_dimensions_and_drift() -> None:
    alarms = Alarms(settings(starvation={"wait": 0.5, "lines": 3}, dead={"share": 0.2, "looks": 1}))
    row = {"loss": 1.0, "grad_norm": 1.0}
    found = [a.step for i, w in enumerate([0.9, 0.9, 0.4, 0.6, 0.7, 0.8, 0.9], 1) for a in alarms.line(i, row, w)]
    assert found == [6]
    seen = {"health/target/dead": 0.1, "health/target/std_mean": 1.0, "health/teacher_distance": 0.1}
    assert alarms.look(0, seen) == []
    (dead,) = alarms.look(4, seen | {"health/target/dead": 0.25, "health/teacher_distance": 0.7})
    assert (dead.name, dead.act, dead.healthy) == ("dead", "warn", 0) and "25% of the target" in dead.text
    (drift,) = alarms.look(8, seen | {"health/teacher_distance": 0.7})
    assert (drift.name, drift.healthy) == ("drift", 0)
    assert alarms.look(9, {}) == []


def test_what_is_remembered_is_saved() -> None:
    one = Alarms(settings())
    for step in range(1, 26):
        one.line(step, {"loss": 1.0 + step % 3, "grad_norm": 2.0}, 0.9)
    one.look(25, {"health/target/token_effective_rank": 9.0, "health/target/std_mean": 1.0})
    saved = json.loads(json.dumps(one.state()))
    other = Alarms(settings(), saved)
    assert other.state() == one.state()
    row = {"loss": 99.0, "grad_norm": 2.0}
    assert [one.line(s, row, 0.0) for s in (26, 27)] == [other.line(s, row, 0.0) for s in (26, 27)]


# --- random numbers ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("lanes", "blocks"), [(1, 16), (3, 2), (4, 1)])
def test_an_order_that_changes_in_an_epoch(lanes: int, blocks: int) -> None:
    """What was seen stays seen once, also where the epoch is read in lanes; later epochs are new ones."""
    sizes = np.array([13, 7, 20, 1, 9, 16])
    size, cut, again = int(sizes.sum()), 25, 40
    plain = Order(5, sizes, blocks, lanes)
    once, twice = (Order(5, sizes, blocks, lanes, made) for made in ([(1, cut)], [(1, cut), (2, again)]))
    g = np.arange(3 * size)
    a, b, c = plain(g), once(g), twice(g)
    assert (a[:cut] == b[:cut]).all() and (a[cut:size] != b[cut:size]).any()
    assert (b[:again] == c[:again]).all() and (b[again:size] != c[again:size]).any()
    for order in (a, b, c):
        for epoch in range(3):
            assert sorted(order[epoch * size : (epoch + 1) * size]) == list(range(size))
    assert (a[size:] != b[size:]).any() and (b[size:] != c[size:]).any()
    later = Order(keyed.again(5, 1), sizes, blocks, lanes)
    assert (later(g[size:]) == b[size:]).all()


def test_seeds_of_attempts() -> None:
    assert keyed.again(7, 0) == 7 and len({keyed.again(7, n) for n in range(5)}) == 5


def test_a_roll_back_behind_an_earlier_one_takes_its_place() -> None:
    def to(number: int, step: int) -> attempts.Attempt:
        return attempts.Attempt(number, "drift", "", 99, step, 0.5**number, 1.0, {}, "")

    assert [a.number for a in attempts.in_force([to(1, 20), to(2, 40)]).made] == [1, 2]
    assert [a.number for a in attempts.in_force([to(1, 20), to(2, 10)]).made] == [2]
    assert attempts.in_force([]).changed({"lr": 1.0}) == {"lr": 1.0}
    assert attempts.in_force([to(1, 5), to(2, 5)]).changed({"lr": 1.0, "momentum": 0.9}) == {
        "lr": 0.25, "momentum": 0.9
    }  # fmt: skip


def test_a_line_cut_off_in_the_file(tmp_path: Path) -> None:
    (tmp_path / attempts.FILE).write_text('{"number": 1, "al')
    assert attempts.read(tmp_path) == []
    assert os.fspath(tmp_path) and attempts.resumed(tmp_path, 5).number == 0
