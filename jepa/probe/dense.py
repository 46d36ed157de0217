"""Dense probes: what the patch tokens say about every pixel, by one linear map of a token.

Segmentation: class logits of every token, trained with cross-entropy against the share of each class among the token's
pixels (which is the cross-entropy of all pixels, had the logits been spread over their patch unchanged), a grid of
learning rates and weight decays at once, all heads from zero: the problem is convex. Measured as mIoU: logits enlarged
bilinearly to the label's own resolution, the most likely class, intersection over union of each class over the whole
test split, mean over classes. Chosen by mIoU on the validation split, at the resolution of the sampled labels.

Depth: ridge regression of the mean depth of a token's pixels in closed form, the penalty chosen on the validation
split; predictions enlarged bilinearly and kept inside the range seen in training; RMSE of each image, mean over images.

Tokens are standardised by the training split. With several layers (features.tokens.layers) a token's vectors of all
layers are read together.

Shapes: n samples, N = h w tokens, D width, C classes, G heads, H W label map, P label points in a token.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from jepa.config import Duration
from jepa.data.labelmap import VOID
from jepa.errors import ConfigError, DataError
from jepa.probe.bootstrap import Float64
from jepa.probe.fit import Ints, Params, Recipe, Room, Stack, cut, fit
from jepa.probe.maps import Maps, known_mean, patches, shares
from jepa.probe.tokens import Tokens

Grid = tuple[int, int]
Say = Callable[[str], None]


@dataclass(frozen=True)
class SegmentationConfig:
    """Linear segmentation."""

    map: str = "class"  # name of the data set's label map
    lr: tuple[float, ...] = (1e-3, 1e-2)  # AdamW's learning rates, each with each weight decay
    weight_decay: tuple[float, ...] = (1e-4, 1e-2)  # of AdamW
    duration: Duration = field(default_factory=lambda: Duration(epochs=20))  # length of training
    batch: int = 32  # images in a step
    detail: int = 4  # label points along a token's side that are trained on
    memory_gib: float = 2.0  # kept for a backward pass
    seed: int = 0  # of the order of samples

    def __post_init__(self) -> None:
        good = self.lr and self.weight_decay and min(self.lr) > 0 and min(self.weight_decay) >= 0
        if not good or self.batch < 1 or self.detail < 1 or not self.memory_gib > 0:
            raise ConfigError(
                f"lr={list(self.lr)}, weight_decay={list(self.weight_decay)}, batch={self.batch}, "
                f"detail={self.detail}, memory_gib={self.memory_gib}: allowed: lr > 0, weight_decay >= 0 (at least one "
                "of each), batch and detail from 1, memory_gib > 0"
            )


@dataclass(frozen=True)
class DepthConfig:
    """Linear depth."""

    map: str = "depth"  # name of the data set's label map; values that are not finite or <= 0 are left out
    alpha: tuple[float, ...] = tuple(10.0**e for e in range(-8, 3))  # penalties, in units of a feature's variance
    most: float | None = None  # larger depths are left out, in training and test (NYUv2: 10 m)
    detail: int = 4  # label points along a token's side that are trained on

    def __post_init__(self) -> None:
        if not self.alpha or not all(0 < v < float("inf") for v in self.alpha) or self.detail < 1:
            raise ConfigError(f"alpha={list(self.alpha)}, detail={self.detail}: alpha above 0, detail from 1")


@dataclass(frozen=True)
class Scale:
    """Standardises a token's vector; made from training tokens."""

    mean: Tensor  # (L D,) float64
    inverse: Tensor  # (L D,) float64: 1 / std, 0 where nothing varies

    @classmethod
    def of(cls, tokens: Tokens, count: int) -> Scale:
        """From all tokens of the split; `count` tokens in the grid."""
        total, square, seen = torch.zeros(1), torch.zeros(1), 0
        shift: Tensor | None = None
        for x in tokens.walk(cut(np.arange(len(tokens)), 64)):
            flat = features(x, count).flatten(0, 1).double()
            shift = flat.mean(dim=0) if shift is None else shift  # sums around it do not cancel
            total, square = total + (flat - shift).sum(dim=0), square + (flat - shift).square().sum(dim=0)
            seen += len(flat)
        assert shift is not None, "no tokens"
        mean = total / seen
        std = (square / seen - mean.square()).clamp(min=0).sqrt()
        floor = 1e-6 * (std.square() + (mean + shift).square()).mean().sqrt()
        return cls(mean + shift, torch.where(std > floor, 1 / std, torch.zeros_like(std)))

    def apply(self, x: Tensor) -> Tensor:
        """(..., L D) to float32 of mean 0 and std 1, on the device of x."""
        device = x.device
        return (x.float() - self.mean.float().to(device)) * self.inverse.float().to(device)


