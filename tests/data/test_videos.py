"""Building datasets of real videos: folders, label files, cutting and coding anew, and what is left out."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest

from jepa.data import Manifest
from jepa.data.build import build
from jepa.data.sources import moving_digits
from jepa.data.video.probe import Facts, probe
from jepa.data.video.write import Coding, write
from jepa.errors import ConfigError, DataError
from tests.data.conftest import encoded, picture


def movie(frames: int = 12, height: int = 24, width: int = 32, fps: float = 8, seed: int = 0) -> bytes:
    """A block moving over a grey ground, as an mp4."""
    pixels = np.full((frames, height, width, 3), 90, dtype=np.uint8)
    for t in range(frames):
        pixels[t, 4:12, (t + seed) % (width - 8) : (t + seed) % (width - 8) + 8] = (220, 40 + 10 * seed, 30)
    return write(pixels, fps, Coding(gop=4))


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    """run/ and jump/ with three videos each."""
    for c, name in enumerate(("jump", "run")):
        (tmp_path / "in" / name).mkdir(parents=True)
        for i in range(3):
            (tmp_path / "in" / name / f"{i}.mp4").write_bytes(movie(seed=3 * c + i))
    return tmp_path / "in"


def made(out: Path, *overrides: str, workers: int = 0) -> Manifest:
    recipe = out.parent / "recipe.yaml"
    recipe.write_text("name: mine\nsource: {kind: videos}\nsplits: {fractions: {}}\n")
    return build(recipe, out, overrides=list(overrides), workers=workers, progress=False)


def test_class_folders(videos: Path, tmp_path: Path) -> None:
    found = made(tmp_path / "out", f"source.path={videos}")
    train = found.split("train")
    assert (found.media, found.classes, len(train)) == ("video", ["jump", "run"], 6)
    assert sorted(train.labels.tolist()) == [0, 0, 0, 1, 1, 1]
    np.testing.assert_allclose(train.video, [[12, 8.0, 1.5]] * 6)
    for i in range(6):
        data, extension = train.read(i)
        kept = train.facts(i)
        assert extension == "mp4" and kept is not None
        assert Facts.from_dict(json.loads(kept)).to_dict() == probe(data).to_dict()
    originals = {p.read_bytes() for p in videos.rglob("*.mp4")}
    assert {train.read(i)[0] for i in range(6)} == originals  # nothing asked for a change, so the bytes are the same


def test_workers_make_the_same_dataset(videos: Path, tmp_path: Path) -> None:
    here = made(tmp_path / "here", f"source.path={videos}", "video.resize=16")
    there = made(tmp_path / "there", f"source.path={videos}", "video.resize=16", workers=2)
    assert here.hash == there.hash


@pytest.mark.parametrize(
    ("text", "classes", "labels"),
    [
        ("run/0.mp4 1\njump/1.mp4 0\n", ["0", "1"], {"run/0.mp4": 1, "jump/1.mp4": 0}),
        ("run/0.mp4,hop\njump/1.mp4,skip\n", ["hop", "skip"], {"run/0.mp4": 0, "jump/1.mp4": 1}),
        ("id,label,path\n7,b,run/0.mp4\n8,a,run/1.mp4\n", ["a", "b"], {"run/0.mp4": 1, "run/1.mp4": 0}),
        ("run/0.mp4\n", [], {"run/0.mp4": -1}),
        ("run/0.mp4 3\n", ["0", "1", "2", "3"], {"run/0.mp4": 3}),
    ],
)
def test_label_files(videos: Path, tmp_path: Path, text: str, classes: list[str], labels: dict[str, int]) -> None:
    listed = tmp_path / "labels.csv"
    listed.write_text(text)
    found = made(tmp_path / "out", f"source.path={videos}", f"source.labels={listed}")
    train = found.split("train")
    wanted = {(videos / name).read_bytes(): label for name, label in labels.items()}
    assert found.classes == classes
    assert {train.read(i)[0]: int(train.labels[i]) for i in range(len(train))} == wanted


def test_absolute_paths_in_a_label_file(videos: Path, tmp_path: Path) -> None:
    listed = tmp_path / "labels.csv"
    listed.write_text(f"{videos / 'run' / '0.mp4'} 0\n")
    assert len(made(tmp_path / "out", f"source.path={videos}", f"source.labels={listed}").split("train")) == 1


def test_listed_videos_that_are_not_there(videos: Path, tmp_path: Path) -> None:
    listed = tmp_path / "labels.csv"
    listed.write_text("run/0.mp4 0\nrun/gone.mp4 1\n")
    wanted = (f"source.path={videos}", f"source.labels={listed}")
    with pytest.raises(DataError, match=r"1 of 2 videos.*run/gone\.mp4.*source\.missing=skip"):
        made(tmp_path / "strict", *wanted)
    found = made(tmp_path / "skipping", *wanted, "source.missing=skip")
    assert len(found.split("train")) == 1 and "1 listed videos are not there" in found.notes[0]


@pytest.mark.parametrize(
    ("overrides", "error", "words"),
    [
        ((), ConfigError, r"source\.path is empty"),
        (("source.path=/nowhere/at/all",), DataError, "does not exist"),
        (("source.path={empty}",), DataError, r"no videos in .*\.mp4.*found 1 \.txt"),
        (("source.path={empty}", "source.labels={empty}/none.csv"), DataError, "cannot read source.labels"),
        (("source.path={empty}", "source.labels={empty}/blank.txt"), DataError, "is empty: write one line"),
        (("source.path={empty}", "source.labels=x", "source.splits={train: a}"), ConfigError, "give only one"),
        (("source.path={empty}", "video.crf=99"), ConfigError, "crf=99"),
    ],
)
def test_clear_errors(tmp_path: Path, overrides: tuple[str, ...], error: type[Exception], words: str) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "blank.txt").write_text("\n")
    with pytest.raises(error, match=words):
        made(tmp_path / "out", *(o.replace("{empty}", str(empty)) for o in overrides))


def test_broken_videos_are_counted_and_all_broken_is_an_error(videos: Path, tmp_path: Path) -> None:
    (videos / "run" / "0.mp4").write_bytes(b"")
    (videos / "run" / "1.mp4").write_bytes((videos / "run" / "1.mp4").read_bytes()[:700])
    (videos / "jump" / "0.mp4").write_bytes(movie(frames=1))
    found = made(tmp_path / "out", f"source.path={videos}")
    assert len(found.split("train")) == 3 and found.bad_count == 3
    reasons = {bad["source"]: bad["reason"] for bad in found.bad}
    assert "empty" in reasons["run/0.mp4"] and "min_frames=2" in reasons["jump/0.mp4"]
    for path in videos.rglob("*.mp4"):
        path.write_bytes(b"no video")
    with pytest.raises(DataError, match="none of the 6 images or videos of split"):
        made(tmp_path / "none", f"source.path={videos}")


def test_coding_anew(videos: Path, tmp_path: Path) -> None:
    found = made(tmp_path / "out", f"source.path={videos}", "video.resize=16", "video.fps=4", "video.gop=2")
    train = found.split("train")
    np.testing.assert_allclose(train.video, [[6, 4.0, 1.5]] * 6)
    facts = probe(train.read(0)[0])
    assert (facts.height, facts.width) == (16, 22) and facts.keys.tolist() == [0, 2, 4]


def test_long_videos_are_cut(videos: Path, tmp_path: Path) -> None:
    (videos / "run" / "0.mp4").write_bytes(movie(frames=21))
    found = made(tmp_path / "out", f"source.path={videos}", "video.clip=1.0")
    train = found.split("train")
    # 12 frames at 8 fps give 8 and 4; 21 give 8, 8 and 5
    assert sorted(train.video[:, 0].astype(int).tolist()) == sorted([8, 4] * 5 + [8, 8, 5])
    of_one = [i for i in range(len(train)) if train.originals[i] == train.originals[0]]
    assert len({train.labels[i] for i in of_one}) == 1 and len(of_one) in (2, 3)


def test_images_and_videos_are_not_mixed(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "in.tar", "w") as tar:
        for name, data in (("a.png", encoded(picture(0))), ("b.mp4", movie())):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    overrides = [f"source.shards={tmp_path / 'in.tar'}", "source.copy=true"]
    with pytest.raises(DataError, match="images and videos"):
        build("webdataset", tmp_path / "out", overrides=overrides, progress=False)


def test_moving_digits_move_as_their_targets_say(tmp_path: Path) -> None:
    config = moving_digits.Config(clutter=0, gradient=0.0, spin=0.0, speed=(1.0, 1.0), frames=6)
    make, straight = moving_digits.Maker(config), 0
    for i in range(12):
        sample = make(("train", i))
        vx, vy, speed, spin, x, _ = sample.targets
        assert speed == pytest.approx(1 / 40) and spin == 0 and np.hypot(vx, vy) <= speed + 1e-9
        straight += np.hypot(vx, vy) == pytest.approx(speed)
        frames = np.asarray(sample.image, dtype=np.float64)
        light = np.abs(frames - np.median(frames, axis=(1, 2), keepdims=True)).mean(-1)
        light = np.where(light > 25, light, 0)
        columns = np.arange(40) + 0.5
        places = (light * columns).sum(axis=(1, 2)) / light.sum(axis=(1, 2))  # the digit's centre of mass
        assert places[-1] - places[0] == pytest.approx(5 * vx * 40, abs=0.7)
        assert places.mean() == pytest.approx(40 * x, abs=3.0)
    assert 2 <= straight < 12, "some bounce, some do not"
