"""Actions of a model and of the environment."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
import torch

from jepa.errors import ConfigError
from jepa.plan import ActionSpace
from tests.plan.worlds import compass, point


def test_units_are_those_of_the_data() -> None:
    model = point(stride=2)
    model.action_scale.fit(torch.tensor([0.5, 0.0, 0.5, 9.0]), torch.tensor([2.0, 1.0, 2.0, 1.0]))
    space = ActionSpace.of(gym.spaces.Box(-1.0, 1.0, (2,)), 2, model)
    torch.testing.assert_close(space.outward(torch.zeros(4)), torch.tensor([0.5, 0.0, 0.5, 1.0]))  # never outside
    torch.testing.assert_close(space.outward(torch.full((4,), 0.25)), torch.tensor([1.0, 0.25, 1.0, 1.0]))
    torch.testing.assert_close(space.inward(torch.tensor([0.5, 0.5, 1.5, 1.0])), torch.tensor([0.0, 0.5, 0.5, 0.0]))
    bare = ActionSpace.of(gym.spaces.Box(np.array([-1.0, 0.0], np.float32), np.array([1.0, 4.0], np.float32)))
    torch.testing.assert_close(bare.outward(torch.tensor([0.5, 0.5])), torch.tensor([0.5, 3.0]))


def test_split_and_join() -> None:
    space = ActionSpace.box([-1, -1], [1, 1], stride=3)
    actions = torch.arange(12.0).reshape(1, 2, 6) / 12
    steps = space.split(actions)
    torch.testing.assert_close(steps[0, :, 0], torch.arange(0, 12, 2) / 12)
    torch.testing.assert_close(space.join(steps), actions)
    assert space.split(actions + 5).max() == 1
    picks = torch.tensor([[0, 3, 1, 2]])
    choices = ActionSpace.choices(4, stride=2)
    assert choices.join(picks).shape == (1, 2, 8) and torch.equal(choices.split(choices.join(picks)), picks)


def test_unbounded_actions_need_statistics() -> None:
    free = gym.spaces.Box(-np.inf, np.inf, (2,))
    with pytest.raises(ConfigError, match=r"unbounded.*give mean and std"):
        ActionSpace.of(free)
    space = ActionSpace.of(free, 1, point())
    assert torch.equal(space.outward(torch.full((2,), 50.0)), torch.full((2,), 50.0))


def test_what_is_refused() -> None:
    with pytest.raises(ConfigError, match="low < high"):
        ActionSpace.box([0, 1], [1, 1])
    with pytest.raises(ConfigError, match="Box and Discrete"):
        ActionSpace.of(gym.spaces.MultiBinary(3))
    with pytest.raises(ConfigError, match="give one from 0"):
        ActionSpace.of(gym.spaces.Discrete(3, start=1))
    with pytest.raises(ConfigError, match=r"5 numbers .*one-hot of 5.*trained on 2 \(continuous\)"):
        ActionSpace.of(gym.spaces.Discrete(5), 1, point())
    with pytest.raises(ConfigError, match="trained on 10"):
        ActionSpace.of(gym.spaces.Discrete(5), 1, compass(stride=2))
    with pytest.raises(ConfigError, match="trained on 2"):
        ActionSpace.of(gym.spaces.Box(-1, 1, (3,)), 1, point())
