"""Environments that misbehave, and a small one of choices, registered when this is imported."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces


class Line(gym.Env[np.ndarray, Any]):
    """A red dot on a line of 64 pixels, on a 64 x 64 picture; a step is up to 4 pixels."""

    last: Any = None
    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012 - as Gymnasium has it

    def __init__(
        self, render_mode: str = "rgb_array", raises_at: int | None = None, grows_at: int | None = None,
        bounded: bool = True, choices: int = 0, where: float = 20.0, height: int = 64, fragile: bool = False,
        jealous: bool = False,
    ) -> None:  # fmt: skip
        self.jealous = jealous  # draws noise once another one was drawn
        self.fragile = fragile  # raises in episodes that begin to the right of `where`
        self.render_mode, self.raises_at, self.grows_at, self.where, self.height = (
            render_mode, raises_at, grows_at, where, height,
        )  # fmt: skip
        bound = 1.0 if bounded else np.inf
        self.action_space: Any = spaces.Discrete(choices) if choices else spaces.Box(-bound, bound, (2,), np.float32)
        self.observation_space = spaces.Box(0, 64, (2,), np.float64)
        self.choices = choices
        self.goal = np.array([40.0, 32.0])

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.steps, self.place = 0, np.array([self.where + self.np_random.uniform(-4, 4), 32.0])
        self.right = self.place[0] > self.where
        return self.place.copy(), self.info()

    def info(self) -> dict[str, Any]:
        near = float(np.linalg.norm(self.place - self.goal))
        return {"state": self.place.copy(), "goal_state": self.goal.copy(), "away": near, "won": near < 3}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        if self.steps == self.raises_at or (self.fragile and self.right and self.steps == 2):
            raise RuntimeError("the motor is on fire")
        move = np.array([[0, 0], [1, 0], [-1, 0]][int(action)]) if self.choices else np.asarray(action)
        self.place = np.clip(self.place + 4 * np.clip(move, -1, 1), 0, 63)
        info = self.info()
        return self.place.copy(), -info["away"], info["won"], False, info

    def render(self) -> Any:
        first, self.drawn = not getattr(self, "drawn", False), True
        if self.jealous and not first and Line.last is not self:
            return np.random.default_rng(0).integers(0, 255, (64, 64, 3)).astype(np.uint8)
        Line.last = self
        height = self.height + (self.steps if self.grows_at is not None and self.steps >= self.grows_at else 0)
        y, x = np.mgrid[:height, :64]
        dot = np.exp(-((x - self.place[0]) ** 2 + (y - self.place[1]) ** 2) / 18)
        return (255 * (1 - dot[..., None] * np.array([0, 1, 1]))).astype(np.uint8)

    def put(self, state: Any) -> None:
        self.place = np.asarray(state, float)

    def aim(self, state: Any) -> None:
        self.goal = np.asarray(state, float)


if "tests/Line-v0" not in gym.registry:
    gym.register("tests/Line-v0", entry_point=Line)


def runner(env: Any, seed: int) -> Any:
    """Goes to the goal."""
    return lambda place: np.clip((env.unwrapped.goal - place) / 4, -1, 1)
