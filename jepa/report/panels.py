"""What is drawn of a sample, side by side: panels with one tile for an image and one for each moment of a clip.

Report and files show the same panels: of images each tile, of clips a film in which they run together, and a table
with a column for each time step of tokens.

Shapes: n samples, T frames, t h w token grid (images: t = 1).
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image, features
from torch import Tensor

from jepa.nn.rope import Grid
from jepa.report import material, pictures
from jepa.report.pictures import Picture

MOMENTS = 12  # most pictures in a film
COLUMNS = 8  # most time steps in a table
MILLISECONDS, LAST = 150, 600  # that each picture of a film stays, and the last one
SIDE = 176  # width of a panel in a film, in pixels
HEADS = 6  # most attention heads drawn


@dataclass(frozen=True)
class Panel:
    """One view of a sample: one tile, or one for each frame or time step of a clip."""

    head: str  # short, over or before the tiles
    alt: str  # what it shows, for those who cannot see it
    tiles: list[Picture]

    def at(self, moment: int, moments: int) -> Picture:
        """The tile in the middle of part `moment` of `moments`."""
        return self.tiles[(2 * moment + 1) * len(self.tiles) // (2 * moments)]


Sample = list[Panel]
Range = tuple[float, float]


# --- of what ------------------------------------------------------------------------------------------------------


def frames(image: Tensor) -> list[Tensor]:
    """The frames (3, H, W) of a clip (3, T, H, W), or the image itself."""
    return list(image.unbind(1)) if image.ndim == 4 else [image]


def mask_panels(found: material.Crops, i: int, group: int = 0) -> Sample:
    """Crop, context and targets of sample i for one group of masks."""
    context, targets = found.groups[group]
    shown, kind = frames(found.images[i]), "clip" if found.images.ndim == 5 else "crop"
    first = group if found.paired else 0
    kept = _by_step(context[i], found.grid)
    blocks = [_by_step(target[i], found.grid) for target in targets]
    step = [f * found.grid[0] // len(shown) for f in range(len(shown))]
    tokens = found.grid[0] * found.grid[1] * found.grid[2]
    grid = found.grid[1:]
    return [
        Panel(f"training {kind}", f"training {kind} number {found.g[i]}", [pictures.plain(f) for f in shown]),
        Panel(
            "what the encoder sees", f"the same {kind} with all but {context.shape[1]} of {tokens} patches hidden",
            [pictures.context_tile(f, kept[s], grid) for f, s in zip(shown, step, strict=True)],
        ),
        Panel(
            "what it must predict",
            f"the same {kind} with {sum(t.shape[1] for t in targets)} patches of {len(targets)} targets outlined",
            [pictures.target_tile(f, [b[s] for b in blocks], grid, first) for f, s in zip(shown, step, strict=True)],
        ),
    ]  # fmt: skip


def _by_step(tokens: Tensor, grid: Grid) -> list[Tensor]:
    """Tokens (K,) of a grid, as places in each of its time steps."""
    frame = grid[1] * grid[2]
    return [tokens[tokens // frame == step] % frame for step in range(grid[0])]


def feature_panels(
    found: material.Features, show: int, heads: tuple[str, str], foreground: bool = False
) -> tuple[list[Sample], tuple[float, float]]:
    """Samples beside their principal components after and before training, and the shares of variance in colour."""
    trained, share = pictures.feature_maps(found.trained, found.grid, show, foreground)
    untrained, share0 = pictures.feature_maps(found.untrained, found.grid, show, foreground)
    kind = "clip" if found.images.ndim == 5 else "image"
    samples = [
        [
            Panel(kind, f"{found.split} {kind}", [pictures.plain(f) for f in frames(image)]),
            Panel(heads[0], f"feature map after training ({heads[0]})", mine),
            Panel(heads[1], f"feature map of the same encoder with {heads[1]} weights", other),
        ]
        for image, mine, other in zip(found.images[: len(trained)], trained, untrained, strict=True)
    ]
    return samples, (share, share0)


def attention_panels(found: material.Attention, show: int) -> tuple[list[Sample], tuple[Range, Range]]:
    """Samples beside the attention that patches get, and that of the query; the weights drawn darkest and brightest."""
    received, chosen = found.received.mean(dim=1), found.chosen.mean(dim=1)
    ranges = _range(received), _range(chosen)
    kind = "clip" if found.images.ndim == 5 else "image"
    samples = []
    for i in range(min(show, len(found.images))):
        shown = frames(found.images[i])
        samples.append([
            Panel(kind, f"{found.split} {kind}", [pictures.plain(f) for f in shown]),
            Panel("looked at by all", "attention that each patch gets", _heat(found, shown, received[i], ranges[0])),
            Panel("by the framed patch", "what the framed patch attends to",
                  _heat(found, shown, chosen[i], ranges[1], marked=True)),
        ])  # fmt: skip
    return samples, ranges


def head_panels(found: material.Attention, i: int) -> Sample:
    """Sample i beside what the query attends to in each head, each head with a scale of its own."""
    shown = frames(found.images[i])
    kind = "clip" if found.images.ndim == 5 else "image"
    panels = [Panel(kind, f"{found.split} {kind}", [pictures.plain(f) for f in shown])]
    for head in range(min(HEADS, found.chosen.shape[1])):
        tiles = _heat(found, shown, found.chosen[i, head], _range(found.chosen[:, head]), marked=True)
        panels.append(Panel(f"head {head + 1}", f"what the framed patch attends to in head {head + 1}", tiles))
    return panels


def _heat(
    found: material.Attention, shown: Sequence[Tensor], weights: Tensor, drawn: Range, marked: bool = False
) -> list[Picture]:
    steps, (time, row, column) = weights.view(found.grid), found.query
    tiles = []
    for f, frame in enumerate(shown):
        step = f * found.grid[0] // len(shown)
        mark = row * found.grid[2] + column if marked and step == time else None
        tiles.append(pictures.heat_tile(frame, steps[step], drawn, mark))
    return tiles


def _range(weights: Tensor) -> Range:
    """What is drawn darkest and brightest: all but a hundredth on either side lies between."""
    values = weights.flatten()[:: -(-weights.numel() // 1_000_000)]
    low, high = torch.quantile(values, torch.tensor([0.01, 0.99])).tolist()
    return low, high


# --- how ----------------------------------------------------------------------------------------------------------


def moments(samples: Sequence[Sample]) -> int:
    """How many pictures a film of these has; 1 for images."""
    return min(MOMENTS, max(len(panel.tiles) for sample in samples for panel in sample))


def film(samples: Sequence[Sample], side: int = SIDE, gap: int = 8, headed: bool = True) -> list[Picture]:
    """Pictures of a film in which all panels run together: a row for each sample, a column for each panel."""
    count = moments(samples)
    heads = [panel.head for panel in samples[0]] if headed else []
    return [
        pictures.sheet([[p.at(m, count) for p in s] for s in samples], heads, side, gap, bare=not headed)
        for m in range(count)
    ]


def over_time(samples: Sequence[Sample], grid: Grid, side: int = 96, headed: bool = True) -> Picture:
    """A row for each panel of each sample, a column for each time step of tokens (evenly chosen where many)."""
    count = min(COLUMNS, grid[0])
    steps = [(2 * m + 1) * grid[0] // (2 * count) for m in range(count)]
    each = max(1, len(samples[0][0].tiles) // grid[0])  # frames of a time step
    heads = [f"frame {s + 1}" if each == 1 else f"frames {s * each + 1}-{(s + 1) * each}" for s in steps]
    blocks = []
    for i, sample in enumerate(samples):
        rows = [[panel.at(m, count) for m in range(count)] for panel in sample]
        names = [panel.head for panel in sample] if headed else ()
        blocks.append(pictures.sheet(rows, heads if headed and i == 0 else (), side, 6, None, names, not headed))
    return pictures.stacked(blocks, gap=10)


def encoded(film: Sequence[Picture], kind: str = "gif") -> bytes:
    """An animation that repeats for ever: "gif" (for any viewer), or "webp" (a fifth of it, for the page).

    A GIF's pictures share one palette of 256 colours.
    """
    stay = [MILLISECONDS] * (len(film) - 1) + [LAST]
    buffer = io.BytesIO()
    if kind == "webp":
        first, *others = film
        first.save(buffer, "WEBP", save_all=True, append_images=others, duration=stay, loop=0, quality=70, method=4)
        return buffer.getvalue()
    every = Image.new("RGB", (film[0].width, sum(f.height for f in film)))
    for i, picture in enumerate(film):
        every.paste(picture, (0, i * picture.height))
    palette = every.quantize(256, Image.Quantize.MEDIANCUT)
    first, *others = (f.convert("RGB").quantize(palette=palette, dither=Image.Dither.NONE) for f in film)
    first.save(buffer, "GIF", save_all=True, append_images=others, duration=stay, loop=0, optimize=False)
    return buffer.getvalue()


def page_format() -> str:
    """What films on the page are: WebP where this Pillow writes it, else GIF."""
    return "webp" if features.check("webp") else "gif"
