"""Every kind of bad or unusual video, as a real file, through a build, a check, training and evaluation.

What can be used is used as it is shown; what cannot is counted with its reason; only when nothing is left it is an
error. Nothing is passed over in silence.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jepa import config
from jepa.config import ClipConfig, RunConfig
from jepa.data import Manifest, eval_clips
from jepa.data.build import build
from jepa.data.video.decode import decode
from jepa.data.video.probe import probe
from jepa.data.video.scan import ScanConfig, check
from jepa.errors import DataError, TrainingError
from jepa.train import train
from tests.data.video.films import copied, film, index_first, long_film, number_of, sound_only
from tests.tiny import VALUES


def jpeg() -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (32, 24), (200, 30, 30)).save(out, "JPEG")
    return out.getvalue()


BAD: dict[str, tuple[Callable[[], bytes], str, str]] = {  # the file, what `check` calls it, what a build says
    "zero-byte.mp4": (lambda: b"", "empty", "empty (0 bytes): fetch it again"),
    "truncated.mp4": (lambda: film(30)[:2000], "truncated", "index (moov) is missing or damaged"),
    "cut-off.mp4": (lambda: index_first(film(60))[:9000], "truncated", "behind its end"),
    "cut-off.mkv": (lambda: film(60, container="matroska")[:6000], "lying", "header claims 2.00 s"),
    "audio-only.mp4": (sound_only, "silent-picture", "no video stream (it holds audio)"),
    "a-picture.mp4": (jpeg, "foreign", "not a video: it is a JPEG picture"),
    "notes.avi": (lambda: b"these are my notes", "foreign", "not a video: it starts with b'these ar'"),
    "no-fps.ts": (lambda: copied(film(20), "h264"), "no-times", "nothing says when its frames are shown (no fps)"),
    "no-times.avi": (lambda: copied(film(60, b_frames=3), "avi"), "no-times", "ffmpeg -r"),
}
UNUSUAL: dict[str, tuple[Callable[[], bytes], tuple[int, int], int]] = {  # the file, (height, width) shown, frames
    "plain.mp4": (lambda: film(20), (48, 64), 20),
    "wrong-extension.avi": (lambda: film(20, container="matroska"), (48, 64), 20),
    "rotated.mp4": (lambda: film(20, rotation=90), (64, 48), 20),
    "ten-bit.mp4": (lambda: film(20, pixels="yuv420p10le"), (48, 64), 20),
    "odd-sized.mp4": (lambda: film(20, codec="mpeg4", size=(49, 65)), (49, 65), 20),
    "one-frame.mp4": (lambda: film(1), (48, 64), 1),
}
RECIPE = "name: mine\nsource: {kind: videos}\nsplits: {fractions: {}}\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("videos")
    for name, (make, *_) in {**BAD, **UNUSUAL}.items():
        (made / name).write_bytes(make())
    return made


def built(folder: Path, out: Path, *overrides: str, workers: int = 0) -> Manifest:
    out.mkdir(exist_ok=True)
    (out / "recipe.yaml").write_text(RECIPE)
    given = [f"source.path={folder}", *overrides]
    return build(out / "recipe.yaml", out / "data", overrides=given, workers=workers, progress=False)


@pytest.mark.parametrize("again", [(), ("video.resize=40", "video.gop=4")])
def test_a_build_counts_what_is_bad_and_keeps_what_is_unusual(
    folder: Path, tmp_path: Path, again: tuple[str, ...]
) -> None:
    """The same with and without coding anew; the one-frame video is left out as the recipe's min_frames says."""
    found = built(folder, tmp_path, *again)
    reasons = {bad["source"]: bad["reason"] for bad in found.bad}
    assert found.bad_count == len(reasons) and set(reasons) == {*BAD, "one-frame.mp4"}
    for name, (_, _, words) in BAD.items():
        assert words in reasons[name], f"{name}: {reasons[name]}"
    assert "1 frame(s), the recipe asks for video.min_frames=2" in reasons["one-frame.mp4"]
    train_split = found.split("train")
    sizes = set()
    for i in range(len(train_split)):
        facts, frames = probe(train_split.read(i)[0]), decode(train_split.read(i)[0], [0, 7], backend="pyav")
        assert len(facts) == 20 and frames.pixels.shape[2:] == (facts.height, facts.width)
        sizes.add((facts.height, facts.width))
        if not again:
            upright = frames.pixels[1].permute(1, 2, 0).numpy()
            assert number_of(np.rot90(upright, -1 if facts.rotation else 0)) == 7
    shown = {size for name, (_, size, _) in UNUSUAL.items() if name != "one-frame.mp4"}
    shrunk = {(40, 53): (40, 54), (53, 40): (54, 40)}  # coding anew pads an odd side by one
    assert len(train_split) == 5
    if again:
        assert sizes <= {*shrunk.values(), (40, 54), (54, 40)} and len(sizes) == 2, "one stands upright"
    else:
        assert sizes == shown


