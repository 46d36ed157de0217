"""Webdatasets of videos: read in place with their facts, or repacked; what is broken is left out with its reason."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest

from jepa import config
from jepa.config import ClipConfig, RunConfig
from jepa.data import Manifest, eval_clips
from jepa.data.build import build
from jepa.data.checkup import check_built
from jepa.data.show import show
from jepa.data.video.probe import Facts, probe
from jepa.errors import ConfigError, DataError
from jepa.train import train
from tests.data.conftest import encoded, picture
from tests.data.video.films import film, sound_only


def write_tar(path: Path, samples: dict[str, dict[str, bytes]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for key, files in samples.items():
            for extension, data in files.items():
                info = tarfile.TarInfo(f"{key}.{extension}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return path


def sample(number: int, extension: str = "mp4", **options: object) -> dict[str, bytes]:
    facts = {"verb": ["push", "lift"][number % 2], "film": number // 2}
    data = film(10 + number, **options)  # type: ignore[arg-type]
    return {extension: data, "cls": str(number % 3).encode(), "json": json.dumps(facts).encode()}


def made(shards: object, out: Path, *overrides: str) -> Manifest:
    options = [f"source.shards={json.dumps(shards)}", "splits.fractions={}", *overrides]
    return build("webdataset", out, overrides=options, progress=False)


@pytest.fixture(scope="module")
def tar(tmp_path_factory: pytest.TempPathFactory) -> Path:
    samples = {f"v{i}": sample(i) for i in range(6)}
    samples["v6"] = sample(6, "webm", codec="libvpx-vp9", container="webm")
    samples["v7"] = {"jpg": encoded(picture(0), "JPEG"), **sample(7, "mkv", container="matroska")}  # a preview first
    return write_tar(tmp_path_factory.mktemp("tars") / "x.tar", samples)


@pytest.mark.parametrize("copied", [False, True])
def test_videos_in_tars(tar: Path, copied: bool, tmp_path: Path) -> None:
    found = made(str(tar), tmp_path / "out", f"source.copy={copied}", "shards.shuffle=false")
    split = found.split("train")
    assert (found.media, len(split), found.bad_count, found.classes) == ("video", 8, 0, ["0", "1", "2"])
    assert split.labels.tolist() == [i % 3 for i in range(8)]
    assert split.video[:, 0].tolist() == [10.0 + i for i in range(8)]
    assert [split.read(i)[1] for i in range(8)] == ["mp4"] * 6 + [
        ["webm", "mkv"][copied],
        "mkv",
    ]  # by name, or by content
    for i in range(8):
        kept = split.facts(i)
        assert kept is not None and Facts.from_dict(json.loads(kept)).to_dict() == probe(split.read(i)[0]).to_dict()
    inside = split.shards[0].path.is_relative_to(tmp_path)
    assert inside == copied and split.shards[0].facts[0].is_relative_to(tmp_path / "out")
    assert found.image["smallest"] == [48, 64]
    (batch,) = eval_clips(split, ClipConfig(4, stride=2), (48, 64), 8)
    assert batch.images.shape == (8, 1, 1, 3, 4, 48, 64) and batch.labels.tolist() == split.labels.tolist()
    assert check_built(tmp_path / "out").summary().startswith("8 videos: 8 ok")
    assert "10 to 17 frames" in show(tmp_path / "out").text


def test_fields_and_splits_are_those_of_images(tar: Path, tmp_path: Path) -> None:
    found = build(
        "webdataset", tmp_path / "out", progress=False,
        overrides=[f"source.shards={tar}", "source.label=json.verb", "source.classes=[push, lift]",
                   "source.original=json.film", "splits.fractions={val: 0.5}"],
    )  # fmt: skip
    train_, val = found.split("train"), found.split("val")
    assert len(train_) + len(val) == 8 and not set(train_.originals.tolist()) & set(val.originals.tolist())
    for split in (train_, val):
        for i in range(len(split)):
            number = int(split.key(i)[1:])
            assert split.labels[i] == number % 2 and split.video[i, 0] == 10 + number
            kept = split.facts(i)  # both splits read the facts of one tar
            assert kept is not None and len(Facts.from_dict(json.loads(kept))) == 10 + number


def test_workers_make_the_same_data_set(tmp_path: Path) -> None:
    for tar in range(3):
        write_tar(
            tmp_path / "in" / f"{tar}.tar", {f"v{i}": sample(i) for i in range(tar, tar + 2)} | {"x": {"mp4": b"x"}}
        )
    here, there = (
        build(
            "webdataset", tmp_path / str(n), overrides=[f"source.shards={tmp_path}/in/*.tar"], workers=n, progress=False
        )
        for n in (0, 2)
    )
    assert here.hash == there.hash and here.bad == there.bad and here.bad_count == 3


def test_our_own_shards_bring_their_facts(tar: Path, tmp_path: Path) -> None:
    first = made(str(tar), tmp_path / "first", "source.copy=true", "video.gop=2", "video.clip=0.2")
    assert len(first.split("train")) > 8
    again = made(f"{tmp_path}/first/train/*.tar", tmp_path / "again")
    for i in range(len(first.split("train"))):
        assert again.split("train").facts(i) == first.split("train").facts(i)
    assert np.array_equal(again.split("train").video, first.split("train").video)


@pytest.mark.parametrize("copied", [False, True])
def test_broken_videos_are_left_out_by_name(copied: bool, tmp_path: Path) -> None:
    good = film(12)
    bad = {
        "empty": b"", "cut": good[:900], "text": b"not a video", "music": sound_only(), "brief": film(1),
        "picture": encoded(picture(0), "JPEG"),
    }  # fmt: skip
    write_tar(tmp_path / "x.tar", {"good": {"mp4": good}} | {key: {"mp4": data} for key, data in bad.items()})
    if copied:  # by content it is an image, and the two are not mixed
        bad.pop("picture")
        write_tar(tmp_path / "x.tar", {"good": {"mp4": good}} | {key: {"mp4": data} for key, data in bad.items()})
    found = made(f"{tmp_path}/x.tar", tmp_path / "out", f"source.copy={copied}")
    reasons = {entry["source"].removeprefix("x.tar/"): entry["reason"] for entry in found.bad}
    assert len(found.split("train")) == 1 and set(reasons) == set(bad)
    assert (
        "empty (0 bytes)" in reasons["empty"]
        and "truncated" in reasons["cut"]
        and "no video stream" in reasons["music"]
    )
    assert "min_frames=2" in reasons["brief"]
    assert ("nor a video" if copied else "not a video") in reasons["text"]


def test_damage_inside_is_found_by_verify_and_by_check(tmp_path: Path) -> None:
    damaged = bytearray(film(60))
    place = len(damaged) // 2
    damaged[place : place + 800] = np.random.default_rng(1).bytes(800)
    write_tar(tmp_path / "x.tar", {"a": {"mp4": film(20)}, "b": {"mp4": bytes(damaged)}})
    assert len(made(f"{tmp_path}/x.tar", tmp_path / "fast").split("train")) == 2
    report = check_built(tmp_path / "fast")
    assert (
        report.counts()["broken"] == 1 and report.verdicts[1].status == "broken" and "b in" in report.verdicts[1].path
    )
    found = made(f"{tmp_path}/x.tar", tmp_path / "slow", "source.verify=true")
    assert len(found.split("train")) == 1 and found.bad[0]["source"] == "x.tar/b"


def test_all_broken(tmp_path: Path) -> None:
    write_tar(tmp_path / "x.tar", {"a": {"mp4": b"x"}})
    with pytest.raises(DataError, match="none of the tars holds a sample.*x.tar/a.*not a video"):
        made(f"{tmp_path}/x.tar", tmp_path / "out")


@pytest.mark.parametrize("change", ["video.resize=16", "video.gop=2", "image.resize=8"])
def test_what_stays_in_place_is_not_changed(tar: Path, change: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=rf"{change.split('=')[0]}.*source.copy=true"):
        made(str(tar), tmp_path / "out", change)


def test_a_build_goes_on_and_lost_facts_are_made_again(tar: Path, tmp_path: Path) -> None:
    broken = tmp_path / "in" / "b.tar"
    write_tar(tmp_path / "in" / "a.tar", {f"v{i}": sample(i) for i in range(2)})
    broken.write_bytes(b"\x1f\x8b")  # stops the build behind the first tar
    with pytest.raises(DataError, match="gzip"):
        made(f"{tmp_path}/in/*.tar", tmp_path / "out")
    (tmp_path / "out" / "facts" / "pool-000000.jsonl").unlink()
    size = broken.stat().st_size
    write_tar(broken, {"w0": sample(3)})
    with pytest.raises(DataError, match="source has changed"):
        made(f"{tmp_path}/in/*.tar", tmp_path / "out")
    assert size == 2
    whole = made(f"{tmp_path}/in/*.tar", tmp_path / "whole").split("train")
    assert len(whole) == 3 and all(whole.facts(i) for i in range(3))
    lines = (tmp_path / "whole" / "facts" / "pool-000000.jsonl").read_text().splitlines()
    assert [len(Facts.from_dict(json.loads(line))) for line in lines] == [10, 11]


def test_a_run_trains_on_videos_in_place(tar: Path, tmp_path: Path) -> None:
    """`jepa train own-videos --debug` on a webdataset that nobody has touched."""
    made(str(tar), tmp_path / "data")
    small = ["data.image_size=32", "data.clip.frames=4", "train.trackers=[]", "train.threads=1", "monitor.samples=4"]
    settings = config.load("own-videos", [f"data.path={tmp_path / 'data'}", *small], ["debug"])
    assert isinstance(settings, RunConfig)
    train(settings, tmp_path / "run", quiet=True)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert len(losses) == 2 and np.isfinite(losses).all()
    assert not (tmp_path / "run" / "quarantine.jsonl").exists()
