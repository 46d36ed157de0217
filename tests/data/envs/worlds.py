"""Policies, states and environments that the tests name by dotted path. Imported, it registers its environments."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import gymnasium
import numpy as np


def always_right(env: Any, seed: int) -> Callable[[Any], int]:
    return lambda observation: 1


def balance(env: Any, seed: int) -> Callable[[Any], int]:
    """Pushes the cart to the side the pole falls to: episodes of hundreds of steps."""
    return lambda observation: int(observation[2] + 0.5 * observation[3] > 0)


def wrong(env: Any, seed: int) -> Callable[[Any], str]:
    return lambda observation: "left"


def cart(env: Any) -> Mapping[str, float]:
    x, _, angle, _ = env.unwrapped.state
    return {"x": float(x), "angle": float(angle), "leaning": float(angle > 0)}


def bins(env: Any) -> Mapping[str, float]:
    x, _, angle, _ = env.unwrapped.state
    return {"x_bin": float(round(x * 10)), "angle_bin": float(angle > 0), "always": 1.0, "x": float(x)}


class Light(gymnasium.Env[Any, Any]):
    """A lamp that may fail: `fault` says how."""

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012 - as Gymnasium declares it

    def __init__(self, render_mode: str | None = None, fault: str = "") -> None:
        self.render_mode, self.fault, self.step_number = render_mode, fault, 0
        self.observation_space = gymnasium.spaces.Discrete(2)
        self.action_space = gymnasium.spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[int, dict[str, Any]]:
        super().reset(seed=seed)
        self.step_number, self.level = 0, 0
        return 0, {}

    def step(self, action: Any) -> tuple[int, float, bool, bool, dict[str, Any]]:
        self.step_number += 1
        self.level = int(self.np_random.integers(256))
        if self.fault == "raises" and self.step_number == 5:
            raise RuntimeError("the bulb broke")
        if self.fault == "unlucky" and self.step_number == 5 and self.level < 128:
            raise RuntimeError("the bulb broke")
        return 0, 0.0, self.fault == "short" and self.step_number == 5, False, {}

    def render(self) -> Any:
        if self.fault == "grey":
            return np.zeros((16, 20), dtype=np.uint8)
        return np.full((16, 20, 3), 0 if self.fault == "frozen" else self.level, dtype=np.uint8)


class Dark(Light):
    metadata = {"render_modes": ["human"]}  # noqa: RUF012


gymnasium.register("tests/Light-v0", Light)
gymnasium.register("tests/Dark-v0", Dark)
