"""Pictures of what a method does: masks on crops, feature maps, nearest neighbours, contact sheets.

Pure functions from tensors to PIL images; `material.py` fetches the tensors, `gallery.py` puts them on the page.

Shapes: n samples, H W pixels, t h w token grid (images: t = 1), N = t * h * w tokens, K kept tokens, D width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn import functional as F

from jepa.nn.rope import Grid

SIDE = 320  # pixels of the longer side, at least, of pictures with lines drawn on them: twice their size on the page
TARGET_COLOURS = ((230, 159, 0), (86, 180, 233), (224, 96, 154), (47, 181, 138))  # told apart by colour-blind eyes too
INK = (60, 66, 72)
# dark violet to pale yellow, lighter all the way: told apart by colour-blind eyes and in grey
HEAT = (
    *((0, 0, 4), (40, 11, 84), (101, 21, 110), (159, 42, 99), (212, 72, 66), (245, 125, 21)),
    *((250, 193, 39), (252, 255, 164)),
)
HIDDEN = (150, 156, 162), (128, 135, 142)  # stripes of two greys, told from any picture on light and dark pages

Pixels = npt.NDArray[np.uint8]
Picture = Image.Image
Bools = npt.NDArray[np.bool_]


def plain(image: Tensor) -> Image.Image:
    """A uint8 image (3, H, W) as it is; the page enlarges small ones with sharp pixels."""
    return Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())


def enlarged(picture: Image.Image) -> Image.Image:
    """The picture at a whole multiple of its size, at least `SIDE` on the longer side, pixel edges kept."""
    factor = max(1, math.ceil(SIDE / max(picture.size)))
    return picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)


def context_tile(image: Tensor, kept: Tensor, grid: tuple[int, int]) -> Image.Image:
    """What the context encoder sees of a crop (3, H, W): tokens `kept` (K,) as they are, all others grey."""
    picture = np.asarray(enlarged(plain(image))).copy()
    height, width = picture.shape[:2]
    stripes = (np.arange(height)[:, None] + np.arange(width)) // 10 % 2
    hidden = ~_area(kept, grid, (height, width))
    picture[hidden] = np.array(HIDDEN, dtype=np.uint8)[stripes[hidden]]
    return Image.fromarray(picture)


def target_tile(image: Tensor, blocks: Sequence[Tensor], grid: tuple[int, int], first: int = 0) -> Image.Image:
    """The crop in faint grey with each target block (K,) tinted and outlined in its own colour, from colour `first`."""
    colours = [TARGET_COLOURS[(first + i) % len(TARGET_COLOURS)] for i in range(len(TARGET_COLOURS))]
    colour = np.asarray(enlarged(plain(image))).astype(np.float32)
    grey = colour @ np.array([0.299, 0.587, 0.114], dtype=np.float32)
    picture = np.repeat((0.55 * grey + 70)[..., None], 3, axis=2)
    areas = [_area(block, grid, colour.shape[:2]) for block in blocks]
    for i, area in enumerate(areas):
        tint = np.array(colours[i % len(colours)], dtype=np.float32)
        picture[area] = 0.62 * picture[area] + 0.38 * tint
    for i, area in enumerate(areas):  # each outline a little further in, so that shared edges stay visible
        edge = _edge(area, width=4, inset=3 * i)
        picture[edge] = colours[i % len(colours)]
    return Image.fromarray(picture.clip(0, 255).astype(np.uint8))


def feature_maps(
    tokens: Tensor, grid: Grid, show: int, foreground: bool = False
) -> tuple[list[list[Image.Image]], float]:
    """First three principal components of tokens (n, N, D) as red, green and blue.

    The components are fitted to all times of all n samples together, so that a colour means the same thing in each of
    them. What a place by itself adds (its mean over samples) is taken off first: position embeddings would otherwise
    fill the colours and every map would be the same rainbow. Of fewer than 4 samples only the mean of all tokens is.
    Of clips also what the whole clip adds (its mean over tokens) is taken off, so that colours tell what moves in it.

    Args:
        foreground: colour only the tokens on one side of the first component, by components of their own, and leave
            the others black (DINOv2, Oquab et al., arXiv 2304.07193, figure 1). The threshold is Otsu's; the side with
            fewer tokens along the edges of the pictures is taken for the foreground.

    Returns:
        For each of the first `show` samples a map of h x w pixels for each time step, and the share of the variance
        left that the colours carry.
    """
    centred = tokens - tokens.mean(dim=0 if len(tokens) >= 4 else (0, 1), keepdim=True)
    if grid[0] > 1:
        centred = centred - centred.mean(dim=1, keepdim=True)
    flat = centred.flatten(0, 1).double()
    inside = _foreground(tokens, grid) if foreground else torch.ones(len(flat), dtype=torch.bool)
    values, top = _components(flat[inside], 3, centre=foreground)
    colours = flat @ top
    low, high = (torch.quantile(_sample(colours[inside]), q, dim=0) for q in (0.01, 0.99))
    colours = ((colours - low) / (high - low).clamp_min(1e-12)).clamp(0, 1) * inside[:, None]
    share = float(values[-3:].sum() / values.sum().clamp_min(1e-30))
    maps = (colours.reshape(len(tokens), *grid, 3)[:show] * 255).round().to(torch.uint8)
    return [[Image.fromarray(step.numpy()) for step in sample] for sample in maps], share


def heat_tile(image: Tensor, weights: Tensor, drawn: tuple[float, float], marked: int | None = None) -> Image.Image:
    """Weights (h, w) laid over an image (3, H, W): from dark violet to pale yellow.

    Args:
        drawn: weights that are darkest and brightest.
        marked: place of a token to put a frame around.
    """
    colour = np.asarray(enlarged(plain(image))).astype(np.float32)
    shape, grid = colour.shape[:2], (weights.shape[0], weights.shape[1])
    rows, columns = (np.arange(n) * k // n for n, k in zip(shape, grid, strict=True))
    level = ((weights - drawn[0]) / max(drawn[1] - drawn[0], 1e-12)).clamp(0, 1).numpy()[rows[:, None], columns]
    heat = np.stack([np.interp(level, np.linspace(0, 1, len(HEAT)), channel) for channel in np.array(HEAT).T], axis=-1)
    grey = colour @ np.array([0.299, 0.587, 0.114], dtype=np.float32)
    picture = 0.72 * heat + 0.28 * grey[..., None]
    if marked is not None:
        area = _area(torch.tensor([marked]), grid, shape)
        picture[_edge(area, width=8, inset=0)] = 20
        picture[_edge(area, width=4, inset=2)] = 255
    return Image.fromarray(picture.clip(0, 255).astype(np.uint8))


def nearest(queries: Tensor, bank: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Indices and cosines (m, k) of the rows of `bank` (n, D) nearest to each row of `queries` (m, D)."""
    cosines = F.normalize(queries.float(), dim=1) @ F.normalize(bank.float(), dim=1).T
    found = cosines.topk(min(k, bank.shape[0]), dim=1)
    return found.indices, found.values


