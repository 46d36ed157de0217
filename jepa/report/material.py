"""Tensors for the pictures: crops with their masks, tokens, attention, pooled features. The only part that runs the
encoder.

Shapes: n samples, T frames, H W pixels, t h w token grid (images: t = 1), N = t * h * w tokens, K kept tokens, D width,
a attention heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from jepa import checkpoint, environment, keyed
from jepa.checkpoint import Encoder, layers
from jepa.config import DataConfig, RunConfig
from jepa.data import Manifest, Split, centre_batches, make_loader
from jepa.data.mix import Stream, streams
from jepa.errors import ConfigError
from jepa.masks import Masks, Sampler, VideoExactSampler, VideoReferenceSampler
from jepa.methods import base
from jepa.nn.attention_maps import attention_layers, attention_maps
from jepa.nn.rope import Grid
from jepa.report.read import Run

Int64 = npt.NDArray[np.int64]
FITTED = 64  # samples that the principal components are fitted to
BANK = 1024  # train samples that neighbours are looked for in
_BUDGET = {"cpu": 2e13}  # floating-point operations for pictures: about a minute on two slow cores
_BUDGET_ELSEWHERE = 2e15


@dataclass
class Crops:
    """The first samples of one source of a run: crops (n, 3, [T,] H, W) uint8, their masks, sample numbers."""

    images: Tensor
    masks: Masks
    grid: Grid
    g: Int64
    source: str  # "data", or a name under `mix`
    paired: bool  # context i belongs to target i (V-JEPA's specs); else every context to all targets

    @property
    def groups(self) -> list[tuple[Tensor, list[Tensor]]]:
        """What is predicted from what: a context (n, Kc) and its targets, each (n, Kt)."""
        context, target = self.masks.context, self.masks.target
        if self.paired:
            return [(c, [t]) for c, t in zip(context, target, strict=True)]
        return [(c, target) for c in context]


@dataclass
class View:
    """The samples that the encoder is shown: a split, and how it is read."""

    manifest: Manifest
    split: Split
    data: DataConfig


@dataclass
class Features:
    """Tokens (n, N, D) of the same samples by the trained encoder and by a random one."""

    images: Tensor  # (n, 3, [T,] H, W) uint8
    split: str
    grid: Grid
    trained: Tensor
    untrained: Tensor


@dataclass
class Attention:
    """Weights of one block, as multiples of an even share (1 / N)."""

    images: Tensor  # (n, 3, [T,] H, W) uint8
    split: str
    grid: Grid
    layer: int  # from 0
    depth: int
    query: Grid  # time step, row and column of the token that looks
    received: Tensor  # (n, a, N): what each token gets from all tokens on average
    chosen: Tensor  # (n, a, N): what the query looks at


@dataclass
class Pools:
    """Pooled features (n, D) of queries and of the bank they are compared with."""

    query_images: Tensor  # (m, 3, H, W) uint8
    query_labels: Int64  # (m,), -1: none
    queries: Tensor
    bank: Tensor
    bank_index: Int64  # (n,) places in the training split
    bank_labels: Int64
    split: str  # where the queries come from


def manifest(run: Run) -> Manifest:
    """The run's data set.

    Raises:
        ConfigError: the configuration names none. DataError: it is not there (any more).
    """
    if not run.config.data.path:
        raise ConfigError("the configuration names no data set (data.path)")
    return Manifest.open(run.config.data.path)


def device(wanted: str) -> str:
    """A device that can be used; "auto" is the fastest here. Raises ConfigError when there is none of this name."""
    found = environment.device_type() if wanted == "auto" else wanted
    try:
        torch.empty(1, device=found)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"device {wanted!r} cannot be used: {reason}. Use auto, cpu, cuda or mps") from None
    return found


def view(run: Run, path: Path | str | None = None, split: str | None = None) -> View:
    """What the encoder is shown: by default samples of the run's data set that it was not trained on.

    Args:
        path: another data set.
        split: default: test, then the monitor's or val, then what there is.

    Raises:
        ConfigError: no data set, or one of videos for an encoder of images. DataError: it is not there (any more).
    """
    config = run.newest.data if path is None else replace(run.newest.data, path=str(path))
    found = manifest(run) if path is None else Manifest.open(path)
    if found.media == "video" and config.clip is None:
        raise ConfigError(f"{config.path} holds videos, and this run's encoder takes images. Give images with data=DIR")
    if found.media != "video":  # an encoder of clips takes images too
        config = replace(config, clip=None)
    if split is not None:
        return View(found, found.split(split), config)
    for name in ("test", run.config.monitor.split or "val", "val"):
        if name in found.splits and len(found.splits[name]):
            return View(found, found.splits[name], config)
    return View(found, found.split(config.split), config)


def sources(config: RunConfig) -> list[str]:
    """The names of a run's sources, the main one first."""
    return ["data", *config.mix]


