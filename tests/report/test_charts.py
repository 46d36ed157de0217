"""Charts put numbers where they belong."""

from __future__ import annotations

import itertools
import json
import math
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jepa.report.charts import (
    BOTTOM,
    HEIGHT,
    LEFT,
    MAX_POINTS,
    RIGHT,
    TOP,
    WIDTH,
    Interval,
    Series,
    interval_table,
    legend,
    line_chart,
    tick_text,
    ticks,
)
from jepa.report.markup import duration, measure, number, percent
from tests.report.conftest import Page


def points(chart: str) -> list[list[tuple[float, float]]]:
    lines = re.findall(r'<polyline class="line [^"]*" points="([^"]*)"', chart)
    return [[tuple(map(float, p.split(","))) for p in line.split()] for line in lines]  # type: ignore[misc]


def axis(chart: str) -> dict[float, float]:
    """Place of each number on the y axis."""
    found = re.findall(r'class="rule" d="M\S+ ([\d.]+)H\S+"/><text class="ylab"[^>]*>([^<]*)<', chart)
    return {float(text.replace("−", "-")): float(y) for y, text in found}


def test_a_line_goes_through_its_values() -> None:
    chart = line_chart("t", [Series("a", [0, 50, 100], [2.0, 4.0, 3.0])])
    [line] = points(chart)
    assert [x for x, _ in line] == pytest.approx([LEFT, (LEFT + WIDTH - RIGHT) / 2, WIDTH - RIGHT], abs=0.1)
    place = axis(chart)
    assert line[0][1] == pytest.approx(place[2.0], abs=0.1) and line[1][1] == pytest.approx(place[4.0], abs=0.1)
    assert line[2][1] == pytest.approx((place[2.0] + place[4.0]) / 2, abs=0.1)
    assert place[4.0] < place[2.0]  # up is more


def test_a_logarithmic_axis_only_where_it_is_allowed_and_needed() -> None:
    wide = Series("a", [0, 1, 2], [1e-3, 1.0, 1e3])
    low, middle, high = points(line_chart("t", [wide], may_log=True))[0]
    assert middle[1] == pytest.approx((low[1] + high[1]) / 2, abs=0.1)
    low, middle, high = points(line_chart("t", [wide]))[0]
    assert middle[1] == pytest.approx(low[1], abs=1)
    negative = Series("a", [0, 1, 2], [-1.0, 1.0, 1e3])
    assert "Logarithmic" not in line_chart("t", [negative], may_log=True)


def test_not_a_number_leaves_a_gap_and_nothing_at_all_says_so() -> None:
    chart = line_chart("t", [Series("a", [0, 1, 2, 3], [1.0, math.nan, math.inf, 2.0])])
    assert len(points(chart)[0]) == 2 and "nan" not in chart.lower() and "inf" not in chart
    empty = line_chart("t", [Series("a", [], [])])
    assert "Nothing recorded yet" in empty and "<svg" not in empty
    assert "Nothing recorded yet" in line_chart("t", [Series("a", [1], [math.nan])])


def test_zeros_lie_on_the_floor() -> None:
    chart = line_chart("t", [Series("a", [0, 1], [0.0, 0.0])], zero=True)
    assert {y for _, y in points(chart)[0]} == {HEIGHT - BOTTOM} and min(axis(chart)) == 0


def test_long_runs_are_averaged_in_bins() -> None:
    n = 10 * MAX_POINTS
    chart = line_chart("t", [Series("a", range(n), [float(i % 2) for i in range(n)])])
    data = json.loads(Page(chart).all("svg")[0]["data-chart"])["s"][0]
    assert len(data["x"]) == MAX_POINTS and data["x"][-1] == n - 1
    assert set(data["y"]) == {0.5}


@settings(deadline=None)  # a busy machine is no failure
@given(
    st.lists(st.floats(-1e12, 1e12, allow_nan=False), min_size=1, max_size=30),
    st.booleans(), st.booleans(), st.booleans(),
)  # fmt: skip
def test_every_point_is_inside_the_frame(values: list[float], share: bool, zero: bool, log: bool) -> None:
    series = Series("a", [i * 7 for i in range(len(values))], values)
    [line] = points(line_chart("t", [series], share=share, zero=zero, may_log=log))
    assert len(line) == len(values)
    assert all(LEFT - 0.1 <= x <= WIDTH - RIGHT + 0.1 and TOP - 0.1 <= y <= HEIGHT - BOTTOM + 0.1 for x, y in line)


@settings(deadline=None)  # a busy machine is no failure
@given(st.floats(-1e6, 1e6), st.floats(1e-2, 1e9), st.integers(2, 8))
def test_ticks_cover_the_range_with_round_steps(low: float, span: float, about: int) -> None:
    high = low + span
    found = ticks(low, high, about)
    step = found[1] - found[0]
    assert found[0] <= low + 1e-6 * span + 1e-9 and found[-1] >= high - 1e-6 * span - 1e-9
    assert len(found) <= about + 3
    assert [b - a for a, b in itertools.pairwise(found)] == pytest.approx([step] * (len(found) - 1), rel=1e-3)


