"""Environments that hang or crash when they are opened: told in words, by whoever opens them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest

from jepa.data.envs.guard import _SCRIPT, first_reset
from jepa.data.sources import gymnasium, rollouts
from jepa.errors import ConfigError
from jepa.plan.envs import Arena, EnvConfig

STUCK: dict[str, Any] = {"env": "tests/Stuck-v0", "modules": ("tests.data.envs.worlds",), "deadline": 0.5}
WAYS: dict[str, Callable[[], Any]] = {
    "gymnasium": lambda: gymnasium.open_source(gymnasium.Config(**STUCK)),
    "rollouts": lambda: rollouts.open_source(rollouts.Config(**STUCK)),
    "plan": lambda: Arena(EnvConfig(**STUCK)),
}
IN_C = ("tests/StuckInC-v0", ["tests.data.envs.worlds"])


@pytest.mark.parametrize("way", WAYS)
def test_one_that_hangs_is_stopped(way: str) -> None:
    with pytest.raises(ConfigError, match=r"'tests/Stuck-v0' was not opened.*within deadline=0.5 s"):
        WAYS[way]()
    assert not 0 < signal.getitimer(signal.ITIMER_REAL)[0] < 60  # the alarm is off; the one of this test may go on


def test_another_alarm_is_kept() -> None:
    before = signal.setitimer(signal.ITIMER_REAL, 200)
    try:
        with pytest.raises(ConfigError):
            first_reset("tests/Stuck-v0", ["tests.data.envs.worlds"], {}, 0.5)
        assert 190 < signal.getitimer(signal.ITIMER_REAL)[0] < 200
    finally:
        signal.setitimer(signal.ITIMER_REAL, *before)


def test_mujoco_that_hangs_in_c_is_stopped() -> None:
    pytest.importorskip("mujoco")
    begun = time.monotonic()
    with pytest.raises(ConfigError, match=r"'tests/StuckInC-v0' was not opened.*within deadline=4 s.*MUJOCO_GL=egl"):
        first_reset(*IN_C, {}, 4.0)
    assert time.monotonic() - begun < 30


def test_mujoco_that_crashes_takes_only_its_own_process() -> None:
    pytest.importorskip("mujoco")
    with pytest.raises(ConfigError, match="crashed its process .*SIGABRT"):
        first_reset(*IN_C, {"fault": "crashes"}, 60.0)


def test_only_what_loads_mujoco_gets_a_process() -> None:
    """Asked in a fresh process: once something has loaded MuJoCo, all count as drawing with it."""
    pytest.importorskip("mujoco")
    code = """
from jepa.data.envs.guard import with_mujoco
names = "CartPole-v1", "tests/Light-v0", "tests.data.envs.worlds:tests/Light-v0", "tests/NoSuch-v0", "tests/StuckInC-v0"
print([with_mujoco(name, ["tests.data.envs.worlds"]) for name in names])
"""
    done = subprocess.run([sys.executable, "-c", code], text=True, timeout=100, capture_output=True, check=True)
    assert done.stdout.strip() == "[False, False, False, False, True]"


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
