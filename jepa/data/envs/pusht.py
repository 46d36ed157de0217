"""Players for stable-worldmodel's Push-T (`swm/PushT-v1`): a disc that pushes a T-shaped block."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from jepa.errors import ConfigError


def weak(env: Any, seed: int, reach: float = 100.0) -> Callable[[Any], npt.NDArray[np.float32]]:
    """stable-worldmodel's own `WeakPolicy`: random, but kept near the block, so that the block is pushed about.

    Args:
        env: `swm/PushT-v1`, reset.
        seed: the episode's.
        reach: pixels around the block, along each axis, that the disc is kept in.

    Raises:
        ConfigError: another environment, or stable-worldmodel is not installed.
    """
    try:
        from stable_worldmodel.envs.pusht import WeakPolicy
    except ImportError as error:
        raise ConfigError(f"Push-T needs stable-worldmodel ({error}): pip install 'jepa[envs]'") from None
    if env.spec is None or "swm/PushT" not in env.spec.id:
        raise ConfigError("jepa.data.envs.pusht:weak plays swm/PushT-v1 and nothing else")
    player = WeakPolicy(dist_constraint=reach, seed=seed)
    player.set_env(_Alone(env))

    def act(observation: Any) -> npt.NDArray[np.float32]:
        return np.asarray(player.get_action({})[0], dtype=np.float32)

    return act


class _Alone:
    """One environment in the shape of several, which is what the policy is written for."""

    def __init__(self, env: Any) -> None:
        self.envs, self.spec = [env], env.spec
        self.action_space = _Shape((1, *env.action_space.shape))


class _Shape:
    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = shape


__all__ = ["weak"]
