"""Who acts in an environment: chance, chance that holds on to an action, or a function of the user's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jepa import keyed
from jepa.data.envs.open import Env, load

Act = Callable[[Any], Any]  # observation -> action


def make(name: str, env: Env, seed: int, hold: float) -> Act:
    """The policy of one episode.

    Args:
        name: "random" (every action by chance), "repeat" (the last action stays with probability `hold`), or
            "package.module:function": called once for an episode with (env, seed), it returns a function that takes
            an observation and gives an action.
        env: already reset; its action space is seeded here.
        seed: the episode's.

    Raises:
        ConfigError: no such function.
    """
    env.action_space.seed(seed)
    if name == "random":
        return lambda observation: env.action_space.sample()
    if name == "repeat":
        return _repeat(env, seed, hold)
    act: Act = load(name, "source.policy")(env, seed)
    return act


def _repeat(env: Env, seed: int, hold: float) -> Act:
    chance = keyed.generator("policy.repeat", seed)
    last: list[Any] = []

    def act(observation: Any) -> Any:
        if not last or chance.random() >= hold:
            last[:] = [env.action_space.sample()]
        return last[0]

    return act
