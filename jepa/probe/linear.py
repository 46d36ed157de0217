"""Linear probe: a grid of learning rates and weight decays, all heads trained at once on the same features.

Each head is a multinomial logistic regression on standardised features,

    minimise over W, b:  mean cross-entropy(x @ W + b, y) + weight_decay / 2 * |W|^2        (b is not penalised)

started from zero and trained by full-batch accelerated gradient descent (Nesterov 1983). On principal axes (see
axes.py) the curvature along axis i is at most variance_i / 2 + weight_decay (Bohning, "Multinomial logistic regression
algorithm", Ann. Inst. Stat. Math. 44, 1992), so every axis gets the step 1 / that bound: a head of learning rate 1
converges to the optimum without tuning and cannot diverge, a smaller one stops on the way there. The objective is
convex, the start is fixed and no batches are drawn: nothing is random, and the result is the optimum rather than what
some schedule reached. The grid's heads share one matrix product forward and one backward in each step.

The head is chosen by accuracy on the validation split (equal accuracies: by lower cross-entropy) and reported on the
test split, which plays no part in the choice.

Shapes: n samples, D width, G heads, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from jepa.errors import ConfigError
from jepa.probe.axes import Axes, rows
from jepa.probe.knn import Layer


@dataclass(frozen=True)
class LinearConfig:
    """Grid and length of training."""

    lr: tuple[float, ...] = (0.001, 0.03, 1.0)  # share of the largest step that is sure to converge, in (0, 1]
    weight_decay: tuple[float, ...] = (1e-5, 1e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 1.0)  # L2 penalty
    steps: int = 150  # full-batch steps
    layers: tuple[Layer, ...] = ()  # read these layers too, each in a row of its own: block numbers, or last4

    def __post_init__(self) -> None:
        if not self.lr or not all(0 < v <= 1 for v in self.lr):
            raise ConfigError(f"lr: got {list(self.lr)}, allowed: numbers in (0, 1], at least one")
        if not self.weight_decay or not all(0 <= v < float("inf") for v in self.weight_decay):
            raise ConfigError(f"weight_decay: got {list(self.weight_decay)}, allowed: numbers >= 0, at least one")
        if self.steps < 1:
            raise ConfigError(f"steps: got {self.steps}, allowed: 1 or more")

    def heads(self) -> list[tuple[float, float]]:
        """The grid as (lr, weight_decay) pairs."""
        return [(lr, decay) for lr in self.lr for decay in self.weight_decay]


@dataclass(frozen=True)
class Heads:
    """Trained heads, on the principal axes. Heads come last: a softmax over C is then vectorised over heads."""

    weight: Tensor  # (D, C, G) float32
    bias: Tensor  # (C, G) float32

    def logits(self, features: Tensor) -> Tensor:
        """(n, D) features on the axes to (n, C, G)."""
        width, classes, heads = self.weight.shape
        return torch.addmm(self.bias.view(-1), features, self.weight.view(width, -1)).view(-1, classes, heads)

    def only(self, head: int) -> Heads:
        """One head of the grid."""
        return Heads(self.weight[..., head : head + 1].contiguous(), self.bias[:, head : head + 1].contiguous())

    def chunk(self) -> int:
        """Rows at a time: logits that stay in a CPU's cache, or fill a GPU."""
        numbers = 1 << (26 if self.weight.is_cuda else 18)
        return max(256, numbers // self.bias.numel())


def train_heads(
    features: Tensor, labels: Tensor, variance: Tensor, heads: list[tuple[float, float]], classes: int, steps: int
) -> Heads:
    """Train every (lr, weight_decay) head on the same features.

    Args:
        features: (n, D) float32 on principal axes, see `Axes.apply`; read in chunks, so they may lie on the CPU while
            `variance` is on a GPU.
        labels: (n,) int64 in [0, classes).
        variance: (D,) along each axis; its device does the work.
        steps: full-batch steps.
    """
    device, count, width, grid = variance.device, len(features), features.shape[1], len(heads)
    lr, decay = (torch.tensor(v, device=device) for v in zip(*heads, strict=True))
    # axes with next to no variance hold float32 rounding, which the bound does not know: the floor covers it
    floor = max(1e-7 * float(variance.max()), 1e-12)
    stride = lr / (0.5 * variance.float().view(width, 1, 1) + decay).clamp(min=floor)
    weight = torch.zeros(width, classes, grid, device=device)
    bias = torch.zeros(classes, grid, device=device)
    last_weight, last_bias = weight, bias
    for step in range(steps):
        ahead = 1 + step / (step + 3)
        at = Heads(torch.lerp(last_weight, weight, ahead), torch.lerp(last_bias, bias, ahead))
        weight_sum, bias_sum = _gradient(at, features, labels)
        last_weight, last_bias = weight, bias
        weight = at.weight - stride * weight_sum.div_(count).add_(decay * at.weight)
        bias = at.bias - 2 * lr / count * bias_sum  # curvature along the bias: at most 1 / 2
    return Heads(weight, bias)


def _gradient(at: Heads, features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Gradient of the summed cross-entropies, written out: no graph, two matrix products."""
    weight_sum, bias_sum = torch.zeros_like(at.weight).flatten(1), torch.zeros_like(at.bias)
    done = 0
    for part in rows(features, at.chunk()):
        x = part.to(at.bias.device, non_blocking=True)
        y = labels[done : done + len(part)].to(at.bias.device, non_blocking=True)
        error = at.logits(x).softmax(dim=1)  # (chunk, C, G)
        error[torch.arange(len(y), device=y.device), y] -= 1
        weight_sum.addmm_(x.T, error.flatten(1))
        bias_sum += error.sum(dim=0)
        done += len(part)
    return weight_sum.view_as(at.weight), bias_sum


def score_heads(heads: Heads, features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Accuracy and mean cross-entropy of each head on (n, D) features: (G,), (G,) float64 on the CPU."""
    grid = heads.bias.shape[1]
    right, loss = torch.zeros(grid, dtype=torch.float64), torch.zeros(grid, dtype=torch.float64)
    done = 0
    for part in rows(features, heads.chunk()):
        logits = heads.logits(part.to(heads.bias.device))
        y = labels[done : done + len(part)].to(logits.device)[:, None].expand(-1, grid)
        right += (logits.argmax(dim=1) == y).sum(dim=0).cpu()
        loss += F.cross_entropy(logits, y, reduction="none").double().sum(dim=0).cpu()
        done += len(part)
    return right / len(features), loss / len(features)


def predict(head: Heads, features: Tensor) -> Tensor:
    """Class numbers (n,) of a single head, on the CPU."""
    parts = rows(features, head.chunk())
    return torch.cat([head.logits(p.to(head.bias.device))[..., 0].argmax(dim=1).cpu() for p in parts])


def linear_probe(
    axes: Axes,
    train: tuple[Tensor, Tensor],
    val: tuple[Tensor, Tensor],
    test: Tensor,
    classes: int,
    config: LinearConfig,
) -> tuple[Tensor, dict[str, Any]]:
    """Train the grid, choose on the validation split, predict the test split.

    Args:
        axes: fitted on the training features.
        train, val: features on the axes and labels; `test`: features on the axes.

    Returns:
        Predicted classes (n_test,) on the CPU, and what was chosen with its validation accuracy. `at_edge` names the
        sides of the weight-decay grid that the choice touches: the optimum may lie outside.
    """
    grid = config.heads()
    heads = train_heads(*train, axes.variance, grid, classes, config.steps)
    accuracy, loss = score_heads(heads, *val)
    best = int(np.lexsort((loss.numpy(), -accuracy.numpy()))[0])
    lr, decay = grid[best]
    chosen: dict[str, Any] = {"lr": lr, "weight_decay": decay, "val": float(accuracy[best])}
    edge = [n for n, v in (("low", min(config.weight_decay)), ("high", max(config.weight_decay))) if v == decay]
    if len(config.weight_decay) > 1 and edge:
        chosen["at_edge"] = edge[0]
    return predict(heads.only(best), test), chosen
