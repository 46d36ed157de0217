"""Sharded training: the same trajectory and the same checkpoints as without, in real processes over gloo."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from jepa import sharding
from jepa.errors import ConfigError
from jepa.methods import base
from jepa.monitor import Monitor
from jepa.train import train
from tests import tiny
from tests.train import runs, worker
from tests.train.test_worlds import LEWM
from tests.train.worker import Job

SHARDED = "train.sharding=fsdp"
EXACT = ("train.precision=fp64", "train.checkpoint_every={steps: 4}", "train.duration={steps: 4}", "train.keep=0")


def close(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor], relative: float = 1e-9) -> None:
    assert a.keys() == b.keys()
    for name, value in a.items():
        gap = (value.double() - b[name].double()).norm()
        # a bias before a batch norm has no gradient but rounding
        assert gap <= relative * value.double().norm() + 1e-11, f"{name}: {gap / value.double().norm():.1e}"


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


CLIPS = ("data.clip={frames: 4, stride: 1}", "data.image_size=24", "data.decoder=pyav")
WINDOWS = (
    "data.clip={frames: 4, stride: 2, short: skip}", "data.steps={action: action}", "data.image_size=16",
    "data.crop_scale=[1.0, 1.0]", "data.crop_ratio=[1.0, 1.0]", "data.decoder=pyav", "monitor.every={steps: 0}",
)  # fmt: skip
VIDEO = {"encoder": {"patch": 8, "width": 24, "depth": 2, "heads": 1}, "predictor": {"width": 24, "heads": 1}}
METHODS: dict[str, dict[str, Any]] = {
    "vjepa": VIDEO,
    "vjepa21": VIDEO,
    "lewm": LEWM | {"heads": {"ensemble": 2}},
    "rssm": {"hidden": 16},
    "dinowm": {"predictor": {"depth": 1, "width": 16, "heads": 2, "hidden": 32}},
    "ac": {"predictor": {"depth": 1, "width": 16, "heads": 2}},
}


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (i > 2)) for i, n in enumerate(METHODS)])
def test_every_method(name: str, tiny_data: Path, movies: Path, walks: Path, tmp_path: Path) -> None:
    method = {"name": name, **METHODS[name]}
    if name in ("rssm", "dinowm", "ac"):
        train(tiny.run_config(tiny_data, "train.duration={steps: 3}"), tmp_path / "encoder", quiet=True)
        method["encoder"] = {"path": str(tmp_path / "encoder")}
    data = movies if METHODS[name] is VIDEO else walks
    settings = (*EXACT, *(WINDOWS if data is walks else CLIPS), "optim.clip_norm=0.1")
    if name == "rssm":  # its distributions are in float32, whatever the rest is in
        settings = (*settings, "train.precision=fp32")
    group(Job(data, tmp_path / "ddp", settings, method=method))
    group(Job(data, tmp_path / "fsdp", (*settings, SHARDED), method=method))
    close(runs.tensors(tmp_path / "ddp", 4), runs.tensors(tmp_path / "fsdp", 4), 1e-4 if name == "rssm" else 1e-9)


def test_units() -> None:
    """Blocks of all parts, each after what is called apart from it; what is inside comes before what is around."""
    with torch.device("meta"):
        worlds = base.create({"name": "lewm", **LEWM, "space": {"action": 4}}, (4, 16, 16))
        images = base.create(tiny.VALUES["method"], (20, 20))
    names = {id(module): name for name, module in worlds.named_modules()}
    found = [names[id(unit)] for unit in sharding.units(worlds)]
    assert sorted(found) == ["encoder.vit.blocks.0", "predictor.blocks.0", "predictor.blocks.0.modulation"]
    assert found.index("predictor.blocks.0.modulation") < found.index("predictor.blocks.0")
    names = {id(module): name for name, module in images.named_modules()}
    found = [names[id(unit)] for unit in sharding.units(images)]
    assert sorted(found) == ["encoder.blocks.0", "predictor.predictor_blocks.0", "target.blocks.0"]


# --- checkpoints ------------------------------------------------------------------------------------------------------


LONGER = ("train.precision=fp64", "train.duration={steps: 6}", "train.checkpoint_every={steps: 2}")


def killed(job: Job, step: int, world: int) -> None:
    job = Job(**{**job.__dict__, "kill": ("before-step", step)})
    codes = worker.run_group(worker.ranks(job, world)) if world > 1 else [worker.run(job)]
    assert -9 in codes, codes


def test_one_run_goes_on_under_ddp_sharded_and_alone(tiny_data: Path, tmp_path: Path) -> None:
    """2 ranks DDP, 2 ranks sharded, 1 process, each killed and resumed by the next, against an undisturbed one."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert worker.run(Job(tiny_data, whole, LONGER)) == 0
    killed(Job(tiny_data, parts, LONGER), 2, world=2)
    killed(Job(tiny_data, parts, (*LONGER, SHARDED), resume=True), 4, world=2)
    assert worker.run(Job(tiny_data, parts, (*LONGER, SHARDED), resume=True)) == 0  # one process: nothing to share
    close(runs.tensors(whole, 6), runs.tensors(parts, 6))
    about = [json.loads((run / "checkpoints/step-6/checkpoint.json").read_text()) for run in (whole, parts)]
    assert about[0]["parameters"] == about[1]["parameters"] and about[0]["dtypes"] == about[1]["dtypes"]