def crops(run: Run, count: int, source: str = "data") -> Crops | None:
    """The first `count` samples of step 0 as they were cropped, with the masks they got; None without masks.

    Built from the run's seed alone: no checkpoint is needed. The mask sampler gets the whole share of the
    first process, as in training, because reference masks depend on it.
    """
    config = _without_workers(run.config)
    with torch.device("meta"):  # only the sampler is wanted, not the weights
        method = base.create(config.method, config.data.size)
    if method.sampler(config.seed) is None:
        return None
    stream = {s.name: s for s in streams(config)}[source]  # no run_dir: nothing is written to the run
    size, batch, processes = stream.data.config.size, stream.batch, run.environment.get("processes")
    sampler = method.sampler(stream.seed, size)
    assert sampler is not None, f"masks for {config.data.size}, but none for {size}"
    world = processes if isinstance(processes, int) and processes > 0 and batch % processes == 0 else 1
    masks = sampler(0, stream.data.order.rank_slice(0, batch, 0, world))
    images, g = _first(stream, count, world)
    return Crops(images, masks.slice(0, len(g)), token_grid(method, size), g, source, _paired(sampler, masks))


def _without_workers(config: RunConfig) -> RunConfig:
    mix = {name: replace(source, workers=0) for name, source in config.mix.items()}
    return replace(config, data=replace(config.data, workers=0), mix=mix)


