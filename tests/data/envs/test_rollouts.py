"""Episodes with actions, recorded from a square that walks over a floor, and from stable-worldmodel's environments."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from jepa.data import Manifest, read_episode, show
from jepa.data.build import build
from jepa.data.envs import tworoom
from jepa.data.envs.open import open_env
from jepa.data.sources import rollouts
from jepa.errors import ConfigError, DataError

WALK = """
name: walk
source:
  kind: rollouts
  env: tests/Walk-v0
  modules: [tests.data.envs.worlds]
  arrays: {state: observation, place: info.place.xy}
  episodes: EPISODES
  steps: 30
  deadline: null
splits: {fractions: {}}
video: {crf: 0, full_colour: true}
shards: {max_samples: 3}
"""


def made(out: Path, *overrides: str, workers: int = 0, episodes: str = "{train: 4, val: 1, test: 1}") -> Manifest:
    path = out.parent / "walk.yaml"
    path.write_text(WALK.replace("EPISODES", episodes))
    return build(path, out, overrides=list(overrides), workers=workers, progress=False)


@pytest.fixture(scope="module")
def walk(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return made(tmp_path_factory.mktemp("walk") / "out")


def centre(frames: np.ndarray) -> np.ndarray:
    """Where the bright square is, (T, 2), of frames (T, 3, H, W)."""
    bright = frames[:, 0] > 127
    rows, columns = np.mgrid[: frames.shape[2], : frames.shape[3]]
    return np.stack([(bright * axis).sum((1, 2)) / bright.sum((1, 2)) for axis in (columns, rows)], axis=1)


def test_frames_actions_and_states_belong_together(walk: Manifest) -> None:
    assert walk.media == "video" and walk.bad == []
    lengths = set()
    for split in walk.splits.values():
        for i in range(len(split)):
            frames, arrays = read_episode(split, i)
            count = len(frames)
            lengths.add(count)
            assert {n: a.shape for n, a in arrays.items()} == {
                "action": (count - 1, 2), "reward": (count - 1, 1), "terminated": (count - 1, 1),
                "state": (count, 2), "place": (count, 2),
            }  # fmt: skip
            np.testing.assert_allclose(centre(frames.numpy()), arrays["state"], atol=0.51)
            np.testing.assert_allclose(arrays["place"], arrays["state"], atol=1e-5)
            moved = np.clip(arrays["place"][:-1] + arrays["action"], 3, 28)
            np.testing.assert_allclose(moved, arrays["place"][1:], atol=1e-4)
            np.testing.assert_array_equal(arrays["reward"][:, 0], np.arange(1, count))
            np.testing.assert_array_equal(arrays["terminated"][:-1], False)
            assert arrays["terminated"][-1, 0] == (count < 31)
    assert len(lengths) > 2, "episodes end at different times"


def test_the_manifest_says_what_the_arrays_are(walk: Manifest) -> None:
    found = walk.arrays
    assert [(n, a.kind, a.size, a.dtype) for n, a in found.items()] == [
        ("action", "action", 2, "float32"), ("reward", "action", 1, "float32"), ("terminated", "action", 1, "bool"),
        ("state", "frame", 2, "float32"), ("place", "frame", 2, "float64"),
    ]  # fmt: skip
    train = walk.split("train")
    for name, array in found.items():
        rows = np.concatenate([train.read_array(i, name) for i in range(len(train))]).astype(np.float64)
        assert array.count == len(rows)
        for what, expected in {
            "mean": rows.mean(0),
            "std": rows.std(0),
            "min": rows.min(0),
            "max": rows.max(0),
        }.items():
            np.testing.assert_allclose(getattr(array, what), expected, atol=1e-12, err_msg=f"{what} of {name}")


def test_the_same_recipe_gives_the_same_bytes_with_any_workers_and_after_a_stop(walk: Manifest, tmp_path: Path) -> None:
    again = made(tmp_path / "again", "source.deadline=60", workers=2)
    assert again.hash == walk.hash
    with pytest.raises(KeyboardInterrupt):
        stopped(tmp_path / "stopped")
    assert (tmp_path / "stopped" / ".build").is_dir()
    assert made(tmp_path / "stopped").hash == walk.hash
    assert made(tmp_path / "other", "source.seed=1").hash != walk.hash


def stopped(out: Path) -> None:
    """A build that is interrupted after its first shard."""
    from jepa.data.journal import Journal

    add = Journal.add

    def once(self: Journal, *values: object) -> None:
        add(self, *values)  # type: ignore[arg-type]
        raise KeyboardInterrupt

    Journal.add = once  # type: ignore[method-assign, assignment]
    try:
        made(out)
    finally:
        Journal.add = add  # type: ignore[method-assign]


FAULTS = {
    "raises": "it failed at step 5: RuntimeError: the floor broke",
    "space": "observation space changed from .* to ",
    "shape": "array 'state' has 1 numbers now, it had 2 at first",
}


@pytest.mark.parametrize("fault", list(FAULTS))
def test_an_episode_that_goes_wrong_is_left_out(fault: str, tmp_path: Path) -> None:
    found = made(tmp_path / "out", f"source.kwargs={{fault: {fault}}}", episodes="{train: 8}")
    assert 0 < found.bad_count < 8 and len(found.split("train")) == 8 - found.bad_count
    assert all(re.search(FAULTS[fault], bad["reason"]) for bad in found.bad), found.bad


def test_an_environment_that_hangs_or_crashes_is_stopped(tmp_path: Path) -> None:
    few = "{train: 6}"
    hung = made(tmp_path / "hung", "source.kwargs={fault: hangs}", "source.deadline=1", episodes=few)
    assert 0 < hung.bad_count < 6 and "longer than source.deadline=1 s and was stopped" in hung.bad[0]["reason"]
    crashed = made(tmp_path / "crashed", "source.kwargs={fault: crashes}", "source.deadline=60", episodes=few)
    assert 0 < crashed.bad_count < 6 and "exit code 3" in crashed.bad[0]["reason"]


def test_actions_that_are_nan(tmp_path: Path) -> None:
    found = made(tmp_path / "out", "source.policy=tests.data.envs.worlds:sick", episodes="{train: 4}")
    assert found.bad_count == 2
    assert "'action' is nan in row 3 of" in found.bad[0]["reason"] and "number 0" in found.bad[0]["reason"]


def test_discrete_actions_are_numbered_from_zero(tmp_path: Path) -> None:
    found = made(tmp_path / "out", "source.kwargs={actions: discrete}")
    action = found.arrays["action"]
    assert (action.discrete, action.size, action.width, action.dtype) == (4, 1, 4, "int64")
    assert sum(action.mean) == pytest.approx(1) and action.count == sum(
        len(found.split("train").read_array(i, "action")) for i in range(4)
    )
    train = found.split("train")
    choice, place = train.read_array(0, "action")[:, 0], train.read_array(0, "place")
    moves = np.array([(1, 0), (-1, 0), (0, 1), (0, -1)])[choice]
    inside = (np.abs(place[:-1] + moves - 15.5) <= 12.5).all(1)
    np.testing.assert_allclose((place[:-1] + moves)[inside], place[1:][inside])


def test_unbounded_actions_are_recorded_and_noted(tmp_path: Path) -> None:
    found = made(tmp_path / "out", "source.kwargs={actions: unbounded}")
    assert any("unbounded; random draws them from a normal distribution" in note for note in found.notes)


def test_a_policy_with_options_that_sees_info(tmp_path: Path) -> None:
    by = ["source.policy=tests.data.envs.worlds:informed", "source.options={speed: 0.5}"]
    found = made(tmp_path / "out", *by, episodes="{train: 1}")
    np.testing.assert_array_equal(found.split("train").read_array(0, "action")[:, 0], 0.5)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("source.kwargs={actions: dict}", r"actions are Dict.*Box actions of floats, or Discrete"),
        ("source.arrays={state: info.nothing}", r"array 'state': no 'nothing' in info; there are place, step"),
        ("source.arrays={state: ram}", r"source.arrays.state: got 'ram'; give observation"),
        ("source.arrays={reward: observation}", "reward are always recorded"),
        ("source.policy=tests.data.envs.worlds:wrong", "cannot be rolled out|gave the action"),
        ("source.options={speed: 1}", "they are for a function of yours"),
        ("episode.arrays={sate: {units: m}}", "unknown key 'sate'. Did you mean 'state'"),
        ("episode.arrays={action: {size: 7}}", r"action.size=7, but the source's 'action' has 2 numbers"),
        ("episode.arrays={action: {names: [x]}}", r"names has 1 entries, 'action' has 2 numbers"),
        ("episode.arrays={action: {discrete: 4}}", r"holds 2 float32, not one choice"),
        ("video.fps=5", r"video.fps=5: arrays of episodes belong to their frames"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_told_before_anything_is_built(wrong: str, said: str, tmp_path: Path) -> None:
    with pytest.raises((ConfigError, DataError), match=said):
        made(tmp_path / "out", wrong)


def test_no_arrays_no_episode_section(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="this source gives no arrays"):
        build("bouncing-digits", tmp_path / "out", overrides=["episode={frame_skip: 2}"], progress=False)


def test_the_player_of_tworoom_visits_both_rooms_through_the_door() -> None:
    env = open_env("swm/TwoRoom-v1", ["stable_worldmodel"])
    crossings = 0
    for seed in range(3):
        observation, _ = env.reset(seed=seed)
        act = tworoom.expert(env, seed)
        sides = []
        for _ in range(150):
            observation, *_ = env.step(act(observation))
            sides.append(float(observation[0]) > env.unwrapped.wall_pos)
        crossings += int(np.abs(np.diff(np.array(sides, dtype=int))).sum())
    assert crossings >= 4, f"{crossings} crossings in 450 steps"


@pytest.mark.parametrize(("name", "numbers"), [("tworoom", 2), ("pusht", 7)])
def test_shipped_recipes(name: str, numbers: int, tmp_path: Path) -> None:
    few = ["source.episodes={train: 1, val: 1, test: 1}", "source.steps=12", "source.deadline=null"]
    found = build(name, tmp_path / "out", overrides=few, progress=False)
    assert found.bad_count == 0 and found.arrays["action"].size == 2 and found.arrays["state"].size == numbers
    assert found.arrays["state"].names and len(found.arrays["state"].units) == numbers
    train = found.split("train")
    assert train.video[0, 0] == 13 and train.read_array(0, "state").shape == (13, numbers)
    assert set(found.splits) == {"train", "val", "test"}
    firsts = [tuple(s.read_array(0, "state")[0].tolist()) for s in found.splits.values()]
    assert len(set(firsts)) == 3, "held-out episodes are others"


def test_players_of_other_environments() -> None:
    env = open_env("CartPole-v1")
    env.reset(seed=0)
    with pytest.raises(ConfigError, match="plays swm/TwoRoom-v1 and nothing else"):
        tworoom.expert(env, 0)
    with pytest.raises(ConfigError, match="environments|policy"):
        rollouts.Config(policy="best")


def test_episodes_of_different_splits_differ(walk: Manifest) -> None:
    starts = [tuple(s.read_array(i, "place")[0].tolist()) for s in walk.splits.values() for i in range(len(s))]
    assert len(starts) == len(set(starts)) == 6


def test_show_says_what_the_arrays_are(walk: Manifest) -> None:
    text = show.show(walk.root, split="train").text
    assert (
        "array    action: 2 float32 for every action; " in text
        and "array    terminated: 1 bool for every action" in text
    )
