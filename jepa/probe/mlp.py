"""Regression by a small network on frozen features: what is there, but not as a straight line.

One network for each learning rate reads all targets at once (standardised), trained by AdamW on batches drawn by a
seed. Every so many steps the validation split is looked at, and for each variable by itself the rate and the step of
the best R² are kept: a variable that is learned early is not spoiled by one that takes longer.

Shapes: n samples, D width, T targets.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from jepa.errors import ConfigError
from jepa.probe.axes import rows
from jepa.probe.ridge import r2_score


@dataclass(frozen=True)
class MlpConfig:
    """The network and its training."""

    width: int = 256  # of each hidden layer
    depth: int = 2  # hidden layers
    lr: tuple[float, ...] = (3e-4, 3e-3)  # learning rates; chosen on the validation split
    weight_decay: float = 1e-4  # AdamW's
    steps: int = 2000  # of training, for each learning rate
    batch: int = 256  # samples in a step
    look_every: int = 100  # steps between looks at the validation split
    seed: int = 0  # of weights and batches

    def __post_init__(self) -> None:
        whole = (self.width, self.depth, self.steps, self.batch, self.look_every)
        if min(whole) < 1 or not self.lr or min(self.lr) <= 0 or self.weight_decay < 0:
            raise ConfigError(
                f"width={self.width}, depth={self.depth}, steps={self.steps}, batch={self.batch}, look_every="
                f"{self.look_every} must be at least 1, lr={list(self.lr)} above 0 and at least one, weight_decay="
                f"{self.weight_decay:g} at least 0"
            )


def mlp_probe(
    train: tuple[Tensor, Tensor],
    val: tuple[Tensor, Tensor],
    test: Tensor,
    variables: Mapping[str, slice],
    config: MlpConfig,
) -> tuple[Tensor, dict[str, dict[str, Any]]]:
    """Fit on `train`, choose on `val`, predict `test`; features (n, D) of about unit scale and targets (n, T).

    Args:
        variables: columns of T that belong together, by name.

    Returns:
        Predictions (n_test, T) float64 on the CPU, and for each variable what was chosen.
    """
    mean, std = train[1].mean(dim=0), train[1].std(dim=0, correction=0).clamp_min(1e-12)
    best = torch.zeros(len(test), train[1].shape[1], dtype=torch.float64)
    chosen: dict[str, dict[str, Any]] = {name: {"val": -float("inf")} for name in variables}
    x, y = train[0].float(), ((train[1] - mean) / std).to(train[0].device, torch.float32)
    for lr in config.lr:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            network = _network(x.shape[1], y.shape[1], config).to(x.device)
        draws = torch.Generator().manual_seed(config.seed)
        optimiser = torch.optim.AdamW(network.parameters(), lr=lr, weight_decay=config.weight_decay)
        for step in range(1, config.steps + 1):
            places = torch.randint(0, len(x), (min(config.batch, len(x)),), generator=draws).to(x.device)
            loss = F.mse_loss(network(x[places]), y[places])
            optimiser.zero_grad(set_to_none=True)
            torch.autograd.backward(loss)
            optimiser.step()
            if step % config.look_every and step != config.steps:
                continue
            score = r2_score(val[1].double().cpu(), _predict(network, val[0], mean, std))
            better = {n: at for n, at in variables.items() if float(score[at].mean()) > chosen[n]["val"]}
            if better:
                answer = _predict(network, test, mean, std)
                for name, at in better.items():
                    best[:, at] = answer[:, at]
                    chosen[name] = {"lr": lr, "step": step, "val": float(score[at].mean())}
    return best, chosen


def _network(inputs: int, outputs: int, config: MlpConfig) -> nn.Sequential:
    widths = [inputs, *[config.width] * config.depth]
    hidden = [part for a, b in pairwise(widths) for part in (nn.Linear(a, b), nn.GELU())]
    return nn.Sequential(*hidden, nn.Linear(widths[-1], outputs))


def _predict(network: nn.Module, features: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    with torch.no_grad():
        parts = [network(part.float()).double().cpu() for part in rows(features)]
    return torch.cat(parts) * std.double().cpu() + mean.double().cpu()
