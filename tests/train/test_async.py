"""Checkpoints written in the background, and which of them stay."""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from jepa import checkpoint, optim
from jepa.checkpoint import folder
from jepa.config import OptimConfig
from jepa.errors import ConfigError, TrainingError
from jepa.methods.base import Method
from jepa.train import train
from tests import disk, tiny
from tests.train import runs, worker
from tests.train.worker import Job

BACKGROUND = "train.checkpoint_async=true"


class Scores:
    """A health check whose metric is given, step by step."""

    values: tuple[float, ...] = ()

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def run(self, method: Method, step: int) -> tuple[dict[str, float], list[str]]:
        return {"health/score": self.values[step // 2]}, []


@pytest.fixture
def plain(tiny_data: Path, tmp_path: Path) -> Path:
    train(tiny.run_config(tiny_data, "train.keep=0"), tmp_path / "plain", quiet=True)
    return tmp_path / "plain"


def files(run: Path) -> dict[str, bytes]:
    """What is in all checkpoints, but for clock readings."""
    found = {}
    for path in sorted((run / "checkpoints").glob("step-*/*")):
        name = str(path.relative_to(run))
        if path.name == "state.json":
            state = {k: v for k, v in json.loads(path.read_text()).items() if k not in ("device_seconds", "joules")}
            found[name] = json.dumps(state).encode()
        elif path.suffix == ".safetensors":
            found[name] = path.read_bytes()
    return found


def test_contents_are_those_of_a_run_that_waits(plain: Path, tiny_data: Path, tmp_path: Path) -> None:
    result = train(tiny.run_config(tiny_data, "train.keep=0", BACKGROUND), tmp_path / "run", quiet=True)
    assert files(tmp_path / "run") == files(plain)
    assert result.checkpoint.name == "step-12" and checkpoint.problem(result.checkpoint) is None


def test_the_run_goes_on_while_a_checkpoint_is_written(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The write of step 5 is held up until step 10 has been asked for; what it holds is step 5 all the same."""
    train(tiny.run_config(tiny_data, "train.keep=0"), tmp_path / "plain", quiet=True)
    go_on, lines, real = threading.Event(), [], checkpoint.write

    def slow(run_dir: Path, snapshot: checkpoint.Snapshot, **options: Any) -> Path:
        if snapshot.step == 5:
            assert go_on.wait(60), "the run did not go on"
            lines.append(len(runs.lines(run_dir)))
        return real(run_dir, snapshot, **options)

    def release(self: Any, method: Method, step: int) -> tuple[dict[str, float], list[str]]:
        if step == 11:
            go_on.set()
        return {}, []

    monkeypatch.setattr(checkpoint, "write", slow)
    monkeypatch.setattr(Scores, "run", release)
    config = tiny.run_config(tiny_data, "train.keep=0", BACKGROUND, "monitor.every={steps: 1}")
    train(config, tmp_path / "run", monitor=Scores, quiet=True)
    assert lines and lines[0] >= 10, "steps 6 to 10 were done while step 5 was not on the disk"
    assert files(tmp_path / "run") == files(tmp_path / "plain")


def test_a_step_does_not_change_what_was_copied(tiny_data: Path) -> None:
    """Host memory is a copy of its own, and the same memory the next time."""
    config = tiny.run_config(tiny_data)
    method = checkpoint.create(config)
    optimizer = optim.build_optimizer(method, OptimConfig())
    memory = checkpoint.Staging()
    first = checkpoint.take(1, method, optimizer, {}, config, memory)
    before = {name: tensor.clone() for name, tensor in first.model.items()}
    held = memory.bytes
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.add_(1.0)
    assert all(torch.equal(tensor, before[name]) for name, tensor in first.model.items())
    second = checkpoint.take(2, method, optimizer, {}, config, memory)
    assert memory.bytes == held == sum(t.numel() * t.element_size() for t in first.model.values())
    assert all(second.model[name].data_ptr() == first.model[name].data_ptr() for name in first.model)


@pytest.mark.parametrize("world", [1, 2])
def test_a_full_disk_stops_all_ranks_at_the_next_step(world: int, tiny_data: Path, tmp_path: Path) -> None:
    """A real limit on file size, as in test_resume: weights fit, optimiser state does not once there is some."""
    job = Job(tiny_data, tmp_path / "run", (BACKGROUND,), file_limit=150_000, trace=False)
    codes = worker.run_group(worker.ranks(job, world)) if world > 1 else [worker.run(job)]
    assert set(codes) <= {2, -9} and 2 in codes
    message = (tmp_path / "run.error").read_text()
    assert message.startswith("TrainingError: cannot save checkpoint step-5") and "the disk is full" in message
    assert [p.name for p in (tmp_path / "run/checkpoints").iterdir()] == ["step-0"]
    assert len(runs.lines(tmp_path / "run")) < 12
    assert worker.run(Job(tiny_data, tmp_path / "run", (BACKGROUND,), resume=True, trace=False)) == 0
    assert checkpoint.steps(tmp_path / "run")[-1] == 12


@pytest.mark.parametrize("point", ["in-weights", "before-complete", "before-rename"])
def test_killed_while_writing(point: str, plain: Path, tiny_data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    job = Job(tiny_data, out, ("train.keep=0", BACKGROUND), kill=(point, 10), trace=False)
    assert worker.run(job) == -signal.SIGKILL
    assert checkpoint.steps(out) == [0, 5]
    assert checkpoint.problem(checkpoint.latest(out)) is None
    assert worker.run(Job(tiny_data, out, ("train.keep=0", BACKGROUND), resume=True, trace=False)) == 0
    runs.assert_bit_equal(runs.tensors(out, 12), runs.tensors(plain, 12))


def test_a_signal_waits_for_the_write(tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(self: Any, method: Method, step: int) -> tuple[dict[str, float], list[str]]:
        if step == 6:
            os.kill(os.getpid(), signal.SIGTERM)
        return {}, []

    monkeypatch.setattr(Scores, "run", run)
    config = tiny.run_config(tiny_data, BACKGROUND, "monitor.every={steps: 2}")
    result = train(config, tmp_path / "run", monitor=Scores, quiet=True)
    assert result.stopped and checkpoint.problem(result.checkpoint) is None
    assert not list((tmp_path / "run/checkpoints").glob(".*"))


# --- which of them stay -----------------------------------------------------------------------------------------------


def kept(run: Path) -> list[int]:
    return folder.steps(run)


@pytest.mark.parametrize(("mode", "best"), [("max", 4), ("min", 8)])
@pytest.mark.parametrize("background", ["true", "false"])
def test_the_best_one_stays(
    mode: str, best: int, background: str, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scores at steps 0, 2, .. 12; checkpoints are due at 5 and 10."""
    monkeypatch.setattr(Scores, "values", (0.1, 0.3, 0.9, float("nan"), 0.0, 0.9, 0.5))
    settings = ("train.keep=1", "train.keep_best=health/score", f"train.keep_best_mode={mode}", "monitor.every.steps=2")
    config = tiny.run_config(tiny_data, *settings, f"train.checkpoint_async={background}")
    out = tmp_path / "run"
    train(config, out, monitor=Scores, quiet=True)
    assert kept(out) == [best, 12]
    state = checkpoint.read_state(out / "checkpoints/step-12")
    assert state["best"] == {"metric": "health/score", "value": {"max": 0.9, "min": 0.0}[mode], "step": best}


def test_resume_keeps_the_best_exactly(tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Scores, "values", (0.1, 0.3, 0.9, 0.2, 0.4, 0.8, 0.5))
    settings = ("train.keep=1", "train.keep_best=health/score", "monitor.every={steps: 2}")
    out = tmp_path / "run"
    train(tiny.run_config(tiny_data, *settings, "train.keep=0"), out, monitor=Scores, quiet=True)
    assert {4, 10, 12} <= set(kept(out))
    shutil.rmtree(out / "checkpoints/step-12")  # as if it had been killed after step 10
    train(tiny.run_config(tiny_data, *settings), out, monitor=Scores, resume=True, quiet=True)
    assert kept(out) == [4, 12]
    assert checkpoint.read_state(out / "checkpoints/step-12")["best"]["step"] == 4


def test_a_metric_that_is_not_measured(tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Scores, "values", (0.1,) * 7)
    config = tiny.run_config(tiny_data, "train.keep_best=knn")
    with pytest.raises(ConfigError, match=r"keep_best=knn: .* does not measure health/target/knn_top1.*health/score"):
        train(config, tmp_path / "run", monitor=Scores, quiet=True)
    with pytest.raises(ConfigError, match=r"keep_best=knn needs health checks: set monitor\.every"):
        train(tiny.run_config(tiny_data, "train.keep_best=knn", "monitor.every={steps: 0}"), tmp_path / "b", quiet=True)


def test_a_full_file_system(tiny_data: Path, tmp_path: Path) -> None:
    with disk.small(tmp_path / "small", "400k") as small:
        disk.needed(small)
        with pytest.raises(TrainingError, match=r"step-5.*the disk is full.*complete checkpoints: step-0"):
            train(tiny.run_config(tiny_data, BACKGROUND), small / "run", quiet=True)
        assert [p.name for p in (small / "run" / "checkpoints").iterdir()] == ["step-0"]
