"""Masks for images: several target blocks and one large context block (I-JEPA, arXiv 2301.08243, section 3).

`ExactSampler` (default) draws what the paper describes: block offsets uniform and inclusive, scale and aspect ratio
independent, targets removed from the context, and the same number of context tokens in every sample whatever the
batch: the context is trimmed by a random subset, never by raster order.

`ReferenceSampler` reproduces the official sampler draw for draw with its quirks (context cut in raster order to the
batch minimum, last row and column never used, one random number for scale and aspect). For parity only.

Shapes: B samples, H x W token grid, N = H * W, Kc context tokens, Kt target tokens.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from jepa import keyed
from jepa.errors import ConfigError
from jepa.masks.base import Bools, Ints, Masks, Sampler, cut_to_shortest, random_subset

_ATTEMPTS = 16  # redraws before the fallback; at the redraw share that validation allows, never reached in practice


@dataclass(frozen=True)
class MultiBlockConfig:
    """Multi-block masking (I-JEPA)."""

    mode: Literal["exact", "reference"] = "exact"  # reference: the official sampler, for parity; not elastic
    targets: int = 4  # target blocks per sample
    contexts: int = 1  # context blocks per sample
    target_scale: tuple[float, float] = (0.15, 0.2)  # share of the grid in one target block
    target_ratio: tuple[float, float] = (0.75, 1.5)  # height / width of a target block
    context_scale: tuple[float, float] = (0.85, 1.0)  # share of the grid in the context block, targets removed after
    context_keep: float = 0.25  # exact: share of the grid kept as context in every sample
    min_keep: int = 10  # reference: a block with this many tokens or fewer is drawn again
    allow_overlap: bool = False  # reference: targets may overlap the context

    def __post_init__(self) -> None:
        for name in ("target_scale", "context_scale"):
            low, high = getattr(self, name)
            if not 0 < low <= high <= 1:
                raise ConfigError(f"{name}: got [{low}, {high}], allowed: 0 < low <= high <= 1")
        low, high = self.target_ratio
        if not 0 < low <= high:
            raise ConfigError(f"target_ratio: got [{low}, {high}], allowed: 0 < low <= high")
        if self.targets < 1 or self.contexts < 1:
            raise ConfigError(f"targets={self.targets} and contexts={self.contexts} must both be at least 1")
        if not 0 < self.context_keep < 1:
            raise ConfigError(f"context_keep: got {self.context_keep}, allowed: a share between 0 and 1")


def make_sampler(config: MultiBlockConfig, grid: tuple[int, int], seed: int) -> Sampler:
    """The sampler a configuration asks for.

    Raises:
        ConfigError: a spec that this grid cannot satisfy, with the largest `context_keep` that it can.
    """
    if config.mode == "reference":
        return ReferenceSampler(config, grid, seed)
    return ExactSampler(config, grid, seed)


# --- exact --------------------------------------------------------------------------------------------------------


class ExactSampler:
    """See the module docstring. Block sizes are keyed by (seed, step), positions and trimming by (seed, g)."""

    def __init__(self, config: MultiBlockConfig, grid: tuple[int, int], seed: int) -> None:
        self.config, self.grid, self.seed = config, grid, seed
        self.context_count = max(1, round(config.context_keep * grid[0] * grid[1]))
        self._validate()

    def __call__(self, step: int, g: Ints) -> Masks:
        """Masks for samples `g` (B,) int64 at `step`: contexts (B, Kc) with Kc fixed, targets (B, Kt)."""
        (th, tw), (ch, cw) = self.block_sizes(step)
        targets, contexts, _ = self._place(g, th, tw, ch, cw)
        return Masks(
            [
                torch.from_numpy(random_subset(contexts[:, i], self.context_count, f"mask.trim.{i}", self.seed, g))
                for i in range(self.config.contexts)
            ],
            [torch.from_numpy(t) for t in self._block_indices(targets, th, tw)],
        )

    def block_sizes(self, step: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """((height, width) of targets, (height, width) of the context block) at a step, in tokens."""
        u = keyed.uniform("mask.size", self.seed, step, 3)
        return self._target_size(u[0], u[1]), self._context_size(u[2])

    def _target_size(self, u_scale: float, u_ratio: float) -> tuple[int, int]:
        height, width = self.grid
        (s0, s1), (r0, r1) = self.config.target_scale, self.config.target_ratio
        area, ratio = (s0 + u_scale * (s1 - s0)) * height * width, r0 + u_ratio * (r1 - r0)
        h = min(max(round(math.sqrt(area * ratio)), 1), height)
        w = min(max(round(math.sqrt(area / ratio)), 1), width)
        if h == height:  # a long thin grid: keep the area, not the ratio
            w = min(max(round(area / h), 1), width)
        elif w == width:
            h = min(max(round(area / w), 1), height)
        return h, w

    def _context_size(self, u: float) -> tuple[int, int]:
        low, high = self.config.context_scale
        side = math.sqrt(low + u * (high - low))  # the grid's own shape, so that scale 1 is the whole grid
        return max(1, round(side * self.grid[0])), max(1, round(side * self.grid[1]))

    def _place(self, g: Ints, th: int, tw: int, ch: int, cw: int) -> tuple[Ints, Bools, Ints]:
        """Target corners (B, T, 2), context candidates (B, C, N), and how many draws each sample took (B,)."""
        tries = np.zeros(len(g), dtype=np.int64)
        corners, candidates = self._draw(g, tries, th, tw, ch, cw)
        for attempt in range(1, _ATTEMPTS + 1):
            short = np.flatnonzero((candidates.sum(axis=2) < self.context_count).any(axis=1))
            if not len(short):
                return corners, candidates, tries
            tries[short] = attempt
            if attempt < _ATTEMPTS:
                corners[short], candidates[short] = self._draw(g[short], tries[short], th, tw, ch, cw)
            else:  # all targets on one place: validation made sure that this leaves enough
                corners[short] = corners[short][:, :1]
                candidates[short] = self._inside(np.zeros((len(short), self.config.contexts, 2), np.int64), ch, cw)
                candidates[short] &= ~self._inside(corners[short][:, :1], th, tw)
        return corners, candidates, tries

    def _draw(self, g: Ints, tries: Ints, th: int, tw: int, ch: int, cw: int) -> tuple[Ints, Bools]:
        height, width = self.grid
        t, c = self.config.targets, self.config.contexts
        u = keyed.uniform("mask.place", self.seed, g, 2 * (t + c), sub=tries).reshape(len(g), t + c, 2)
        corners = (u[:, :t] * (height - th + 1, width - tw + 1)).astype(np.int64)  # inclusive of the last offset
        context = (u[:, t:] * (height - ch + 1, width - cw + 1)).astype(np.int64)
        union = self._inside(corners, th, tw).any(axis=1, keepdims=True)
        return corners, self._inside(context, ch, cw) & ~union

    def _inside(self, corners: Ints, h: int, w: int) -> Bools:
        """Block membership (B, M, N) of blocks with top-left `corners` (B, M, 2)."""
        rows, cols = np.arange(self.grid[0]), np.arange(self.grid[1])
        top, left = corners[..., :1], corners[..., 1:]
        in_rows, in_cols = (rows >= top) & (rows < top + h), (cols >= left) & (cols < left + w)
        return (in_rows[..., :, None] & in_cols[..., None, :]).reshape(*corners.shape[:2], -1)

    def _block_indices(self, corners: Ints, h: int, w: int) -> list[Ints]:
        inner = (np.arange(h)[:, None] * self.grid[1] + np.arange(w)).reshape(-1)
        first = corners[..., 0] * self.grid[1] + corners[..., 1]
        return [first[:, i, None] + inner for i in range(corners.shape[1])]

    def _validate(self) -> None:
        height, width = self.grid
        ends = (0.0, 1.0)
        (ch, cw) = self._context_size(0.0)
        largest = max(h * w for h, w in (self._target_size(a, b) for a in ends for b in ends))
        certain = (ch * cw - largest) / (height * width)
        share = self.context_count / (height * width)
        g = np.arange(256, dtype=np.int64)
        counts = [
            self._draw(g + 256 * i, np.zeros(256, np.int64), *self._target_size(*u[:2]), *self._context_size(u[2]))[1]
            for i, u in enumerate(keyed.uniform("mask.check", self.seed, np.arange(8), 3))
        ]
        kept = np.concatenate([c.sum(axis=2).min(axis=1) for c in counts]) / (height * width)
        usable = min(float(np.quantile(kept, 0.2)), certain)  # at most a fifth of the samples are drawn again
        if share > usable + 1e-9 or largest >= height * width:
            raise ConfigError(
                f"masks cannot be satisfied on a {height}x{width} token grid: {self.config.targets} target blocks of "
                f"up to {largest} tokens leave too few for context_keep={self.config.context_keep} "
                f"({self.context_count} tokens). Allowed here: context_keep <= {max(usable, 0):.3f}; or use fewer or "
                "smaller targets, or a larger grid (smaller patches, larger images)"
            )


# --- reference ----------------------------------------------------------------------------------------------------


class ReferenceSampler:
    """The official I-JEPA sampler, draw for draw. Depends on the batch's composition, so runs are not elastic."""

    def __init__(self, config: MultiBlockConfig, grid: tuple[int, int], seed: int) -> None:
        self.config, self.grid, self.seed = config, grid, seed
        smallest = min(h * w for h, w in (self._size(u, "target") for u in np.linspace(0, 1, 257)))
        if smallest <= config.min_keep:
            raise ConfigError(
                f"masks cannot be satisfied: the smallest target block has {smallest} tokens on a "
                f"{grid[0]}x{grid[1]} grid, and min_keep={config.min_keep} redraws blocks that small for ever. "
                "Lower masks.min_keep, raise masks.target_scale, or use masks.mode=exact"
            )

    def __call__(self, step: int, g: Ints) -> Masks:
        """Masks of a batch, its positions drawn from a generator keyed by (seed, step, first sample)."""
        generator = torch.Generator().manual_seed(
            int(keyed.generator("mask.reference", self.seed, step, int(g[0])).integers(2**62))
        )
        return self.sample(step, len(g), generator)

    def sample(self, step: int, batch: int, generator: torch.Generator) -> Masks:
        """Collator call number `step` (0-based) for `batch` samples; positions come from `generator`."""
        th, tw, ch, cw = self.block_sizes(step)
        contexts: list[list[Tensor]] = [[] for _ in range(self.config.contexts)]
        targets: list[list[Tensor]] = [[] for _ in range(self.config.targets)]
        for _ in range(batch):
            outside = []
            for block in targets:
                indices, mask = self._block(th, tw, [], generator)
                block.append(indices)
                outside.append(1 - mask)
            for block in contexts:
                block.append(self._block(ch, cw, [] if self.config.allow_overlap else outside, generator)[0])
        return Masks([cut_to_shortest(c, contexts) for c in contexts], [cut_to_shortest(t, targets) for t in targets])

    def block_sizes(self, step: int) -> tuple[int, int, int, int]:
        """Target height, width, context height, width of call number `step`."""
        generator = torch.Generator().manual_seed(step)
        u_target = float(torch.rand(1, generator=generator).item())
        u_context = float(torch.rand(1, generator=generator).item())
        return *self._size(u_target, "target"), *self._size(u_context, "context")

    def _size(self, u: float, which: str) -> tuple[int, int]:
        height, width = self.grid
        scale = self.config.target_scale if which == "target" else self.config.context_scale
        ratio = self.config.target_ratio if which == "target" else (1.0, 1.0)
        area = int(height * width * (scale[0] + u * (scale[1] - scale[0])))
        aspect = ratio[0] + u * (ratio[1] - ratio[0])  # the same random number again: a quirk kept
        h, w = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        return min(h, height - 1), min(w, width - 1)

    def _block(self, h: int, w: int, allowed: list[Tensor], generator: torch.Generator) -> tuple[Tensor, Tensor]:
        relaxed, left = 0, 20
        while True:
            top = int(torch.randint(0, self.grid[0] - h, (1,), generator=generator))  # last offset left out: a quirk
            side = int(torch.randint(0, self.grid[1] - w, (1,), generator=generator))
            block = torch.zeros(self.grid, dtype=torch.int32)
            block[top : top + h, side : side + w] = 1
            kept = block.clone()
            for region in allowed[: max(len(allowed) - relaxed, 0)]:
                kept *= region
            indices = torch.nonzero(kept.flatten()).squeeze(1)
            if len(indices) > self.config.min_keep:
                return indices, block
            left -= 1
            if left == 0:  # after 20 tries one target less is kept out of the context: a quirk
                relaxed, left = relaxed + 1, 20
