"""World models over a frozen encoder with heads and a straight space."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from jepa import config
from jepa.data import Batch
from jepa.errors import ConfigError
from jepa.methods import base
from jepa.methods.ac import AC
from jepa.methods.base import Output
from jepa.methods.dinowm import DinoWM
from jepa.methods.frozen import FrozenWorldModel, straight_loss
from jepa.methods.world import History
from jepa.nn.heads import Straightener
from jepa.plan.objective import Goal, Objective, ObjectiveConfig
from tests.methods import frozen_worlds as worlds
from tests.methods.frozen_worlds import FRAMES, example, make
from tests.methods.squares import batch_of, squares

HEADS: dict[str, Any] = {"reward": True, "value": True, "ensemble": 3, "width": 16}
ALL: dict[str, Any] = {"heads": HEADS, "straighten": 0.5, "projection": 6, "coarse": 2}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "ac": ("ac", {}),
    "ac, held": ("ac", {"motion": "hold"}),
    "ac, bare": ("ac", {"space": {"proprio": 0}}),
    "dinowm": ("dinowm", {}),
    "dinowm, bare": ("dinowm", {"space": {"proprio": 0}}),
    "dinowm, clips beyond its window": ("dinowm", {"history": 2}),
}
EACH = pytest.mark.parametrize("kind", KINDS)
BOTH = pytest.mark.parametrize("name", ["ac", "dinowm"])


def of(kind: str, **more: Any) -> FrozenWorldModel:
    name, settings = KINDS[kind]
    return make(name, **config.merge(settings, more))


def plans_for(model: FrozenWorldModel) -> Tensor:
    """Three plans of four steps for two states."""
    return torch.randn(2, 3, 4, model.space.action, dtype=torch.float64)


def learned(model: FrozenWorldModel, history: History) -> Output:
    """The loss of a batch whose rewards are the first number of each action."""
    steps = {"action": history.actions, "reward": history.actions[..., :1]}
    steps |= {} if history.proprio is None else {"proprio": history.proprio}
    none, g = torch.zeros(0, dtype=torch.int64), torch.arange(len(history.frames))
    batch = Batch(images=none, labels=none, g=g, index=none, steps=steps)
    output: Output = model(history.frames.transpose(1, 2), None, {}, batch=batch)
    return output


@EACH
def test_training_reaches_every_parameter(kind: str) -> None:
    model = of(kind, **ALL).train()
    assert model.needs()["reward"] == (FRAMES - 1, 1)
    output = learned(model, example(model, batch=8))
    assert {"loss_projection", "curvature", "loss_reward", "loss_value", "loss_ensemble"} <= output.metrics.keys()
    assert all(m.ndim == 0 and not m.requires_grad for m in output.metrics.values())
    output.loss.backward()
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert [n for n, p in trained.items() if p.grad is None or not p.grad.abs().sum() > 0] == []


@EACH
def test_without_them_nothing_is_there(kind: str) -> None:
    plain, more = of(kind), of(kind, **ALL)
    shared = plain.state_dict()
    extra = more.state_dict().keys() - shared.keys()
    assert extra and all(name.startswith(("heads.", "straightener.")) for name in extra)
    assert "reward" not in plain.needs()
    future = plain.imagine(plain.observe(example(plain, frames=2)), plans_for(plain))
    assert plain.reward(future) is plain.value(future) is plain.uncertainty(future) is None
    assert plain.readout(future) is future.latents


@EACH
def test_heads_tell_of_every_imagined_step(kind: str) -> None:
    model = of(kind, **ALL).eval()
    state, plans = model.observe(example(model, frames=2)), plans_for(model)
    with torch.no_grad():
        future, one = model.imagine(state, plans), model.imagine(state, plans[:, 1:2, :2])
        for tell in (model.reward, model.value, model.uncertainty):
            found, part = tell(future), tell(one)
            assert found is not None and part is not None and found.shape == (2, 3, 4)
            torch.testing.assert_close(part[:, 0], found[:, 1, :2])
            assert len(found.unique()) == found.numel()
    assert model.readout(future).shape == (2, 3, 4, 1, 6) and model.readout(state).shape == (2, 2, 1, 6)


@BOTH
def test_uncertainty_is_where_the_members_differ(name: str) -> None:
    """Each step from the state before it: the first from what was seen."""
    model = make(name, **ALL).eval()
    state = model.observe(example(model, frames=2))
    plans = plans_for(model)
    with torch.no_grad():
        future = model.imagine(state, plans)
        found = model.uncertainty(future)
        told = model.action_scale(plans)
        assert found is not None and model.heads.ensemble is not None
        before = [model.summary(state)[:, None, -1].expand(-1, 3, -1), *model.summary(future).unbind(2)]
        for step in range(4):
            want = model.heads.ensemble.disagreement(before[step], told[:, :, step])
            torch.testing.assert_close(found[:, :, step], want)


@BOTH
def test_a_straight_space_leaves_the_predictor_alone(name: str) -> None:
    grads = []
    for more in ({}, {"straighten": 3.0, "projection": 6}):
        model = make(name)
        model = model if not more else make(name, **more)
        model.load_state_dict(make(name).state_dict(), strict=False)
        output = learned(model.train(), example(model))
        output.loss.backward()
        grads.append({n: p.grad for n, p in model.predictor.named_parameters()})  # type: ignore[union-attr, operator]
    for key, gradient in grads[0].items():
        torch.testing.assert_close(gradient, grads[1][key], msg=key)


@BOTH
def test_plans_are_compared_in_the_straight_space(name: str) -> None:
    model = make(name, **ALL).eval()
    history = example(model, frames=2)
    objective = Objective(ObjectiveConfig(uncertainty=0.1, reward=0.1))
    target = objective.target(model, Goal(history.frames[:, -1]))
    assert target.latents is not None and target.latents.shape == (2, 1, 6)
    plans = plans_for(model).requires_grad_()
    cost = objective.cost(model, model.observe(history), target)(plans)
    assert cost.shape == (2, 3)
    (gradient,) = torch.autograd.grad(cost.sum(), plans)
    assert (gradient.abs().sum(-1) > 0).all()


@BOTH
def test_a_step_is_counted_on_the_meta_device(name: str) -> None:
    worlds.step_on_meta(name, **ALL)


@BOTH
@pytest.mark.parametrize(
    ("frames", "more", "words"),
    [
        (2, {"straighten": 0.1, "rollout": 0}, r"data\.clip\.frames=2.* at least 3"),
        (5, {"straighten": -1.0}, "straighten=-1: at least 0"),
        (5, {"coarse": 0}, "coarse=0"),
        (5, {"projection": 0}, "projection=0"),
        (5, {"heads": {"ensemble": 1}}, "one cannot disagree"),
    ],
)
def test_settings_that_cannot_be(name: str, frames: int, more: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        make(name, frames=frames, **more)


def rewarding(name: str) -> tuple[AC | DinoWM, Tensor, Tensor]:
    """A small world model of the squares, and its data."""
    torch.manual_seed(0)
    section = worlds.values(name, space={"action": 2, "proprio": 0}, heads={"reward": True}, rollout=0)
    encoder = config.merge(worlds.IMAGES, {"encoder": {"init": "fan_in"}})
    section["encoder"] = {"spec": {"method": encoder, "size": [16, 16]}}
    section["predictor"] |= {"ac": {"init": "fan_in"}, "dinowm": {"action": "adaln"}}[name]
    model = base.create(section, (4, 16, 16)).train()
    assert isinstance(model, AC | DinoWM)
    x, actions, _ = squares(64, 4)
    return model, x, actions


@BOTH
def test_plans_follow_what_was_learned_of_rewards(name: str) -> None:
    """Moving down pays. No goal is given: the plan that costs least is the one that moves down."""
    torch.set_num_threads(1)
    model, x, actions = rewarding(name)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    batch = batch_of(actions, reward=actions[..., :1])
    latents = model.latents(x.transpose(1, 2))
    for _ in range(60):
        optimizer.zero_grad()
        model.learn(latents, actions, None, batch).loss.backward()
        optimizer.step()
    model.eval()
    state = model.observe(History(x.transpose(1, 2)[:8, :1], actions[:8, :0]))
    plans = torch.zeros(8, 5, 2, 2)
    plans[..., 0] = torch.arange(-2.0, 3.0).view(1, 5, 1)
    with torch.no_grad():
        objective = Objective(ObjectiveConfig(goal=0.0, reward=1.0))
        costs = objective.cost(model, state, objective.target(model, None))(plans)
    assert (costs.argmin(1) >= 3).float().mean() > 0.8, costs


def test_paths_of_a_projection_become_straight() -> None:
    """Points that go around a circle: what the angle says is straight, and the place can be told from it."""
    torch.manual_seed(0)

    def paths(count: int) -> Tensor:
        start, speed = torch.rand(count, 1) * 2 - 1, torch.rand(count, 1) * 0.5 + 0.2
        angle = start + speed * torch.arange(4) * torch.where(torch.rand(count, 1) < 0.5, 1, -1)
        return torch.stack([angle.cos(), angle.sin()], -1)

    bent = {}
    for weight in (0.0, 1.0):
        straightener = Straightener(2, 64, 2)
        optimizer = torch.optim.Adam(straightener.parameters(), lr=3e-3)
        for _ in range(400):
            optimizer.zero_grad()
            straight_loss(straightener, paths(128), weight)[0].backward()
            optimizer.step()
        with torch.no_grad():
            parts = straight_loss(straightener, paths(500), weight)[1]
        assert parts["loss_projection"] < 0.02, "the place is forgotten"
        bent[weight] = parts["curvature"] / parts["curvature_of_latents"]
    assert bent[1.0] < 0.4 and bent[1.0] < 0.5 * bent[0.0], bent
