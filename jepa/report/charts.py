"""Charts as inline SVG and HTML: no library, sharp in print, coloured by the page's light or dark style.

The drawing itself needs no script. The numbers ride along in ``data-chart``; the page's script only adds a cross-hair
that reads them out.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from jepa.report.markup import Html, escape, html, join, number, percent

WIDTH, HEIGHT = 340, 200  # viewBox units; the figure scales to its column
LEFT, RIGHT, TOP, BOTTOM = 52, 8, 8, 36
MARK = 80  # units that the label of a mark may take
MAX_POINTS = 400  # per series; more lines than that are averaged in bins
COLOURS = 8  # classes s0..s7 in the style sheet


@dataclass
class Series:
    """One line. `colour` is an index into the style's palette; `dash` 0 is solid.

    `who` and `what` say what colour and dash stand for (run, encoder), where a chart has several of both. `low` and
    `high`, as long as y, draw a band around the line.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    colour: int = 0
    dash: int = 0
    who: str = ""
    what: str = ""
    low: Sequence[float] = ()
    high: Sequence[float] = ()


def line_chart(
    title: str,
    series: Sequence[Series],
    caption: str | Html = "",
    *,
    share: bool = False,
    zero: bool = False,
    may_log: bool = False,
    level: tuple[float, str] | None = None,
    marks: Sequence[tuple[float, str]] = (),
    axis: str = "step",
) -> Html:
    """A figure with lines over training steps.

    Args:
        title: heading of the chart.
        series: lines; empty ones are dropped, and no line at all gives a figure that says so.
        caption: one sentence that explains the picture to a newcomer.
        share: values are shares of one, shown in per cent.
        zero: the axis reaches zero.
        may_log: take a logarithmic axis where positive values span more than a factor of 300.
        level: a horizontal line for comparison (value, label), e.g. the accuracy of guessing.
        marks: vertical lines (step, label), e.g. where a phase of the run begins; only those inside the axes are drawn.
        axis: what is counted from left to right.
    """
    lines = [thin for s in series if len((thin := _thin(s)).y)]
    if not lines:
        return html(
            '<figure class="chart empty"><h3>{title}</h3><p class="missing">Nothing recorded yet.</p>'
            "<figcaption>{caption}</figcaption></figure>",
            title=title, caption=caption,
        )  # fmt: skip
    values = [v for s in lines for v in (*s.y, *s.low, *s.high)] + ([level[0]] if level else [])
    log = may_log and not zero and min(values) > 0 and max(values) / min(values) > 300
    low, high = min(values + [0.0] * zero), max(values + [0.0] * zero)
    high = 1.0 if zero and low == high else high  # all zero: room above, none below
    y_ticks = _log_ticks(low, high) if log else ticks(low, high, 4)
    low, high = min(y_ticks[0], low), max(y_ticks[-1], high)
    x_low, x_high = min(s.x[0] for s in lines), max(s.x[-1] for s in lines)
    x_high = x_high if x_high > x_low else x_low + 1
    axes = _Axes(x_low, x_high, low, high, log)
    show = percent if share else number
    label = f"{title}: " + "; ".join(f"{s.name} from {show(s.y[0])} to {show(s.y[-1])}" for s in lines)
    svg = html(
        '<svg viewBox="0 0 {w} {h}" role="img" aria-label="{label}" data-chart="{data}">{parts}</svg>',
        w=WIDTH, h=HEIGHT, label=label, data=_data(lines, axes, share),
        parts=join([
            _grid(axes, y_ticks, share, axis), _level(axes, level), _marks(axes, marks),
            *(_band(axes, s) for s in lines), *(_path(axes, s) for s in lines),
        ]),
    )  # fmt: skip
    final = lines[0].y[-1]
    text = percent(final) if share else number(final, 4)
    end = html('<span class="now">{v}</span>', v=text) if len(lines) == 1 else Html("")
    return html(
        '<figure class="chart"><h3>{title}{end}</h3>{svg}{legend}<figcaption>{caption}{scale}</figcaption></figure>',
        title=title, end=end, svg=svg, legend=legend(lines), caption=caption,
        scale=" (Logarithmic scale.)" if log else "",
    )  # fmt: skip


def legend(lines: Sequence[Series]) -> Html:
    """Names beside a swatch of line and dash; nothing for a single line. Colours and dashes apart where both vary."""
    if len(lines) < 2:
        return Html("")
    whos, whats = ({getattr(s, key): s for s in reversed(lines)} for key in ("who", "what"))
    if min(len(whos), len(whats)) > 1 and all(whos) and all(whats):
        lines = [Series(name, [], [], s.colour) for name, s in reversed(whos.items())]
        lines += [Series(name, [], [], 7, s.dash) for name, s in reversed(whats.items())]
    items = [
        html(
            '<li><svg viewBox="0 0 24 8" aria-hidden="true"><path class="line s{c} d{d}" d="M1 4H23"/></svg>'
            "{name}</li>",
            c=s.colour % COLOURS, d=s.dash, name=s.name,
        )
        for s in lines
    ]  # fmt: skip
    return html('<ul class="legend">{items}</ul>', items=join(items))


