"""Windows of episodes: frames and arrays of the same moments, whatever ranks, workers and resumes do."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from jepa.config import ClipConfig, DataConfig, StepsConfig
from jepa.data import (
    Manifest,
    TrainData,
    blank,
    centre_batches,
    eval_windows,
    make_loader,
    read_episode,
    window_starts,
)
from jepa.data.build import build
from jepa.errors import ConfigError
from tests.data.envs.test_rollouts import centre, made

CLIP = ClipConfig(frames=4, stride=3, short="pad")
STEPS = StepsConfig(proprio="state", also=("reward", "terminated", "place"))


@pytest.fixture(scope="module")
def walk(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return made(tmp_path_factory.mktemp("walk") / "out", episodes="{train: 7, val: 2}")


def section(found: Manifest, **more: Any) -> DataConfig:
    given = {"clip": CLIP, "steps": STEPS, "image_size": (32, 32), "crop_scale": (1.0, 1.0), "crop_ratio": (1.0, 1.0)}
    return DataConfig(path=str(found.root), workers=0, **given | more)


def data(found: Manifest, **more: Any) -> TrainData:
    return TrainData(section(found, **more), seed=3)


def test_a_window_has_the_arrays_of_its_frames(walk: Manifest) -> None:
    loader = make_loader(data(walk), batch=7, total_steps=6, trace=True)
    starts = set()
    for batch in loader:
        assert batch.steps is not None and batch.trace is not None
        shapes = {name: tuple(rows.shape) for name, rows in batch.steps.items()}
        assert shapes == {
            "action": (7, 3, 6), "proprio": (7, 4, 2), "reward": (7, 3, 1), "terminated": (7, 3, 1), "place": (7, 4, 2),
        }  # fmt: skip
        assert all(rows.dtype == torch.float32 for rows in batch.steps.values())
        for b in range(7):
            seen = centre(batch.images[b].transpose(0, 1).numpy())
            np.testing.assert_allclose(seen, batch.steps["proprio"][b], atol=0.51)
            split, episode, first = walk.split("train"), int(batch.index[b]), batch.trace[b]["frames"][0][0]
            actions = split.read_array(episode, "action")[first : first + 9]
            np.testing.assert_array_equal(batch.steps["action"][b].numpy(), actions.reshape(3, 6))
            rewards = split.read_array(episode, "reward")[first : first + 9, 0].reshape(3, 3).sum(1)
            np.testing.assert_allclose(batch.steps["reward"][b, :, 0].numpy(), rewards)
            starts.add(first)
    assert len(starts) > 8


def flat(batches: Any) -> dict[int, tuple[Any, ...]]:
    """By g: pixels and arrays of every sample."""
    found = {}
    for batch in batches:
        for b, g in enumerate(batch.g.tolist()):
            rows = {name: values[b].numpy().tobytes() for name, values in batch.steps.items()}
            found[g] = (batch.images[b].numpy().tobytes(), rows, int(batch.index[b]))
    return found


def test_ranks_workers_and_resuming_give_the_same_windows(walk: Manifest) -> None:
    one = flat(make_loader(data(walk), batch=4, total_steps=5))
    two = {
        g: found
        for rank in range(2)
        for g, found in flat(make_loader(data(walk), batch=4, rank=rank, world=2, total_steps=5, micro_batch=1)).items()
    }
    late = flat(make_loader(data(walk), batch=4, start_step=2, total_steps=5))
    elsewhere = flat(make_loader(TrainData(replace(section(walk), workers=2), seed=3), batch=4, total_steps=5))
    assert sorted(one) == list(range(20)) and two == one and elsewhere == one
    assert late == {g: one[g] for g in range(8, 20)}
    assert flat(make_loader(TrainData(section(walk), seed=4), batch=4, total_steps=5)) != one


def test_blank_frames_are_the_same_whatever_ranks_workers_and_resumes_do(walk: Manifest) -> None:
    seen_in_part = section(walk, steps=replace(STEPS, blank=0.5))
    plain = next(iter(make_loader(data(walk), batch=20, total_steps=1)))
    whole = next(iter(make_loader(TrainData(seen_in_part, seed=3), batch=20, total_steps=1)))
    there = blank.shown("blank", 3, whole.g.numpy(), 4, 0.5)
    assert 10 < (~there).sum() < 50 and plain.steps is not None and whole.steps is not None
    shown = torch.from_numpy(there)[:, None, :, None, None]
    assert torch.equal(whole.images, plain.images * shown), "black or as it was"
    assert (plain.images.amax((1, 3, 4)) > 0).all(), "no frame of this world is black by itself"
    assert all(torch.equal(whole.steps[name], rows) for name, rows in plain.steps.items())
    one = flat(make_loader(TrainData(seen_in_part, seed=3), batch=4, total_steps=5))
    two = {
        g: found
        for rank in range(2)
        for g, found in flat(
            make_loader(TrainData(replace(seen_in_part, workers=2), seed=3), batch=4, rank=rank, world=2, total_steps=5)
        ).items()
    }
    late = flat(make_loader(TrainData(seen_in_part, seed=3), batch=4, start_step=3, total_steps=5, micro_batch=2))
    assert two == one == flat([whole]) and late == {g: one[g] for g in range(12, 20)}
    with pytest.raises(ConfigError, match=r"data\.steps\.blank=1"):
        data(walk, steps=replace(STEPS, blank=1.0))


def test_a_window_longer_than_its_episode_holds_the_end(walk: Manifest, tmp_path: Path) -> None:
    long = ClipConfig(frames=5, stride=9, short="pad")
    last = made(tmp_path / "last", "episode.pad=last", episodes="{train: 7, val: 2}")
    for found, pad in ((walk, "zero"), (last, "last")):
        assert found.arrays["action"].pad == pad
        for batch in make_loader(data(found, clip=long), batch=7, total_steps=1, trace=True):
            assert batch.steps is not None and batch.trace is not None
            for b in range(7):
                split, i = found.split("train"), int(batch.index[b])
                frames, arrays = read_episode(split, i)
                over = 36 - len(arrays["action"])
                assert over > 0 and batch.trace[b]["frames"][0][0] == 0
                action = batch.steps["action"][b].reshape(-1, 2).numpy()
                np.testing.assert_array_equal(action[:-over], arrays["action"])
                np.testing.assert_array_equal(
                    action[-over:], np.tile(arrays["action"][-1] * (pad == "last"), (over, 1))
                )
                np.testing.assert_array_equal(batch.steps["place"][b, -1].numpy(), arrays["place"][-1].astype("f4"))
                assert (batch.images[b, :, -1] == frames[-1]).all()
                ends = arrays["terminated"].any()
                assert batch.steps["terminated"][b].sum() == float(ends)
    skip = replace(long, short="skip")
    with pytest.raises(Exception, match="too short"):
        list(make_loader(data(walk, clip=skip), batch=4, total_steps=1))


def test_choices_are_one_hot(tmp_path: Path) -> None:
    found = made(tmp_path / "out", "source.kwargs={actions: discrete}")
    loaded = data(found, steps=StepsConfig())
    assert loaded.steps is not None and loaded.steps.sizes == {"action": 12}
    mean, std = loaded.steps.scale("action")
    assert mean.shape == std.shape == (12,) and mean[:4].sum() == pytest.approx(1)
    np.testing.assert_array_equal(mean[:4], mean[8:])
    for batch in make_loader(loaded, batch=4, total_steps=2, trace=True):
        assert batch.steps is not None and batch.trace is not None
        hot = batch.steps["action"].reshape(4, 9, 4)
        assert (hot.sum(-1) == 1).all()
        for b in range(4):
            first = batch.trace[b]["frames"][0][0]
            choices = found.split("train").read_array(int(batch.index[b]), "action")[first : first + 9, 0]
            np.testing.assert_array_equal(hot[b].argmax(-1).numpy(), choices)


def test_frames_are_thinned_out_and_held_at_the_build(walk: Manifest, tmp_path: Path) -> None:
    thin = made(tmp_path / "thin", "episode={frame_skip: 3, hold: 2}", episodes="{train: 7, val: 2}")
    action = thin.arrays["action"]
    assert (action.size, action.steps, thin.arrays["reward"].size) == (6, 3, 1)
    assert action.mean[:2] == action.mean[2:4] == action.mean[4:]
    assert thin.split("train").video[0, 1] == pytest.approx(10 / 3)
    for i in range(7):
        frames, arrays = read_episode(walk.split("train"), i)
        few, thinned = read_episode(thin.split("train"), i)
        whole = (len(frames) - 1) // 3
        assert len(few) == whole + 1 + 2 and len(thinned["action"]) == whole + 2
        assert (few[: whole + 1] == frames[: 3 * whole + 1 : 3]).all() and (few[whole:] == few[whole]).all()
        np.testing.assert_array_equal(thinned["action"][:whole], arrays["action"][: 3 * whole].reshape(whole, 6))
        np.testing.assert_array_equal(thinned["action"][whole:], 0)
        np.testing.assert_array_equal(
            thinned["reward"][:whole, 0], arrays["reward"][: 3 * whole, 0].reshape(-1, 3).sum(1)
        )
        np.testing.assert_array_equal(thinned["state"][: whole + 1], arrays["state"][: 3 * whole + 1 : 3])
    batch = next(iter(make_loader(data(thin, clip=replace(CLIP, stride=2)), batch=2, total_steps=1)))
    assert batch.steps is not None and batch.steps["action"].shape == (2, 3, 12)


def test_windows_for_evaluation(walk: Manifest) -> None:
    split, clip = walk.split("val"), replace(CLIP, clips=3)
    starts = window_starts(split, clip)
    assert starts.shape == (6, 2) and starts[:, 0].tolist() == [0, 0, 0, 1, 1, 1] and starts[0, 1] == 0
    assert starts[2, 1] == split.video[0, 0] - 10
    batches = list(eval_windows(split, clip, STEPS, (32, 32), 4))
    assert [len(b) for b in batches] == [4, 2] and batches[1].index.tolist() == [1, 1]
    where = [[1, 5], [0, int(split.video[0, 0]) - 2]]
    chosen = next(iter(eval_windows(split, clip, STEPS, (32, 32), 4, starts=where)))
    assert chosen.steps is not None and chosen.index.tolist() == [1, 0]
    frames, arrays = read_episode(split, 1, (32, 32))
    assert (chosen.images[0].transpose(0, 1) == frames[[5, 8, 11, 14]]).all()
    np.testing.assert_array_equal(chosen.steps["action"][0].numpy(), arrays["action"][5:14].reshape(3, 6))
    np.testing.assert_array_equal(chosen.steps["action"][1].reshape(-1, 2)[1:].numpy(), 0)
    with pytest.raises(ConfigError, match="a window at frame 400 of episode 1 of split 'val': .* frames"):
        eval_windows(split, clip, STEPS, (32, 32), 4, starts=[[1, 400]])
    with pytest.raises(ConfigError, match="episode 9 of split 'val': not there"):
        eval_windows(split, clip, STEPS, (32, 32), 4, starts=[[9, 0]])


def test_the_middle_of_an_episode_is_the_middle_clip_with_its_arrays(walk: Manifest) -> None:
    config = section(walk)
    with_arrays = list(centre_batches(walk.split("val"), config, 4, [1, 0]))
    without = list(centre_batches(walk.split("val"), replace(config, steps=None), 4, [1, 0]))
    assert len(with_arrays) == len(without) == 1 and (with_arrays[0].images == without[0].images).all()
    assert with_arrays[0].index.tolist() == [1, 0] and with_arrays[0].steps is not None and without[0].steps is None
    for b in range(2):
        seen = centre(with_arrays[0].images[b].transpose(0, 1).numpy())
        np.testing.assert_allclose(seen, with_arrays[0].steps["proprio"][b], atol=0.51)


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "name": ({"steps": StepsConfig(proprio="plaec")}, "unknown key 'plaec'. Did you mean 'place'"),
    "kind": ({"steps": StepsConfig(action="state")}, r"data.steps.action=state: it has a row for every frame"),
    "proprio": ({"steps": StepsConfig(proprio="reward")}, r"data.steps.proprio=reward: it has a row for every action"),
    "fps": ({"clip": ClipConfig(frames=4, fps=5, short="pad")}, "needs a clip that goes by frames.*clip.stride"),
    "loop": ({"clip": ClipConfig(frames=4, stride=5)}, "short=loop: no action leads from an episode's end"),
    "flip": ({"hflip": 0.5}, "actions do not turn with a mirrored picture"),
    "taken": (
        {"steps": StepsConfig(proprio="state", also=("proprio",))},
        "proprio is taken by data.steps.proprio=state",
    ),
}


@pytest.mark.parametrize("name", list(WRONG))
def test_what_cannot_be_read_is_told_at_once(walk: Manifest, name: str) -> None:
    changed, said = WRONG[name]
    with pytest.raises(ConfigError, match=said):
        data(walk, **changed)


def test_a_data_set_without_arrays(tmp_path: Path) -> None:
    few = ["source.samples={train: 3, val: 1, test: 1}"]
    found = build("bouncing-digits", tmp_path / "out", overrides=few, progress=False)
    with pytest.raises(ConfigError, match="has no arrays: it holds no episodes with actions"):
        data(found)


@pytest.mark.parametrize("what", ["video", "array"])
def test_an_episode_that_cannot_be_read_is_replaced_with_all_its_arrays(what: str, tmp_path: Path) -> None:
    found = made(tmp_path / "out", episodes="{train: 7}")
    split = found.split("train")
    shard, offset, length = (int(n) for n in split.index[2, :3])
    if what == "array":
        offset, length = (int(n) for n in np.load(found.root / "train/array-state.npy")[2, :2])
    with split.shards[shard].path.open("r+b") as tar:
        tar.seek(offset)
        tar.write(b"\0" * length)
    loaded = TrainData(replace(section(found), max_bad=1.0), seed=3, run_dir=tmp_path)
    for batch in make_loader(loaded, batch=7, total_steps=2, trace=True):
        assert batch.steps is not None and 2 not in batch.index.tolist()
        for b in range(7):
            seen = centre(batch.images[b].transpose(0, 1).numpy())
            np.testing.assert_allclose(seen, batch.steps["proprio"][b], atol=0.51)
    assert len((tmp_path / "quarantine.jsonl").read_text().splitlines()) == 2
    again = flat(
        make_loader(TrainData(replace(section(found), max_bad=1.0), seed=3, run_dir=tmp_path), batch=7, total_steps=2)
    )
    assert len(again) == 14
