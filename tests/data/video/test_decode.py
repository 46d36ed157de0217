"""Three libraries, one result: the right frames at the right times in the right colours, with no needless work."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torchcodec

from jepa.data.video import decode as decoding
from jepa.data.video.backend import NAMES
from jepa.data.video.choose import choose, describe, failure, load, versions
from jepa.data.video.decode import decode, grid
from jepa.data.video.probe import probe
from jepa.data.video.source import VideoError
from jepa.errors import ConfigError, DataError
from tests.data.video.films import copied, film, number_of

UNEVEN = [0, 3, 4, 11, 12, 13, 40, 41, 90, 91, *range(92, 150, 2)]
X265 = {"preset": "ultrafast", "x265-params": "log-level=none:pools=none"}
VP9 = {"deadline": "realtime", "cpu-used": "8", "crf": "10"}
FILMS = {
    "constant": lambda: film(60),
    "no-b-frames": lambda: film(60, b_frames=0, gop=8),
    "deep-b-frames": lambda: film(60, b_frames=7, gop=30, options={"x264-params": "b-pyramid=normal:b-adapt=0"}),
    "open-groups": lambda: film(60, options={"x264-params": "open-gop=1"}),
    "variable": lambda: film(len(UNEVEN), ticks=UNEVEN, base=Fraction(1, 90)),
    "variable-mkv": lambda: film(len(UNEVEN), ticks=[10 * t for t in UNEVEN], base=Fraction(1, 1000),
                                 container="matroska"),
    "ntsc": lambda: film(60, rate=Fraction(30000, 1001)),
    "one-frame": lambda: film(1),
    "odd": lambda: film(40, codec="mpeg4", size=(49, 67)),
    "444": lambda: film(40, size=(48, 64), pixels="yuv444p"),
    "odd-444": lambda: film(40, size=(49, 67), pixels="yuv444p"),
    "422": lambda: film(40, pixels="yuv422p"),
    "rgb": lambda: film(40, codec="libx264rgb", pixels="rgb24"),
    "ten-bit": lambda: film(40, pixels="yuv420p10le"),
    "hevc-ten-bit": lambda: film(40, codec="libx265", pixels="yuv420p10le", options=X265),
    "hevc": lambda: film(40, codec="libx265", options=X265),
    "interlaced": lambda: film(40, options={"x264-params": "tff=1"}, size=(64, 64)),
    "turned-90": lambda: film(40, rotation=90, size=(64, 128)),
    "turned-narrow": lambda: film(40, rotation=90),
    "turned-180": lambda: film(40, rotation=180),
    "turned-270": lambda: film(40, rotation=270, size=(49, 67), codec="mpeg4"),
    "bt709": lambda: film(40, colours={"colorspace": 1, "color_range": 1}),
    "full-range": lambda: film(40, colours={"colorspace": 5, "color_range": 2}),
    "full-range-bt709": lambda: film(40, colours={"colorspace": 1, "color_range": 2}),
    "hidden-start": lambda: copied(film(60), "mp4", drop=0.9),
    "fragments": lambda: film(60, flags={"movflags": "frag_keyframe+empty_moov"}),
    "webm": lambda: film(40, codec="libvpx-vp9", container="webm", options=VP9),
    "avi": lambda: film(40, codec="mpeg4", container="avi"),
    "transport": lambda: film(60, container="mpegts"),
    "program": lambda: film(60, codec="mpeg2video", container="mpeg"),
    "gif": lambda: film(20, codec="gif", container="gif", pixels="rgb8", rate=10),
}  # fmt: skip
FIRST = {"hidden-start": 27}  # the number that the first shown frame shows


def indices(count: int) -> list[list[int]]:
    rng = np.random.default_rng(count)
    some = [sorted(rng.choice(count, min(count, k), replace=False).tolist()) for k in (1, 2, 5, 9)]
    return [[0], [count - 1], list(range(0, count, 4)), [count // 2, count // 2 - 1, 0][:count], *some]


@pytest.mark.parametrize("name", FILMS)
def test_every_library_gives_the_same_frames(name: str) -> None:
    data = FILMS[name]()
    facts = probe(data)
    assert facts.interlaced == (name == "interlaced") and facts.timeline.variable == name.startswith("variable")
    for wanted in indices(len(facts)):
        reference = decode(data, wanted, backend="pyav", facts=facts)
        assert reference.backend == "pyav" and reference.indices.tolist() == wanted
        assert reference.times.tolist() == facts.timeline.times[wanted].tolist()
        assert reference.pixels.shape == (len(wanted), 3, facts.height, facts.width)
        for pixels, index in zip(reference.pixels, wanted, strict=True):
            stored = np.rot90(pixels.permute(1, 2, 0).numpy(), -(facts.rotation // 90))
            assert number_of(stored) == FIRST.get(name, 0) + index
        for library in ("torchcodec", "decord"):
            found = decode(data, wanted, backend=library, facts=facts)
            assert found.times.tolist() == reference.times.tolist()
            apart = (found.pixels.int() - reference.pixels.int()).abs().float().mean((1, 2, 3))
            assert apart.max() <= 2, f"{found.backend}: {apart.tolist()}"


def test_most_files_need_no_other_library() -> None:
    handed_on = {
        library: {name for name, make in FILMS.items() if decode(make(), [0], backend=library).backend != library}
        for library in ("torchcodec", "decord")
    }
    assert handed_on == {
        "torchcodec": {"avi", "transport", "program"},
        "decord": {"open-groups", "odd", "turned-270", "hevc-ten-bit", "hevc", "turned-narrow", "hidden-start", "avi",
                   "transport", "program", "gif"},
    }  # fmt: skip


def test_a_turned_video_stands_upright() -> None:
    """90 degrees counter-clockwise: what is stored in the upper left corner is shown in the lower left one."""
    plain = decode(film(3, rotation=0), [1], backend="pyav").pixels[0]
    for library in NAMES:
        turned = decode(film(3, rotation=90), [1], backend=library).pixels[0]
        assert np.abs(turned.numpy().astype(int) - np.rot90(plain.numpy(), 1, (1, 2)).astype(int)).mean() <= 2


@pytest.mark.parametrize("matrix", [1, 5])
@pytest.mark.parametrize("scale", [1, 2])
@pytest.mark.parametrize("colour", [(255, 0, 0), (0, 255, 0), (30, 90, 220), (255, 255, 255), (12, 12, 12)])
def test_colours_are_those_that_were_filmed(matrix: int, scale: int, colour: tuple[int, int, int]) -> None:
    data = film(3, colour=colour, colours={"colorspace": matrix, "color_range": scale}, options={"crf": "1"})
    for library in NAMES:
        pixels = decode(data, [1], backend=library).pixels[0].float().mean((1, 2))
        assert np.abs(pixels.numpy() - colour).max() < 6, f"{library}: {pixels.tolist()}"


def test_by_time_in_any_order_and_more_than_once(tmp_path: Path) -> None:
    path = tmp_path / "film.mp4"
    path.write_bytes(film(len(UNEVEN), ticks=UNEVEN, base=Fraction(1, 90)))
    for library in NAMES:
        found = decode(path, times=[0.5, 0.0, 0.5, 0.13, 99], backend=library)
        assert found.indices.tolist() == [7, 0, 7, 3, len(UNEVEN) - 1] and len(found) == 5
        assert [number_of(p.permute(1, 2, 0).numpy()) for p in found.pixels] == found.indices.tolist()
        assert found.times.tolist() == [UNEVEN[i] / 90 for i in found.indices]
    even = decode(film(60), times=grid(0.5, 10, 4), backend="auto")
    assert even.indices.tolist() == [15, 18, 21, 24] and even.pixels.stride()[1] == 1


def test_what_cannot_be_asked_for() -> None:
    data = film(5)
    for wrong, message in (({"indices": [5]}, "frames 0 to 4"), ({"indices": [-1]}, "frame -1"), ({}, "either"),
                           ({"indices": []}, "no frames"), ({"indices": [0], "times": [0.0]}, "either")):  # fmt: skip
        with pytest.raises(DataError, match=message):
            decode(data, **wrong)  # type: ignore[arg-type]


def test_too_many_pixels_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "MAX_BYTES", 5 * 48 * 64 * 3 - 1)
    assert len(decode(film(5), range(4))) == 4  # type: ignore[arg-type]
    with pytest.raises(VideoError, match="64x48"):
        decode(film(5), range(5))  # type: ignore[arg-type]


# --- only what is needed ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("library", ["torchcodec", "pyav"])  # decord decodes ahead, as far as its thread gets
def test_only_the_group_of_a_frame_is_decoded(library: str) -> None:
    """Every other group is overwritten with noise, which no decoder could read."""
    data = bytearray(film(96, gop=12))
    facts = probe(bytes(data))
    with av.open(io.BytesIO(bytes(data))) as file:
        packets = [(p.pts, p.pos, p.size) for p in file.demux(video=0) if p.size and p.pts is not None]
    start, stop = facts.timeline.ticks[[48, 60]]
    noise = np.random.default_rng(0)
    for tick, place, size in packets:
        if not start <= tick < stop:
            data[place + 4 : place + size] = noise.bytes(size - 4)
    found = decode(bytes(data), [49, 52, 54], backend=library, facts=facts)
    assert found.backend == library
    assert [number_of(p.permute(1, 2, 0).numpy()) for p in found.pixels] == [49, 52, 54]
    with pytest.raises((VideoError, AssertionError)):
        number_of(decode(bytes(data), [30], backend=library, facts=facts).pixels[0].permute(1, 2, 0).numpy())


def test_frames_that_nothing_refers_to_are_passed_over() -> None:
    """PyAV decodes every fourth frame from half of the packets, and the pixels are the same."""
    data = film(60, gop=60, b_frames=3, options={"x264-params": "b-pyramid=none:b-adapt=0:scenecut=0"})
    facts = probe(data)
    some, all_ = list(range(0, 60, 4)), list(range(60))
    fast = decode(data, some, backend="pyav", facts=facts).pixels
    slow = decode(data, all_, backend="pyav", facts=facts).pixels[some]
    assert fast.equal(slow)


# --- choosing -----------------------------------------------------------------------------------------------------


def test_all_libraries_work_here() -> None:
    assert {name: failure(name) for name in NAMES} == dict.fromkeys(NAMES, "")
    assert choose().name == "torchcodec" and choose() is choose("torchcodec") is load("torchcodec")
    assert describe(choose("pyav")) == {"decoder": "pyav", **versions()["pyav"]} and set(versions()) == set(NAMES)
    with pytest.raises(ConfigError, match="auto, torchcodec, decord, pyav"):
        choose("opencv")


@pytest.mark.slow
def test_without_the_systems_ffmpeg_the_next_library_is_taken(tmp_path: Path) -> None:
    """A torchcodec whose libraries for FFmpeg cannot be loaded, as on a machine without FFmpeg."""
    package = Path(torchcodec.__file__).parent
    copy = tmp_path / "torchcodec"
    copy.mkdir()
    for path in package.iterdir():
        if not path.name.startswith("libtorchcodec_core"):
            (copy / path.name).symlink_to(path)
    program = """
from jepa.data.video.choose import choose, failure
from jepa.errors import ConfigError
print(choose().name, bool(failure("torchcodec")))
try:
    choose("torchcodec")
except ConfigError as error:
    print(error)
"""
    where = os.pathsep.join([str(tmp_path), str(Path(__file__).parents[3])])
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True,
                          env=os.environ | {"PYTHONPATH": where})  # fmt: skip
    first, message = done.stdout.splitlines()[:2]
    assert first == "decord True"
    assert "Working here: decord, pyav" in message and "apt-get install ffmpeg" in message