@dataclass
class Interval:
    """One row of an interval chart: a point with its interval, and the words around it."""

    label: str | Html
    value: float
    low: float | None = None
    high: float | None = None
    text: str | Html = ""
    css: str = "s0"  # colour class
    mark: str = "dot"  # dot or mean


def interval_table(
    title: str, rows: Sequence[Interval], caption: str | Html, *, share: bool, level: tuple[float, str] | None = None
) -> Html:
    """A table whose middle column draws every value with its interval on one common axis."""
    ends = [v for r in rows for v in (r.value, r.low, r.high) if v is not None] + ([level[0]] if level else [])
    pad = 0.04 * (max(ends) - min(ends))
    most = 1.0 if share and max(ends) <= 1 else math.inf  # no share is larger
    axis = ticks(min(ends) - pad if min(ends) < 0 else max(0.0, min(ends) - pad), min(max(ends) + pad, most), 4)
    low, high = min(axis[0], *ends), max(axis[-1], *ends)
    span = (high - low) or 1.0

    def at(value: float) -> str:
        return f"{100 * (value - low) / span:.2f}%"

    grid = join(html('<i class="tick" style="left:{x}"></i>', x=at(t)) for t in axis)
    if level:
        grid = join([grid, html('<i class="level" style="left:{x}" title="{t}"></i>', x=at(level[0]), t=level[1])])
    body = []
    for row in rows:
        bar = Html("")
        if row.low is not None and row.high is not None:
            width = f"{100 * (row.high - row.low) / span:.2f}%"
            bar = html('<i class="bar" style="left:{x};width:{w}"></i>', x=at(row.low), w=width)
        body.append(html(
            '<tr class="{css}"><th scope="row">{label}</th><td class="track"><div>{grid}{bar}'
            '<i class="{mark}" style="left:{x}"></i></div></td><td class="num">{text}</td></tr>',
            css=row.css, label=row.label, grid=grid, bar=bar, mark=row.mark, x=at(row.value), text=row.text,
        ))  # fmt: skip
    step = axis[1] - axis[0]
    scale = join(html('<span style="left:{x}">{t}</span>', x=at(t), t=tick_text(t, step, share)) for t in axis)
    note = html('<span class="key"><i class="level"></i> {t}</span>', t=level[1]) if level else Html("")
    return html(
        '<figure class="intervals"><h3>{title}</h3><table><thead class="sr"><tr><th>encoder</th><th>chart</th>'
        '<th>value and interval</th></tr></thead><tbody>{body}<tr class="axis" aria-hidden="true"><td></td>'
        '<td class="track"><div>{scale}</div></td><td></td></tr></tbody></table>'
        "<figcaption>{caption} {note}</figcaption></figure>",
        title=title, body=join(body), scale=scale, caption=caption, note=note,
    )  # fmt: skip


# --- inside -------------------------------------------------------------------------------------------------------


@dataclass
class _Axes:
    x_low: float
    x_high: float
    low: float
    high: float
    log: bool

    def x(self, value: float) -> float:
        return LEFT + (value - self.x_low) / (self.x_high - self.x_low) * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        low, high, value = (math.log10(v) if self.log else v for v in (self.low, self.high, value))
        return TOP + (1 - (value - low) / ((high - low) or 1.0)) * (HEIGHT - TOP - BOTTOM)


def ticks(low: float, high: float, about: int) -> list[float]:
    """Round numbers that cover [low, high], about `about` intervals of 1, 2, 2.5 or 5 times a power of ten."""
    size = max(abs(low), abs(high))
    if high - low <= max(1e-9 * size, 1e-200):  # one value, or several that no axis could tell apart
        pad = 0.1 * size if size > 1e-200 else 1.0
        low, high = low - pad, high + pad
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [float(f"{i * step:.12g}") for i in range(first, last + 1)]


def tick_text(value: float, step: float, share: bool = False) -> str:
    """A tick's number with as many decimals as the distance between ticks needs."""
    scale = 100 if share else 1
    decimals = max(0, -math.floor(math.log10(step * scale) + 1e-9))
    if abs(step * scale / 10.0**-decimals - round(step * scale / 10.0**-decimals)) > 1e-6:
        decimals += 1  # steps of 2.5
    if decimals > 6 or abs(value) >= 1e5:
        text = number(value)
        return f"{text}\u00a0%" if share else text
    return f"{value * scale:,.{decimals}f}".replace(",", "\u202f").replace("-", "\u2212") + ("\u00a0%" if share else "")


