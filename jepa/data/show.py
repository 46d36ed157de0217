"""What is in a dataset: counts, sizes, and a contact sheet to look at."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw
from torch import Tensor

from jepa.data import augment, decode, labelmap, storage
from jepa.data.arrays import Array
from jepa.data.facts import facts
from jepa.data.manifest import VIDEOS, Manifest, Split
from jepa.data.video.decode import decode as decode_video
from jepa.data.video.probe import probe
from jepa.errors import DataError

_SHOWN_CLASSES = 12
_FRAMES = 4  # shown of a video


@dataclass(frozen=True)
class Summary:
    """What `jepa data show` prints, and where the picture is."""

    text: str
    picture: Path
    values: dict[str, Any]  # the same for programs: see `facts`; unreadable samples, picture, split shown


def show(folder: str | Path, out: str | Path | None = None, *, split: str | None = None, count: int = 96) -> Summary:
    """Describe a dataset and write a contact sheet.

    Args:
        folder: made by `jepa data build`.
        out: the PNG to write; None: contact-sheet.png in the folder.
        split: the split on the sheet; None: train, or the first.
        count: pictures on the sheet.

    Raises:
        DataError: not a dataset, no such split, or the picture cannot be written.
    """
    found = Manifest.open(folder)
    name = split or ("train" if "train" in found.splits else next(iter(found.splits)))
    chosen = found.split(name)
    picture = Path(out) if out is not None else Path(folder) / "contact-sheet.png"
    if count < 1:
        raise DataError(f"a contact sheet needs at least 1 picture, got count={count}")
    frames = _FRAMES if found.media == "video" else 1 + len(chosen.map_names)
    sheet, unreadable = _sheet(chosen, found.classes, min(-(-count // frames), len(chosen)), frames)
    try:
        picture.parent.mkdir(parents=True, exist_ok=True)
        storage.write_atomic(picture, _png(sheet))
    except OSError as error:
        raise DataError(
            f"cannot write {picture}: {error.strerror or error}. Name another file with --picture"
        ) from None
    values = facts(found) | {"unreadable": unreadable, "picture": str(picture), "shown": name}
    return Summary(_text(found, values), picture, values)


def _text(found: Manifest, values: dict[str, Any]) -> str:
    lines = [f"{found.name}  ({found.root})", f"licence  {found.licence}", f"content  {found.hash[:16]}"]
    smallest, largest = values["smallest"], values["largest"]
    if smallest and largest and max(largest) > 0:
        lines.append(f"{found.media + 's':8} {_size(smallest)} to {_size(largest)} pixels (height x width)")
    for name, split in values["splits"].items():
        lines.append(
            f"{name:8} {split['samples']:,} {found.media}s in {split['shards']} shards, {_bytes(split['bytes'])} "
            f"({', '.join(split['files'])}), {split['originals']:,} originals"
        )
        if split["maps"]:
            lines.append(f"{'':8} label maps: {', '.join(split['maps'])}")
        if "videos" in split:
            lines.append(f"{'':8} {_lengths(split['videos'])}")
        listed = [f"{k} {v:,}" for k, v in split["classes"].items()]
        more = f", and {len(listed) - _SHOWN_CLASSES} more classes" if len(listed) > _SHOWN_CLASSES else ""
        lines.append(f"{'':8} {', '.join(listed[:_SHOWN_CLASSES])}{more}")
    lines += [f"array    {_array(name, array)}" for name, array in found.arrays.items()]
    lines += [f"note     {note}" for note in found.notes]
    if found.bad_count:
        lines.append(f"left out {found.bad_count:,} {found.media}s that could not be used, such as:")
        lines += [f"{'':8} {b['source']}: {b['reason']}" for b in found.bad[:5]]
    lines += [f"unreadable {text}" for text in values["unreadable"][:5]]
    lines.append(f"picture  {values['picture']} ({values['shown']})")
    return "\n".join(lines)


def _array(name: str, array: Array) -> str:
    """What an array holds: its numbers, and where they lie in the training split."""
    what = f"{array.discrete} choices" if array.discrete else f"{array.size} {array.dtype}"
    steps = f", {array.steps} steps side by side" if array.steps > 1 else ""
    text = f"{name}: {what} for every {array.kind}{steps}"
    if not array.count or array.discrete:
        return text
    step, shown = array.size // array.steps, []
    for i in range(min(step, _SHOWN_CLASSES)):
        called = f"{array.names[i]} " if array.names else ""
        unit = f" {array.units[i]}" if array.units and array.units[i] else ""
        shown.append(
            f"{called}{array.mean[i]:.3g} ± {array.std[i]:.3g} ({array.min[i]:.3g} to {array.max[i]:.3g}){unit}"
        )
    more = f", and {step - len(shown)} more" if step > len(shown) else ""
    return f"{text}; {', '.join(shown)}{more}"


def _size(pair: list[int]) -> str:
    return f"{pair[0]}x{pair[1]}"


def _bytes(count: int) -> str:
    size, unit = float(count), "B"
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if size < 1000 or unit == "TB":
            break
        size /= 1000
    return f"{size:.1f} {unit}" if unit != "B" else f"{count} B"


def _sheet(split: Split, classes: list[str], count: int, frames: int) -> tuple[Image.Image, list[str]]:
    """Evenly spaced samples as tiles with their class (`frames` pictures of each), and what could not be read."""
    places = np.linspace(0, len(split) - 1, count).astype(int).tolist()
    side, caption, gap = 96, 14, 4
    wide = frames * side
    columns = min(12 // frames, count)
    rows = -(-count // columns)
    sheet = Image.new("RGB", (columns * (wide + gap) + gap, rows * (side + caption + gap) + gap), (250, 250, 250))
    pen, unreadable = ImageDraw.Draw(sheet), []
    for number, i in enumerate(places):
        left = gap + number % columns * (wide + gap)
        top = gap + number // columns * (side + caption + gap)
        label = int(split.labels[i])
        try:
            for place, image in enumerate(_pictures(split, i, frames)):
                small = tile(image, side)
                sheet.paste(small, (left + place * side + (side - small.width) // 2, top + (side - small.height) // 2))
        except (DataError, OSError) as error:
            unreadable.append(f"{split.place(i)}: {error}")
            pen.rectangle((left, top, left + wide - 1, top + side - 1), outline=(200, 0, 0))
            pen.text((left + 8, top + 40), "unreadable", fill=(200, 0, 0))
        text = "" if label < 0 else classes[label] if label < len(classes) else str(label)
        pen.text((left, top + side), text[:16].encode("ascii", "replace").decode(), fill=(60, 60, 60))
    return sheet, unreadable


def _pictures(split: Split, i: int, frames: int) -> list[Tensor]:
    """The image and its label maps, or frames spread evenly over the video; each (3, H, W)."""
    data, extension = split.read(i)
    if extension not in VIDEOS:
        return [decode.decode(data), *(labelmap.picture(split.read_map(i, name)) for name in split.map_names)]
    facts = probe(data)
    indices = np.linspace(0, len(facts) - 1, frames).round().astype(np.int64)
    return list(decode_video(data, indices, facts=facts).pixels)


def _lengths(videos: dict[str, Any] | None) -> str:
    """How long the videos are, and how many frames they have."""
    if videos is None:
        return "lengths not known (read in place)"
    (low, high), (slow, fast), (short, long) = videos["frames"], videos["fps"], videos["seconds"]
    return (
        f"{low:,.0f} to {high:,.0f} frames, {slow:g} to {fast:g} per second, {short:.2f} to {long:.2f} s, "
        f"{videos['hours']:.2f} hours in all"
    )


def tile(image: Tensor, side: int) -> Image.Image:
    """An image (3, H, W) uint8 as a picture whose longer side is `side`."""
    height, width = image.shape[1:]
    scale = side / max(height, width)
    size = max(1, round(height * scale)), max(1, round(width * scale))
    whole = augment.apply(image, augment.Box(0, 0, height, width), size, "bicubic")
    return Image.fromarray(np.ascontiguousarray(whole.permute(1, 2, 0).numpy()))


def _png(sheet: Image.Image) -> bytes:
    out = io.BytesIO()
    sheet.save(out, "PNG")
    return out.getvalue()
