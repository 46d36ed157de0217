"""Whether an environment opens, resets and draws at all, tried before anything relies on it.

One that draws with MuJoCo may hang inside C code, where it finds no way to draw without a screen. Nothing in the
process that it hangs in can interrupt that, so it is tried in a process of its own that may be stopped: seconds, of
which most go into importing its package anew. Any other is tried here, with an alarm that interrupts Python.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from jepa.data.envs.open import open_env, register
from jepa.errors import ConfigError

_MUJOCO = ("mujoco", "mujoco_py", "dm_control")  # packages of those that may hang in C

# What it raises does not matter here: whoever opens it afterwards says so, with the place.
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


class _TooLong(BaseException):
    """The alarm. Not an Exception, so that no environment takes it for one of its own."""


def first_reset(name: str, modules: Sequence[str], kwargs: Mapping[str, Any], deadline: float | None) -> None:
    """Open an environment, reset it and draw it, once for each in a process; None tries nothing.

    Raises:
        ConfigError: it takes longer than `deadline` seconds, or one with MuJoCo takes its process with it.
    """
    if deadline is None:
        return
    given = {"path": sys.path, "modules": list(modules), "name": name, "kwargs": dict(kwargs)}
    if with_mujoco(name, modules):
        _try_apart(name, json.dumps(given, default=str), deadline)
    elif threading.current_thread() is threading.main_thread() and hasattr(signal, "setitimer"):
        _try_here(name, json.dumps(given, default=str), deadline)


def with_mujoco(name: str, modules: Sequence[str]) -> bool:
    """Whether MuJoCo is loaded, by whatever, once the module that has the environment's class is imported."""
    with contextlib.suppress(Exception):  # an environment that is not there: whoever opens it says so
        gymnasium = register(modules)
        package, colon, own = name.rpartition(":")
        if colon:
            importlib.import_module(package)
        entry = gymnasium.spec(own).entry_point
        if isinstance(entry, str):
            importlib.import_module(entry.partition(":")[0])
    return any(package in sys.modules for package in _MUJOCO)


@cache
def _try_here(name: str, given: str, deadline: float) -> None:
    wanted = json.loads(given)

    def ring(number: int, frame: object) -> None:
        raise _TooLong

    before = signal.signal(signal.SIGALRM, ring)
    due, interval = signal.setitimer(signal.ITIMER_REAL, deadline)  # of an alarm that somebody else has set
    begun = time.monotonic()
    try:
        with contextlib.suppress(Exception):
            env = open_env(name, wanted["modules"], wanted["kwargs"])
            env.reset(seed=0)
            env.render()
            env.close()
    except _TooLong:
        raise ConfigError(
            f"environment {name!r} was not opened, reset and drawn within deadline={deadline:g} s: it hangs, or is "
            "slow. For one that is slow give a longer deadline"
        ) from None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        if due:
            signal.setitimer(signal.ITIMER_REAL, max(due - (time.monotonic() - begun), 0.001), interval)


@cache
def _try_apart(name: str, given: str, deadline: float) -> None:
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


__all__ = ["first_reset", "with_mujoco"]
