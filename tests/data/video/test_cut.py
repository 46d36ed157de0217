"""Parts of videos: the right frames, taken over as they are coded where that can be, for real codecs."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from jepa.data.recipe import VideoConfig
from jepa.data.sources.base import Span
from jepa.data.video import cut
from jepa.data.video.decode import decode
from jepa.data.video.probe import probe
from jepa.data.video.recode import code
from jepa.data.video.timeline import Timeline
from jepa.errors import DataError
from tests.data.video.films import film, number_of


def numbers(data: bytes, backend: str = "pyav") -> list[int]:
    frames = decode(data, np.arange(len(probe(data))), backend=backend).pixels
    return [number_of(frame.permute(1, 2, 0).numpy() if frame.shape[0] == 3 else frame.numpy()) for frame in frames]


FILMS = {
    "h264": {"options": {"x264-params": "scenecut=0:open-gop=0"}},
    "h264 without B-frames": {"b_frames": 0, "options": {"x264-params": "scenecut=0"}},
    "av1": {"codec": "libsvtav1", "options": {"crf": "20", "preset": "12", "svtav1-params": "scd=0:pred-struct=1"}},
    "hevc": {"codec": "libx265", "options": {"x265-params": "scenecut=0:open-gop=0:log-level=none", "crf": "10"}},
}


@pytest.mark.parametrize("kind", FILMS)
def test_packets_are_taken_over_between_key_frames(kind: str, tmp_path: Path) -> None:
    data = film(36, gop=12, rate=30, **FILMS[kind])  # type: ignore[arg-type]
    facts = probe(data)
    assert facts.keys.tolist() == [0, 12, 24] and not facts.open_groups
    (tmp_path / "x.mp4").write_bytes(data)
    for first, end in ((0, 12), (12, 24), (12, 36), (24, 36)):
        part = cut.copied(tmp_path / "x.mp4", facts, first, end)
        assert part is not None and part == cut.copied(data, facts, first, end)
        found = probe(part)
        assert (len(found), found.codec, found.timeline.fps) == (end - first, facts.codec, pytest.approx(30))
        for backend in ("pyav", "torchcodec", "decord"):
            assert numbers(part, backend) == list(range(first, end))
    for first, end in ((1, 12), (12, 23), (5, 7)):
        assert cut.copied(data, facts, first, end) is None


def test_what_cannot_be_taken_over_is_coded_anew() -> None:
    for data in (film(36, gop=12), film(36, gop=12, options={"x264-params": "open-gop=1:bframes=2:b-adapt=0"})):
        (part,) = code(data, 0, VideoConfig(crf=8), Span(5 / 30, 17 / 30))
        assert numbers(part.data) == list(range(5, 17)) and part.facts.codec == "h264"
    turned = film(36, gop=12, rotation=90)
    assert probe(turned).rotation == 90
    (part,) = code(turned, 0, VideoConfig(), Span(12 / 30, 24 / 30))
    assert (part.facts.height, part.facts.width, part.facts.rotation) == (64, 48, 0) and len(part.facts) == 12


def test_the_whole_video_stays_as_it_is() -> None:
    data = film(12)
    (part,) = code(data, 0, VideoConfig(), Span(0.0, 0.4))
    assert part.data == data


def test_settings_apply_to_the_part() -> None:
    data = film(60, rate=30)
    (part,) = code(data, 0, VideoConfig(fps=10, crf=8), Span(0.5, 1.5))
    assert numbers(part.data) == list(range(15, 45, 3))
    pieces = list(code(data, 0, VideoConfig(clip=0.4, crf=8), Span(0.5, 1.5)))
    assert [numbers(p.data) for p in pieces] == [list(range(15, 27)), list(range(27, 39)), list(range(39, 45))]
    with pytest.raises(DataError, match="it has 3 frame"):
        list(code(data, 0, VideoConfig(min_frames=4), Span(0.5, 0.6)))


@pytest.mark.parametrize(
    ("span", "frames"),
    [
        ((0, 1), (0, 10)),
        ((0.3, 0.7), (3, 7)),
        ((0.2999999, 0.70000001), (3, 7)),
        ((0.26, 0.74), (3, 7)),
        ((0.9, 1.04), (9, 10)),
    ],
)
def test_frames_of_a_span(span: tuple[float, float], frames: tuple[int, int]) -> None:
    line = Timeline.constant(10, 10)
    assert cut.frames_of(line, span) == frames
    late = Timeline(line.ticks + 50, line.base, line.last)  # the file's clock does not start at 0
    begin = float(50 * line.base)
    assert cut.frames_of(late, (span[0] + begin, span[1] + begin)) == frames


@pytest.mark.parametrize("span", [(0.5, 1.2), (1.0, 1.04), (0.5, 0.5), (0.7, 0.3), (-0.5, 0.3), (5.0, 6.0)])
def test_spans_that_are_not_there(span: tuple[float, float]) -> None:
    with pytest.raises(DataError, match="should lie from .* the file is truncated"):
        cut.frames_of(Timeline.constant(10, 10), span)


def test_variable_rates() -> None:
    data = film(20, ticks=[i * i for i in range(20)], base=Fraction(1, 90), gop=5, b_frames=0)
    assert cut.frames_of(probe(data).timeline, (100 / 90, 225 / 90)) == (10, 15)
