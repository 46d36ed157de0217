"""State variables of Atari games, read from the emulator's 128 bytes of RAM.

The idea and the meaning of the bytes are AtariARI's: Anand et al., "Unsupervised state representation learning in
Atari", arXiv 1906.08226. Only bytes that were checked against the emulator are listed (tests/data/test_atari.py does it
again): a position follows what is drawn at the same moment, a score follows the reward, a count what is on the screen.

Left out of these games' annotations, because the check failed or could not be made:
  pong             player_x, enemy_x: constant (188 and 64)
  breakout         block_bit_map: 30 bytes of bit masks, no number that a person would name
  space_invaders   enemies_y: 80 and 81 stand for one height on the screen; missiles_y: follows it in part only
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jepa import keyed
from jepa.errors import ConfigError

RAM: dict[str, dict[str, int]] = {
    "boxing": {
        "player_x": 32, "player_y": 34, "enemy_x": 33, "enemy_y": 35, "player_score": 18, "enemy_score": 19,
        "clock": 17,  # seconds of the minute; clock and scores are binary-coded decimals
    },
    "breakout": {"ball_x": 99, "ball_y": 101, "player_x": 72, "blocks_hit_count": 77, "score": 84},
    "freeway": {
        "player_y": 14, "score": 103,
        **{f"enemy_car_x_{lane}": 117 - lane for lane in range(10)},  # lanes from the top down
    },
    "pong": {"player_y": 51, "enemy_y": 50, "ball_x": 49, "ball_y": 54, "player_score": 14, "enemy_score": 13},
    "space_invaders": {
        "player_x": 28, "enemies_x": 26, "invaders_left_count": 17, "num_lives": 73,
        "player_score": 104,  # its last two digits, binary-coded decimal
    },
}  # fmt: skip


def state(env: Any) -> dict[str, float]:
    """Values 0 to 255 of a game's state variables, as they are in RAM.

    Raises:
        ConfigError: not an Atari game, or one whose bytes are not known.
    """
    console = getattr(env.unwrapped, "ale", None)
    if console is None:
        raise ConfigError(
            "source.state=atari reads the RAM of Atari games (ALE/...). For another environment give a function as "
            "package.module:function, or null"
        )
    game = str(env.spec.kwargs.get("game"))
    if game not in RAM:
        raise ConfigError(
            f"source.state=atari knows the RAM of {', '.join(sorted(RAM))}, not of {game!r}. Give a function of your "
            "own as package.module:function, or source.state=null"
        )
    ram = console.getRAM()
    return {name: float(ram[address]) for name, address in RAM[game].items()}


def variables(env: Any) -> list[float]:
    """The same as a list in the order of `RAM`: an array for `source.arrays` of episodes."""
    return list(state(env).values())


# the ball's coordinate, the player's along the same axis, and the actions that make the player's less and more
_AIM = {"breakout": ("ball_x", "player_x", "LEFT", "RIGHT"), "pong": ("ball_y", "player_y", "RIGHT", "LEFT")}
_LEVEL = 12  # ball minus player where the ball meets the middle of the bat, in both games


def chase(env: Any, seed: int) -> Callable[[Any], int]:
    """A player for ball games that hits most balls: a policy for `source.policy`.

    Nearly half of the time it goes for the ball, aiming at a place on the bat that changes now and then; else it acts
    at random. Under a random player these games hardly depend on the actions, so that episodes repeat each other.

    Raises:
        ConfigError: not one of the games it knows.
    """
    game = str(env.spec.kwargs.get("game"))
    if game not in _AIM:
        raise ConfigError(f"jepa.data.envs.atari:chase plays {', '.join(sorted(_AIM))}, not {game!r}")
    ball, player, less, more = _AIM[game]
    meanings = env.unwrapped.get_action_meanings()
    chance = keyed.generator("policy.chase", seed)
    plan: dict[str, Any] = {"aim": 0.0, "random": False, "action": 0}

    def act(observation: Any) -> int:
        if chance.random() < 0.05:
            plan["aim"] = chance.uniform(-8, 8)
        if chance.random() < 0.1:
            plan["random"] = chance.random() < 0.55
        if chance.random() < 0.3:
            plan["action"] = chance.integers(len(meanings))
        now = state(env)
        away = now[ball] - _LEVEL + plan["aim"] - now[player]
        if plan["random"] or now[ball] == 0 or abs(away) < 4:
            return int(plan["action"])
        return int(meanings.index(more if away > 0 else less))

    return act


def silence() -> None:
    """Keep the emulator from printing a banner for every episode; its errors are still printed."""
    import ale_py

    ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