def _log_ticks(low: float, high: float) -> list[float]:
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    every = max(1, -(-(last - first) // 5))
    return [10.0**i for i in range(first, last + every, every)]


def _thin(series: Series) -> Series:
    """Means over equal bins where there are more points than pixels; the last point stays as it is."""
    pairs = [(x, y) for x, y in zip(series.x, series.y, strict=True) if math.isfinite(x) and math.isfinite(y)]
    if series.low and len(pairs) == len(series.y) <= MAX_POINTS:
        return series
    size = -(-len(pairs) // MAX_POINTS)
    bins = [pairs[i : i + size] for i in range(0, len(pairs), size)] if size > 1 else [[p] for p in pairs]
    x = [b[-1][0] for b in bins]
    return replace(series, x=x, y=[sum(p[1] for p in b) / len(b) for b in bins], low=(), high=())


def _grid(axes: _Axes, y_ticks: Sequence[float], share: bool, axis: str) -> Html:
    parts = []
    for tick in y_ticks:
        parts.append(html(
            '<path class="rule" d="M{a} {y}H{b}"/><text class="ylab" x="{tx}" y="{ty}">{text}</text>',
            a=LEFT, b=WIDTH - RIGHT, y=f"{axes.y(tick):.1f}", tx=LEFT - 6, ty=f"{axes.y(tick) + 4.5:.1f}",
            text=number(tick) if axes.log else tick_text(tick, y_ticks[1] - y_ticks[0], share),
        ))  # fmt: skip
    for tick in ticks(axes.x_low, axes.x_high, 4):
        if axes.x_low <= tick <= axes.x_high and (tick == int(tick) or axis != "step"):
            parts.append(html(
                '<text class="xlab" x="{x}" y="{y}">{text}</text>',
                x=f"{axes.x(tick):.1f}", y=HEIGHT - BOTTOM + 17, text=number(tick),
            ))  # fmt: skip
    parts.append(html('<text class="xname" x="{x}" y="{y}">{t}</text>', x=WIDTH - RIGHT, y=HEIGHT - 2, t=axis))
    return join(parts)


def _level(axes: _Axes, level: tuple[float, str] | None) -> Html:
    if level is None:
        return Html("")
    y = axes.y(level[0])
    return html(
        '<path class="level" d="M{a} {y}H{b}"/><text class="levellab" x="{b}" y="{ty}">{t}</text>',
        a=LEFT, b=WIDTH - RIGHT, y=f"{y:.1f}", ty=f"{y - 4:.1f}", t=level[1],
    )  # fmt: skip


def _marks(axes: _Axes, marks: Sequence[tuple[float, str]]) -> Html:
    parts, row, last = [], 0, -math.inf
    for step, label in sorted(marks, key=lambda mark: mark[0]):
        if not axes.x_low <= step < axes.x_high:
            continue
        x = axes.x(step)
        left = x > WIDTH * 0.7  # a label that would leave the picture stands before the line
        row = (row + 1) % 4 if x - last < MARK else 0  # labels of marks close together stand below each other
        last = x
        parts.append(html(
            '<path class="level" d="M{x} {a}V{b}"/><text class="marklab{c}" x="{tx}" y="{ty}">{t}</text>',
            x=f"{x:.1f}", a=TOP, b=HEIGHT - BOTTOM, c=" before" if left else "", tx=f"{x + (-4 if left else 4):.1f}",
            ty=TOP + 10 + 12 * row, t=label,
        ))  # fmt: skip
    return join(parts)


def _band(axes: _Axes, series: Series) -> Html:
    if not series.low:
        return Html("")
    there = [f"{axes.x(x):.1f},{axes.y(y):.1f}" for x, y in zip(series.x, series.high, strict=True)]
    back = [f"{axes.x(x):.1f},{axes.y(y):.1f}" for x, y in zip(series.x, series.low, strict=True)]
    css = f"s{series.colour % COLOURS}"
    return html('<polygon class="band {css}" points="{p}"/>', css=css, p=" ".join([*there, *back[::-1]]))


def _path(axes: _Axes, series: Series) -> Html:
    points = " ".join(f"{axes.x(x):.1f},{axes.y(y):.1f}" for x, y in zip(series.x, series.y, strict=True))
    css = f"s{series.colour % COLOURS} d{series.dash}"
    parts = [html('<polyline class="line {css}" points="{points}"/>', css=css, points=points)]
    if len(series.x) <= 40:  # few enough to show where it was measured
        for x, y in zip(series.x, series.y, strict=True):
            parts.append(html(
                '<circle class="point {css}" cx="{x}" cy="{y}" r="2.2"/>', css=css,
                x=f"{axes.x(x):.1f}", y=f"{axes.y(y):.1f}",
            ))  # fmt: skip
    return join(parts)


def _data(lines: Sequence[Series], axes: _Axes, share: bool) -> Html:
    series = [
        {"n": s.name, "c": s.colour % COLOURS, "x": list(s.x), "y": [float(f"{y:.5g}") for y in s.y]} for s in lines
    ]
    box = [axes.x_low, axes.x_high, axes.low, axes.high, LEFT, WIDTH - RIGHT, TOP, HEIGHT - BOTTOM]
    return escape(json.dumps({"s": series, "b": box, "log": axes.log, "share": share}, separators=(",", ":")))
