"""Who acts in an environment: chance, chance that holds on to an action, or a function of the user's."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from jepa import keyed
from jepa.data.envs.open import Env, load
from jepa.errors import ConfigError

Act = Callable[[Any], Any]  # observation -> action
ActInformed = Callable[[Any, Mapping[str, Any]], Any]  # observation and info -> action


def make(name: str, env: Env, seed: int, hold: float, options: Mapping[str, Any] | None = None) -> Act:
    """The policy of one episode.

    Args:
        name: "random" (every action by chance), "repeat" (the last action stays with probability `hold`), or
            "package.module:function": called once for an episode with (env, seed), it returns a function that takes
            an observation and gives an action.
        env: already reset; its action space is seeded here.
        seed: the episode's.
        options: further keyword arguments of that function.

    Raises:
        ConfigError: no such function, or options that it does not take.
    """
    env.action_space.seed(seed)
    if name == "random":
        return lambda observation: env.action_space.sample()
    if name == "repeat":
        return _repeat(env, seed, hold)
    act: Act = _made(name, env, seed, options)
    return act


def informed(act: Callable[..., Any]) -> ActInformed:
    """A policy that is given observation and info: one that takes a single argument gets the observation."""
    try:
        inspect.signature(act).bind(None, None)
    except TypeError:
        return lambda observation, info: act(observation)
    except ValueError:  # a function without a signature, made in C
        return lambda observation, info: act(observation)
    return act


def _made(name: str, env: Env, seed: int, options: Mapping[str, Any] | None) -> Any:
    function = load(name, "source.policy")
    try:
        inspect.signature(function).bind(env, seed, **(options or {}))
    except TypeError as error:
        raise ConfigError(
            f"source.policy={name!r} is called with (env, seed) and source.options={dict(options or {})}: {error}"
        ) from None
    except ValueError:
        pass
    return function(env, seed, **(options or {}))


def _repeat(env: Env, seed: int, hold: float) -> Act:
    chance = keyed.generator("policy.repeat", seed)
    last: list[Any] = []

    def act(observation: Any) -> Any:
        if not last or chance.random() >= hold:
            last[:] = [env.action_space.sample()]
        return last[0]

    return act
