"""LeRobot data sets in both layouts, laid out here as lerobot 0.3.3 (v2.1) and 0.4.4 (v3.0) were seen to do it."""

from __future__ import annotations

import io
import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jepa.config import ClipConfig
from jepa.data import Manifest, eval_clips, read_episode
from jepa.data.build import build
from jepa.data.video.decode import decode
from jepa.data.video.probe import probe
from jepa.data.video.write import Coding, write
from jepa.errors import ConfigError, DataError
from tests.data.video.films import number_of, picture

FPS = 10
CAMERAS = ("observation.images.top", "observation.images.wrist")
TASKS = ["push the block", "lift the block"]
LENGTHS = [8, 11, 9, 12, 10]
V21_DATA = "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet"
V30_DATA = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"


def numbers(camera: str, episode: int) -> list[int]:
    """What the frames of an episode show."""
    return [CAMERAS.index(camera) * 128 + 20 * episode + t for t in range(LENGTHS[episode])]


def filmed(shown: list[int], gop: int = 2) -> bytes:
    return write(np.stack([picture(n) for n in shown]), FPS, Coding(gop=gop, crf=8))


def joined(parts: list[bytes]) -> bytes:
    """Videos one after the other without coding them anew, as lerobot does it: each begins with a key frame."""
    out, start = io.BytesIO(), Fraction(0)
    with av.open(out, "w", format="mp4") as file:
        made = None
        for part in parts:
            with av.open(io.BytesIO(part)) as source:
                stream = source.streams.video[0]
                made = made or file.add_stream_from_template(stream)
                base, count = stream.time_base, 0
                assert base is not None
                for packet in source.demux(stream):
                    if packet.pts is not None and packet.dts is not None:
                        packet.pts, packet.dts = packet.pts + int(start / base), packet.dts + int(start / base)
                        packet.stream, count = made, count + 1
                        file.mux(packet)
            start += Fraction(count, FPS)
    return out.getvalue()


def info(version: str, **more: Any) -> dict[str, Any]:
    features = {c: {"dtype": "video", "shape": [48, 64, 3], "names": ["height", "width", "channels"]} for c in CAMERAS}
    features |= {"action": {"dtype": "float32", "shape": [2], "names": {"motors": ["pan", "lift"]}},
                 "observation.state": {"dtype": "float32", "shape": [3], "names": ["x", "y", "z"]},
                 "next.done": {"dtype": "bool", "shape": [1], "names": None},
                 "photo": {"dtype": "image", "shape": [8, 8, 3]}}  # fmt: skip
    return {"codebase_version": version, "fps": FPS, "chunks_size": 3, "total_episodes": 5, "features": features,
            "splits": {"train": "0:5"}} | more  # fmt: skip


def put(path: Path, data: bytes | str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.encode() if isinstance(data, str) else data)


def tasks_of(episode: int) -> list[str]:
    return TASKS if episode == 4 else [TASKS[episode % 2]]


def table(episodes: list[int]) -> pa.Table:
    """What LeRobot keeps of every frame: action and state tell episode and frame; rows of an episode are mixed up."""
    rows = [(e, t) for e in episodes for t in reversed(range(LENGTHS[e]))]
    vectors = pa.list_(pa.float32(), 2), pa.list_(pa.float32(), 3)
    return pa.table({
        "action": pa.array([[e, t] for e, t in rows], type=vectors[0]),
        "observation.state": pa.array([[e, t, 0.5] for e, t in rows], type=vectors[1]),
        "next.done": [t == LENGTHS[e] - 1 for e, t in rows],
        "episode_index": [e for e, _ in rows], "frame_index": [t for _, t in rows],
    })  # fmt: skip


