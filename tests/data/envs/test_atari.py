"""Every RAM address that is offered as a state variable, checked against what the real emulator draws and rewards."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest

from jepa import keyed, resources
from jepa.data.build import build
from jepa.data.envs import atari
from jepa.data.envs.open import open_env
from jepa.data.sources import gymnasium
from jepa.errors import ConfigError

NAMES = {
    "boxing": "Boxing",
    "breakout": "Breakout",
    "freeway": "Freeway",
    "pong": "Pong",
    "space_invaders": "SpaceInvaders",
}
RED, WHITE, BLACK, GREEN = (200, 72, 72), (214, 214, 214), (0, 0, 0), (92, 186, 92)
# variable -> (axis, colour, rows, columns, most pixels of it): where what it stands for is drawn, and nothing else is
DRAWN = {
    "pong": {
        "ball_x": ("x", (236, 236, 236), (34, 194), (0, 160), 12),
        "ball_y": ("y", (236, 236, 236), (34, 194), (0, 160), 12),
        "player_y": ("y", GREEN, (34, 194), (130, 160), 9999),
        "enemy_y": ("y", (213, 130, 74), (34, 194), (0, 30), 9999),
    },
    "boxing": {
        "player_x": ("x", WHITE, (34, 180), (32, 128), 9999),
        "player_y": ("y", WHITE, (34, 180), (32, 128), 9999),
        "enemy_x": ("x", BLACK, (34, 180), (32, 128), 9999),
        "enemy_y": ("y", BLACK, (34, 180), (32, 128), 9999),
    },
    "breakout": {
        "ball_x": ("x", RED, (94, 188), (8, 152), 10),
        "ball_y": ("y", RED, (94, 188), (8, 152), 10),
        "player_x": ("x", RED, (189, 193), (8, 152), 9999),
    },
    "freeway": {"player_y": ("y", (252, 252, 84), (22, 195), (40, 60), 9999)},
    "space_invaders": {"player_x": ("x", (50, 132, 50), (184, 195), (0, 160), 9999)},
}


@cache
def played(game: str, steps: int = 900) -> tuple[np.ndarray, dict[str, np.ndarray], np.ndarray, np.ndarray]:
    """Frames (T, H, W, 3), state by name (T,), rewards (T,) and lives (T,), of a random player that holds on."""
    env = open_env(f"ALE/{NAMES[game]}-v5", ["ale_py"], {"frameskip": 4, "repeat_action_probability": 0.0})
    chance = keyed.generator("test", 0)
    action: Any = 0
    frames, states, rewards, lives = [], [], [], []
    env.reset(seed=0)
    for t in range(steps):
        if chance.random() < 0.4:
            action = 1 if game == "freeway" and chance.random() < 0.8 else int(chance.integers(env.action_space.n))
        _, reward, terminated, truncated, info = env.step(action)
        frames.append(env.render())
        states.append(atari.state(env))
        rewards.append(float(reward))
        lives.append(info["lives"])
        if terminated or truncated:
            env.reset(seed=t)
    state = {name: np.array([s[name] for s in states]) for name in states[0]}
    return np.stack(frames), state, np.array(rewards), np.array(lives)


@pytest.mark.parametrize(("game", "name"), [(g, n) for g, names in DRAWN.items() for n in names])
def test_a_position_follows_what_is_drawn(game: str, name: str) -> None:
    frames, state, _, _ = played(game)
    axis, colour, (top, bottom), (left, right), most = DRAWN[game][name]
    found = (frames[:, top:bottom, left:right] == np.array(colour)).all(axis=-1)
    count = found.sum(axis=(1, 2))
    seen = (count > 0) & (count <= most)
    assert seen.sum() > 100
    along = found.sum(axis=1 if axis == "x" else 2)[seen]  # pixels in each column or row
    place = along @ np.arange(along.shape[1]) / count[seen]
    assert abs(np.corrcoef(place, state[name][seen])[0, 1]) > 0.98  # a boxer stretches out an arm


@pytest.mark.parametrize("lane", range(10))
def test_cars_of_freeway(lane: int) -> None:
    frames, state, _, _ = played("freeway")
    road = frames[:, 26 + 16 * lane : 36 + 16 * lane].copy()
    road[:, :, 40:62] = road[:, :, 104:116] = road[:, :, :12] = 142  # the chickens, and the edge
    columns = ((road != 142).any(-1) & (road != np.array((214, 214, 214))).any(-1)).any(axis=1)
    first, last = columns.argmax(axis=1), 159 - columns[:, ::-1].argmax(axis=1)
    whole = (columns.sum(axis=1) >= 6) & (last - first <= 8)
    assert whole.sum() > 100
    assert np.corrcoef((first + last)[whole], state[f"enemy_car_x_{lane}"][whole])[0, 1] > 0.999


def test_scores_follow_the_reward() -> None:
    def decimal(v: np.ndarray) -> np.ndarray:
        return v // 16 * 10 + v % 16

    _, pong, reward, _ = played("pong")
    assert (reward == -1).sum() > 5
    assert ((np.diff(pong["enemy_score"]) == 1) == (reward[1:] == -1)).all()
    assert ((np.diff(pong["player_score"]) == 1) == (reward[1:] == 1)).all()
    _, boxing, reward, _ = played("boxing")
    gained = np.diff(decimal(boxing["player_score"]) - decimal(boxing["enemy_score"]))
    assert (reward != 0).sum() > 5 and (gained == reward[1:])[:440].all()  # one match
    _, breakout, reward, _ = played("breakout", 2000)
    hits = reward[1:] > 0
    assert hits.sum() > 3
    assert (np.diff(breakout["blocks_hit_count"])[hits] == 1).all() and (np.diff(breakout["score"])[hits] == 5).all()
    _, freeway, reward, _ = played("freeway")
    assert (reward > 0).sum() >= 1 and ((np.diff(freeway["score"]) > 0) == (reward[1:] > 0)).all()


def test_the_clock_of_boxing_runs_down() -> None:
    _, state, _, _ = played("boxing")
    seconds = state["clock"] // 16 * 10 + state["clock"] % 16
    assert set(np.diff(seconds[:440])) <= {0, -1, 59}, "one second at a time"
    assert 5 < (seconds[0] - seconds[100]) % 60 < 9  # 400 frames at 60 a second


def test_counts_of_space_invaders() -> None:
    frames, state, reward, lives = played("space_invaders")
    shot = (reward[1:] > 0) & (reward[1:] <= 30)
    assert shot.sum() > 5 and (np.diff(state["invaders_left_count"])[shot] == -1).all()
    assert (state["num_lives"] == lives).all() and len(set(lives)) > 1
    gained = np.diff(state["player_score"] // 16 * 10 + state["player_score"] % 16) % 100
    assert (gained[shot] == reward[1:][shot] % 100).all()
    invaders = (frames[:, 20:180] == np.array((134, 134, 29))).all(-1).any(axis=1)
    seen = invaders.any(axis=1)
    assert np.corrcoef(invaders.argmax(axis=1)[seen], state["enemies_x"][seen])[0, 1] > 0.999


def test_every_variable_is_checked_above() -> None:
    elsewhere = {
        "pong": {"player_score", "enemy_score"},
        "boxing": {"player_score", "enemy_score", "clock"},
        "breakout": {"blocks_hit_count", "score"},
        "freeway": {"score", *(f"enemy_car_x_{lane}" for lane in range(10))},
        "space_invaders": {"enemies_x", "invaders_left_count", "num_lives", "player_score"},
    }
    assert {game: set(names) for game, names in atari.RAM.items()} == {
        game: set(DRAWN[game]) | elsewhere[game] for game in atari.RAM
    }


def test_games_whose_ram_is_not_known() -> None:
    env = open_env("ALE/Tennis-v5", ["ale_py"])
    with pytest.raises(ConfigError, match=r"knows the RAM of boxing, breakout.*not of 'tennis'"):
        atari.state(env)


@pytest.mark.parametrize(
    "name", [n for n in resources.names("datasets") if n.startswith("atari-") and "episodes" not in n]
)
def test_shipped_recipes_build(name: str, tmp_path: Any) -> None:
    small = ["source.episodes={train: 1, val: 1, test: 1}", "source.videos=2", "source.gap=0"]
    found = build(name, tmp_path / "out", overrides=small, progress=False)
    split = found.split("train")
    assert len(split) == 2 and found.bad_count == 0 and found.image["smallest"] == found.image["largest"] == [210, 160]
    game = next(g for g, n in NAMES.items() if f"ALE/{n}-v5" == found.recipe["source"]["env"])
    assert split.target_names == list(atari.RAM[game])
    assert all(v == round(v) and 0 <= v <= 255 for t in split.target_names for v in split.targets[t].tolist())


def test_the_recipe_of_episodes_builds(tmp_path: Any) -> None:
    small = ["source.episodes={train: 1, val: 1, test: 1}", "source.steps=12"]
    found = build("atari-pong-episodes", tmp_path / "out", overrides=small, progress=False)
    split = found.split("train")
    assert len(split) == 1 and found.bad_count == 0 and found.arrays["action"].discrete == 6
    rows = split.read_array(0, "variables")
    assert rows.shape == (13, len(atari.RAM["pong"])) and split.read_array(0, "action").shape == (12, 1)
    assert ((rows >= 0) & (rows <= 255) & (rows == rows.round())).all()


def test_a_player_that_chases_the_ball_makes_episodes_differ() -> None:
    """Under a random player Pong's ball and enemy do much the same in every episode."""

    def states(policy: str) -> tuple[float, float]:
        config = gymnasium.Config(
            env="ALE/Pong-v5", modules=("ale_py",), kwargs={"frameskip": 4, "repeat_action_probability": 0.0},
            policy=policy, state="atari", episodes={"train": 3}, videos=60, frames=2, gap=2, start=(60, 100),
        )  # fmt: skip
        maker = gymnasium.Maker(config, tuple(atari.RAM["pong"]))
        found = [[s.targets for s in maker(("train", episode))] for episode in range(3)]
        ball = [{values[1:4] for values in episode if values[2]} for episode in found]
        return len(ball[0] & (ball[1] | ball[2])) / len(ball[0]), max(v[4] for e in found for v in e)

    same, _ = states("random")
    fewer, won = states("jepa.data.envs.atari:chase")
    assert fewer < same / 2 and won > 0


def test_chasing_needs_a_ball() -> None:
    with pytest.raises(ConfigError, match=r"chase plays breakout, pong, not 'boxing'"):
        atari.chase(open_env("ALE/Boxing-v5", ["ale_py"]), 0)