def features(tokens: Tensor, count: int) -> Tensor:
    """Tokens (b, 1, L N, D) to the vectors of the N = `count` tokens of an image (b, N, L D)."""
    b, views, total, width = tokens.shape
    if views != 1 or total % count:
        raise ConfigError(
            f"dense probes read one view of {count} tokens (or several layers of it), got {views} of {total} tokens"
        )
    return tokens.view(b, total // count, count, width).transpose(1, 2).reshape(b, count, -1)


def enlarge(values: Tensor, grid: Grid, size: tuple[int, int]) -> Tensor:
    """Values of tokens (b, N, C) to pixels (b, C, H, W), bilinear."""
    maps = values.transpose(1, 2).unflatten(2, grid)  # type: ignore[no-untyped-call]
    return F.interpolate(maps, size, mode="bilinear", align_corners=False)


# --- segmentation -------------------------------------------------------------------------------------------------


def overlaps(predicted: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Pixels of each class where both agree, and where either says it: (2 C,) float64. Void labels are left out."""
    known = (labels >= 0) & (labels < classes) & (labels != VOID)
    p, y = predicted[known], labels[known].long()
    both, said, there = (torch.bincount(v, minlength=classes).double() for v in (p[p == y], p, y))
    return torch.cat([both, said + there - both])


def miou(sums: Float64) -> Float64:
    """Summed `overlaps` (..., 2 C) to the mean over classes that occur of intersection / union, (...)."""
    both, either = np.split(sums, 2, axis=-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        share = np.where(either > 0, both / either, np.nan)
    return np.asarray(np.nanmean(share, axis=-1))


def segmentation_probe(
    tokens: tuple[Tokens, Tokens, Tokens],
    maps: tuple[Maps, Maps, Maps],
    grid: Grid,
    config: SegmentationConfig,
    device: torch.device | str = "cpu",
    say: Say | None = None,
) -> tuple[Float64, dict[str, Any]]:
    """Train on the first, choose on the second, report on the third of (train, val, test).

    Returns:
        `overlaps` of each test image (n, 2 C), whose sum gives the mIoU; and what was chosen.
    """
    place, count = torch.device(device), grid[0] * grid[1]
    classes = maps[0].classes
    scale = Scale.of(tokens[0], count)
    points = torch.from_numpy(maps[0].sampled(grid, config.detail))
    heads = [(lr, decay) for lr in config.lr for decay in config.weight_decay]
    width = len(scale.mean)
    stack = Stack({"weight": torch.zeros(classes, width), "bias": torch.zeros(classes)}, len(heads), place)
    room = Room.within(config.memory_gib * 2**30, 8 * count * width, 12 * count * classes, len(heads))

    def loss(params: Params, x: Tensor, places: Ints) -> Tensor:
        vectors = scale.apply(features(x, count).to(place))
        wanted = shares(patches(points[torch.from_numpy(places)], grid), classes).to(place)
        logs = _logits(params, vectors).log_softmax(dim=-1)  # (g, b, N, C)
        return -(logs * wanted).sum(dim=-1).mean(dim=2).sum(dim=1)

    steps = config.duration.to_steps(min(config.batch, len(tokens[0])), len(tokens[0]))
    recipe = Recipe(heads, max(1, steps), config.batch, seed=config.seed)
    fit(stack, recipe, len(tokens[0]), tokens[0].walk, loss, room, say)

    def measure(part: int, params: Params, sampled: bool) -> Float64:  # (g, n, 2 C)
        labels = torch.from_numpy(maps[part].sampled(grid, config.detail)) if sampled else None
        rows: list[Tensor] = []
        for places, x in _walk(tokens[part], room):
            with torch.no_grad():
                logits = _logits(params, scale.apply(features(x, count).to(place)))
            for k, number in enumerate(places.tolist()):
                truth = labels[number] if labels is not None else torch.from_numpy(maps[part].whole(number).astype(int))
                pixels = enlarge(logits[:, k], grid, (len(truth), truth.shape[1])).argmax(dim=1).cpu()
                rows.append(torch.stack([overlaps(one, truth, classes) for one in pixels]))
        return np.asarray(torch.stack(rows, dim=1).numpy())

    found = miou(measure(1, stack.params(), sampled=True).sum(axis=1))
    best = int(np.argmax(np.nan_to_num(found, nan=-1.0)))
    columns = measure(2, stack.only(best), sampled=False)[0]
    lr, decay = heads[best]
    return columns, {"lr": lr, "weight_decay": decay, "val": float(found[best]), "classes": classes}


def _logits(params: Params, vectors: Tensor) -> Tensor:
    """(b, N, D) to (g, b, N, C)."""
    count, classes, width = params["weight"].shape
    out = F.linear(vectors, params["weight"].view(-1, width), params["bias"].view(-1))
    return out.view(*vectors.shape[:2], count, classes).permute(2, 0, 1, 3)


def _walk(tokens: Tokens, room: Room) -> Iterator[tuple[Ints, Tensor]]:
    parts = cut(np.arange(len(tokens)), min(room.samples, 64))
    return zip(parts, tokens.walk(parts), strict=True)


# --- depth --------------------------------------------------------------------------------------------------------


def depth_probe(
    tokens: tuple[Tokens, Tokens, Tokens], maps: tuple[Maps, Maps, Maps], grid: Grid, config: DepthConfig
) -> tuple[Float64, dict[str, Any]]:
    """Fit on the first, choose on the second, report on the third of (train, val, test).

    Returns:
        RMSE of each test image (n,), NaN for one without a known pixel; and what was chosen.

    Raises:
        DataError: no known depth in the training split.
    """
    count = grid[0] * grid[1]
    scale = Scale.of(tokens[0], count)
    points = torch.from_numpy(maps[0].sampled(grid, config.detail).astype(np.float32))
    weights, span = _ridge(tokens[0], points, grid, config, scale)

    def errors(part: int, which: Tensor) -> Float64:  # weights (A, D + 1) to RMSE (A, n)
        out = []
        for places, x in _walk(tokens[part], Room(64, 1)):
            vectors = scale.apply(features(x, count)).double()
            guess = (vectors @ which[:, :-1].T + which[:, -1]).clamp(*span)  # (b, N, A)
            for k, number in enumerate(places.tolist()):
                truth = torch.from_numpy(maps[part].whole(number).astype(np.float64))
                known = torch.isfinite(truth) & (truth > 0) & (truth <= (config.most or float("inf")))
                pixels = enlarge(guess[k : k + 1], grid, (len(truth), truth.shape[1]))[0]  # (A, H, W)
                out.append((pixels - truth)[:, known].square().mean(dim=1).sqrt())
        return np.asarray(torch.stack(out, dim=1).numpy())

    found = np.nanmean(errors(1, weights), axis=1)
    best = int(np.nanargmin(found))
    chosen: dict[str, Any] = {"alpha": config.alpha[best], "val": float(found[best])}
    if len(config.alpha) > 1 and config.alpha[best] in (min(config.alpha), max(config.alpha)):
        chosen["at_edge"] = "low" if config.alpha[best] == min(config.alpha) else "high"
    return errors(2, weights[best : best + 1])[0], chosen


def _ridge(
    tokens: Tokens, points: Tensor, grid: Grid, config: DepthConfig, scale: Scale
) -> tuple[Tensor, tuple[float, float]]:
    """Weights and intercept (A, D + 1) float64 for every penalty, and the span of known depths; one pass."""
    wide = len(scale.mean) + 1
    gram, moment = torch.zeros(wide, wide, dtype=torch.float64), torch.zeros(wide, dtype=torch.float64)
    low, high, mass = float("inf"), 0.0, 0.0
    for places, x in _walk(tokens, Room(64, 1)):
        vectors = scale.apply(features(x, grid[0] * grid[1])).double().flatten(0, 1)
        depth, known = known_mean(patches(points[torch.from_numpy(places)], grid), config.most)
        y, w = depth.flatten(), known.flatten()
        if bool((w > 0).any()):
            low, high = min(low, float(y[w > 0].min())), max(high, float(y[w > 0].max()))
        full = torch.cat([vectors, torch.ones(len(vectors), 1, dtype=torch.float64)], dim=1)
        gram += (full * w[:, None]).T @ full
        moment += full.T @ (w * y)
        mass += float(w.sum())
    if not mass > 0:
        raise DataError(f"no pixel of the training split has a known depth (map {config.map!r})")
    values, basis = torch.linalg.eigh(_without_mean(gram / mass))
    centre, answer = gram[:-1, -1] / mass, moment[-1] / mass
    pull = basis.T @ (moment[:-1] / mass - centre * answer)
    rows = []
    for alpha in config.alpha:
        weight = basis @ (pull / (values.clamp(min=0) + alpha))
        rows.append(torch.cat([weight, (answer - centre @ weight).view(1)]))
    return torch.stack(rows), (low, high)


def _without_mean(gram: Tensor) -> Tensor:
    """Covariance from the second moments of (x, 1)."""
    return gram[:-1, :-1] - torch.outer(gram[:-1, -1], gram[-1, :-1])