def test_a_legend_names_colours_and_dashes_apart_where_both_vary() -> None:
    four = [Series(f"{b} {a}", [0], [1.0], i, j, a, b) for j, b in enumerate("xy") for i, a in enumerate("pq")]
    items = re.findall(r'class="line (s\d) (d\d)"[^>]*/></svg>([^<]*)<', legend(four))
    assert items == [("s0", "d0", "p"), ("s1", "d0", "q"), ("s7", "d0", "x"), ("s7", "d1", "y")]
    assert re.findall(r"</svg>([^<]*)<", legend(four[:2])) == ["x p", "x q"]
    assert legend(four[:1]) == ""
    mixed = [Series("loss", [0], [1.0], who="run", what="loss"), Series("guess", [0], [1.0], 7, 1)]
    assert re.findall(r"</svg>([^<]*)<", legend(mixed)) == ["loss", "guess"]


def test_tick_texts_tell_neighbours_apart() -> None:
    assert [tick_text(v, 0.0002) for v in (0.998, 0.9982)] == ["0.9980", "0.9982"]
    assert [tick_text(v, 0.025) for v in (0.0, 0.025)] == ["0.000", "0.025"]
    assert [tick_text(v, 0.25) for v in (0.25, 0.5)] == ["0.25", "0.50"]
    assert [tick_text(v, 0.05, share=True) for v in (0.05, 0.1)] == ["5\u00a0%", "10\u00a0%"]
    assert tick_text(-2000, 1000) == "−2\u202f000"
    assert tick_text(5e-9, 1e-9) == "5×10⁻⁹"


def test_intervals_stand_on_one_scale_with_their_level() -> None:
    rows = [Interval("a", 0.5, 0.4, 0.7, "x"), Interval("b", 0.1, 0.1, 0.2, "y", "base")]
    table = interval_table("t", rows, "c", share=True, level=(0.1, "guessing"))
    dots = [float(x) for x in re.findall(r'class="dot" style="left:([\d.]+)%"', table)]
    bars = [(float(a), float(b)) for a, b in re.findall(r'class="bar" style="left:([\d.]+)%;width:([\d.]+)%"', table)]
    level = float(re.findall(r'class="level" style="left:([\d.]+)%"', table)[0])
    unit = (dots[0] - dots[1]) / 0.4
    assert bars[0] == pytest.approx((dots[0] - 0.1 * unit, 0.3 * unit), abs=0.02)
    assert bars[1] == pytest.approx((dots[1], 0.1 * unit), abs=0.02)
    assert level == pytest.approx(dots[1]) and all(0 <= v <= 100 for v in (*dots, bars[0][0] + bars[0][1]))


def test_numbers_read_well() -> None:
    assert [number(v) for v in (0, 0.12345, 12.3456, 1234.5, 3e-7, 12, -0.5, 2.5e8)] == [
        "0", "0.123", "12.3", "1\u202f234", "3×10⁻⁷", "12", "−0.5", "2.5×10⁸",
    ]  # fmt: skip
    assert number(math.nan) == "not a number" and number(-math.inf) == "−∞"
    assert percent(0.2034) == "20.3\u00a0%" and measure(0.8, "r2") == "0.800" and measure(0.8, "top1") == "80.0\u00a0%"
    assert measure(-0.25, "r2") == "−0.250"
    assert [duration(v) for v in (2.5, 437, 9000, 400000)] == [
        "2.5\u00a0s", "7.28\u00a0min", "2.5\u00a0h", "4.63\u00a0days",
    ]  # fmt: skip


def test_a_mark_stands_at_its_step_and_keeps_its_label_inside() -> None:
    chart = str(line_chart("t", [Series("a", [0, 100], [1, 2])], marks=[(25, "warm"), (90, "cool"), (100, "after")]))
    found = re.findall(r'd="M([\d.]+) \d+V\d+"/><text class="(marklab[^"]*)" x="([\d.]+)" y="\d+">(\w+)<', chart)
    assert [row[3] for row in found] == ["warm", "cool"], "none at the end, where nothing follows"
    for step, (at, css, label, _) in zip((25, 90), found, strict=True):
        assert float(at) == pytest.approx(LEFT + step / 100 * (WIDTH - LEFT - RIGHT), abs=0.06)
        assert (float(label) < float(at)) == css.endswith("before") == (step == 90)


def test_no_share_is_above_one_hundred_percent() -> None:
    rows = [Interval("a", 0.02, 0.0, 0.1, "2 %"), Interval("b", 1.0, 0.93, 1.0, "100 %")]
    table = interval_table("t", rows, "c", share=True)
    assert "100 %" in str(table) and "150 %" not in str(table) and "125 %" not in str(table)
