"""`jepa data check`: every kind of file gets the right word, whatever the decoder does with it."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from jepa.config import ClipConfig
from jepa.data.video.scan import ScanConfig, check, find_videos, scan
from jepa.errors import ConfigError, DataError
from tests.data.video.films import film, index_first, long_film, sound_only


def damaged() -> bytes:
    data = bytearray(film(60))
    place = len(data) // 2
    data[place : place + 800] = np.random.default_rng(1).bytes(800)
    return bytes(data)


FILES = {
    "deep/good.mp4": (lambda: film(30), "ok"),
    "named-wrongly.jpg": (lambda: film(30, container="matroska"), "ok"),
    "uneven.mp4": (lambda: film(20, ticks=[i * i for i in range(20)], base=Fraction(1, 90)), "variable"),
    "brief.mp4": (lambda: film(6), "short"),
    "cut.mkv": (lambda: film(60, container="matroska")[:6000], "lying"),
    "cut.mp4": (lambda: index_first(film(60))[:9000], "broken"),
    "damaged.mp4": (damaged, "broken"),
    "empty.mp4": (lambda: b"", "broken"),
    "music.mp4": (sound_only, "broken"),
    "text.mp4": (lambda: b"no video at all", "broken"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("videos")
    for name, (make, _) in FILES.items():
        (made / name).parent.mkdir(exist_ok=True)
        (made / name).write_bytes(make())
    (made / "notes.txt").write_text("not a video, and not named like one\n")
    return made


def test_every_file_gets_its_verdict(folder: Path, tmp_path: Path) -> None:
    paths = find_videos(folder)
    assert {p.relative_to(folder).as_posix() for p in paths} == set(FILES)
    report = check(paths, ScanConfig(min_frames=8))
    found = {Path(v.path).relative_to(folder).as_posix(): v for v in report.verdicts}
    assert {name: v.status for name, v in found.items()} == {name: status for name, (_, status) in FILES.items()}
    kinds = {name: v.kind for name, v in found.items() if v.kind}
    assert kinds == {"cut.mkv": "lying", "cut.mp4": "truncated", "damaged.mp4": "broken", "empty.mp4": "empty",
                     "music.mp4": "silent-picture", "text.mp4": "foreign"}  # fmt: skip
    assert found["deep/good.mp4"].facts["frames"] == 30 and found["deep/good.mp4"].facts["key_interval"] == 12
    assert "11.1 to 411.1 ms" in found["uneven.mp4"].line and "6 frames" in found["brief.mp4"].line
    assert report.counts() == {"ok": 2, "variable": 1, "odd": 0, "short": 1, "lying": 1, "slow": 0, "broken": 5}
    assert report.summary().startswith("10 videos: 2 ok, 1 variable, 1 short, 1 lying, 5 broken\n")

    assert report.write_clean(tmp_path / "lists" / "clean.txt") == 3
    listed = (tmp_path / "lists" / "clean.txt").read_text().splitlines()
    assert listed == [str(folder / n) for n in ("deep/good.mp4", "named-wrongly.jpg", "uneven.mp4")]
    assert find_videos(tmp_path / "lists" / "clean.txt") == [Path(p) for p in listed]
    assert report.clean(("ok",)) == listed[:2]
    report.write_json(tmp_path / "report.json")
    values = json.loads((tmp_path / "report.json").read_text())
    assert values["counts"]["broken"] == 5 and len(values["videos"]) == 10
    assert {v["path"] for v in values["videos"]} == {str(p) for p in paths}


def test_a_file_that_takes_too_long(folder: Path, tmp_path: Path) -> None:
    long, short = tmp_path / "long.mkv", folder / "deep" / "good.mp4"
    long.write_bytes(long_film(10))
    found = {v.path: v for _, v in scan([long, short, short], ScanConfig(limit=0.4))}
    assert found[str(long)].status == "slow" and "0.4 s" in found[str(long)].line
    assert found[str(short)].status == "ok"
    ends = check([long, long], ScanConfig(workers=1, limit=60, decode="ends"))
    assert [v.status for v in ends.verdicts] == ["ok", "ok"] and ends.verdicts[0].facts["seconds"] == 36000


def test_long_enough_for_a_clip(folder: Path) -> None:
    paths = [folder / "deep" / "good.mp4", folder / "brief.mp4"]
    for clip in (ClipConfig(8, stride=4), ClipConfig(8, fps=8)):  # 29 of 30 frames
        assert [v.status for v in check(paths, ScanConfig(clip=clip)).verdicts] == ["ok", "short"]
    assert [v.status for v in check(paths, ScanConfig(min_seconds=2.0)).verdicts] == ["short", "short"]


def test_nothing_to_check(tmp_path: Path) -> None:
    assert check([]).verdicts == [] and list(scan([])) == []
    with pytest.raises(DataError, match="holds no videos"):
        find_videos(tmp_path)
    with pytest.raises(DataError, match="does not exist"):
        find_videos(tmp_path / "absent")
    (tmp_path / "list.txt").write_text("\n\n")
    with pytest.raises(DataError, match="lists no videos"):
        find_videos(tmp_path / "list.txt")
    (tmp_path / "list.txt").write_text("a.mp4\n/b.mp4\n")
    assert find_videos(tmp_path / "list.txt") == [tmp_path / "a.mp4", Path("/b.mp4")]
    missing = check(find_videos(tmp_path / "list.txt")).verdicts
    assert [(v.status, v.kind) for v in missing] == [("broken", "missing")] * 2
    with pytest.raises(ConfigError, match="workers=0"):
        ScanConfig(workers=0)
