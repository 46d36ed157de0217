"""The terms of the objective, against numbers worked out by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from jepa.errors import ConfigError
from jepa.methods.world import State
from jepa.plan import Goal, Objective, ObjectiveConfig, Target
from tests.plan.worlds import Point, frames, point, seen

# B 1, S 1, H 2, N 2, D 2
FUTURE = State(torch.tensor([[[[[1.0, 0.0], [0.0, 1.0]], [[2.0, 0.0], [0.0, 0.0]]]]]))
GOAL = Target(torch.tensor([[[1.0, 0.0], [0.0, 3.0]]]))


def cost(target: Target = GOAL, future: State = FUTURE, model: Point | None = None, **settings: Any) -> float:
    found: Tensor = Objective(ObjectiveConfig(**settings))(model or point(), future, target)
    assert found.shape == (1, 1)
    return float(found)


def test_distances() -> None:
    assert cost() == (1 + 9) / 4
    assert cost(reduce="sum") == 10
    assert cost(distance="l1") == (1 + 3) / 4
    assert cost(tokens="pooled") == pytest.approx(((1 - 0.5) ** 2 + 1.5**2) / 2)
    # the second token is all zero at the last step: no direction, so as far as can be told at right angles
    assert cost(distance="cosine") == pytest.approx((0 + 1) / 2)
    assert cost(goal=3.0) == pytest.approx(7.5)


def test_steps() -> None:
    first, last = (0 + 4) / 4, (1 + 9) / 4
    assert cost(steps="all") == pytest.approx((first + last) / 2)
    assert cost(steps="all", growth=3.0) == pytest.approx((first + 3 * last) / 4)
    assert cost(growth=3.0) == pytest.approx(last)


def test_other_terms() -> None:
    model = point()
    place = State(torch.tensor([[[[[0.2, 0.3]], [[0.6, 0.5]]]]]), torch.tensor([[[[0.0, 0.0], [1.0, 3.0]]]]))
    goal = Target(torch.tensor([[[0.6, 0.5]]]), torch.tensor([[0.0, 1.0]]))
    assert cost(goal, place, model, proprio=2.0) == pytest.approx(2 * (1 + 4) / 2)
    assert cost(goal, place, model, uncertainty=2.0) == pytest.approx(2 * (0.3 + 0.5) / 2)
    assert cost(goal, place, model, reward=1.0, discount=0.5) == pytest.approx(-(0.2 + 0.5 * 0.6))

    class Worth(Point):
        def value(self, state: State) -> Tensor:
            return 10 * state.latents[..., 0, 0]

    assert cost(goal, place, Worth(), goal=0.0, reward=1.0, discount=0.5) == pytest.approx(-(0.5 + 0.25 * 6))


def test_goals_are_read_out_as_states_are() -> None:
    model = point()
    target = Objective().target(model, Goal(frames([[0.2, 0.4], [0.6, 0.8]])))
    torch.testing.assert_close(target.latents, torch.tensor([[[0.2, 0.4]], [[0.6, 0.8]]]))
    assert target.proprio is None
    state = model.observe(seen([[0.2, 0.4], [0.0, 0.0]]))
    costs = Objective().cost(model, state, target)
    found = costs(torch.tensor([[[[0.0, 0.0]]], [[[0.6, 0.8]]]]))
    torch.testing.assert_close(found, torch.zeros(2, 1), atol=1e-6, rtol=0)
    assert costs.calls == 1 and costs.steps == 2


def test_what_is_refused() -> None:
    with pytest.raises(ConfigError, match="nothing is left to plan for"):
        ObjectiveConfig(goal=0.0)
    with pytest.raises(ConfigError, match="growth=0"):
        ObjectiveConfig(growth=0.0)
    with pytest.raises(ConfigError, match="give a goal image"):
        Objective().target(point(), None)
    with pytest.raises(ConfigError, match="the goal has no proprioception"):
        Objective(ObjectiveConfig(proprio=1.0)).target(point(proprio=2), Goal(frames([[0.2, 0.4]])))

    class Blunt(Point):
        def reward(self, state: State) -> Tensor | None:
            return None

        def uncertainty(self, state: State) -> Tensor | None:
            return None

    with pytest.raises(ConfigError, match="predicts no reward"):
        cost(model=Blunt(), reward=1.0)
    with pytest.raises(ConfigError, match="cannot tell how unsure"):
        cost(model=Blunt(), uncertainty=1.0)
    with pytest.raises(ConfigError, match="does not predict proprioception"):
        cost(model=Blunt(), proprio=1.0)
