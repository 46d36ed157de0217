"""Facts of real files are exact, and every kind of bad file is refused with its reason."""

from __future__ import annotations

import io
import struct
import tracemalloc
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jepa.data.video.decode import decode
from jepa.data.video.probe import Facts, probe
from jepa.data.video.source import VideoError, container_of, is_video
from jepa.data.video.timeline import MAX_FRAMES, Timeline
from jepa.errors import DataError
from tests.data.video.films import copied, film, index_first, long_film, number_of, sound_only


def test_a_plain_video(tmp_path: Path) -> None:
    data = film(60, gop=12)
    (tmp_path / "film.mp4").write_bytes(data)
    for video in (data, tmp_path / "film.mp4"):
        facts = probe(video)
        line = facts.timeline
        assert len(facts) == len(line) == 60 and line.times.tolist() == [i / 30 for i in range(60)]
        assert (line.fps, line.duration, line.start, line.variable) == (30.0, 2.0, 0.0, False)
        assert (facts.height, facts.width, facts.rotation, facts.stored_size) == (48, 64, 0, (48, 64))
        assert (facts.codec, facts.pixel_format, facts.bits, facts.full_range) == ("h264", "yuv420p", 8, False)
        assert facts.keys.tolist() == [0, 12, 24, 36, 48] and not facts.open_groups and not facts.interlaced
        assert facts.claimed == 2.0 and facts.declared_fps == 30.0 and facts.contradiction() == ""


def test_variable_rate_is_exact() -> None:
    ticks = [0, 3, 4, 11, 12, 13, 40, 41, 90, 91]
    line = probe(film(10, ticks=ticks, base=Fraction(1, 90), b_frames=2, gop=4)).timeline
    assert line.variable and line.times.tolist() == [t / 90 for t in ticks]
    assert line.fps == pytest.approx(9 / (91 / 90))
    assert line.at([0, 2.9 / 90, 3 / 90, 39.9 / 90, 1e9, -1]).tolist() == [0, 0, 1, 5, 9, 0]


def test_rounded_clocks_are_no_variable_rate() -> None:
    line = probe(film(60, container="matroska")).timeline  # milliseconds: 33, 34, 33, ...
    assert set(np.diff(line.ticks).tolist()) == {33, 34} and not line.variable
    assert line.at([k / 30 for k in range(60)]).tolist() == list(range(60)), "within half a tick counts as shown"


def test_what_only_the_decoder_knows() -> None:
    turned = probe(film(10, rotation=90))
    assert (turned.rotation, turned.height, turned.width, turned.stored_size) == (90, 64, 48, (48, 64))
    deep = probe(film(10, pixels="yuv420p10le"))
    assert (deep.pixel_format, deep.bits) == ("yuv420p10le", 10)
    wide = probe(film(10, colours={"colorspace": 1, "color_range": 2}))
    assert (wide.matrix, wide.full_range) == ("bt709", True)
    odd = probe(film(10, codec="mpeg4", size=(49, 65)))
    assert (odd.height, odd.width) == (49, 65)
    assert probe(film(40, options={"x264-params": "open-gop=1"})).open_groups


def test_one_frame() -> None:
    facts = probe(film(1))
    assert len(facts) == 1 and facts.keys.tolist() == [0] and not facts.timeline.variable
    assert facts.timeline.duration == pytest.approx(1 / 30) and facts.timeline.fps == pytest.approx(30)
    assert facts.timeline.at([0.0, 5.0]).tolist() == [0, 0]


def test_hidden_frames_do_not_count() -> None:
    """An edit list starts the video in the middle of a group: the frames before are there, but never shown."""
    facts = probe(copied(film(60, gop=12), "mp4", drop=0.9))
    assert len(facts) == 33 and facts.timeline.start == 0.0
    assert facts.keys[0] == 9 and facts.key_ticks[0] < 0


def test_facts_survive_json() -> None:
    import json

    for data in (film(20, ticks=[i * i for i in range(20)], base=Fraction(1, 90)), film(7, rotation=270)):
        facts = probe(data)
        again = Facts.from_dict(json.loads(json.dumps(facts.to_dict())))
        for name, value in facts.__dict__.items():
            other = getattr(again, name)
            if name == "timeline":
                assert np.array_equal(value.ticks, other.ticks) and (value.base, value.last) == (other.base, other.last)
            else:
                assert np.array_equal(value, other), name
    values = probe(film(5)).to_dict()
    for wrong in ({}, values | {"timeline": {}}, values | {"aspect": [1, 0]}, values | {"keys": ["x"]}):
        with pytest.raises(DataError, match="build the dataset again"):
            Facts.from_dict(wrong)
    for gaps in ([[1, 10 * MAX_FRAMES]], [[-1, 3]], [[1, -3]]):
        with pytest.raises(DataError, match="no.* the times"):
            Timeline.from_dict(values["timeline"] | {"gaps": gaps})


# --- bad files ----------------------------------------------------------------------------------------------------


def refused(video: bytes | Path, kind: str) -> str:
    with pytest.raises(VideoError) as error:
        probe(video)
    assert error.value.kind == kind, str(error.value)
    return str(error.value)


