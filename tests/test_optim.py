"""Schedules against the official values, parameter rules, and the optimiser step."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import nn

from jepa import config, optim
from jepa.config import Duration, OptimConfig
from jepa.errors import ConfigError, TrainingError
from jepa.methods.ijepa import IJEPA
from tests import golden_set


def tiny_method() -> IJEPA:
    values = {
        "encoder": {"patch": 4, "width": 32, "depth": 2, "heads": 2},
        "predictor": {"width": 16, "depth": 2, "heads": 2},
    }
    return IJEPA(config.build(IJEPA.Config, values), (20, 20))


# --- schedules --------------------------------------------------------------------------------------------------------


@pytest.mark.golden("ijepa_train")
def test_learning_rate_and_weight_decay_are_the_official_ones() -> None:
    facts = golden_set.facts("ijepa_train")
    opt = facts["config"]["opt"]
    settings = OptimConfig(
        lr=opt["lr"],
        start_lr=opt["start_lr"],
        final_lr=opt["final_lr"],
        warmup=Duration(steps=int(opt["warmup"] * opt["ipe"])),
        weight_decay=opt["wd"],
        final_weight_decay=opt["final_wd"],
        schedule_scale=opt["ipe_scale"],
    )
    schedules = optim.Schedules(settings, batch=4, dataset_size=4 * opt["ipe"], total_steps=opt["ipe"] * opt["epochs"])
    for row in facts["steps"]:
        values = schedules.at(row["step"])
        assert values["lr"] == pytest.approx(row["lr"], rel=1e-12), row["step"]
        assert values["wd"] == pytest.approx(row["wd"], rel=1e-12), row["step"]
    assert len(facts["steps"]) == schedules.total


@pytest.mark.golden("ijepa_train")
def test_parameters_are_decayed_as_in_the_official_code() -> None:
    groups = golden_set.facts("ijepa_train")["config"]["groups"]
    official = {name: not group["WD_exclude"] for group in groups for name in group["names"]}
    for fixed in ("encoder.pos_embed", "predictor.predictor_pos_embed"):
        official.pop(fixed)  # listed there, but never trained; buffers here
    ours = {n: g["decayed"] for g in optim.param_groups(tiny_method()) for n in g["names"]}
    assert ours == official


def test_schedules_are_pure_and_stay_at_their_end() -> None:
    values = {"start": 0.1, "peak": 1.0, "final": 0.01, "warmup": 5, "total": 20}
    forward = [optim.warmup_cosine(k, **values) for k in range(40)]
    assert forward == [optim.warmup_cosine(k, **values) for k in reversed(range(40))][::-1]
    assert forward[0] == pytest.approx(0.1 + 0.9 / 5) and forward[4] == 1.0
    assert all(a > b for a, b in pairwise(forward[4:20]))
    assert all(v == pytest.approx(0.01) for v in forward[19:]), "the cosine must not rise again"
    decay = [optim.cosine(k, start=0.04, final=0.4, total=20) for k in range(30)]
    assert decay[9] == pytest.approx(0.22) and decay[19:] == [pytest.approx(0.4)] * 11


def test_no_warmup_starts_at_the_peak() -> None:
    assert optim.warmup_cosine(0, start=0.1, peak=1.0, final=0.0, warmup=0, total=4) == pytest.approx(
        0.5 * (1 + math.cos(math.pi / 4))
    )


def test_schedule_scale_stretches_the_schedule_past_the_run() -> None:
    settings = OptimConfig(warmup=Duration(epochs=1), schedule_scale=1.25)
    schedules = optim.Schedules(settings, batch=10, dataset_size=95, total_steps=100)
    assert (schedules.warmup, schedules.total) == (10, 125)
    assert schedules.at(99)["lr"] > 10 * settings.final_lr
    assert schedules.at(124)["lr"] == pytest.approx(settings.final_lr)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"warmup": Duration(steps=101)}, "101 steps but the schedule has 100"),
        ({"lr": -1.0}, "optim.lr=-1.0"),
        ({"lr": float("nan")}, "optim.lr=nan"),
        ({"betas": (0.9, 1.0)}, r"optim.betas=\(0.9, 1.0\)"),
        ({"clip_norm": 0.0}, "optim.clip_norm=0.0"),
        ({"schedule_scale": 0.5}, "optim.schedule_scale=0.5"),
    ],
)
def test_settings_out_of_range(change: dict[str, object], message: str) -> None:
    values = {"warmup": Duration(steps=1)} | change
    with pytest.raises(ConfigError, match=message):
        optim.Schedules(OptimConfig(**values), batch=1, dataset_size=100, total_steps=100)  # type: ignore[arg-type]


# --- parameter rules --------------------------------------------------------------------------------------------------


def test_every_trainable_parameter_is_in_exactly_one_group() -> None:
    method = tiny_method()
    groups = optim.param_groups(method)
    names = [n for g in groups for n in g["names"]]
    assert sorted(names) == sorted(n for n, p in method.named_parameters() if p.requires_grad)
    assert not any(n.startswith("target.") for n in names)
    for group in groups:
        assert [id(method.get_parameter(n)) for n in group["names"]] == [id(p) for p in group["params"]]
        assert all((p.ndim > 1) == group["decayed"] for p in group["params"])


def test_uncovered_and_doubly_covered_parameters_are_listed() -> None:
    model = nn.Module()
    model.weight, model.bias = nn.Parameter(torch.zeros(2, 2)), nn.Parameter(torch.zeros(2))
    model.scale, model.shift = nn.Parameter(torch.tensor(1.0)), nn.Parameter(torch.tensor(0.0))
    model.frozen = nn.Parameter(torch.tensor(0.0), requires_grad=False)
    with pytest.raises(ConfigError, match=r"no optimiser rule covers: scale \(\), shift \(\)\."):
        optim.param_groups(model)
    everything = optim.Rule("everything", lambda name, p: True, decayed=False)
    with pytest.raises(ConfigError, match=r"several rules cover: weight \(weights, everything\), bias \(biases"):
        optim.param_groups(model, (*optim.RULES, everything))
    with pytest.raises(ConfigError, match="no trainable parameter"):
        optim.param_groups(nn.LayerNorm(3, elementwise_affine=False))


def test_a_bias_table_is_not_decayed() -> None:
    model = nn.Module()
    model.relative_bias, model.biased = nn.Module(), nn.Linear(2, 2)
    model.relative_bias.table, model.bias_table = nn.Parameter(torch.zeros(3, 3)), nn.Parameter(torch.zeros(3, 3))
    decayed = {n: g["decayed"] for g in optim.param_groups(model) for n in g["names"]}
    assert decayed == {"relative_bias.table": True, "bias_table": False, "biased.weight": True, "biased.bias": False}


def test_values_reach_the_groups_they_are_for() -> None:
    optimizer = optim.build_optimizer(tiny_method(), OptimConfig(betas=(0.8, 0.95), eps=1e-6))
    optim.apply(optimizer, {"lr": 0.3, "wd": 0.2, "momentum": 0.9})
    assert [(g["lr"], g["weight_decay"]) for g in optimizer.param_groups] == [(0.3, 0.2), (0.3, 0.0)]
    assert all((g["betas"], g["eps"], g["fused"]) == ((0.8, 0.95), 1e-6, True) for g in optimizer.param_groups)


# --- the step ---------------------------------------------------------------------------------------------------------


def linear(gradient: float) -> tuple[nn.Linear, torch.optim.AdamW]:
    model = nn.Linear(2, 2)
    optimizer = optim.build_optimizer(model, OptimConfig())
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, gradient)
    return model, optimizer


def test_clipping_scales_all_gradients_together() -> None:
    model, optimizer = linear(3.0)  # six gradients of 3: norm sqrt(54)
    taken, norm = optim.take_step(optimizer, clip_norm=1.0)
    assert taken and norm is not None and norm.item() == pytest.approx(math.sqrt(54))
    assert model.weight.grad is not None and model.bias.grad is not None
    clipped = torch.cat([model.weight.grad.flatten(), model.bias.grad]).norm().item()
    assert clipped == pytest.approx(1.0, rel=1e-5)


def test_norm_only_when_it_is_needed() -> None:
    assert optim.take_step(linear(1.0)[1])[1] is None
    norm = optim.take_step(linear(1.0)[1], want_norm=True)[1]
    assert norm is not None and norm.item() == pytest.approx(math.sqrt(6))


def scaled(scaler: torch.amp.GradScaler, gradient: float) -> tuple[nn.Linear, torch.optim.AdamW]:
    """A model with scaled gradients, as backward of a scaled loss leaves them."""
    model, optimizer = linear(1.0)
    scale = scaler.scale(torch.ones(())).item()
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, gradient * scale)
    return model, optimizer


def test_fp16_overflow_skips_the_step_and_lowers_the_scale() -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    model, optimizer = scaled(scaler, math.inf)
    before = model.weight.detach().clone()
    taken, _ = optim.take_step(optimizer, scaler, clip_norm=1.0)
    assert not taken and scaler.get_scale() == 4.0
    assert torch.equal(model.weight, before)

    model, optimizer = scaled(scaler, 2.0)
    before = model.weight.detach().clone()
    taken, norm = optim.take_step(optimizer, scaler, want_norm=True)
    assert taken and scaler.get_scale() == 4.0 and not torch.equal(model.weight, before)
    assert norm is not None and norm.item() == pytest.approx(2 * math.sqrt(6)), "the norm is of unscaled gradients"


def test_fp16_that_always_overflows_stops() -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**-19)
    with pytest.raises(TrainingError, match="overflow at every step"):
        for _ in range(3):
            optim.take_step(scaled(scaler, math.nan)[1], scaler)
