"""Tensors for the pictures: crops with their masks, tokens, pooled features. The only part that runs the encoder.

Shapes: n images, H W pixels, h w token grid, N = h * w tokens, K kept tokens, D width.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from jepa import checkpoint, keyed
from jepa.checkpoint import Encoder
from jepa.data import Manifest, Split, TrainData, centre_batches, make_loader
from jepa.errors import ConfigError
from jepa.masks import Masks
from jepa.methods import base
from jepa.report.read import Run

Int64 = npt.NDArray[np.int64]
FITTED = 64  # images that the principal components are fitted to
BANK = 1024  # train images that neighbours are looked for in
_BUDGET = {"cpu": 2e13}  # floating-point operations for pictures: about a minute on two slow cores
_BUDGET_ELSEWHERE = 2e15


@dataclass
class Crops:
    """The first samples of a run: crops (n, 3, H, W) uint8, their masks, the token grid, sample numbers."""

    images: Tensor
    masks: Masks
    grid: tuple[int, int]
    g: Int64


@dataclass
class Features:
    """Tokens (n, N, D) of the same held-out images by the trained encoder and by a random one."""

    images: Tensor  # (n, 3, H, W) uint8
    split: str
    grid: tuple[int, int]
    trained: Tensor
    untrained: Tensor


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


def crops(run: Run, count: int) -> Crops | None:
    """The first `count` samples of step 0 as they were cropped, with the masks they got; None without masks.

    Built from the run's seed alone: no checkpoint is needed. The mask sampler gets the whole share of the
    first process, as in training, because reference masks depend on it.
    """
    data = run.config.data
    if data.clip is not None:
        raise ConfigError("masks are drawn for images; this run's lie in space and time")
    with torch.device("meta"):  # only the sampler is wanted, not the weights
        method = base.create(run.config.method, data.size)
    sampler = method.sampler(run.config.seed)
    if sampler is None:
        return None
    source = TrainData(replace(data, workers=0), run.config.seed)  # no run_dir: nothing is written to the run
    batch, processes = run.config.train.batch, run.environment.get("processes")
    world = processes if isinstance(processes, int) and processes > 0 and batch % processes == 0 else 1
    masks = sampler(0, source.order.rank_slice(0, batch, 0, world))
    images: list[Tensor] = []
    g: list[int] = []
    loader = iter(make_loader(source, batch=batch, micro_batch=count, world=world, total_steps=1))
    while len(g) < min(count, batch // world):
        part = next(loader)
        images.append(part.images)
        g += part.g.tolist()
    count = min(count, len(g))
    return Crops(torch.cat(images)[:count], masks.slice(0, count), token_grid(method), np.array(g[:count]))


def token_grid(method: base.Method) -> tuple[int, int]:
    """Rows and columns of a method's tokens.

    Raises:
        ConfigError: a method from outside whose encoder does not say (attribute `grid`).
    """
    for module in [*method.encoders().values(), method]:
        grid = getattr(module, "grid", None)
        if isinstance(grid, tuple) and len(grid) == 2:
            return int(grid[0]), int(grid[1])
    raise ConfigError("this method's encoder does not say how its tokens lie in the image (attribute `grid`)")


def encoders(run: Run, device: str) -> tuple[Encoder, Encoder]:
    """The run's exported encoder at its newest checkpoint, and the same architecture with random weights."""
    trained = checkpoint.load_encoder(run.path, device)
    untrained = checkpoint.random_encoder(run.config, run.config.seed).to(device)
    return trained, untrained


