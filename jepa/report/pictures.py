"""Pictures of what a method does: masks on crops, feature maps, nearest neighbours, contact sheets.

Pure functions from tensors to PIL images; `material.py` fetches the tensors, `gallery.py` puts them on the page.

Shapes: n images, H W pixels, h w token grid, N = h * w tokens, K kept tokens, D width.
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

SIDE = 320  # pixels of the longer side, at least, of pictures with lines drawn on them: twice their size on the page
TARGET_COLOURS = ((230, 159, 0), (86, 180, 233), (224, 96, 154), (47, 181, 138))  # told apart by colour-blind eyes too
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


def target_tile(image: Tensor, blocks: Sequence[Tensor], grid: tuple[int, int]) -> Image.Image:
    """The crop in faint grey with each target block (K,) tinted and outlined in its own colour."""
    colour = np.asarray(enlarged(plain(image))).astype(np.float32)
    grey = colour @ np.array([0.299, 0.587, 0.114], dtype=np.float32)
    picture = np.repeat((0.55 * grey + 70)[..., None], 3, axis=2)
    areas = [_area(block, grid, colour.shape[:2]) for block in blocks]
    for i, area in enumerate(areas):
        tint = np.array(TARGET_COLOURS[i % len(TARGET_COLOURS)], dtype=np.float32)
        picture[area] = 0.62 * picture[area] + 0.38 * tint
    for i, area in enumerate(areas):  # each outline a little further in, so that shared edges stay visible
        edge = _edge(area, width=4, inset=3 * i)
        picture[edge] = TARGET_COLOURS[i % len(TARGET_COLOURS)]
    return Image.fromarray(picture.clip(0, 255).astype(np.uint8))


def feature_maps(tokens: Tensor, grid: tuple[int, int], show: int) -> tuple[list[Image.Image], float]:
    """First three principal components of tokens (n, N, D) as red, green and blue.

    The components are fitted to all n images together, so that a colour means the same thing in each of them. What a
    place in the image adds by itself (its mean over images) is taken off first: position embeddings would otherwise
    fill the colours and every map would be the same rainbow.

    Returns:
        A map of h x w pixels for each of the first `show` images, and the share of the variance left that the
        colours carry.
    """
    flat = (tokens - tokens.mean(dim=0)).flatten(0, 1).double()
    values, vectors = torch.linalg.eigh(flat.T @ flat)
    top = vectors[:, -3:].flip(1)
    top = top * torch.sign(top.gather(0, top.abs().argmax(dim=0, keepdim=True)))  # LAPACK leaves the sign open
    colours = flat @ top
    low, high = (torch.quantile(_sample(colours), q, dim=0) for q in (0.01, 0.99))
    colours = ((colours - low) / (high - low).clamp_min(1e-12)).clamp(0, 1)
    share = float(values[-3:].sum() / values.sum().clamp_min(1e-30))
    shape = (len(tokens), *grid, 3)
    maps = (colours.reshape(shape)[:show] * 255).round().to(torch.uint8)
    return [Image.fromarray(m.numpy()) for m in maps], share


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
) -> Image.Image:
    """Tiles in a table on white, with headings: one picture for a README.

    `frames` gives the colour of a frame around each tile, or None.
    """
    columns = max(len(row) for row in rows)
    first = next(t for row in rows for t in row if t is not None)
    height = round(side * first.height / first.width)
    top = 30 if heads else 0
    size = (columns * (side + gap) - gap + 12, top + len(rows) * (height + gap) - gap + 12)
    out = Image.new("RGB", size, (255, 255, 255))
    draw = ImageDraw.Draw(out)
    font = ImageFont.load_default(14)
    for c, text in enumerate(heads):
        draw.text((6 + c * (side + gap) + side // 2, 16), text, fill=(60, 66, 72), font=font, anchor="mm")
    for r, row in enumerate(rows):
        for c, picture in enumerate(row):
            if picture is None:
                continue
            x, y = 6 + c * (side + gap), 6 + top + r * (height + gap)
            out.paste(enlarged(picture).resize((side, height), Image.Resampling.LANCZOS), (x, y))
            frame = frames[r][c] if frames else None
            if frame:
                draw.rectangle((x - 2, y - 2, x + side + 1, y + height + 1), outline=frame, width=4)
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
