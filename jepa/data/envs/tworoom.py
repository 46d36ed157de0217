"""Players for stable-worldmodel's TwoRoom (`swm/TwoRoom-v1`): a dot that goes from room to room through a door."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from jepa import keyed
from jepa.errors import ConfigError

Vector = npt.NDArray[np.float64]  # (2,)
_NEAR = 8.0  # pixels at which a place counts as reached; a step is 5 long


def expert(
    env: Any, seed: int, noise: float = 0.3, random: float = 0.3, wander: float = 0.02
) -> Callable[[Any], npt.NDArray[np.float32]]:
    """Goes to places drawn anew whenever one is reached, through the door where need be; a policy for `source.policy`.

    The environment's own goal plays no part, so that episodes go on and cover both rooms. Now and then the player acts
    at random for a while: from an expert alone a model never learns what running into a wall does.

    Args:
        env: `swm/TwoRoom-v1`, reset.
        seed: the episode's.
        noise: standard deviation added to every number of an action (of -1 to 1).
        random: share of the time in which a random action is held for some steps.
        wander: chance at every step that a new place is chosen before the last one is reached.

    Raises:
        ConfigError: another environment, or numbers that are none of these.
    """
    room = env.unwrapped
    if not hasattr(room, "agent_position") or not hasattr(room, "door_positions"):
        raise ConfigError("jepa.data.envs.tworoom:expert plays swm/TwoRoom-v1 and nothing else")
    if noise < 0 or not 0 <= random < 1 or not 0 <= wander <= 1:
        raise ConfigError(
            f"source.options: noise={noise:g}, random={random:g}, wander={wander:g}: need noise from 0, random from 0 "
            "to below 1, wander from 0 to 1"
        )
    chance = keyed.generator("policy.tworoom", seed)
    low, high = float(room.BORDER_SIZE) + 7, float(room.IMG_SIZE - room.BORDER_SIZE) - 7
    plan: dict[str, Any] = {"goal": chance.uniform(low, high, 2), "held": None, "left": 0}

    def act(observation: Any) -> npt.NDArray[np.float32]:
        place = np.asarray(room.agent_position, dtype=np.float64)
        if plan["left"] == 0:  # a stretch of one kind is over: 5 steps on average
            plan["left"] = int(chance.integers(2, 9))
            plan["held"] = chance.uniform(-1, 1, 2) if chance.random() < random else None
        plan["left"] -= 1
        if chance.random() < wander or np.linalg.norm(plan["goal"] - place) < _NEAR:
            plan["goal"] = chance.uniform(low, high, 2)
        way = plan["held"] if plan["held"] is not None else _towards(waypoint(room, place, plan["goal"]) - place)
        return np.clip(way + noise * chance.standard_normal(2), -1, 1).astype(np.float32)

    return act


def waypoint(room: Any, place: Vector, goal: Vector) -> Vector:
    """Where to go next, (2,): the goal, or the nearest door while the goal is behind the wall."""
    across = 0 if int(room.wall_axis) == 1 else 1  # the axis that the wall stands in the way of
    wall = float(room.wall_pos)
    if (place[across] > wall) == (goal[across] > wall):
        return goal
    doors = np.asarray(room.door_positions, dtype=np.float64)[: int(room.num_doors)]
    door = np.empty(2)
    door[across], door[1 - across] = wall, doors[np.abs(doors - place[1 - across]).argmin()]
    if abs(door[1 - across] - place[1 - across]) < _NEAR / 2:  # in line with it: go through, to the other side
        door[across] = wall + (3 * _NEAR if goal[across] > wall else -3 * _NEAR)
    return door


def _towards(away: Vector) -> Vector:
    """Of length 1, or shorter where less is left."""
    return away / max(5.0, float(np.linalg.norm(away)))


__all__ = ["expert", "waypoint"]