def test_health_is_measured_on_sharded_weights(tiny_data: Path, tmp_path: Path) -> None:
    """Features, kNN, teacher distance and loss ratio on all ranks together; the best checkpoint is kept by them."""
    best = ("train.keep_best=knn", "train.keep=1")
    settings = (*EXACT, "monitor.every={steps: 2}", "train.checkpoint_async=true", *best)
    options = {"monitor": Monitor}
    assert worker.run(Job(tiny_data, tmp_path / "one", settings, options=options)) == 0
    group(Job(tiny_data, tmp_path / "fsdp", (*settings, SHARDED), options=options))
    ours, theirs = (runs.lines(tmp_path / name, "health/loss_ratio") for name in ("fsdp", "one"))
    assert len(ours) == 3 and ours[0].keys() == theirs[0].keys()
    for a, b in zip(ours, theirs, strict=True):
        assert all(value == pytest.approx(b[name], rel=1e-6, abs=1e-12) for name, value in a.items())
    kept = json.loads((tmp_path / "fsdp/checkpoints/step-4/state.json").read_text())["best"]
    assert kept["metric"] == "health/target/knn_top1"
    assert kept["value"] == max(row["health/target/knn_top1"] for row in ours)


def test_weights_that_are_not_finite_stop_all_ranks(tiny_data: Path, tmp_path: Path) -> None:
    job = Job(tiny_data, tmp_path / "run", (*EXACT, SHARDED, "optim.lr=1e308", "optim.start_lr=1e308"))
    assert set(worker.run_group(worker.ranks(job, 2))) <= {2, -9}
    assert "not finite" in (tmp_path / "run.error").read_text() or "became" in (tmp_path / "run.error").read_text()
    assert not (tmp_path / "run/checkpoints/step-4").exists()


# --- what goes with it, and what does not -----------------------------------------------------------------------------


def test_activation_checkpointing_goes_with_it(tiny_data: Path, tmp_path: Path) -> None:
    settings = (*EXACT, "train.activation_checkpointing=true")
    assert worker.run(Job(tiny_data, tmp_path / "one", EXACT)) == 0
    group(Job(tiny_data, tmp_path / "fsdp", (*settings, SHARDED)))
    close(runs.tensors(tmp_path / "one", 4), runs.tensors(tmp_path / "fsdp", 4))


def test_what_is_refused(tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny.run_config(tiny_data, SHARDED)
    with pytest.raises(ConfigError, match=r"train\.sharding=fsdp goes with .* fp16 needs a loss scale"):
        sharding.check(config, "fp16")
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ConfigError, match=r"accelerate's FSDP .* set train\.sharding=fsdp"):
        train(config, tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


def test_one_process_is_told_that_nothing_is_sharded(
    tiny_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(tiny.run_config(tiny_data, SHARDED, "train.duration={steps: 3}"), tmp_path / "run")
    assert "there is one process, so nothing is sharded" in capsys.readouterr().err
