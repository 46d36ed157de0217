"""Opening a Gymnasium environment that draws itself as RGB arrays, with errors that say what to install or change.

Shapes: H W height and width of what it draws.
"""

from __future__ import annotations

import importlib
import os
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from jepa.data.envs import atari
from jepa.errors import ConfigError, DataError

Env = Any  # gymnasium.Env: Gymnasium is an extra


def register(modules: Sequence[str]) -> Any:
    """Gymnasium, after importing modules that register environments.

    Raises:
        ConfigError: it or a module is not installed.
    """
    # without a screen SDL, which pygame draws with, takes its dummy, and says nothing
    for key, value in (("SDL_VIDEODRIVER", "dummy"), ("SDL_AUDIODRIVER", "dummy"), ("PYGAME_HIDE_SUPPORT_PROMPT", "1")):
        os.environ.setdefault(key, value)
    try:
        import gymnasium
    except ImportError as error:
        raise ConfigError(f"environments need Gymnasium ({error}). Install it with: pip install 'jepa[env]'") from None
    for module in modules:
        try:
            importlib.import_module(module)
        except ImportError as error:
            hint = "pip install 'jepa[atari]'" if module == "ale_py" else f"the package that holds {module}"
            raise ConfigError(f"source.modules: {module} cannot be imported ({error}). Install {hint}") from None
    return gymnasium


def open_env(name: str, modules: Sequence[str] = (), kwargs: Mapping[str, Any] | None = None) -> Env:
    """A new environment with ``render_mode="rgb_array"``.

    Args:
        name: its registered id, e.g. "CartPole-v1", "ALE/Pong-v5" or "my_package:MyTask-v0".
        modules: imported first, because they register environments.
        kwargs: passed on to it.

    Raises:
        ConfigError: Gymnasium or a module is not installed, no such environment, options that it refuses, or it draws
            no RGB arrays.
    """
    gymnasium = register(modules)
    if "ale_py" in sys.modules:
        atari.silence()
    warnings.filterwarnings("ignore", ".*Casting input x to numpy array")  # of environments that give tensors or lists
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of unknown render modes and old versions: checked below, or the user's
            env = gymnasium.make(name, render_mode="rgb_array", disable_env_checker=True, **(kwargs or {}))
    except gymnasium.error.NamespaceNotFound as error:
        hint = " Atari: source.modules=[ale_py], and pip install 'jepa[atari]'" if name.startswith("ALE/") else ""
        raise ConfigError(
            f"source.env={name!r}: {error} Name the package that registers it in source.modules.{hint}"
        ) from None
    except gymnasium.error.UnregisteredEnv as error:
        raise ConfigError(f"source.env={name!r}: {error}") from None
    except Exception as error:  # whatever its constructor raises
        raise ConfigError(
            f"source.env={name!r} with source.kwargs={dict(kwargs or {})} cannot be made: {_said(error)}"
        ) from None
    modes = list(env.metadata.get("render_modes") or [])
    if "rgb_array" not in modes and (modes or not _draws(env)):  # some draw without saying so
        env.close()
        raise ConfigError(
            f"source.env={name!r} draws no pictures: it has the render modes {modes}, a video needs 'rgb_array'. "
            "Give an environment that has it"
        )
    return env


def picture(env: Env) -> npt.NDArray[np.uint8]:
    """What it looks like now, uint8 (H, W, 3).

    Raises:
        DataError: it draws something else.
    """
    drawn = env.render()
    if not isinstance(drawn, np.ndarray) or drawn.dtype != np.uint8 or drawn.ndim != 3 or drawn.shape[2] != 3:
        what = f"{drawn.dtype} {drawn.shape}" if isinstance(drawn, np.ndarray) else type(drawn).__name__
        raise DataError(f"render() gave {what}; a video needs uint8 pictures (H, W, 3)")
    return drawn.copy()  # some environments draw into the same array every time


def _draws(env: Env) -> bool:
    try:
        env.reset(seed=0)
        picture(env)
    except Exception:  # whatever an environment raises that cannot draw
        return False
    return True


def load(path: str, what: str) -> Callable[..., Any]:
    """A function by its dotted path, "package.module:function".

    Raises:
        ConfigError: not such a path, or nothing that can be called is there; `what` names the setting.
    """
    module, colon, name = path.partition(":")
    if not (module and colon and name):
        raise ConfigError(f"{what}: got {path!r}; give a function as package.module:function")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f"{what}={path!r} cannot be loaded: {error}. The module must be importable: put its folder in PYTHONPATH"
        ) from None
    if not callable(found):
        raise ConfigError(f"{what}={path!r} is {type(found).__name__}, not a function")
    function: Callable[..., Any] = found
    return function


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
