"""The maze seen from above: the ball is always in sight, and nothing else tells one episode from another."""

from __future__ import annotations

import ctypes.util
import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest

# found, not imported: where MuJoCo is loaded every environment is tried in a process of its own first, in all tests
if importlib.util.find_spec("gymnasium_robotics") is None:
    pytest.skip("needs gymnasium_robotics", allow_module_level=True)


@pytest.fixture(scope="module")
def env() -> Any:
    if ctypes.util.find_library("EGL") is None:
        pytest.skip("no EGL on this machine: apt-get install libegl1")
    patch = pytest.MonkeyPatch()
    patch.setenv("MUJOCO_GL", "egl")
    from jepa.data.envs.open import open_env

    yield open_env("jepa/PointMaze_UMaze-v0", ["jepa.data.envs.pointmaze"], {"width": 64, "height": 64})
    patch.undo()


def ball(frame: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Rows and columns of green pixels (n, 2)."""
    red, green, blue = np.moveaxis(frame.astype(int), -1, 0)
    return np.argwhere((green > red + 20) & (green > blue + 20))


def put(env: Any, x: float, y: float) -> np.ndarray[Any, Any]:
    env.unwrapped.point_env.set_state(np.array([x, y]), np.zeros(2))
    frame: np.ndarray[Any, Any] = env.render()
    return frame


def test_the_ball_is_in_sight_in_every_corner(env: Any) -> None:
    env.reset(seed=0)
    assert not Path(env.unwrapped.tmp_xml_file_path).exists(), "nothing is left in the temporary folder"
    for x, y in ((-1.3, -1.3), (1.3, -1.3), (1.3, 1.3), (-1.3, 1.3), (1.0, 0.0)):
        rows, columns = ball(put(env, x, y)).mean(0)
        metres = np.array([columns - 31.5, 31.5 - rows]) * 4.4 / 64
        assert np.abs(metres - [x, y]).max() < 0.15, "x to the right, y up, to scale"


def test_the_goal_is_not_drawn(env: Any) -> None:
    frames = []
    for seed in (0, 1):
        env.reset(seed=seed)
        frames.append(put(env, 1.0, 0.0))
        assert env.unwrapped.point_env.model.site_pos.any()
    assert np.array_equal(frames[0], frames[1])
