"""Policies, states and environments that the tests name by dotted path. Imported, it registers its environments."""

from __future__ import annotations

import os
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
        while self.fault == "sleeps" and self.step_number == 5 and self.level < 64:
            pass
        if self.fault == "unlucky" and self.step_number == 5 and self.level < 128:
            raise RuntimeError("the bulb broke")
        return 0, 0.0, self.fault == "short" and self.step_number == 5, False, {}

    def render(self) -> Any:
        if self.fault == "grey":
            return np.zeros((16, 20), dtype=np.uint8)
        return np.full((16, 20, 3), 0 if self.fault == "frozen" else self.level, dtype=np.uint8)


class Stuck(Light):
    """Never comes back from its first reset, or takes its process with it."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[int, dict[str, Any]]:
        while self.fault != "crashes":
            pass
        os.abort()


class Dark(Light):
    metadata = {"render_modes": ["human"]}  # noqa: RUF012


gymnasium.register("tests/Light-v0", Light)
gymnasium.register("tests/Dark-v0", Dark)
gymnasium.register("tests/Stuck-v0", Stuck)
gymnasium.register("tests/StuckInC-v0", "tests.data.envs.stuck_in_c:StuckInC")


class Walk(gymnasium.Env[Any, Any]):
    """A bright square that a Box action moves over a dark floor of 32 x 32; `fault` says what goes wrong, in step 5."""

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012

    def __init__(self, render_mode: str | None = None, fault: str = "", actions: str = "box", least: int = 0) -> None:
        self.render_mode, self.fault, self.least = render_mode, fault, least
        self.observation_space = gymnasium.spaces.Box(0, 32, (2,))
        high = np.inf if actions == "unbounded" else 4.0
        self.action_space: Any = gymnasium.spaces.Box(-high, high, (2,))
        if actions == "discrete":
            self.action_space = gymnasium.spaces.Discrete(4, start=1)
        elif actions == "dict":
            self.action_space = gymnasium.spaces.Dict({"arm": self.action_space})

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.at = self.np_random.uniform(8, 24, 2)
        self.end = int(self.np_random.integers(20, 40))
        self.bad = seed != 0 and bool(self.np_random.integers(2))  # the look at the environment takes seed 0
        self.number = 0
        return self.at.astype(np.float32), self.info()

    def info(self) -> dict[str, Any]:
        return {"place": {"xy": self.at.copy()}, "step": self.number}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.number += 1
        if self.number == 5 and self.bad:
            if self.fault == "raises":
                raise RuntimeError("the floor broke")
            if self.fault == "hangs":
                while True:
                    pass
            if self.fault == "crashes":
                os._exit(3)
            if self.fault == "space":
                self.observation_space = gymnasium.spaces.Box(0, 32, (3,))
        steps = {1: (1, 0), 2: (-1, 0), 3: (0, 1), 4: (0, -1)}
        move = np.array(steps[int(action)]) if np.ndim(action) == 0 else np.clip(action, -4, 4)
        self.at = np.clip(self.at + move, 3, 28)
        observation = self.at.astype(np.float32)
        if self.fault == "shape" and self.number == 5 and self.bad:
            observation = observation[:1]
        return observation, float(self.number), self.number == self.end, False, self.info()

    def render(self) -> Any:
        picture = np.zeros((32, 32, 3), dtype=np.uint8)
        x, y = np.nan_to_num(np.round(self.at), nan=8).astype(int)
        picture[y - 2 : y + 3, x - 2 : x + 3] = 255
        return picture


gymnasium.register("tests/Walk-v0", Walk)


def informed(env: Any, seed: int, speed: float = 1.0) -> Callable[[Any, Mapping[str, Any]], Any]:
    """Walks right at `speed`, as long as the observation and info agree on where it is."""

    def act(observation: Any, info: Mapping[str, Any]) -> Any:
        assert np.allclose(observation, info["place"]["xy"])
        return np.array([speed, 0.0], dtype=np.float32)

    return act


def sick(env: Any, seed: int) -> Callable[[Any], Any]:
    """Acts with NaN now and then."""
    moves: list[float] = []

    def act(observation: Any) -> Any:
        moves.append(float("nan") if seed % 2 and len(moves) == 3 else 1.0)
        return np.array([moves[-1], 0.0], dtype=np.float32)

    return act
