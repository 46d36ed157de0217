"""Gymnasium environments rolled out into videos: CartPole for real, and a lamp that fails in every way."""

from __future__ import annotations

import io
from pathlib import Path

import av
import numpy as np
import pytest

from jepa.data import Manifest
from jepa.data.build import build
from jepa.data.sources import gymnasium as source
from jepa.errors import ConfigError, DataError

CARTPOLE = """
name: cartpole
source:
  kind: gymnasium
  deadline: null
  env: CartPole-v1
  policy: tests.data.envs.worlds:balance
  state: tests.data.envs.worlds:cart
  episodes: {train: 3, val: 1, test: 2}
  videos: 3
  frames: 6
  gap: 2
  frame_skip: 2
  size: [48, 64]
  fps: 25
video: {crf: 1, full_colour: true}
shards: {max_samples: 4}
"""


def made(out: Path, *overrides: str, recipe: str = CARTPOLE, workers: int = 0) -> Manifest:
    path = out.parent / "recipe.yaml"
    path.write_text(recipe)
    return build(path, out, overrides=list(overrides), workers=workers, progress=False)


def frames_of(manifest: Manifest, split: str, i: int) -> np.ndarray:
    data, extension = manifest.split(split).read(i)
    assert extension == "mp4"
    with av.open(io.BytesIO(data)) as file:
        return np.stack([f.to_ndarray(format="rgb24") for f in file.decode(video=0)])


@pytest.fixture(scope="module")
def cartpole(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return made(tmp_path_factory.mktemp("env") / "out")


def test_videos_of_cartpole(cartpole: Manifest) -> None:
    assert cartpole.media == "video" and cartpole.classes == []
    assert {name: len(split) for name, split in cartpole.splits.items()} == {"train": 9, "val": 3, "test": 6}
    train = cartpole.split("train")
    assert train.target_names == ["x", "angle", "leaning"]
    np.testing.assert_allclose(train.video, [[6, 25.0, 6 / 25]] * 9)
    for i in range(9):
        frames = frames_of(cartpole, "train", i)
        assert frames.shape == (6, 48, 64, 3) and frames.std(axis=0).max() > 5, "the cart moves"


def test_an_episode_lies_in_one_split(cartpole: Manifest) -> None:
    originals = {name: set(np.asarray(split.originals).tolist()) for name, split in cartpole.splits.items()}
    assert {name: len(found) for name, found in originals.items()} == {"train": 3, "val": 1, "test": 2}
    assert len(set.union(*originals.values())) == 6
    frames = [
        (name, frames_of(cartpole, name, i).tobytes())
        for name, split in cartpole.splits.items()
        for i in range(len(split))
    ]
    assert len({pixels for _, pixels in frames}) == 18, "no video occurs twice: every episode has a seed of its own"


def test_the_state_is_that_of_the_middle_frame(cartpole: Manifest) -> None:
    """The cart's place in the picture, six frames with two steps between them, is where its state says."""
    split = cartpole.split("train")
    for i in range(len(split)):
        middle = frames_of(cartpole, "train", i)[3].astype(int)
        dark = np.argwhere((middle.sum(axis=2) < 150)[34:39])  # rows of the cart; 64 columns for 4.8 units
        assert dark[:, 1].mean() == pytest.approx(32 + split.targets["x"][i] * 64 / 4.8, abs=1.5)
    leaning = np.asarray(split.targets["leaning"])
    assert (leaning == (np.asarray(split.targets["angle"]) > 0)).all()


def test_the_last_frame_s_state(tmp_path: Path, cartpole: Manifest) -> None:
    last = made(tmp_path / "out", "source.state_at=last")
    x, other = (np.asarray(m.split("train").targets["x"]) for m in (cartpole, last))
    assert [last.split("train").key(i) for i in range(9)] == [cartpole.split("train").key(i) for i in range(9)]
    assert (x != other).any() and np.abs(x - other).max() < 0.5


def same(a: Manifest, b: Manifest) -> None:
    """The same videos, pixel by pixel, with the same targets under the same keys."""
    assert list(a.splits) == list(b.splits)
    for name, split in a.splits.items():
        other = b.split(name)
        assert [split.key(i) for i in range(len(split))] == [other.key(i) for i in range(len(other))]
        assert np.array_equal(split.originals, other.originals)
        assert all(np.array_equal(split.targets[t], other.targets[t]) for t in split.target_names)
        for i in range(len(split)):
            assert np.abs(frames_of(a, name, i).astype(int) - frames_of(b, name, i)).max() <= 2


def test_workers_change_nothing(tmp_path: Path, cartpole: Manifest) -> None:
    same(cartpole, made(tmp_path / "out", workers=2))


def test_an_interrupted_build_goes_on(tmp_path: Path, cartpole: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = source.Maker.__call__
    calls = []

    def once(self: source.Maker, task: tuple[str, int]) -> object:
        calls.append(task)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return whole(self, task)

    monkeypatch.setattr(source.Maker, "__call__", once)
    with pytest.raises(KeyboardInterrupt):
        made(tmp_path / "out")
    finished = made(tmp_path / "out")
    assert len(calls) < 4 + 6, "finished shards are kept"
    same(cartpole, finished)


def test_another_seed_and_more_episodes(tmp_path: Path, cartpole: Manifest) -> None:
    more = made(tmp_path / "more", "source.episodes.train=4")
    (tmp_path / "b").mkdir()
    other = made(tmp_path / "b" / "other", "source.seed=1")
    old = {frames_of(cartpole, "train", i).tobytes() for i in range(9)}
    assert old <= {frames_of(more, "train", i).tobytes() for i in range(12)}
    assert not old & {frames_of(other, "train", i).tobytes() for i in range(9)}


def test_repeated_actions_last_longer(tmp_path: Path) -> None:
    """The policies differ in how often the action changes."""
    changes = {}
    for policy in ("random", "repeat"):
        env = source.open_env("CartPole-v1")
        env.reset(seed=0)
        act = source.policy.make(policy, env, 7, 0.9)
        actions = [act(None) for _ in range(400)]
        again = source.policy.make(policy, env, 7, 0.9)
        assert actions == [again(None) for _ in range(400)], "a function of the seed"
        changes[policy] = np.mean(np.diff(actions) != 0)
    assert 0.4 < changes["random"] < 0.6 and 0.02 < changes["repeat"] < 0.09


LIGHT = """
name: light
source:
  {kind: gymnasium, deadline: null, env: tests/Light-v0, modules: [tests.data.envs.worlds], frames: 4, videos: 2,
   episodes: {train: 12, val: 2, test: 2}, kwargs: {}}
"""


def test_grey_pictures_and_frames_left_out_at_the_start(tmp_path: Path) -> None:
    found = made(tmp_path / "out", "source.grey=true", "source.start=[2, 5]", recipe=LIGHT)
    frames = frames_of(found, "train", 0)
    assert np.ptp(frames.astype(int), axis=3).max() <= 3
    assert frames[0].mean() > 3 or frames[1].mean() > 3, "the first picture of an episode is black"


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("raises", r"none of the 12 images .*failed at step 5: RuntimeError: the bulb broke"),
        ("frozen", r"none of the 12 images .*pictures never change"),
        ("short", r"none of the 12 images .*ended after 6 frames; a video takes 8"),
    ],
)
def test_episodes_that_cannot_be_used_are_counted(tmp_path: Path, fault: str, words: str) -> None:
    with pytest.raises(DataError, match=words):
        made(tmp_path / "out", f"source.kwargs.fault={fault}", "source.frames=8", recipe=LIGHT)


