"""What is recorded of an environment beside its pictures: actions as rows of numbers, and values by where they are.

Shapes: A numbers of an action.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from jepa.data.arrays import ArrayConfig, dtype_of
from jepa.data.envs.open import Env, load
from jepa.errors import ConfigError, DataError

Read = Callable[[Any, Mapping[str, Any], Env], Any]  # observation, info, environment -> value


class Actions:
    """An action space: how its actions are written as rows."""

    def __init__(self, env: Env) -> None:
        """
        Raises:
            ConfigError: actions that are neither numbers in a Box nor one choice.
        """
        from gymnasium import spaces

        space = env.action_space
        self.start = 0
        if isinstance(space, spaces.Discrete):
            self.start = int(space.start)
            self.config = ArrayConfig("action", 1, "int64", discrete=int(space.n))
        elif isinstance(space, spaces.Box) and np.issubdtype(space.dtype, np.floating) and space.shape:
            self.config = ArrayConfig("action", int(np.prod(space.shape)), "float32")
        else:
            raise ConfigError(
                f"its actions are {space}; episodes are recorded with Box actions of floats, or Discrete ones. Wrap "
                "the environment (gymnasium.ActionWrapper), and register the wrapped one"
            )
        self.unbounded = isinstance(space, spaces.Box) and not bool(space.is_bounded("both"))

    def row(self, action: Any) -> npt.NDArray[Any]:
        """An action as a row (A,)."""
        if self.config.discrete:
            return np.array([int(action) - self.start], dtype=np.int64)
        return np.array(action, dtype=np.float32).reshape(-1)


def reader(name: str, where: str) -> Read:
    """Reads a value: observation, observation.KEY, info.KEY (dots go deeper), or package.module:function of env.

    Raises:
        ConfigError: anything else.
    """
    if ":" in where:
        function = load(where, f"source.arrays.{name}")
        return lambda observation, info, env: function(env)
    root, *keys = where.split(".")
    if root not in ("observation", "info") or not all(keys) or (root == "info" and not keys):
        raise ConfigError(
            f"source.arrays.{name}: got {where!r}; give observation, observation.KEY, info.KEY, or "
            "package.module:function of the environment"
        )

    def read(observation: Any, info: Mapping[str, Any], env: Env) -> Any:
        value: Any = observation if root == "observation" else info
        for key in keys:
            if not isinstance(value, Mapping) or key not in value:
                there = f"there are {', '.join(map(str, value))}" if isinstance(value, Mapping) else "it holds no names"
                raise DataError(f"array {name!r}: no {key!r} in {where.split('.')[0]}; {there}")
            value = value[key]
        return value

    return read


def row(name: str, value: Any) -> npt.NDArray[Any]:
    """A value as a row of numbers.

    Raises:
        DataError: it is none.
    """
    try:
        found = np.array(value)  # a copy: some environments write into the same array every time
        dtype_of(found, name)
    except (TypeError, ValueError, RuntimeError):
        raise DataError(f"array {name!r} is {type(value).__name__}, not numbers") from None
    if found.dtype == np.float16:
        found = found.astype(np.float32)
    return found.reshape(-1)


__all__ = ["Actions", "Read", "reader", "row"]