def features(run: Run, data: Manifest, pair: tuple[Encoder, Encoder], device: str) -> Features:
    """Tokens of evenly spread held-out images by both encoders."""
    split = held_out(run, data)
    count = min(FITTED, len(split), _affordable(pair[0], device))
    index = spread(len(split), count, run)
    batches = [b.images for b in centre_batches(split, run.config.data, 16, index)]
    tokens = [torch.cat([e(images.to(device)).float().cpu() for images in batches]) for e in pair]
    grid = getattr(pair[0].encoder, "grid", None)
    if not isinstance(grid, tuple) or int(np.prod(grid)) != tokens[0].shape[1]:
        raise ConfigError("this method's encoder does not say how its tokens lie in the image (attribute `grid`)")
    if len(grid) == 3:  # of a clip the middle time is shown
        at = grid[0] // 2 * grid[1] * grid[2]
        tokens = [x[:, at : at + grid[1] * grid[2]] for x in tokens]
    return Features(still(torch.cat(batches)), split.name, (grid[-2], grid[-1]), tokens[0], tokens[1])


def pools(run: Run, data: Manifest, encoder: Encoder, device: str, queries: int) -> Pools:
    """Pooled features of `queries` held-out images, one per class in turn, and of a sample of the training split."""
    split, train = held_out(run, data), data.split(run.config.data.split)
    asked = one_per_class(split, queries, run)
    bank = spread(len(train), min(BANK, len(train), _affordable(encoder, device)), run)
    if split is train:
        bank = np.setdiff1d(bank, asked)
    images = torch.cat([b.images for b in centre_batches(split, run.config.data, 16, asked)])
    return Pools(
        still(images), np.asarray(split.labels)[asked], encoder.pool(images.to(device)).float().cpu(),
        torch.cat([encoder.pool(b.images.to(device)).float().cpu()
                   for b in centre_batches(train, run.config.data, 64, bank)]),
        bank, np.asarray(train.labels)[bank], split.name,
    )  # fmt: skip


def pictures(run: Run, data: Manifest, split: str, index: Int64) -> Tensor:
    """Images (n, 3, H, W) uint8 at places `index` of a split, in that order; of clips the middle frame."""
    return torch.cat([still(b.images) for b in centre_batches(data.split(split), run.config.data, 32, index)])


def still(images: Tensor) -> Tensor:
    """Images as they are; clips (n, 3, T, H, W) as their middle frames (n, 3, H, W)."""
    return images[:, :, images.shape[2] // 2] if images.ndim == 5 else images


def held_out(run: Run, data: Manifest) -> Split:
    """Images the encoder was not trained on, where there are any: test, then val, then what there is."""
    for name in ("test", run.config.monitor.split or "val", "val"):
        if name in data.splits and len(data.splits[name]):
            return data.splits[name]
    return data.split(run.config.data.split)


def spread(size: int, count: int, run: Run) -> Int64:
    """`count` places out of `size`, drawn by the seed and sorted: not chosen by hand."""
    drawn = keyed.generator("report", run.config.seed, size).permutation(size)[:count]
    return np.sort(drawn).astype(np.int64)


def one_per_class(split: Split, count: int, run: Run) -> Int64:
    """The first drawn image of each class in turn; any images where there are no labels."""
    drawn = keyed.generator("report.queries", run.config.seed, len(split)).permutation(len(split)).astype(np.int64)
    labels = np.asarray(split.labels)[drawn]
    order = np.argsort(labels, kind="stable")
    place = np.empty(len(drawn), dtype=np.int64)  # how many of its class came before
    _, starts, sizes = np.unique(labels[order], return_index=True, return_counts=True)
    place[order] = np.arange(len(drawn)) - np.repeat(starts, sizes)
    return drawn[np.lexsort((labels, place))][:count]


def _affordable(encoder: Encoder, device: str) -> int:
    """How many images the budget allows: 2 floating-point operations for each weight and token."""
    weights = sum(p.numel() for p in encoder.parameters())
    tokens = max(1, int(np.prod(getattr(encoder.encoder, "grid", (14, 14)))))
    budget = _BUDGET.get(device.split(":")[0], _BUDGET_ELSEWHERE)
    return max(16, int(budget / (2 * weights * tokens)))
