"""Environments behind the words of a suite: calls, reading, clipping, failing."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from jepa.errors import ConfigError, DataError
from jepa.plan.envs import Arena, CallConfig, EnvConfig, make_expert
from tests.plan.stages import Line


class Quiet(Line):
    """Draws, and does not say that it can."""

    metadata = {"render_modes": []}  # noqa: RUF012

    def __init__(self, **more: Any) -> None:
        super().__init__(**more)
        self.inner = SimpleNamespace(place=SimpleNamespace(put=self.put))


class Blank(gym.Env[np.ndarray, Any]):
    """Cannot draw."""

    action_space = gym.spaces.Box(-1, 1, (2,))

    def __init__(self, render_mode: str | None = None) -> None:
        self.render_mode = render_mode


class Player:
    """As stable-worldmodel's policies are."""

    def set_env(self, env: Any) -> None:
        self.env = env

    def get_action(self, info: dict[str, Any]) -> Any:
        return np.clip((info["goal_state"] - info["observation"]) / 4, -1, 1)


for name, entry in (("Quiet", Quiet), ("Blank", Blank)):
    if f"tests/{name}-v0" not in gym.registry:
        gym.register(f"tests/{name}-v0", entry_point=entry)


def arena(env: str = "tests/Line-v0", **more: Any) -> Arena:
    made = Arena(EnvConfig(env, **{"start": [CallConfig("put", {"state": "state"})], **more}))
    made.reset(0)
    return made


def test_an_environment_that_draws_without_saying_so() -> None:
    assert arena("tests/Quiet-v0").draw().shape == (64, 64, 3)
    with pytest.raises(ConfigError, match=r"environment.env='tests/Blank-v0' draws no pictures.*jepa\[env\]"):
        arena("tests/Blank-v0")


def test_calls_attributes_and_parts_of_arrays() -> None:
    stage = arena("tests/Quiet-v0")
    calls = [CallConfig("inner.place.put", {"state": "qpos[1:3]"}), CallConfig(attribute="goal", value="qpos[:2]")]
    stage.apply(calls, {"qpos": np.array([7.0, 30.0, 31.0])})
    assert stage.env.unwrapped.place.tolist() == [30, 31] and stage.env.unwrapped.goal.tolist() == [7, 30]
    stage.apply([CallConfig(attribute="goal", value=[1, 2])], {})
    assert stage.env.unwrapped.goal == [1, 2]
    for call, said in (
        (CallConfig("put", {"state": "speed"}), "no array 'speed'; there are: qpos"),
        (CallConfig("jump"), "failed at jump with no array: AttributeError"),
        (CallConfig("put", {"where": "qpos"}), "failed at put with qpos: TypeError"),
    ):
        with pytest.raises(DataError, match=said):
            stage.apply([call], {"qpos": np.zeros(3)})
    with pytest.raises(ConfigError, match="'a b' names no array"):
        CallConfig("put", {"state": "a b"}).arrays  # noqa: B018


def test_steps_are_clipped_and_judged() -> None:
    stage = arena(success="info.won", distance="info.away")
    stage.apply(stage.config.start, {"state": np.array([30.0, 32.0])})
    first = stage.step(np.array([50.0, 0.0]))  # 4 pixels, not 200
    assert (first.success, first.ended, first.distance) == (False, False, 6.0)
    assert stage.step(np.array([1.0, 0.0])).success
    with pytest.raises(DataError, match="is not finite"):
        stage.step(np.array([np.nan, 0.0]))
    assert arena(distance="-reward").step(np.zeros(2)).distance > 10  # type: ignore[operator]
    with pytest.raises(DataError, match="info.spin|no 'spin' in info"):
        arena(distance="info.spin").step(np.zeros(2))
    with pytest.raises(ConfigError, match="got 'spin'; give observation"):
        arena(distance="spin")


def test_experts_of_both_kinds() -> None:
    stage = arena()
    for path in ("tests.plan.stages:runner", "tests.plan.test_envs:Player"):
        stage.reset(0)
        act = make_expert(path, stage, 0)
        assert any(stage.step(act(stage)).success for _ in range(8)), path


def test_frames_are_resized_as_recipes_do() -> None:
    from jepa.data.sources.rollouts import _sized

    stage = arena()
    whole = stage.draw()
    stage.size = (24, 20)
    np.testing.assert_array_equal(stage.draw(), _sized(whole, (24, 20)))


def test_what_cannot_be_opened() -> None:
    with pytest.raises(ConfigError, match="env is empty"):
        EnvConfig()
    with pytest.raises(ConfigError, match=r"environment.modules: no_such.* cannot be imported.*jepa\[envs\]"):
        arena(modules=("no_such",), extra="envs")