def test_no_video_at_all(tmp_path: Path) -> None:
    assert "0 bytes" in refused(b"", "empty")
    (tmp_path / "zero.mp4").touch()
    refused(tmp_path / "zero.mp4", "empty")
    assert "absent.mp4" in refused(tmp_path / "absent.mp4", "missing")
    refused(tmp_path, "missing")
    assert "audio" in refused(sound_only(), "silent-picture")
    picture = io.BytesIO()
    Image.new("RGB", (8, 8)).save(picture, "JPEG")
    assert "a JPEG picture" in refused(picture.getvalue(), "foreign")
    refused(b"\x00" * 100, "foreign")


def test_nothing_that_names_other_files(tmp_path: Path) -> None:
    """Playlists would make FFmpeg read addresses and files of its own choosing."""
    (tmp_path / "film.mp4").write_bytes(film(5))
    for text in (f"#EXTM3U\n#EXTINF:1,\n{tmp_path}/film.mp4\n", f"ffconcat version 1.0\nfile {tmp_path}/film.mp4\n"):
        (tmp_path / "list.mp4").write_text(text)
        refused(tmp_path / "list.mp4", "foreign")
        refused(text.encode(), "foreign")
    (tmp_path / "concat:a.mp4").write_bytes(film(5))
    assert len(probe(tmp_path / "concat:a.mp4")) == 5, "a name is a name"


def test_the_content_counts_not_the_name(tmp_path: Path) -> None:
    for container, name in (("matroska", "film.mp4"), ("mp4", "film.avi"), ("mpegts", "film.jpg"), ("avi", "film")):
        codec = "mpeg4" if container == "avi" else "libx264"
        (tmp_path / name).write_bytes(film(10, container=container, codec=codec))
        assert len(probe(tmp_path / name)) == 10 and is_video((tmp_path / name).read_bytes())
    (tmp_path / "notes.mp4").write_text("these are my notes")
    assert "b'these ar'" in refused(tmp_path / "notes.mp4", "foreign")
    assert container_of(film(2, container="mp4")) == "mp4" and not is_video(b"") and not is_video(b"GIF")


def test_truncated() -> None:
    data = film(60)
    assert "moov" in refused(data[: len(data) // 2], "truncated")  # the index comes last and is gone
    assert len(probe(index_first(data))) == 60
    early = index_first(data)
    assert "behind its end" in refused(early[: 2 * len(early) // 3], "truncated")
    sized = film(60, container="matroska")
    assert "2.00 s" in refused(sized[: len(sized) // 2], "lying")
    assert len(probe(sized[: len(sized) // 2], strict=False)) < 50
    for length in (1, 4, 12, 40, 100, 300):
        with pytest.raises(VideoError):
            probe(data[:length])


def test_lying_about_its_length() -> None:
    data = film(60, container="matroska")
    place = data.index(b"\x44\x89\x88") + 3  # the element that holds the duration in milliseconds
    assert struct.unpack(">d", data[place : place + 8]) == (2000.0,)
    for claim in (7000.0, 100.0):
        lying = data[:place] + struct.pack(">d", claim) + data[place + 8 :]
        assert len(probe(lying, strict=False)) == 60
        if claim == 7000.0:
            assert "claims 7.00 s, its 60 frames last 2.00 s" in refused(lying, "lying")
        else:
            refused(lying, "lying")
    sound = film(30, container="matroska", sound=5.0)
    assert len(probe(sound)) == 30, "the file is as long as its sound, which is no lie about the video"


def test_nothing_says_when_frames_are_shown() -> None:
    raw = copied(film(20), "h264")
    assert raw[:3] in (b"\0\0\0", b"\0\0\1") and "no fps" in refused(raw, "no-times")
    assert "ffmpeg -r" in refused(copied(film(60, b_frames=3), "avi"), "no-times")  # AVI has no presentation times
    assert len(probe(copied(film(60, b_frames=0), "avi"))) == 60  # without B-frames they need none


def test_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    data = film(2, codec="mjpeg", container="avi", pixels="yuvj420p")
    header = b"\xff\xc0\x00\x11\x08" + struct.pack(">HH", 48, 64)  # of every picture
    assert data.count(header) == 2
    huge = data.replace(header, header[:5] + struct.pack(">HH", 60000, 60000))
    tracemalloc.start()
    for video in (huge, huge.replace(struct.pack("<II", 64, 48), struct.pack("<II", 60000, 60000))):
        refused(video, "broken")  # FFmpeg itself is told the limit, and does not open the decoder
    assert tracemalloc.get_traced_memory()[1] < 10e6
    tracemalloc.stop()
    monkeypatch.setattr("jepa.data.video.probe.MAX_PIXELS", 64 * 48 - 1)
    assert "64x48" in refused(film(3), "large")


def test_ten_hours_take_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "ten-hours.mkv"
    path.write_bytes(long_film(10))
    tracemalloc.start()
    facts = probe(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(facts) == 36000 and facts.timeline.duration == pytest.approx(36000)
    assert peak < 12e6, f"{peak / 1e6:.0f} MB"
    found = decode(path, times=[33000.5, 35999], backend="pyav", facts=facts)
    assert found.indices.tolist() == [33000, 35999]
    assert [number_of(p.permute(1, 2, 0).numpy()) for p in found.pixels] == [0, 1]