def test_workers_count_the_same(folder: Path, tmp_path: Path) -> None:
    here, there = built(folder, tmp_path / "a"), built(folder, tmp_path / "b", workers=2)
    assert here.hash == there.hash and here.bad == there.bad


def test_one_frame_may_be_asked_for(folder: Path, tmp_path: Path) -> None:
    found = built(folder, tmp_path, "video.min_frames=1")
    assert len(found.split("train")) == 6 and sorted(found.split("train").video[:, 0].tolist())[0] == 1


def test_a_check_names_each(folder: Path) -> None:
    paths = [folder / name for name in (*BAD, *UNUSUAL)]
    found = {Path(v.path).name: v for v in check(paths, ScanConfig(min_frames=8)).verdicts}
    assert {name: found[name].kind for name in BAD} == {name: kind for name, (_, kind, _) in BAD.items()}
    statuses = {name: found[name].status for name in UNUSUAL}
    assert statuses == {name: "short" if name == "one-frame.mp4" else "ok" for name in UNUSUAL}


def test_ten_hours(tmp_path: Path) -> None:
    """Built as it is, and a clip from its end decoded, within seconds and without holding it in memory."""
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "ten-hours.mkv").write_bytes(long_film(10))
    found = built(tmp_path / "in", tmp_path / "out")
    train_split = found.split("train")
    assert train_split.video[0].tolist() == [36000, 1.0, 36000.0]
    (batch,) = eval_clips(train_split, ClipConfig(4, stride=100, clips=2), (48, 64), 1, decoder="pyav")
    assert batch.images.shape == (1, 2, 1, 3, 4, 48, 64)
    first, last = (int(number_of(clip[0, :, -1].permute(1, 2, 0).numpy())) for clip in batch.images[0])
    assert (first, last) == (300 % 2, 35999 % 2)


def test_pictures_among_videos_and_videos_among_pictures(tmp_path: Path) -> None:
    """One file of the wrong kind is left out and counted; it does not stop a build."""
    for name in ("videos", "images"):
        (tmp_path / name).mkdir()
    (tmp_path / "videos" / "a.mp4").write_bytes(film(5))
    (tmp_path / "videos" / "b.mp4").write_bytes(jpeg())
    (tmp_path / "images" / "a.jpg").write_bytes(jpeg())
    (tmp_path / "images" / "b.jpg").write_bytes(film(5))
    found = built(tmp_path / "videos", tmp_path / "v")
    assert (found.media, len(found.split("train")), found.bad_count) == ("video", 1, 1)
    (tmp_path / "recipe.yaml").write_text(RECIPE.replace("videos", "folder"))
    overrides = [f"source.path={tmp_path / 'images'}"]
    found = build(tmp_path / "recipe.yaml", tmp_path / "i", overrides=overrides, progress=False)
    assert (found.media, len(found.split("train")), found.bad_count) == ("image", 1, 1)
    assert found.bad[0]["source"] == "b.jpg"


