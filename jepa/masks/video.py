"""Masks for clips: the union of several space-time blocks is the target, what lies outside is the context (V-JEPA).

Bardes et al., "Revisiting feature prediction for learning visual representations from video", arXiv 2404.08471,
section 3.2. Several specs are drawn at once (many small blocks for short range, few large ones for long range);
context i belongs to target i.

Block sizes are shared by a batch, but the size of a union differs from sample to sample. `VideoExactSampler` (default)
trims both sides to counts that depend on the spec and the grid alone: the context to a random subset of the tokens
outside the blocks, the target to a random subset of those inside. A token trimmed from the target is in neither, so
nothing leaks into the context; a token trimmed from the context is not seen. The counts are the largest that one
draw in ten misses on either side (`context_keep`, `target_keep` override them); such a sample is drawn again. On
8 x 16 x 16 tokens that is a little more than the official code keeps at its batch of 24, and from all times alike.

`VideoReferenceSampler` repeats the official draws, with the quirk that both sides are cut in raster order, time
first, to the shortest sample of the batch: at batch 24 the last of 8 time steps keeps 5 % of its context.

Shapes: B samples, M blocks, T x H x W token grid, N = T * H * W.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from jepa import keyed
from jepa.errors import ConfigError
from jepa.masks.base import Bools, Ints, Masks, Sampler, cut_to_shortest, random_subset

Grid = tuple[int, int, int]
Floats = npt.NDArray[np.float64]
_ATTEMPTS = 16  # redraws before the fallback
_SIZES, _DRAWS = 64, 512  # block sizes, and draws of each, that the counts are read off
_MISSED, _MISSED_BY_ONE_SIZE = 0.1, 0.4  # largest share of draws a default count is too large for


@dataclass(frozen=True)
class BlockSpec:
    """One mask: the union of `blocks` blocks of one size."""

    blocks: int = 8  # blocks per sample
    spatial_scale: tuple[float, float] = (0.15, 0.15)  # share of a frame's tokens in one block
    temporal_scale: tuple[float, float] = (1.0, 1.0)  # share of the time steps in one block
    aspect_ratio: tuple[float, float] = (0.75, 1.5)  # height / width of a block
    max_temporal_keep: float = 1.0  # the context ends after this share of the time steps
    max_keep: int | None = None  # most context tokens
    complement: Literal["none", "target", "context"] = "none"  # this side becomes all that the other side is not
    context_keep: float | None = None  # exact: share of the grid kept as context; default: see jepa/masks/video.py
    target_keep: float | None = None  # exact: share of the grid kept as target; default: see jepa/masks/video.py

    def __post_init__(self) -> None:
        for name in ("spatial_scale", "temporal_scale"):
            low, high = getattr(self, name)
            if not 0 < low <= high <= 1:
                raise ConfigError(f"{name}: got [{low}, {high}], allowed: 0 < low <= high <= 1")
        low, high = self.aspect_ratio
        if not 0 < low <= high:
            raise ConfigError(f"aspect_ratio: got [{low}, {high}], allowed: 0 < low <= high")
        if self.blocks < 1 or (self.max_keep is not None and self.max_keep < 1):
            raise ConfigError(f"blocks={self.blocks} and max_keep={self.max_keep} must be at least 1")
        for name in ("max_temporal_keep", "context_keep", "target_keep"):
            value = getattr(self, name)
            if value is not None and not 0 < value <= 1:
                raise ConfigError(f"{name}: got {value}, allowed: a share above 0, at most 1")
        if self.complement != "none" and getattr(self, f"{self.complement}_keep") is not None:
            raise ConfigError(f"{self.complement}_keep has no effect with complement={self.complement}: give only one")
        if self.complement == "context" and self.max_temporal_keep < 1:
            raise ConfigError("complement=context would show what max_temporal_keep hides: give only one of them")


@dataclass(frozen=True)
class VideoMasksConfig:
    """Which tokens of a clip are context, which targets."""

    mode: Literal["exact", "reference"] = "exact"  # reference: the official sampler, for parity; not elastic
    specs: tuple[BlockSpec, ...] = (BlockSpec(), BlockSpec(blocks=2, spatial_scale=(0.7, 0.7)))  # of clips
    image_specs: tuple[BlockSpec, ...] | None = None  # of images, as clips of one time step; default: as for clips

    def __post_init__(self) -> None:
        if not self.specs or (self.image_specs is not None and not self.image_specs):
            raise ConfigError("specs and image_specs must each name at least one mask")

    def of(self, kind: str) -> tuple[BlockSpec, ...]:
        """The masks of a "clip" or an "image"."""
        return self.image_specs if kind == "image" and self.image_specs is not None else self.specs


def make_video_sampler(config: VideoMasksConfig, grid: Grid, seed: int, kind: str = "clip") -> Sampler:
    """The sampler a configuration asks for, for clips or images of this token grid.

    Raises:
        ConfigError: a spec that this grid cannot satisfy.
    """
    make = VideoReferenceSampler if config.mode == "reference" else VideoExactSampler
    return make(config.of(kind), grid, seed)


# --- exact --------------------------------------------------------------------------------------------------------


class VideoExactSampler:
    """See the module docstring. Block sizes are keyed by (seed, step), positions and trimming by (seed, g)."""

    def __init__(self, specs: tuple[BlockSpec, ...], grid: Grid, seed: int) -> None:
        self.parts = [_ExactMask(spec, grid, seed, str(i)) for i, spec in enumerate(specs)]
        self.grid = grid

    def __call__(self, step: int, g: Ints) -> Masks:
        """Masks for samples `g` (B,) int64 at `step`: context i (B, Kc_i) belongs to target i (B, Kt_i)."""
        pairs = [part(step, g) for part in self.parts]
        return Masks([torch.from_numpy(c) for c, _ in pairs], [torch.from_numpy(t) for _, t in pairs])


class _ExactMask:
    """One spec on one grid. `context_count` and `target_count` are what every sample keeps."""

    def __init__(self, spec: BlockSpec, grid: Grid, seed: int, name: str) -> None:
        self.spec, self.grid, self.seed, self.name = spec, grid, seed, name
        self.visible = max(1, round(grid[0] * spec.max_temporal_keep))  # time steps that the context may span
        n = math.prod(grid)
        context, target = self._counts(n)
        self.least = (context, target)  # tokens outside and inside the blocks that a draw must have
        if spec.complement == "target":
            self.least, target = (context, 1), n - context
        elif spec.complement == "context":
            self.least, context = (1, target), n - target
        self.context_count, self.target_count = context, target

    def __call__(self, step: int, g: Ints) -> tuple[Ints, Ints]:
        union = self.place(g, self.block_size(step))[0]
        n = union.shape[1]
        target, context = union, ~union
        if self.spec.complement != "context":
            context = _members(self._trim(~union, self.context_count, "context", g), n)
        if self.spec.complement != "target":
            target = _members(self._trim(union, self.target_count, "target", g), n)
        if self.spec.complement == "target":
            target = ~context
        elif self.spec.complement == "context":
            context = ~target
        return _indices(context), _indices(target)

    def block_size(self, step: int) -> Grid:
        """(time steps, height, width) of the blocks at a step, in tokens; scale and aspect ratio independent."""
        return self._size(keyed.uniform(f"mask3.size.{self.name}", self.seed, step, 3))

    def _size(self, u: Floats) -> Grid:
        time, height, width = self.grid
        (t0, t1), (s0, s1), (r0, r1) = self.spec.temporal_scale, self.spec.spatial_scale, self.spec.aspect_ratio
        area, ratio = (s0 + u[1] * (s1 - s0)) * height * width, r0 + u[2] * (r1 - r0)
        h = min(max(round(math.sqrt(area * ratio)), 1), height)
        w = min(max(round(math.sqrt(area / ratio)), 1), width)
        if h == height:  # a long thin grid: keep the area, not the ratio
            w = min(max(round(area / h), 1), width)
        elif w == width:
            h = min(max(round(area / w), 1), height)
        return max(1, round((t0 + u[0] * (t1 - t0)) * time)), h, w

    def place(self, g: Ints, size: Grid) -> tuple[Bools, Ints]:
        """Tokens inside the blocks (B, N), with enough tokens on both sides, and how many draws each sample took."""
        tries = np.zeros(len(g), dtype=np.int64)
        union = self.draw(g, tries, size)
        for attempt in range(1, _ATTEMPTS + 1):
            covered = union.sum(axis=1)
            short = np.flatnonzero((covered < self.least[1]) | (union.shape[1] - covered < self.least[0]))
            if not len(short):
                break
            tries[short] = attempt
            if attempt < _ATTEMPTS:
                union[short] = self.draw(g[short], tries[short], size)
            else:  # move as many random tokens across as are missing
                union[short] = self._mended(union[short], g[short])
        return union, tries

    def draw(self, g: Ints, tries: Ints, size: Grid) -> Bools:
        """The union (B, N) of blocks at uniform offsets, inclusive of the last one, and of what is past the context."""
        stream = f"mask3.place.{self.name}"
        u = keyed.uniform(stream, self.seed, g, 3 * self.spec.blocks, sub=tries).reshape(len(g), -1, 3)
        return self._union(u, size)

    def _union(self, u: Floats, size: Grid) -> Bools:
        room = np.array(self.grid) - size + 1
        first = (u * room).astype(np.int64)  # (B, M, 3)
        t, h, w = (
            (np.arange(length) >= first[..., i, None]) & (np.arange(length) < first[..., i, None] + size[i])
            for i, length in enumerate(self.grid)
        )  # inside along each axis: (B, M, length)
        if size[0] == self.grid[0]:  # the same at all times
            t = t[:, :, :1]
        union = np.zeros((len(u), t.shape[2], *self.grid[1:]), dtype=np.bool_)
        for m in range(self.spec.blocks):
            union |= t[:, m, :, None, None] & (h[:, m, :, None] & w[:, m, None, :])[:, None]
        union = np.broadcast_to(union, (len(u), *self.grid)).copy()
        union[:, self.visible :] = True
        return union.reshape(len(u), -1)

    def _trim(self, candidates: Bools, count: int, side: str, g: Ints) -> Ints:
        return random_subset(candidates, count, f"mask3.trim.{side}.{self.name}", self.seed, g)

    def _mended(self, union: Bools, g: Ints) -> Bools:
        n, covered = union.shape[1], union.sum(axis=1)
        wanted = np.clip(covered, self.least[1], n - self.least[0])  # tokens inside, in each sample
        scores = keyed.uniform(f"mask3.mend.{self.name}", self.seed, g, n) + ~union  # those inside come first
        rank = np.argsort(np.argsort(scores, axis=1), axis=1)
        mended: Bools = rank < wanted[:, None]
        return mended

    def _counts(self, n: int) -> tuple[int, int]:
        """What every sample keeps outside and inside: read off many draws, the same for every seed, or given."""
        sizes = [self._size(u) for u in keyed.uniform("mask3.count.size", 0, np.arange(_SIZES), 3)]
        found = {}  # tokens inside the blocks, by size
        for i, size in enumerate(dict.fromkeys(sizes)):
            u = keyed.uniform("mask3.count.place", 0, np.arange(_DRAWS) + i * _DRAWS, 3 * self.spec.blocks)
            found[size] = self._union(u.reshape(_DRAWS, -1, 3), size).sum(axis=1)
        inside = np.array([found[size] for size in sizes])
        context = self._count(n - inside, self.spec.context_keep, "context_keep", self.spec.max_keep)
        target = self._count(inside, self.spec.target_keep, "target_keep", None)
        return context, target

    def _count(self, found: Ints, share: float | None, key: str, most: int | None) -> int:
        n = math.prod(self.grid)
        usable = int(np.quantile(found, _MISSED, method="lower"))
        usable = min(usable, int(np.quantile(found, _MISSED_BY_ONE_SIZE, axis=1, method="lower").min()))
        largest = min(int(np.quantile(found, 0.5, axis=1, method="lower").min()), most or n)  # half drawn again
        default = min(usable or largest, largest)
        count = default if share is None else min(max(1, round(share * n)), most or n)
        if not 1 <= count <= largest:
            side = key.split("_")[0]
            given = f" for {key}={share} ({count} tokens)" if share is not None else ""
            raise ConfigError(
                f"masks cannot be satisfied on {self.grid[0]}x{self.grid[1]}x{self.grid[2]} tokens (time, rows, "
                f"columns): {self.spec.blocks} blocks of scale {list(self.spec.spatial_scale)} leave too few {side} "
                f"tokens{given}. Allowed here: {key} <= {largest / n:.3f}; or use fewer or smaller blocks, or a larger "
                "grid (smaller patches, larger frames, longer clips)"
            )
        return count


def _members(indices: Ints, n: int) -> Bools:
    """Membership (B, N) of index sets (B, K)."""
    member = np.zeros((len(indices), n), dtype=np.bool_)
    np.put_along_axis(member, indices, True, axis=1)
    return member


def _indices(member: Bools) -> Ints:
    """Index sets (B, K), ascending, of memberships (B, N) that all have K members."""
    return np.nonzero(member)[1].reshape(len(member), -1)


# --- reference ----------------------------------------------------------------------------------------------------


class VideoReferenceSampler:
    """The official V-JEPA sampler, draw for draw. Depends on the batch's composition, so runs are not elastic."""

    def __init__(self, specs: tuple[BlockSpec, ...], grid: Grid, seed: int) -> None:
        self.specs, self.grid, self.seed = specs, grid, seed
        for spec in specs:
            smallest, largest = (
                sorted(math.prod(self._size(spec, (u, u, ratio))) for ratio in (0.0, 1.0)) for u in (0.0, 1.0)
            )
            if smallest[0] < 1 or largest[-1] >= math.prod(grid):
                raise ConfigError(
                    f"masks cannot be satisfied: blocks of scale {list(spec.spatial_scale)} are empty or cover all "
                    f"{grid[0]}x{grid[1]}x{grid[2]} tokens, and the official sampler would look for a context for "
                    "ever. Change spatial_scale or temporal_scale, or use masks.mode=exact"
                )

    def __call__(self, step: int, g: Ints) -> Masks:
        """Masks of a batch, its positions drawn from a generator keyed by (seed, step, first sample)."""
        generator = torch.Generator().manual_seed(
            int(keyed.generator("mask3.reference", self.seed, step, int(g[0])).integers(2**62))
        )
        return self.sample(step, len(g), generator)

    def sample(self, step: int, batch: int, generator: torch.Generator) -> Masks:
        """Collator call number `step` (0-based) for `batch` samples; positions come from `generator`."""
        pairs = [self._spec(spec, step, batch, generator) for spec in self.specs]
        return Masks([context for context, _ in pairs], [target for _, target in pairs])

    def block_size(self, which: int, step: int) -> Grid:
        """(time steps, height, width) of the blocks of spec `which` in call number `step`."""
        generator = torch.Generator().manual_seed(step)
        time, scale, ratio = (float(torch.rand(1, generator=generator).item()) for _ in range(3))
        return self._size(self.specs[which], (time, scale, ratio))

    def _size(self, spec: BlockSpec, u: tuple[float, float, float]) -> Grid:
        time, height, width = self.grid
        (t0, t1), (s0, s1), (r0, r1) = spec.temporal_scale, spec.spatial_scale, spec.aspect_ratio
        area, ratio = int(height * width * (s0 + u[1] * (s1 - s0))), r0 + u[2] * (r1 - r0)
        h, w = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        return max(1, int(time * (t0 + u[0] * (t1 - t0)))), min(h, height), min(w, width)

    def _spec(self, spec: BlockSpec, step: int, batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        size = self.block_size(self.specs.index(spec), step)
        contexts: list[Tensor] = []
        targets: list[Tensor] = []
        while len(contexts) < batch:
            outside = self._outside(spec, size, generator)
            if outside.any():  # otherwise drawn again
                contexts.append(outside.nonzero().squeeze(1))
                targets.append((~outside).nonzero().squeeze(1))
        context, target = cut_to_shortest(contexts, [contexts]), cut_to_shortest(targets, [targets])
        context = context[:, : spec.max_keep]
        if spec.complement == "target":
            target = self._others(context)
        elif spec.complement == "context":
            context = self._others(target)
        return context, target

    def _outside(self, spec: BlockSpec, size: Grid, generator: torch.Generator) -> Tensor:
        """Which tokens (N,) are in no block and not past the context's last time step."""
        outside = torch.ones(self.grid, dtype=torch.bool)
        for _ in range(spec.blocks):
            top, left, start = (
                int(torch.randint(0, self.grid[axis] - size[axis] + 1, (1,), generator=generator)) for axis in (1, 2, 0)
            )
            outside[start : start + size[0], top : top + size[1], left : left + size[2]] = False
        outside[max(1, int(self.grid[0] * spec.max_temporal_keep)) :] = False
        return outside.flatten()

    def _others(self, chosen: Tensor) -> Tensor:
        free = torch.ones(len(chosen), math.prod(self.grid), dtype=torch.bool)
        free.scatter_(1, chosen, False)
        return free.nonzero()[:, 1].view(len(chosen), -1)