def _first(stream: Stream, count: int, world: int) -> tuple[Tensor, Int64]:
    images: list[Tensor] = []
    g: list[int] = []
    loader = iter(make_loader(stream.data, batch=stream.batch, micro_batch=count, world=world, total_steps=1))
    while len(g) < min(count, stream.batch // world):
        part = next(loader)
        images.append(part.images)
        g += part.g.tolist()
    return torch.cat(images)[:count], np.array(g[:count])


def _paired(sampler: Sampler, masks: Masks) -> bool:
    if isinstance(sampler, VideoExactSampler | VideoReferenceSampler):
        return True
    return len(masks.context) == len(masks.target) > 1  # a sampler from outside


def token_grid(module: nn.Module, size: Sequence[int]) -> Grid:
    """Time steps, rows and columns of the tokens of images (H, W) or clips (T, H, W): of an encoder or a method.

    Raises:
        ConfigError: an encoder from outside that does not say (attribute `grid`).
    """
    inside = list(module.encoders().values()) if isinstance(module, base.Method) else []
    for part in (*inside, module):
        of: Any = getattr(part, "grid_of", None)
        grid = of(size) if callable(of) else getattr(part, "grid", None)
        if isinstance(grid, tuple) and len(grid) in (2, 3):
            time, rows, columns = (1, *grid)[-3:]
            return int(time), int(rows), int(columns)
    raise ConfigError("this method's encoder does not say how its tokens lie in the image (attribute `grid`)")


def trained(run: Run, device: str) -> Encoder:
    """The run's exported encoder at its newest checkpoint."""
    return checkpoint.load_encoder(run.path, device)


def encoders(run: Run, device: str) -> tuple[Encoder, Encoder]:
    """The run's exported encoder, and the same architecture with random weights."""
    found = trained(run, device)
    return found, checkpoint.random_encoder(found.config, run.config.seed).to(device)


def features(run: Run, seen: View, pair: tuple[Encoder, Encoder], device: str, layer: int | None = None) -> Features:
    """Tokens of samples drawn by the seed, by both encoders.

    Args:
        layer: tokens after this block (negative: from the end); None: the encoder's output.

    Raises:
        ConfigError: no such layer, or an encoder that does not say how its tokens lie.
    """
    grid = token_grid(pair[0].encoder, seen.data.size)
    count = min(FITTED, len(seen.split), _affordable(pair[0], grid, device))
    batches = [b.images for b in centre_batches(seen.split, seen.data, 16, drawn(len(seen.split), count, run))]
    chosen = [] if layer is None else [layer]
    found = []
    for one in pair:
        levels = layers.levels(one, chosen)
        found.append(torch.cat([levels(images.to(device))[-1].float().cpu() for images in batches]))
    if found[0].shape[1] != np.prod(grid):
        raise ConfigError(f"this method's encoder gives {found[0].shape[1]} tokens, not those of its grid {grid}")
    return Features(torch.cat(batches), seen.split.name, grid, found[0], found[1])


def attention(
    run: Run, seen: View, encoder: Encoder, device: str, count: int, layer: int = -1, query: Sequence[int] = ()
) -> Attention:
    """Attention of one block for `count` samples, the first of those whose features are drawn.

    Args:
        layer: block, negative from the end.
        query: (time step, row, column) or (row, column) of the token that looks; default: in the middle.

    Raises:
        ConfigError: an encoder without readable attention, no such layer or no such token.
    """
    depth = len(attention_layers(encoder.encoder))
    at = layers.resolve(encoder, [layer])[0]
    grid = token_grid(encoder.encoder, seen.data.size)
    place = _query(query, grid)
    images, received, chosen = [], [], []
    for batch in centre_batches(seen.split, seen.data, 4, drawn(len(seen.split), count, run)):
        maps = attention_maps(encoder.encoder, encoder.normalise(batch.images.to(device)), at,
                              [int(np.ravel_multi_index(place, grid))])  # fmt: skip
        images.append(batch.images)
        received.append(maps.received.float().cpu())
        chosen.append(maps.chosen[:, :, 0].float().cpu())
    even = float(np.prod(grid))
    return Attention(
        torch.cat(images), seen.split.name, grid, at, depth, place, even * torch.cat(received), even * torch.cat(chosen)
    )


def _query(wanted: Sequence[int], grid: Grid) -> Grid:
    """Raises ConfigError when no token is there."""
    time, row, column = (n // 2 for n in grid)
    if len(wanted) == 3:
        time, row, column = wanted
    elif len(wanted) == 2:
        row, column = wanted
    inside = all(0 <= i < n for i, n in zip((time, row, column), grid, strict=True))
    if len(wanted) not in (0, 2, 3) or not inside:
        raise ConfigError(
            f"query {','.join(map(str, wanted))}: give row,column or time,row,column, counted from 0, of one of the "
            f"{grid[0]} x {grid[1]} x {grid[2]} tokens (time steps, rows, columns)"
        )
    return time, row, column


def pools(run: Run, seen: View, encoder: Encoder, device: str, queries: int) -> Pools:
    """Pooled features of `queries` samples, one per class in turn, and of a sample of the training split."""
    split, train = seen.split, seen.manifest.split(run.config.data.split)
    asked = one_per_class(split, queries, run)
    bank = spread(len(train), min(BANK, len(train), _affordable(encoder, _grid_or_usual(encoder, seen), device)), run)
    if split is train:
        bank = np.setdiff1d(bank, asked)
    images = torch.cat([b.images for b in centre_batches(split, seen.data, 16, asked)])
    return Pools(
        still(images), np.asarray(split.labels)[asked], encoder.pool(images.to(device)).float().cpu(),
        torch.cat([encoder.pool(b.images.to(device)).float().cpu()
                   for b in centre_batches(train, seen.data, 64, bank)]),
        bank, np.asarray(train.labels)[bank], split.name,
    )  # fmt: skip


def pictures(seen: View, split: str, index: Int64) -> Tensor:
    """Images (n, 3, H, W) uint8 at places `index` of a split, in that order; of clips the middle frame."""
    found = centre_batches(seen.manifest.split(split), seen.data, 32, index)
    return torch.cat([still(b.images) for b in found])


def still(images: Tensor) -> Tensor:
    """Images as they are; clips (n, 3, T, H, W) as their middle frames (n, 3, H, W)."""
    return images[:, :, images.shape[2] // 2] if images.ndim == 5 else images


def drawn(size: int, count: int, run: Run) -> Int64:
    """`count` places out of `size`, drawn by the seed, not chosen by hand; a smaller count gives the first of them."""
    return keyed.generator("report", run.config.seed, size).permutation(size)[:count].astype(np.int64)


def spread(size: int, count: int, run: Run) -> Int64:
    """`count` places out of `size`, drawn by the seed and sorted."""
    return np.sort(drawn(size, count, run))


def one_per_class(split: Split, count: int, run: Run) -> Int64:
    """The first drawn image of each class in turn; any images where there are no labels."""
    drawn = keyed.generator("report.queries", run.config.seed, len(split)).permutation(len(split)).astype(np.int64)
    labels = np.asarray(split.labels)[drawn]
    order = np.argsort(labels, kind="stable")
    place = np.empty(len(drawn), dtype=np.int64)  # how many of its class came before
    _, starts, sizes = np.unique(labels[order], return_index=True, return_counts=True)
    place[order] = np.arange(len(drawn)) - np.repeat(starts, sizes)
    return drawn[np.lexsort((labels, place))][:count]


def _grid_or_usual(encoder: Encoder, seen: View) -> Grid:
    """Where only the cost depends on it."""
    try:
        return token_grid(encoder.encoder, seen.data.size)
    except ConfigError:
        return 1, 14, 14


def _affordable(encoder: Encoder, grid: Grid, device: str) -> int:
    """How many samples the budget allows: 2 floating-point operations for each weight and token."""
    weights = sum(p.numel() for p in encoder.parameters())
    budget = _BUDGET.get(device.split(":")[0], _BUDGET_ELSEWHERE)
    return max(16, int(budget / (2 * weights * int(np.prod(grid)))))
