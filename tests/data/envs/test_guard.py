"""Environments that hang or crash when they are opened: told in words, by whoever opens them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from jepa.data.envs.guard import _SCRIPT, first_reset
from jepa.data.sources import gymnasium, rollouts
from jepa.errors import ConfigError
from jepa.plan.envs import Arena, EnvConfig

STUCK: dict[str, Any] = {"env": "tests/Stuck-v0", "modules": ("tests.data.envs.worlds",), "deadline": 4.0}
WAYS: dict[str, Callable[[], Any]] = {
    "gymnasium": lambda: gymnasium.open_source(gymnasium.Config(**STUCK)),
    "rollouts": lambda: rollouts.open_source(rollouts.Config(**STUCK)),
    "plan": lambda: Arena(EnvConfig(**STUCK)),
}


@pytest.mark.parametrize("way", WAYS)
def test_one_that_hangs_is_stopped(way: str) -> None:
    with pytest.raises(ConfigError, match=r"'tests/Stuck-v0' was not opened.*within deadline=4 s.*MUJOCO_GL=egl"):
        WAYS[way]()


def test_one_that_crashes_takes_only_its_own_process() -> None:
    with pytest.raises(ConfigError, match="crashed its process .*SIGABRT"):
        first_reset("tests/Stuck-v0", ["tests.data.envs.worlds"], {"fault": "crashes"}, 60.0)


def test_whatever_else_is_wrong_is_said_by_who_opens_it() -> None:
    first_reset("tests/NoSuch-v0", ["tests.data.envs.worlds"], {}, 60.0)
    first_reset("tests/Light-v0", ["no_such_module"], {}, 60.0)
    first_reset("tests/Stuck-v0", ["tests.data.envs.worlds"], {}, None)


def test_mujoco_draws_without_a_screen() -> None:
    """In a process of its own, as how it draws is settled when it is imported."""
    pytest.importorskip("gymnasium_robotics")
    given = {"path": sys.path, "modules": ["gymnasium_robotics"], "name": "PointMaze_UMaze-v3", "kwargs": {}}
    done = subprocess.run(
        [sys.executable, "-c", _SCRIPT], input=json.dumps(given), text=True, timeout=100, capture_output=True,
        env=os.environ | {"MUJOCO_GL": "egl"}, check=False,
    )  # fmt: skip
    if done.returncode and "egl" in done.stderr.lower():
        pytest.skip("no EGL on this machine")
    assert done.returncode == 0, done.stderr
