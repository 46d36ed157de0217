"""The contact sheet of a check: a strip of samples for every finding, under a heading that counts them."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw
from torch import Tensor

from jepa.data.check.columns import Columns
from jepa.data.check.together import Known, Seen
from jepa.data.show import tile
from jepa.data.video.scan import STATUSES
from jepa.errors import DataError

_SIDE, _CAPTION, _GAP, _HEAD, _COLUMNS = 96, 26, 6, 22, 10
_BACKGROUND, _INK, _SOFT, _RED = (253, 253, 251), (28, 33, 38), (88, 96, 105), (179, 38, 30)


@dataclass(frozen=True)
class Row:
    """A heading, and samples below it."""

    title: str
    samples: list[int]


def rows(columns: Columns, seen: Seen, known: Known) -> list[Row]:
    """What is shown: what is broken or odd, what is there twice, and ordinary samples spread evenly."""
    found = []
    for status in reversed(range(2, len(STATUSES))):
        these = np.flatnonzero(columns.status == status)
        found.append(Row(f"{STATUSES[status]}: {len(these)}", these[:_COLUMNS].tolist()))
    leaking = [group for group in seen.groups if len({known.of(i) for i in group}) > 1]
    found.append(Row(f"the same in several splits: {len(leaking)} pictures", _flat(leaking)))
    inside = [group for group in seen.groups if group not in leaking]
    found.append(Row(f"the same within a split: {len(inside)} pictures", _flat(inside)))
    near = sorted(seen.near_groups, key=lambda group: len({known.of(i) for i in group}) < 2)  # leaks first
    found.append(Row(f"alike: {len(near)} groups", _flat(near)))
    good = np.flatnonzero((columns.status <= STATUSES.index("variable")) & ~seen.spare)
    picked = good[np.unique(np.linspace(0, len(good) - 1, 2 * _COLUMNS).astype(int))] if len(good) else good
    found.append(Row(f"nothing found: {len(good)}", picked.tolist()))
    return [row for row in found if row.samples]


def _flat(groups: list[list[int]]) -> list[int]:
    """Pairs side by side."""
    return [i for group in groups[: _COLUMNS // 2] for i in group[:2]]


def draw(shown: list[Row], picture: Callable[[int], Tensor], columns: Columns, known: Known) -> Image.Image:
    """The sheet; a sample that cannot be read is a red frame."""
    lines = [-(-len(row.samples) // _COLUMNS) for row in shown]
    height = sum(_HEAD + n * (_SIDE + _CAPTION + _GAP) for n in lines) + 2 * _GAP
    whole = Image.new("RGB", (_COLUMNS * (_SIDE + _GAP) + _GAP, max(height, _SIDE)), _BACKGROUND)
    pen, top = ImageDraw.Draw(whole), _GAP
    for row in shown:
        pen.text((_GAP, top + 5), row.title, fill=_INK)
        top += _HEAD
        for place, number in enumerate(row.samples):
            left = _GAP + place % _COLUMNS * (_SIDE + _GAP)
            if place and place % _COLUMNS == 0:
                top += _SIDE + _CAPTION + _GAP
            _place(whole, pen, left, top, picture, columns, number)
            label = int(columns.label[number])
            text = known.classes[label] if 0 <= label < len(known.classes) else ""
            name = columns.name(number).rpartition("/")[2]
            for line, words in enumerate((f"{known.of(number)} {text}", name)):
                pen.text((left, top + _SIDE + 12 * line), _ascii(words), fill=_SOFT)
        top += _SIDE + _CAPTION + _GAP
    return whole


def _place(
    whole: Image.Image,
    pen: ImageDraw.ImageDraw,
    left: int,
    top: int,
    picture: Callable[[int], Tensor],
    columns: Columns,
    number: int,
) -> None:
    status = STATUSES[int(columns.status[number])]
    try:
        if status in ("slow", "broken", "lying"):  # it may hang or crash this process
            raise DataError(status)
        small = tile(picture(number), _SIDE)
        whole.paste(small, (left + (_SIDE - small.width) // 2, top + (_SIDE - small.height) // 2))
    except (DataError, OSError):
        pen.text((left + 8, top + 40), status, fill=_RED)
    colour = _RED if status not in ("ok", "variable") else (227, 228, 224)
    pen.rectangle((left - 1, top - 1, left + _SIDE, top + _SIDE), outline=colour)


def _ascii(text: str) -> str:
    return text[:15].encode("ascii", "replace").decode()


def png(picture: Image.Image) -> bytes:
    """As a file."""
    out = io.BytesIO()
    picture.save(out, "PNG", optimize=True)
    return out.getvalue()


__all__ = ["Row", "draw", "png", "rows"]