def write_v21(root: Path) -> Path:
    pattern = "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4"
    put(root / "meta/info.json", json.dumps(info("v2.1", video_path=pattern, data_path=V21_DATA)))
    for e in range(5):
        path = root / V21_DATA.format(episode_chunk=e // 3, episode_index=e)
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table([e]), path)
    put(
        root / "meta/tasks.jsonl", "".join(json.dumps({"task_index": i, "task": t}) + "\n" for i, t in enumerate(TASKS))
    )
    rows = [{"episode_index": e, "tasks": tasks_of(e), "length": n} for e, n in enumerate(LENGTHS)]
    put(root / "meta/episodes.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    for e in range(5):
        for camera in CAMERAS:
            put(root / f"videos/chunk-{e // 3:03d}/{camera}/episode_{e:06d}.mp4", filmed(numbers(camera, e)))
    return root


def write_v30(root: Path, whole: int | None = None) -> Path:
    """Episodes 0 to 2 in one file, 3 and 4 in the next; `whole`: a file is coded at once, with this GOP."""
    pattern = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
    put(root / "meta/info.json", json.dumps(info("v3.0", video_path=pattern, data_path=V30_DATA)))
    (root / "data/chunk-000").mkdir(parents=True)
    for number, episodes in enumerate([[0, 1], [2, 3, 4]]):
        pq.write_table(table(episodes), root / V30_DATA.format(chunk_index=0, file_index=number))
    tasks = pa.table({"task_index": [1, 0], "__index_level_0__": [TASKS[1], TASKS[0]]})
    pq.write_table(tasks, root / "meta/tasks.parquet")
    columns: dict[str, list[Any]] = {"episode_index": [], "tasks": [], "length": []}
    for e, length in enumerate(LENGTHS):
        number = int(e > 2)
        start = sum(LENGTHS[3 * number : e]) / FPS
        columns["episode_index"].append(e)
        columns["tasks"].append(tasks_of(e))
        columns["length"].append(length)
        columns.setdefault("data/chunk_index", []).append(0)
        columns.setdefault("data/file_index", []).append(int(e > 1))
        for camera in CAMERAS:
            places = {
                "chunk_index": 0,
                "file_index": number,
                "from_timestamp": start,
                "to_timestamp": start + length / FPS,
            }
            for name, value in places.items():
                columns.setdefault(f"videos/{camera}/{name}", []).append(value)
    (root / "meta/episodes/chunk-000").mkdir(parents=True)
    for part in range(2):  # over two files, as large ones are
        rows = {name: values[3 * part : 3 * part + 3] for name, values in columns.items()}
        pq.write_table(pa.table(rows), root / f"meta/episodes/chunk-000/file-{part:03d}.parquet")
    for camera in CAMERAS:
        for number, episodes in enumerate([(0, 1, 2), (3, 4)]):
            shown = [numbers(camera, e) for e in episodes]
            data = joined([filmed(s) for s in shown]) if whole is None else filmed([n for s in shown for n in s], whole)
            put(root / f"videos/{camera}/chunk-000/file-{number:03d}.mp4", data)
    return root


def made(root: Path, out: Path, *overrides: str, workers: int = 0) -> Manifest:
    options = [f"source.path={root}", "splits.fractions={}", *overrides]
    return build("lerobot", out, overrides=options, workers=workers, progress=False)


def shown(found: Manifest, split: str = "train") -> dict[int, tuple[list[int], int]]:
    """First number of each sample -> its numbers, and its label."""
    chosen, kept = found.split(split), {}
    for i in range(len(chosen)):
        data = chosen.read(i)[0]
        frames = decode(data, np.arange(len(probe(data))), backend="pyav").pixels
        seen = [number_of(frame.permute(1, 2, 0).numpy() if frame.shape[0] == 3 else frame.numpy()) for frame in frames]
        kept[seen[0]] = (seen, int(chosen.labels[i]))
    return kept


@pytest.fixture(scope="module")
def v21(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_v21(tmp_path_factory.mktemp("v21"))


@pytest.fixture(scope="module")
def v30(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_v30(tmp_path_factory.mktemp("v30"))


@pytest.mark.parametrize("layout", ["v21", "v30"])
@pytest.mark.parametrize("camera", CAMERAS)
def test_every_episode_is_a_sample(layout: str, camera: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    found = made(request.getfixturevalue(layout), tmp_path / "out", f"source.camera={camera}")
    assert (found.media, found.classes, found.bad_count) == ("video", TASKS, 0)
    wanted = {numbers(camera, e)[0]: (numbers(camera, e), -1 if e == 4 else e % 2) for e in range(5)}
    assert shown(found) == wanted
    assert sorted(found.split("train").video[:, 0].tolist()) == sorted(LENGTHS)
    np.testing.assert_allclose(found.split("train").video[:, 1], FPS)
    assert any("1 episodes have no task or several" in note for note in found.notes)
    (batch,) = eval_clips(found.split("train"), ClipConfig(4, fps=5), (24, 32), 5)
    assert batch.images.shape[0] == 5


def test_both_layouts_give_one_split_and_cameras_stay_together(v21: Path, v30: Path, tmp_path: Path) -> None:
    both = f"source.camera=[{', '.join(CAMERAS)}]"
    sides = []
    for root in (v21, v30):
        found = made(root, tmp_path / root.name, both, "splits.fractions={val: 0.5}")
        train, val = found.split("train"), found.split("val")
        assert len(train) + len(val) == 10 and not set(train.originals.tolist()) & set(val.originals.tolist())
        assert len(np.unique(train.originals)) == len(train) // 2
        sides.append(sorted(shown(found, "val")))
    assert sides[0] == sides[1]


def test_frames_are_cut_out_as_they_are_coded(v30: Path, tmp_path: Path) -> None:
    found = made(v30, tmp_path / "out", f"source.camera={CAMERAS[0]}").split("train")
    stored = sum(found.index[:, 2].tolist())
    files = sum(p.stat().st_size for p in (v30 / f"videos/{CAMERAS[0]}").rglob("*.mp4"))
    assert 0.9 * files < stored < 1.6 * files  # the same packets, five indices instead of two
    episode = next(i for i in range(5) if found.video[i, 0] == 8)
    assert probe(found.read(episode)[0]).keys.tolist() == [0, 2, 4, 6]


def test_where_no_key_frame_stands_at_the_cut_frames_are_coded_anew(tmp_path: Path) -> None:
    root = write_v30(tmp_path / "in", whole=50)
    found = made(root, tmp_path / "out", f"source.camera={CAMERAS[0]}", "video.crf=8")
    assert {first: seen for first, (seen, _) in shown(found).items()} == {
        numbers(CAMERAS[0], e)[0]: numbers(CAMERAS[0], e) for e in range(5)
    }
    small = made(root, tmp_path / "small", f"source.camera={CAMERAS[0]}", "video.fps=5", "video.resize=24", workers=2)
    np.testing.assert_allclose(sorted(small.split("train").video[:, 0]), np.sort(LENGTHS) / 2, atol=0.5)
    assert small.image["largest"] == [24, 32]


def test_a_file_that_ends_early_loses_only_its_last_episodes(tmp_path: Path) -> None:
    root = write_v30(tmp_path / "in")
    put(root / f"videos/{CAMERAS[0]}/chunk-000/file-000.mp4", joined([filmed(numbers(CAMERAS[0], e)) for e in (0, 1)]))
    (root / f"videos/{CAMERAS[0]}/chunk-000/file-001.mp4").unlink()
    found = made(root, tmp_path / "out", f"source.camera={CAMERAS[0]}")
    assert sorted(shown(found)) == [0, 20] and found.bad_count == 3
    reasons = {bad["source"].split(",")[0]: bad["reason"] for bad in found.bad}
    assert "from 1.90 to 2.80 s of a video that goes from 0.00 to 1.90 s" in reasons["episode 2"]
    assert "no such file" in reasons["episode 3"]


def test_splits_of_the_data_set(v21: Path, tmp_path: Path) -> None:
    root = write_v21(tmp_path / "in")
    put(root / "meta/info.json", json.dumps(json.loads((root / "meta/info.json").read_text()) | {
        "splits": {"train": "0:3", "validation": "3:4", "test": "4:5"}}))  # fmt: skip
    found = made(root, tmp_path / "out", f"source.camera={CAMERAS[0]}", "splits.fractions={val: 0.1, test: 0.1}")
    assert {name: sorted(shown(found, name)) for name in found.splits} == {
        "train": [0, 20, 40],
        "val": [60],
        "test": [80],
    }


def test_clear_errors(v21: Path, v30: Path, tmp_path: Path) -> None:
    for root, overrides, error, words in (
        (v21, [], ConfigError, f"choose one or several of its 2: {', '.join(CAMERAS)}"),
        (v21, ["source.camera=top"], ConfigError, "top is not there; videos are: observation.images.top"),
        (v21, ["source.camera=photo"], ConfigError, "photo holds single images, not videos"),
        (v21, ["source.camera=[]"], ConfigError, "source.camera is empty"),
        (v21, ["source.repo=a/b"], ConfigError, "give only one of the two"),
        (v21, ["source.path=''"], ConfigError, r"source\.path is empty"),
        (v21, ["source.revision=main"], ConfigError, "give repo as well"),
        (tmp_path, [], DataError, "no LeRobot data set: it has no meta/info.json"),
    ):
        with pytest.raises(error, match=words):
            made(root, tmp_path / "out", *overrides)
    camera = f"source.camera={CAMERAS[0]}"
    for change, words in (
        ({"codebase_version": "v1.6"}, "layout v1.6, read are v2.0, v2.1, v3.0"),
        ({"video_path": "videos/{what}.mp4"}, "is no pattern"),
        ({"video_path": "../{video_key}.mp4"}, "leads out of the data set"),
        ({"splits": {"train": "all"}}, "'train' is 'all', expected FIRST:END"),
        ({"features": None}, "damaged"),
    ):
        damaged = tmp_path / f"x{len(words)}"
        for name in ("meta/tasks.jsonl", "meta/episodes.jsonl"):
            put(damaged / name, (v21 / name).read_bytes())
        put(damaged / "meta/info.json", json.dumps(json.loads((v21 / "meta/info.json").read_text()) | change))
        with pytest.raises(DataError, match=words):
            made(damaged, tmp_path / "out", camera)
    torn = write_v30(tmp_path / "torn")
    put(torn / "meta/episodes/chunk-000/file-000.parquet", b"PAR1 no more")
    with pytest.raises(DataError, match=r"file-000\.parquet cannot be read"):
        made(torn, tmp_path / "out", camera)


def test_the_hub_that_cannot_be_reached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match=r"cannot fetch me/robot from the Hugging Face hub.*give source\.path"):
        build("lerobot", tmp_path / "out", overrides=["source.repo=me/robot"], progress=False)


ARRAYS = ["source.camera=observation.images.top", "source.arrays={action: action, state: observation.state}"]


@pytest.mark.parametrize("layout", ["v21", "v30"])
def test_actions_and_states_come_with_their_frames(layout: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    found = made(request.getfixturevalue(layout), tmp_path / "out", *ARRAYS, "episode.arrays.action.units=rad")
    assert found.bad == [] and found.arrays["action"].names == ("pan", "lift")
    assert found.arrays["action"].units == ("rad", "rad") and found.arrays["state"].names == ("x", "y", "z")
    split = found.split("train")
    lengths = set()
    for i in range(len(split)):
        frames, arrays = read_episode(split, i, decoder="pyav")
        first = number_of(frames[0].permute(1, 2, 0).numpy())
        e = first // 20
        lengths.add(LENGTHS[e])
        np.testing.assert_array_equal(arrays["action"], [[e, t] for t in range(LENGTHS[e] - 1)])
        np.testing.assert_array_equal(arrays["state"], [[e, t, 0.5] for t in range(LENGTHS[e])])
        assert len(frames) == LENGTHS[e]
    assert lengths == set(LENGTHS)


def test_frames_of_lerobot_are_thinned_out_with_all_their_actions(v30: Path, tmp_path: Path) -> None:
    found = made(v30, tmp_path / "out", *ARRAYS, "episode.frame_skip=4", "episode.hold=1")
    for i in range(5):
        frames, arrays = read_episode(found.split("train"), i, decoder="pyav")
        shows = [number_of(f.permute(1, 2, 0).numpy()) for f in frames]
        e, times = shows[0] // 20, [n % 20 for n in shows]
        assert times == [*range(0, LENGTHS[e], 4), (LENGTHS[e] - 1) // 4 * 4][: len(times)]
        assert arrays["action"].shape == (len(frames) - 1, 8)
        np.testing.assert_array_equal(arrays["action"][0], [e, 0, e, 1, e, 2, e, 3])
        np.testing.assert_array_equal(arrays["action"][-1], 0)
        np.testing.assert_array_equal(arrays["state"][:, 1], times)


def test_features_that_are_no_arrays(v21: Path, tmp_path: Path) -> None:
    top = ARRAYS[0]
    with pytest.raises(ConfigError, match=r"source.arrays.state: unknown key 'observation.stat'. Did you mean"):
        made(v21, tmp_path / "a", top, "source.arrays={state: observation.stat}")
    with pytest.raises(ConfigError, match=r"source.arrays.eye: photo hold image, not numbers"):
        made(v21, tmp_path / "b", top, "source.arrays={eye: photo}")
    lost = write_v21(tmp_path / "lost")
    (lost / V21_DATA.format(episode_chunk=0, episode_index=1)).unlink()
    found = made(lost, tmp_path / "c", *ARRAYS)
    assert found.bad_count == 1 and "episode_000001.parquet cannot be read" in found.bad[0]["reason"]
