"""The suites that draw with MuJoCo, from played episodes to a table, each in a process of its own.

The environments stay as they are; few short episodes, and a model that has learned nothing.
"""

from __future__ import annotations

import ctypes.util
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

_SCRIPT = """
import sys
from typer.testing import CliRunner
from jepa.cli import app

def call(*words):
    done = CliRunner().invoke(app, words)
    if done.exit_code:
        sys.exit(f"{words}: {done.output} {done.exception!r}")

name = sys.argv[1]
call("data", "build", name, "--out", "data", "source.episodes={train: 1, val: 1, test: 1}", "source.steps=24",
     "source.size=[32,32]")
call("train", "demo-world", "--out", "run", "data.path=data", "data.image_size=32", "train.duration={steps: 1}",
     "train.batch=1", "optim.warmup={steps: 0}", "data.workers=0", "monitor.samples=2")
call("plan", "run", "--suite", name, "goals.dataset=data", "episodes=1", "budget=5", "goals.offset=10",
     "planner.solver.samples=8", "planner.solver.elites=2", "planner.solver.iterations=1", "pictures.episodes=0")
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["pointmaze", "reacher", "cube"])
def test_from_played_episodes_to_a_table(name: str, tmp_path: Path) -> None:
    for package in ("stable_worldmodel", "dm_control", "gymnasium_robotics", "ogbench"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"needs {package}")
    if ctypes.util.find_library("EGL") is None:
        pytest.skip("no EGL on this machine: apt-get install libegl1")
    done = subprocess.run(
        [sys.executable, "-c", _SCRIPT, name], cwd=tmp_path, text=True, timeout=280, capture_output=True, check=False,
        env=os.environ | {"MUJOCO_GL": "egl", "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (result,) = (tmp_path / "run" / "plans").glob("*.json")
    table = json.loads(result.read_text())
    assert {"planner", "random", "do nothing"} <= {row["policy"] for row in table["rows"]}
    # an episode starts where the recorded one was: what is drawn there is what was recorded, but for the video's coding
    assert all(e["policies"]["planner"]["start_difference"] < 0.05 for e in table["episodes"])
