"""Ridge regression of continuous targets, in closed form and float64, for every penalty at once.

    minimise over w, c:  mean (y - x @ w - c)^2 + alpha * |w|^2        x standardised, c not penalised

On principal axes the solution is w_i = (mean of x_i * y) / (variance_i + alpha): one pass over the features serves all
penalties and all targets. The penalty is chosen for each target by R² on the validation split. In the notation of
scikit-learn's Ridge the penalty is n * alpha.

Shapes: n samples, D width, T targets, A penalties.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from jepa.errors import ConfigError
from jepa.probe.axes import Axes, rows


@dataclass(frozen=True)
class RidgeConfig:
    """Which continuous targets, and the grid of penalties."""

    targets: tuple[str, ...] = ()  # names in the data set; empty: all it has
    alpha: tuple[float, ...] = tuple(10.0**e for e in range(-8, 4))  # in units of a feature's variance

    def __post_init__(self) -> None:
        if not self.alpha or not all(0 < v < float("inf") for v in self.alpha):
            raise ConfigError(f"alpha: got {list(self.alpha)}, allowed: numbers above 0, at least one")


def r2_score(target: Tensor, predicted: Tensor) -> Tensor:
    """1 - SSE / SST over the first dimension; (n, ...) float64. -inf where the target does not vary."""
    around = (target - target.mean(dim=0)).square().sum(dim=0)
    missed = (target - predicted).square().sum(dim=0)
    return torch.where(around > 0, 1 - missed / around, torch.full_like(around, -float("inf")))


def fit_ridge(axes: Axes, features: Tensor, targets: Tensor, alphas: tuple[float, ...]) -> tuple[Tensor, Tensor]:
    """Coefficients (A, D, T) on the axes and intercepts (T,), float64, of training features (n, D), targets (n, T)."""
    device = axes.variance.device
    intercept = targets.double().mean(dim=0).to(device)
    moment = torch.zeros(features.shape[1], targets.shape[1], dtype=torch.float64, device=device)
    done = 0
    for part in rows(features):
        y = targets[done : done + len(part)].to(device, torch.float64) - intercept
        moment += part.to(device, torch.float64).T @ y
        done += len(part)
    alpha = torch.tensor(alphas, dtype=torch.float64, device=device).view(-1, 1, 1)
    return moment / len(features) / (axes.variance.view(1, -1, 1) + alpha), intercept


def choose_ridge(
    axes: Axes, train: tuple[Tensor, Tensor], val: tuple[Tensor, Tensor], alphas: tuple[float, ...]
) -> tuple[Tensor, Tensor, list[dict[str, Any]]]:
    """Fit every penalty and choose one for each target on the validation split.

    `train` and `val` are features on the axes (n, D) and targets (n, T).

    Returns:
        Coefficients (D, T) on the axes and intercepts (T,), float64, and for each target what was chosen.
    """
    weight, intercept = fit_ridge(axes, *train, alphas)
    fits = torch.stack([predict_ridge(val[0], w, intercept) for w in weight])  # (A, n, T)
    scores = torch.stack([r2_score(val[1].double(), fit) for fit in fits])  # (A, T)
    best = scores.argmax(dim=0)  # the smallest of equally good penalties
    picked = torch.stack([weight[int(a), :, t] for t, a in enumerate(best)], dim=1)
    chosen: list[dict[str, Any]] = []
    for t, a in enumerate(best.tolist()):
        chosen.append({"alpha": alphas[a], "val": float(scores[a, t])})
        if len(alphas) > 1 and alphas[a] in (min(alphas), max(alphas)):
            chosen[-1]["at_edge"] = "low" if alphas[a] == min(alphas) else "high"
    return picked, intercept, chosen


def ridge_probe(
    axes: Axes,
    train: tuple[Tensor, Tensor],
    val: tuple[Tensor, Tensor],
    test: Tensor,
    config: RidgeConfig,
) -> tuple[Tensor, list[dict[str, Any]]]:
    """Fit every penalty, choose one for each target on the validation split, predict the test split.

    `train` and `val` are features on the axes (n, D) and targets (n, T); `test` features only.

    Returns:
        Predictions (n_test, T) float64 on the CPU, and for each target what was chosen.
    """
    weight, intercept, chosen = choose_ridge(axes, train, val, config.alpha)
    return predict_ridge(test, weight, intercept), chosen


def predict_ridge(features: Tensor, weight: Tensor, intercept: Tensor) -> Tensor:
    """Features (n, D) on the axes to (n, T) float64 on the CPU."""
    parts = [(p.to(weight.device, torch.float64) @ weight + intercept).cpu() for p in rows(features)]
    return torch.cat(parts)
