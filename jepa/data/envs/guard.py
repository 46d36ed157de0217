"""Whether an environment opens, resets and draws at all, tried in a process of its own that may be stopped.

An environment that hangs inside C code (MuJoCo, where it finds no way to draw without a screen) cannot be interrupted
by the process that it hangs in.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from jepa.errors import ConfigError

# What it raises does not matter here: whoever opens it afterwards says so, with the place. Only torch-free imports, so
# that it is quick.
_SCRIPT = """
import importlib, json, sys
given = json.loads(sys.stdin.read())
sys.path[:] = given["path"]
import gymnasium
for module in given["modules"]:
    importlib.import_module(module)
env = gymnasium.make(given["name"], render_mode="rgb_array", disable_env_checker=True, **given["kwargs"])
env.reset(seed=0)
env.render()
"""


def first_reset(name: str, modules: Sequence[str], kwargs: Mapping[str, Any], deadline: float | None) -> None:
    """Open an environment, reset it and draw it, once for each in a process; None tries nothing.

    Raises:
        ConfigError: it takes longer than `deadline` seconds, or takes its process with it.
    """
    if deadline is not None:
        given = {"path": sys.path, "modules": list(modules), "name": name, "kwargs": dict(kwargs)}
        _try(name, json.dumps(given, default=str), deadline)


@cache
def _try(name: str, given: str, deadline: float) -> None:
    try:
        done = subprocess.run(
            [sys.executable, "-c", _SCRIPT], input=given, text=True, timeout=deadline, check=False,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise ConfigError(
            f"environment {name!r} was not opened, reset and drawn within deadline={deadline:g} s: it hangs, or is "
            "slow. MuJoCo hangs where it cannot draw: without a screen set MUJOCO_GL=egl (apt-get install libegl1) or "
            "MUJOCO_GL=osmesa. For one that is slow give a longer deadline"
        ) from None
    if done.returncode < 0:
        raise ConfigError(
            f"environment {name!r} crashed its process when it was opened, reset and drawn "
            f"({signal.Signals(-done.returncode).name}). MuJoCo does so where it cannot draw: without a screen set "
            "MUJOCO_GL=egl (apt-get install libegl1) or MUJOCO_GL=osmesa"
        )


__all__ = ["first_reset"]
