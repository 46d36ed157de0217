"""Where clips lie: inside the video, evenly spaced, uniform, and a pure function of the key."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from jepa.config import ClipConfig
from jepa.data.augment import Box, apply, centre_box
from jepa.data.video.clips import draw, ending, evenly, fit, fits, place
from jepa.data.video.decode import decode
from jepa.data.video.probe import probe
from jepa.data.video.sample import write_clips
from jepa.data.video.source import VideoError
from jepa.data.video.timeline import Timeline
from jepa.errors import ConfigError
from tests.data.video.films import film, number_of

GAPS = st.lists(st.integers(1, 40), min_size=0, max_size=80)
LINES = st.builds(
    lambda gaps, base, last: Timeline(np.cumsum([0, *gaps]).astype(np.int64), base, last),
    GAPS,
    st.sampled_from([Fraction(1, 30), Fraction(1, 1000), Fraction(1001, 30000)]),
    st.integers(1, 40),
)
SHORT = st.sampled_from(["pad", "loop"])
NUMBERS = st.lists(st.floats(0, 1, width=32), min_size=1, max_size=4).map(np.array)


@given(LINES, st.integers(1, 20), st.integers(1, 9), SHORT, NUMBERS)
def test_steps_in_frames(line: Timeline, frames: int, stride: int, short: str, numbers: np.ndarray) -> None:
    config = ClipConfig(frames, stride=stride, short=short)  # type: ignore[arg-type]
    found = place(config, line, numbers)
    assert found.shape == (len(numbers), frames) and found.min() >= 0 and found.max() < len(line)
    assert fits(config, line) == ((frames - 1) * stride < len(line))
    if fits(config, line):
        assert (np.diff(found) == stride).all()
        if numbers.max() == 1:
            assert found.max() == len(line) - 1
    elif short == "pad":
        assert found.tolist() == [[min(stride * k, len(line) - 1) for k in range(frames)]] * len(numbers)
    else:
        assert found.tolist() == [[stride * k % len(line) for k in range(frames)]] * len(numbers)


@given(LINES, st.integers(1, 20), st.floats(0.5, 60), SHORT, NUMBERS)
def test_steps_in_seconds(line: Timeline, frames: int, fps: float, short: str, numbers: np.ndarray) -> None:
    config = ClipConfig(frames, fps=fps, short=short)  # type: ignore[arg-type]
    spread = ClipConfig(frames, duration=frames / fps, short=short)  # type: ignore[arg-type]
    found = place(config, line, numbers)
    assert found.shape == (len(numbers), frames) and found.min() >= 0 and found.max() < len(line)
    late = max(0.0, line.duration - frames / fps)
    for row, number in zip(found.tolist(), numbers.tolist(), strict=True):
        times = [number * late + k / fps for k in range(frames)]
        if fits(config, line):
            assert times[-1] < line.duration + 1e-9
            half = float(line.base) / 2
            exact = [max([i for i, t in enumerate(line.times) if t <= time + half], default=0) for time in times]
            assert row == exact, "the last frame that starts at or before each time"
        elif short == "pad":
            assert row == sorted(row) and row[-1] == len(line) - 1
        else:
            assert row[0] == 0
    if frames / fps / frames == 1 / fps:  # the same step but for rounding
        assert np.array_equal(found, place(spread, line, numbers))


def test_looping_starts_over_exactly() -> None:
    line = Timeline.constant(10, 30)
    for config in (ClipConfig(25, fps=30, short="loop"), ClipConfig(25, stride=1, short="loop")):
        assert place(config, line, evenly(1)).tolist() == [[k % 10 for k in range(25)]]
    for rate in (Fraction(30000, 1001), Fraction(24), Fraction(25, 2)):
        config = ClipConfig(48, fps=float(rate), short="loop")
        assert place(config, Timeline.constant(16, rate), evenly(1)).tolist() == [[k % 16 for k in range(48)]]


def test_skipping_says_what_is_missing() -> None:
    line = Timeline.constant(10, 30)
    for config in (ClipConfig(16, stride=4, short="skip"), ClipConfig(16, fps=8, short="skip")):
        with pytest.raises(VideoError, match="too short: it has 10 frames in 0.33 s") as error:
            place(config, line, evenly(1))
        assert error.value.kind == "short"
    assert place(ClipConfig(10, stride=1, short="skip"), line, evenly(1)).tolist() == [list(range(10))]
    assert place(ClipConfig(10, fps=30, short="skip"), line, evenly(1)).tolist() == [list(range(10))]


def test_evaluation_covers_the_video_evenly() -> None:
    line = Timeline.constant(100, 25)
    config = ClipConfig(8, stride=2)  # places 0 to 85
    assert place(config, line, evenly(1))[:, 0].tolist() == [43]
    assert place(config, line, evenly(2))[:, 0].tolist() == [0, 85]
    starts = place(config, line, evenly(5))[:, 0]
    assert starts[0] == 0 and starts[-1] == 85 and np.ptp(np.diff(starts)) <= 1
    assert place(config, line, evenly(5))[-1, -1] == 99
    seconds = place(ClipConfig(8, fps=12.5), line, evenly(3))
    assert seconds[0, 0] == 0 and seconds[-1].tolist() == list(range(84, 100, 2))


def test_training_takes_every_place_equally_often() -> None:
    line, config = Timeline.constant(20, 25), ClipConfig(4, stride=3)  # places 0 to 10
    numbers = draw(0, np.arange(11_000))[:, 0]
    counts = np.bincount(place(config, line, numbers)[:, 0], minlength=11)
    assert len(counts) == 11 and np.abs(counts - 1000).max() < 4 * np.sqrt(1000)


def test_the_key_alone_decides() -> None:
    g = np.arange(50)
    together = draw(3, g, clips=2, view=1)
    assert together.shape == (50, 2) and ((together > 0) & (together < 1)).all()
    assert np.array_equal(draw(3, g[::-1][:7], clips=2, view=1), together[::-1][:7]), "no matter what else is drawn"
    assert len(np.unique(together)) == together.size, "every sample and clip has a number of its own"
    assert np.array_equal(draw(3, g, view=1)[:, 0], together[:, 0]), "more clips do not move the first one"
    for other in (
        draw(4, g),
        draw(3, g, view=2),
        draw(3, g, source="b"),
        draw(3, g + 50),
        draw(3, g + 50, clips=2, view=1),
    ):
        assert not np.isin(other[:, 0], together).any()


def test_what_a_clip_may_be() -> None:
    for wrong in ({}, {"fps": 1.0, "stride": 2}, {"fps": 0.0}, {"stride": 0}, {"duration": -1.0},
                  {"fps": float("nan")}, {"frames": 0, "stride": 1}, {"clips": 0, "stride": 1}):  # fmt: skip
        with pytest.raises(ConfigError):
            ClipConfig(**wrong)


@given(st.integers(1, 5), st.booleans(), st.sampled_from([(16, 16), (9, 21)]))
@settings(max_examples=15)
def test_a_clip_is_cut_like_an_image(frames: int, flip: bool, size: tuple[int, int]) -> None:
    pixels = torch.randint(0, 256, (frames, 24, 30, 3), dtype=torch.uint8).permute(0, 3, 1, 2)
    for part in (Box(2, 3, 17, 20, flip), Box(1, 2, *size, flip)):
        found = fit(pixels, part, size)
        assert found.shape == (3, frames, *size) and found.dtype == torch.uint8
        for t in range(frames):
            assert torch.equal(found[:, t], apply(pixels[t], part, size, "bilinear"))


def test_from_the_file_to_the_clips() -> None:
    data, config = film(60), ClipConfig(4, stride=5, clips=3)
    out = torch.zeros(3, 3, 4, 48, 64, dtype=torch.uint8)
    drawn = write_clips(out, data, config, evenly(3), lambda h, w: centre_box(h, w, (48, 64)), backend="pyav")
    expected = place(config, probe(data).timeline, evenly(3))
    assert drawn["frames"] == expected.tolist() and drawn["crop"] == [0, 0, 48, 64] and drawn["decoder"] == "pyav"
    shown = [[number_of(frame.permute(1, 2, 0).numpy()) for frame in clip.unbind(1)] for clip in out]
    assert shown == expected.tolist()
    one = torch.zeros(3, 4, 20, 20, dtype=torch.uint8)
    write_clips(one, data, config, evenly(1), lambda h, w: Box(10, 10, 20, 20), backend="torchcodec")
    middle = decode(data, place(config, probe(data).timeline, evenly(1))[0]).pixels[:, :, 10:30, 10:30]
    assert torch.equal(one, middle.transpose(0, 1))


def test_clips_end_when_they_are_told_to() -> None:
    uneven = Timeline(np.array([0, 10, 20, 100, 110, 300]), Fraction(1, 100), 10)
    assert ending(ClipConfig(3, fps=10), uneven, 1.05).tolist() == [[2, 2, 3]], "what is shown 0.85, 0.95, 1.05 s on"
    assert ending(ClipConfig(3, stride=2), uneven, 2.9).tolist() == [[0, 2, 4]]
    assert ending(ClipConfig(4, fps=10), uneven, 0.1).tolist() == [[0, 0, 0, 1]], "the first frame is held"
    assert ending(ClipConfig(2, fps=10), uneven, 0.0).tolist() == [[0, 0]]
    with pytest.raises(VideoError, match="begins 0.50 s after the clip has to end"):
        ending(ClipConfig(2, fps=10), uneven, -0.5)
    for skipping in (ClipConfig(4, fps=10, short="skip"), ClipConfig(4, stride=1, short="skip")):
        with pytest.raises(VideoError, match=r"too short: 0\.10 s are there"):
            ending(skipping, uneven, 0.1)
        assert ending(skipping, uneven, 1.1).shape == (1, 4)