def sheet(
    rows: Sequence[Sequence[Image.Image | None]],
    heads: Sequence[str] = (),
    side: int = 160,
    gap: int = 8,
    frames: Sequence[Sequence[tuple[int, int, int] | None]] | None = None,
    names: Sequence[str] = (),
    bare: bool = False,
) -> Image.Image:
    """Tiles in a table on white, with headings: one picture for a README.

    Args:
        heads: over the columns. names: before the rows, as many as fit; "" leaves a row without.
        side: width of a tile.
        frames: the colour of a frame around each tile, or None.
        bare: no margin and nothing behind the tiles, for a page of any colour.
    """
    columns = max(len(row) for row in rows)
    first = next(t for row in rows for t in row if t is not None)
    height, font = round(side * first.height / first.width), ImageFont.load_default(14)
    margin = 0 if bare else 6
    left = margin + (max(round(font.getlength(name)) for name in names) + 12 if names else 0)
    top = margin + (30 if heads else 0)
    size = (left + columns * (side + gap) - gap + margin, top + len(rows) * (height + gap) - gap + margin)
    out = Image.new("RGBA" if bare else "RGB", size, (0, 0, 0, 0) if bare else (255, 255, 255))
    draw = ImageDraw.Draw(out)
    for c, text in enumerate(heads):
        draw.text((left + c * (side + gap) + side // 2, 16), text, fill=INK, font=font, anchor="mm")
    for r, name in enumerate(names):
        draw.text((left - 12, top + r * (height + gap) + height // 2), name, fill=INK, font=font, anchor="rm")
    for r, row in enumerate(rows):
        for c, picture in enumerate(row):
            if picture is None:
                continue
            x, y = left + c * (side + gap), top + r * (height + gap)
            out.paste(enlarged(picture).resize((side, height), Image.Resampling.LANCZOS), (x, y))
            frame = frames[r][c] if frames else None
            if frame:
                draw.rectangle((x - 2, y - 2, x + side + 1, y + height + 1), outline=frame, width=4)
    return out


def stacked(sheets: Sequence[Image.Image], gap: int) -> Image.Image:
    """Sheets of one width under each other."""
    first, size = sheets[0], (max(s.width for s in sheets), sum(s.height + gap for s in sheets) - gap)
    out = Image.new(first.mode, size, (0, 0, 0, 0) if first.mode == "RGBA" else (255, 255, 255))
    top = 0
    for one in sheets:
        out.paste(one, (0, top))
        top += one.height + gap
    return out


def contact_sheet(images: Tensor, columns: int, gap: int = 2) -> Image.Image:
    """Images (n, 3, H, W) uint8 in a table, enlarged by a whole factor while small."""
    n, _, height, width = images.shape
    factor = max(1, 80 // max(height, width))
    rows = -(-n // columns)
    big = images.repeat_interleave(factor, 2).repeat_interleave(factor, 3).permute(0, 2, 3, 1).numpy()
    h, w = height * factor, width * factor
    out = np.full((rows * (h + gap) - gap, columns * (w + gap) - gap, 3), 255, dtype=np.uint8)
    for i in range(n):
        y, x = (i // columns) * (h + gap), (i % columns) * (w + gap)
        out[y : y + h, x : x + w] = big[i]
    return Image.fromarray(out)


# --- inside -------------------------------------------------------------------------------------------------------


def _components(rows: Tensor, count: int, centre: bool = False) -> tuple[Tensor, Tensor]:
    """Variances (D,) rising, and the first `count` principal components (D, count), the largest first."""
    rows = rows - rows.mean(dim=0) if centre else rows
    values, vectors = torch.linalg.eigh(rows.T @ rows)
    top = vectors[:, -count:].flip(1)
    return values, top * torch.sign(top.gather(0, top.abs().argmax(dim=0, keepdim=True)))  # LAPACK leaves it open


def _foreground(tokens: Tensor, grid: Grid) -> Tensor:
    """Which of tokens (n, N, D) lie on the side of the first component that has fewer along the edges: (n * N,).

    Medians are taken off, not means: they are those of the background, wherever things are in the minority.
    """
    rest = tokens - (tokens.median(dim=0).values if len(tokens) >= 4 else tokens.flatten(0, 1).median(dim=0).values)
    if grid[0] > 1:
        rest = rest - rest.median(dim=1, keepdim=True).values
    flat = rest.flatten(0, 1).double()
    along = (flat @ _components(flat, 1, centre=True)[1])[:, 0]
    inside = along > _otsu(along)
    edge = torch.ones(grid[1:], dtype=torch.bool)
    edge[1:-1, 1:-1] = False
    outer, inner = (inside.view(-1, *grid[1:])[:, part].double().mean() for part in (edge, ~edge))
    inside = ~inside if outer > inner or (not (~edge).any() and outer > 0.5) else inside
    return inside if int(inside.sum()) > 3 else torch.ones_like(inside)


def _otsu(values: Tensor) -> float:
    """The threshold that cuts values (M,) into the two groups that differ most (Otsu 1979)."""
    rising = values.sort().values
    below = torch.arange(1, len(rising), dtype=torch.float64)
    low = rising.cumsum(0)[:-1]
    between = below * (len(rising) - below) * (low / below - (rising.sum() - low) / (len(rising) - below)) ** 2
    at = int(between.argmax())
    return float(rising[at] + rising[at + 1]) / 2


def _area(tokens: Tensor, grid: tuple[int, int], shape: tuple[int, ...]) -> Bools:
    """Pixels (H, W) that belong to tokens (K,) of an h x w grid."""
    chosen = np.zeros(grid[0] * grid[1], dtype=bool)
    chosen[tokens.numpy()] = True
    rows = np.arange(shape[0]) * grid[0] // shape[0]
    columns = np.arange(shape[1]) * grid[1] // shape[1]
    return np.asarray(chosen.reshape(grid)[rows[:, None], columns])


def _edge(area: Bools, width: int, inset: int) -> Bools:
    """A line of `width` pixels along the border of an area, `inset` pixels inside it."""
    return _shrink(area, inset) & ~_shrink(area, inset + width)


def _shrink(area: Bools, by: int) -> Bools:
    if by == 0:
        return area
    padded = torch.from_numpy(np.pad(~area, by)).float()[None, None]
    grown = F.max_pool2d(padded, (2 * by + 1, 1), stride=1)
    outside = F.max_pool2d(grown, (1, 2 * by + 1), stride=1)[0, 0] > 0
    # the frame of the picture bounds an area too
    inner = np.zeros_like(area)
    inner[by:-by, by:-by] = True
    return np.asarray(area & ~outside.numpy() & inner)


def _sample(rows: Tensor, most: int = 100_000) -> Tensor:
    """Evenly spaced rows: torch.quantile refuses very long inputs."""
    return rows[:: -(-len(rows) // most)]
