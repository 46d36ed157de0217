"""Sources of recorded episodes, from files written here as their own programs write them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from jepa.data import Manifest, read_episode
from jepa.data.build import build
from jepa.data.sources import recorded
from jepa.data.video.write import Coding, write
from jepa.errors import ConfigError, DataError
from tests.data.envs.test_rollouts import centre

LENGTHS = (9, 12, 7, 10)
RECIPE = """
name: robot
source: {{kind: {kind}, path: {path}{more}}}
splits: {{fractions: {{}}}}
video: {{crf: 0, full_colour: true}}
"""


def episode(number: int, frames: int | None = None) -> dict[str, np.ndarray]:
    """A square that walks: frames (T, 32, 32, 3), action (T, 2) whose last row is NaN, state (T, 2), reward (T,)."""
    chance, count = np.random.default_rng(number), frames or LENGTHS[number]
    action = chance.integers(-2, 3, (count, 2)).astype(np.float32)
    state = np.clip(16 + np.cumsum(np.concatenate([[[0, 0]], action[:-1]]), axis=0), 3, 28).astype(np.float32)
    pictures = np.zeros((count, 32, 32, 3), dtype=np.uint8)
    for picture, (x, y) in zip(pictures, state.astype(int), strict=True):
        picture[y - 2 : y + 3, x - 2 : x + 3] = 255
    action[:-1] = np.diff(state, axis=0)
    action[-1] = np.nan
    return {"frames": pictures, "action": action, "state": state, "reward": np.arange(count, dtype=np.float64)}


def made(kind: str, path: Path, out: Path, *overrides: str, more: str = "") -> Manifest:
    recipe = out.with_suffix(".yaml")
    recipe.write_text(RECIPE.format(kind=kind, path=path, more=more))
    return build(recipe, out, overrides=list(overrides), progress=False)


def check(found: Manifest, split: str = "train", further: int = 0) -> None:
    """Every episode is one of those above, with what was seen, done and known of it together."""
    lengths = []
    for i in range(len(found.split(split))):
        frames, arrays = read_episode(found.split(split), i)
        lengths.append(len(frames) - further)
        np.testing.assert_allclose(centre(frames.numpy()), arrays["state"], atol=0.01)
        np.testing.assert_allclose(arrays["state"][:-1] + arrays["action"], arrays["state"][1:])
        original = episode(LENGTHS.index(lengths[-1]))
        np.testing.assert_array_equal(arrays["state"][: lengths[-1]], original["state"])
    assert sorted(lengths) == sorted(LENGTHS) or split != "train" or found.bad_count


def write_npz(root: Path, change: Callable[[int, dict[str, np.ndarray]], Any] = lambda number, found: None) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    for number in range(len(LENGTHS)):
        found = episode(number)
        found["action"] = found["action"][:-1]
        found["reward"] = found["reward"][1:]
        change(number, found)
        np.savez(root / f"episode-{number}.npz", **found)
    return root


def test_npz(tmp_path: Path) -> None:
    found = made("npz", write_npz(tmp_path / "in"), tmp_path / "out", "episode.arrays={state: {units: px}}")
    check(found)
    assert {n: (a.kind, a.size) for n, a in found.arrays.items()} == {
        "action": ("action", 2), "state": ("frame", 2), "reward": ("action", 1),
    }  # fmt: skip
    assert found.arrays["state"].units == ("px", "px")
    joined = made("npz", tmp_path / "in", tmp_path / "joined", more=", arrays: {action: action, both: [state, state]}")
    assert joined.arrays["both"].size == 4 and list(joined.arrays) == ["action", "both"]


def test_folders_of_npz_are_splits(tmp_path: Path) -> None:
    write_npz(tmp_path / "in/train")
    write_npz(tmp_path / "in/validation")
    found = made("npz", tmp_path / "in", tmp_path / "out")
    assert {name: len(split) for name, split in found.splits.items()} == {"train": 4, "val": 4}


def set_(name: str, value: Callable[[np.ndarray], Any]) -> Callable[[dict[str, np.ndarray]], Any]:
    return lambda found: found.update({name: value(found[name])})


BAD: dict[str, tuple[Callable[[dict[str, np.ndarray]], Any], str]] = {
    "frames are missing": (set_("frames", lambda f: f[:-2]), "'action' has 11 rows and the video 10 frames"),
    "short action": (set_("action", lambda a: a[:4]), "'action' has 4 rows and the video 12 frames.*needs 11"),
    "long state": (set_("state", lambda s: np.repeat(s, 2, axis=0)), "'state' has 24 rows.*different rates"),
    "nothing": (set_("frames", lambda f: f[:0]), "the episode is empty: it has no frames"),
    "no actions": (set_("action", lambda a: a[:0]), "'action' has 0 rows and the video 12 frames"),
    "nan": (set_("action", lambda a: np.where(np.mgrid[:11, :2][0] == 3, np.nan, a)), "'action' is nan in row 3 of 11"),
    "wide": (set_("action", lambda a: np.repeat(a, 2, 1)), "'action' has 4 numbers in a row here, 2 in the data set"),
    "gone": (lambda f: f.pop("state"), "it has no array 'state'; it has frames, action, reward"),
    "floats": (set_("frames", lambda f: f / 255), "'frames' holds float64 .*frames are uint8"),
    "objects": (set_("state", lambda s: np.array([None] * len(s))), "cannot be read: Object arrays cannot be loaded"),
    "text": (set_("reward", lambda r: r.astype(str)), "'reward' holds <U"),
}  # fmt: skip


@pytest.mark.parametrize("name", list(BAD))
def test_an_episode_that_cannot_be_used_is_left_out_and_said(name: str, tmp_path: Path) -> None:
    change, said = BAD[name]
    write_npz(tmp_path / "in", lambda number, found: change(found) if number == 1 else None)
    found = made("npz", tmp_path / "in", tmp_path / "out")
    assert found.bad_count == 1 and len(found.split("train")) == 3
    assert found.bad[0]["source"] == "episode-1.npz"
    with pytest.raises(DataError, match=said):
        raise DataError(found.bad[0]["reason"])
    check(found)


def test_a_damaged_file_and_none_at_all(tmp_path: Path) -> None:
    root = write_npz(tmp_path / "in")
    (root / "episode-0.npz").write_bytes((root / "episode-0.npz").read_bytes()[:200])
    found = made("npz", root, tmp_path / "out")
    assert found.bad_count == 1 and "cannot be read" in found.bad[0]["reason"]
    with pytest.raises(DataError, match=r"has no \.npz files"):
        made("npz", tmp_path / "none", tmp_path / "out-of-none")
    with pytest.raises(ConfigError, match="unknown key 'stat'. Did you mean 'state'"):
        made("npz", root, tmp_path / "wrong", more=", arrays: {state: stat}")
    with pytest.raises(ConfigError, match="unknown key 'torque'.*Valid keys here: action, state"):
        made("npz", root, tmp_path / "w", more=", arrays: {action: action, state: state}, per_action: [torque]")


def write_robomimic(path: Path, further: bool, masks: bool = False) -> Path:
    with h5py.File(path, "w") as file:
        for number in range(len(LENGTHS)):
            found, group = episode(number), file.create_group(f"data/demo_{number}")
            last = len(found["frames"]) - (1 if further else 0)
            group["actions"] = np.nan_to_num(found["action"][:last])
            group["rewards"] = found["reward"][:last]
            group["dones"] = (np.arange(last) == last - 1).astype(np.int64)
            group["states"] = np.zeros((last, 40))
            for name, key in (("agentview_image", "frames"), ("state", "state")):
                group[f"obs/{name}"] = found[key][:last]
                if further:
                    group[f"next_obs/{name}"] = found[key][1:]
        if masks:
            file["mask/train"] = np.array([b"demo_0", b"demo_1", b"demo_3"])
            file["mask/valid"] = np.array([b"demo_2"])
    return path


@pytest.mark.parametrize("further", [False, True])
def test_robomimic(further: bool, tmp_path: Path) -> None:
    found = made("hdf5", write_robomimic(tmp_path / "demos.hdf5", further), tmp_path / "out")
    check(found)
    assert {n: (a.kind, a.size, a.dtype) for n, a in found.arrays.items()} == {
        "action": ("action", 2, "float32"), "terminated": ("action", 1, "int64"), "reward": ("action", 1, "float64"),
        "state": ("frame", 2, "float32"),
    }  # fmt: skip
    ends = [found.split("train").read_array(i, "terminated").sum() for i in range(4)]
    assert ends == [further] * 4, "the last action is kept where it is known what it led to"


def test_robomimic_masks_are_splits(tmp_path: Path) -> None:
    found = made("hdf5", write_robomimic(tmp_path / "demos.hdf5", False, masks=True), tmp_path / "out")
    assert {name: len(split) for name, split in found.splits.items()} == {"train": 3, "val": 1}
    assert found.arrays["action"].count == sum(LENGTHS) - LENGTHS[2] - 3, "statistics are those of train"


def write_droid(root: Path, film: Callable[[np.ndarray], np.ndarray] = lambda frames: frames) -> Path:
    for number in range(len(LENGTHS)):
        found, folder = episode(number), root / f"lab/success/episode-{number}"
        (folder / "recordings/MP4").mkdir(parents=True)
        for camera in ("22008760", "22008760-stereo"):
            video = write(film(found["frames"]), 15.0, Coding(crf=0, full_colour=True))
            (folder / f"recordings/MP4/{camera}.mp4").write_bytes(video)
        with h5py.File(folder / "trajectory.h5", "w") as file:
            file["action/cartesian_velocity"] = np.nan_to_num(found["action"])
            file["action/gripper_velocity"] = np.zeros(len(found["action"]))
            file["observation/robot_state/cartesian_position"] = found["state"]
            file["observation/robot_state/gripper_position"] = np.ones(len(found["state"]))
    return root


def test_droid(tmp_path: Path) -> None:
    root = write_droid(tmp_path / "in")
    found = made("hdf5", root, tmp_path / "out")
    assert {n: (a.kind, a.size) for n, a in found.arrays.items()} == {"action": ("action", 3), "proprio": ("frame", 3)}
    assert len(found.split("train")) == 4 and found.bad == []
    np.testing.assert_allclose(found.split("train").video[:, 1], 15)
    names = "{action: action/cartesian_velocity, state: observation/robot_state/cartesian_position}"
    check(made("hdf5", root, tmp_path / "named", more=f", arrays: {names}"))


def test_a_film_at_another_rate_than_the_actions(tmp_path: Path) -> None:
    root = write_droid(tmp_path / "in", lambda frames: frames[::2])
    with pytest.raises(DataError, match="has .* rows and the video .* frames.*recorded at different rates"):
        made("hdf5", root, tmp_path / "out")


def test_hdf5_files_of_another_kind(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["temperature"] = np.zeros(3)
    with pytest.raises(DataError, match="neither robomimic's layout.*temperature"):
        made("hdf5", tmp_path / "x.h5", tmp_path / "out")
    (tmp_path / "y.h5").write_bytes(b"not hdf5")
    with pytest.raises(DataError, match="y.h5 cannot be read"):
        made("hdf5", tmp_path / "y.h5", tmp_path / "out2")
    with pytest.raises(ConfigError, match="unknown key 'wrist'.*obs/agentview_image"):
        made("hdf5", write_robomimic(tmp_path / "d.hdf5", True), tmp_path / "out3", more=", camera: wrist")


def swm_columns(number: int) -> dict[str, Any]:
    found = episode(number)
    return {"pixels": found["frames"], "action": found["action"], "state": found["state"],
            "reward": found["reward"].astype(np.float32)}  # fmt: skip


def write_swm_hdf5(path: Path) -> Path:
    with h5py.File(path, "w") as file:
        columns = [swm_columns(number) for number in range(len(LENGTHS))]
        for name in columns[0]:
            file[name] = np.concatenate([c[name] for c in columns])
        file["ep_len"] = np.array(LENGTHS)
        file["ep_offset"] = np.concatenate([[0], np.cumsum(LENGTHS)[:-1]])
    return path


def check_swm(found: Manifest, exact: bool = True) -> None:
    assert {n: (a.kind, a.size) for n, a in found.arrays.items()} == {
        "action": ("action", 2), "state": ("frame", 2), "reward": ("action", 1),
    }  # fmt: skip
    for i in range(4):
        rewards = found.split("train").read_array(i, "reward")[:, 0]
        np.testing.assert_array_equal(rewards, np.arange(1, len(rewards) + 1), "came with the frame they led to")
    if exact:
        check(found)
    else:
        frames, arrays = read_episode(found.split("train"), 0)
        np.testing.assert_allclose(centre(frames.numpy()), arrays["state"], atol=0.3)


def test_stable_worldmodel_hdf5(tmp_path: Path) -> None:
    check_swm(made("swm", write_swm_hdf5(tmp_path / "walk.h5"), tmp_path / "out"))


@pytest.mark.parametrize("kind", ["folder", "lance"])
def test_stable_worldmodel_through_its_own_writers(kind: str, tmp_path: Path) -> None:
    from stable_worldmodel import data

    path = tmp_path / ("walk.lance" if kind == "lance" else "walk")
    with data.get_format(kind).open_writer(str(path)) as writer:
        for number in range(len(LENGTHS)):
            writer.write_episode({name: list(np.nan_to_num(column)) for name, column in swm_columns(number).items()})
    check_swm(made("swm", path, tmp_path / "out"), exact=False)


def test_what_is_no_data_set_of_stable_worldmodel(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="is no data set of stable-worldmodel"):
        made("swm", tmp_path / "empty", tmp_path / "out")
    with pytest.raises(ConfigError, match="source.camera: unknown key 'pixel'. Did you mean 'pixels'"):
        made("swm", write_swm_hdf5(tmp_path / "w.h5"), tmp_path / "out2", more=", camera: pixel")


def test_names_that_are_taken_from_keys() -> None:
    values = {"obs/Robot0.EEF pos": np.zeros((3, 2)), "actions": np.zeros((3, 2)), "label": np.array(["a", "b", "c"]),
              "json": np.zeros((3, 1)), "9": np.zeros(3), "wide": np.zeros((3, 5000))}  # fmt: skip
    assert recorded.usual(values) == {"robot0_eef_pos": "obs/Robot0.EEF pos", "action": "actions", "json": "json"}