def test_some_bad_episodes_are_left_out(tmp_path: Path) -> None:
    found = made(tmp_path / "out", "source.kwargs.fault=unlucky", "source.frames=8", recipe=LIGHT)
    assert 0 < found.bad_count < 16 and sum(len(s) for s in found.splits.values()) == 2 * (16 - found.bad_count)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (['source.env=""'], r"source.env is empty"),
        (["source.env=CartPole-v9"], r"source.env='CartPole-v9': .*v1"),
        (["source.env=Cartpol-v1"], r"Did you mean: .CartPole"),
        (["source.env=Nowhere/Thing-v0"], r"source.modules"),
        (["source.env=tests/Dark-v0"], r"draws no pictures: it has the render modes \['human'\]"),
        (["source.kwargs.fault=grey"], r"render\(\) gave uint8 \(16, 20\); a video needs uint8 pictures"),
        (["source.kwargs.colour=red"], r"source.kwargs=\{'colour': 'red'\} cannot be made: TypeError: .*colour"),
        (["source.modules=[no_such_module]"], r"source.modules: no_such_module cannot be imported"),
        (["source.policy=clever"], r"policy: got 'clever', allowed: random, repeat, or package.module:function"),
        (["source.policy=tests.data.envs.worlds:nobody"], r"source.policy=.* cannot be loaded: .*nobody"),
        (["source.policy=tests.data.envs.worlds:wrong"], r"gave the action 'left'; tests/Light-v0 takes Discrete\(2\)"),
        (["source.state=atari"], r"source.state=atari reads the RAM of Atari games"),
        (["source.state=tests.data.envs.worlds:cart"], r"cannot be rolled out: AttributeError"),
        (["source.frames=0"], r"frames and frame_skip from 1"),
        (["source.episodes.train=0"], r"episodes: give 1 to 1000000"),
        (["source.start=[3, 1]"], r"start: need 0 <= fewest <= most"),
        (["source.hold=1.0"], r"hold: allowed are 0 to below 1"),
    ],
)
def test_what_cannot_be_rolled_out_is_told_before_anything_is_written(
    tmp_path: Path, changes: list[str], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        made(tmp_path / "out", *changes, recipe=LIGHT)
    assert not (tmp_path / "out").exists()


def test_an_episode_that_hangs_is_stopped(tmp_path: Path) -> None:
    """As in `rollouts`: the environment works at first, then one of its episodes never ends."""
    few = ["source.episodes={train: 8}", "source.kwargs={fault: sleeps}", "source.frames=8", "source.deadline=2"]
    hung = made(tmp_path / "out", *few, recipe=LIGHT)
    assert 0 < hung.bad_count < 8 and "longer than source.deadline=2 s and was stopped" in hung.bad[0]["reason"]
    with pytest.raises(ConfigError, match="deadline: got 0"):
        made(tmp_path / "other", "source.deadline=0", recipe=LIGHT)