def test_nothing_but_bad_videos(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name in BAD:
        (tmp_path / "in" / name).write_bytes((folder / name).read_bytes())
    with pytest.raises(
        DataError, match=rf"none of the {len(BAD)} images or videos of split 'train' could be used. The"
    ):
        built(tmp_path / "in", tmp_path / "out")


def test_a_list_with_unknown_paths(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("plain.mp4,a\nnever-was.mp4,b\nrotated.mp4,b\n")
    listed = f"source.labels={tmp_path / 'list.csv'}"
    with pytest.raises(DataError, match=r"1 of 3 videos .* never-was\.mp4.*source\.missing=skip"):
        built(folder, tmp_path / "x", listed)
    found = built(folder, tmp_path / "y", listed, "source.missing=skip")
    assert len(found.split("train")) == 2 and "1 listed videos are not there" in found.notes[0]


# --- clips longer than the video ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def lengths(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Videos of 5 and of 40 frames, three of the short and five of the long ones."""
    folder = tmp_path_factory.mktemp("lengths")
    (folder / "in").mkdir()
    for i in range(8):
        (folder / "in" / f"{i}.mp4").write_bytes(film(5 if i < 3 else 40))
    built(folder / "in", folder)
    return folder / "data"


def settings(data: Path, *more: str) -> RunConfig:
    method = {
        "name": "vjepa",
        "encoder": {"patch": 8, "width": 24, "depth": 1, "heads": 1},
        "predictor": {"width": 24, "depth": 1, "heads": 1},
    }
    values = config.override({**VALUES, "method": method}, [
        f"data.path={data}", "data.clip={frames: 8, stride: 1}", "data.image_size=24", "data.workers=0",
        "train.batch=4", "train.duration={steps: 4}", *more,
    ])  # fmt: skip
    return config.build(RunConfig, values)


@pytest.mark.parametrize(("policy", "frames"), [("pad", [0, 1, 2, 3, 4, 4, 4, 4]), ("loop", [0, 1, 2, 3, 4, 0, 1, 2])])
def test_a_clip_longer_than_its_video_is_padded_or_looped(lengths: Path, policy: str, frames: list[int]) -> None:
    split = Manifest.open(lengths).split("train")
    short = np.flatnonzero(split.video[:, 0] == 5)
    clip = config.build(ClipConfig, {"frames": 8, "stride": 1, "short": policy})
    (batch,) = eval_clips(split, clip, (48, 64), 8, short, decoder="pyav")
    for images in batch.images[:, 0, 0]:
        assert [number_of(frame.permute(1, 2, 0).numpy()) for frame in images.transpose(0, 1)] == frames


def test_a_clip_longer_than_its_video_is_skipped_and_counted(lengths: Path, tmp_path: Path) -> None:
    train(settings(lengths, "data.clip.short=skip", "data.max_bad=1.0"), tmp_path / "run", trace=True, quiet=True)
    lines = [json.loads(x) for x in (tmp_path / "run" / "quarantine.jsonl").read_text().splitlines()]
    video = Manifest.open(lengths).split("train").video
    assert len(lines) == 6, "two epochs of three short videos"
    for line in lines:
        assert video[line["index"], 0] == 5 and video[line["substitute"], 0] == 40
        assert "too short: it has 5 frames in 0.17 s, a clip takes 8 frames (8, stride 1)" in line["reason"]
    with pytest.raises(DataError, match="too short: it has 5 frames"):
        split = Manifest.open(lengths).split("train")
        list(eval_clips(split, ClipConfig(8, stride=1, short="skip"), (24, 24), 4))


def test_every_video_too_short_stops_the_run(lengths: Path, tmp_path: Path) -> None:
    wanted = ("data.clip.frames=64", "data.clip.short=skip", "data.max_bad=1.0")
    with pytest.raises(TrainingError, match=r"too short: it has .* a clip takes 64 frames.* neither could 20 others"):
        train(settings(lengths, *wanted), tmp_path / "run", quiet=True)
