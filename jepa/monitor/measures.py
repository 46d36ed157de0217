"""Measures of features, as pure functions.

Shapes: n images, m queries, D width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from jepa.nn.sharded import whole

_DEAD = 1e-3  # a dimension whose std is below this share of the features' root mean square does not vary
_SIMILARITIES = 1 << 26  # cosines held at once in the kNN (256 MiB)


def effective_rank(features: Tensor, centre: bool = False) -> float:
    """exp(entropy of the singular values taken as a distribution), from 1 (one direction) to min(n, D) (all alike).

    Roy & Vetterli 2007. `features` (n, D); `centre` subtracts the mean row first. All zeros give 0.
    """
    values = features.double()
    if centre:
        values = values - values.mean(dim=0, keepdim=True)
    singular = torch.linalg.svdvals(values)
    total = float(singular.sum())
    if total == 0.0:
        return 0.0
    share = singular / total
    return math.exp(float(torch.special.entr(share).sum()))


@dataclass(frozen=True)
class Spread:
    """Standard deviation over images, per dimension: its mean, its minimum, and the share of dead dimensions."""

    mean: float
    min: float
    dead: float


def spread(features: Tensor) -> Spread:
    """Per-dimension spread of `features` (n, D); a dimension is dead below 1e-3 of the features' RMS."""
    values = features.double()
    std = values.std(dim=0, correction=0)
    floor = _DEAD * float(values.square().mean().sqrt())
    return Spread(float(std.mean()), float(std.min()), float((std <= floor).double().mean()))


def mean_cosine(features: Tensor) -> float:
    """Mean cosine similarity over all pairs of different rows of (n, D), n >= 2; 1 means one common direction."""
    unit = F.normalize(features.double(), dim=1)
    count = unit.shape[0]
    # sum over all pairs = |sum of the unit vectors|^2, so no (n, n) matrix is needed
    return (float(unit.sum(dim=0).square().sum()) - float(unit.square().sum())) / (count * (count - 1))


def knn_votes(
    bank: Tensor,
    labels: Tensor,
    queries: Tensor,
    ks: Sequence[int],
    classes: int,
    temperature: float = 0.07,
) -> Tensor:
    """Classes by weighted kNN: the k nearest by cosine vote with weight exp(cosine / temperature).

    Wu et al., "Unsupervised feature learning via non-parametric instance discrimination", CVPR 2018, section 3.4.

    Args:
        bank: (n, D) labelled features, with `labels` (n,) int64 in [0, classes).
        queries: (m, D).
        ks: numbers of neighbours; one above n means all n.

    Returns:
        int64 (len(ks), m). Equal votes go to the lower class.
    """
    bank, queries = F.normalize(bank.float(), dim=1), F.normalize(queries.float(), dim=1)
    order = sorted(range(len(ks)), key=lambda i: ks[i])
    most = min(max(ks), bank.shape[0])
    votes = torch.empty(len(ks), queries.shape[0], dtype=torch.int64, device=queries.device)
    chunk = max(1, _SIMILARITIES // bank.shape[0])
    for start in range(0, queries.shape[0], chunk):
        near, index = (queries[start : start + chunk] @ bank.T).topk(most, dim=1)
        weight = ((near - near[:, :1]) / temperature).exp()  # a common factor changes no vote and keeps exp in range
        scores = torch.zeros(near.shape[0], classes, device=queries.device)
        done = 0
        for i in order:  # each k adds its further neighbours to the same scores
            k = min(ks[i], most)
            scores.scatter_add_(1, labels[index[:, done:k]], weight[:, done:k])
            votes[i, start : start + chunk] = scores.argmax(dim=1)
            done = k
    return votes


def _squares(x: Tensor) -> float:
    """Sum of squares, of a sharded tensor over all ranks."""
    return float(whole(x.square().sum()))


def weight_distance(first: nn.Module, second: nn.Module) -> float | None:
    """|a - b| / |b| over all parameters of two modules of one architecture, or None when they differ in it."""
    a, b = dict(first.named_parameters()), dict(second.named_parameters())
    if {k: v.shape for k, v in a.items()} != {k: v.shape for k, v in b.items()}:
        return None
    gap = sum(_squares(a[k].detach().float() - b[k].detach().float()) for k in a)
    norm = sum(_squares(p.detach().float()) for p in b.values())
    return math.sqrt(gap / norm) if norm > 0 else None
