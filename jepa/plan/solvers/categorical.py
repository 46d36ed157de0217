"""Cross-entropy method for discrete actions: sample plans from probabilities, count what the elites chose, again.

De Boer et al. 2005 ("A tutorial on the cross-entropy method", section 3): at every step of the environment

    p <- momentum * p + (1 - momentum) * (counts among the elites + smoothing), made to sum to 1
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from jepa.errors import ConfigError
from jepa.plan.solvers.base import Cost, Noise, Plan, Solver, Start, check_counts, lowest
from jepa.plan.space import ActionSpace


@dataclass(frozen=True)
class CategoricalConfig:
    """Settings."""

    samples: int = 300  # candidates of an iteration
    elites: int = 30  # best candidates that the next iteration is drawn around
    iterations: int = 10  # of a search
    momentum: float = 0.1  # share of the old probabilities kept
    smoothing: float = 0.01  # added to every share, so that no choice is given up for good
    trust: float = 0.5  # first probability of the plan before, the rest being spread evenly
    change: float = 0.0  # cost of every change from one action to the next, for plans that hold on to an action

    def __post_init__(self) -> None:
        check_counts("categorical", samples=self.samples, elites=self.elites, iterations=self.iterations)
        if not 0.0 <= self.trust < 1.0 or not 0.0 <= self.momentum < 1.0:
            raise ConfigError(f"solver categorical: trust={self.trust}, momentum={self.momentum}; give them in [0, 1)")


class Categorical(Solver):
    """Cross-entropy method over one-hot actions."""

    Config = CategoricalConfig
    discrete = True

    @torch.no_grad()
    def search(self, cost: Cost, space: ActionSpace, horizon: int, noise: Noise, start: Start) -> Plan:
        """See `Solver.plan`. The plan is the best candidate seen in the last iteration."""
        c: CategoricalConfig = self.config
        n, steps = space.discrete, horizon * space.stride
        before = start.actions.reshape(len(noise), steps, n)  # all zero where nothing was planned
        trust = c.trust * before.sum(-1, keepdim=True) * start.warm[:, None, None]
        p = trust * before + (1 - trust) / n  # (B, H * stride, n)
        trace = []
        for _ in range(c.iterations):
            gumbel = -(-noise.uniform(c.samples, steps, n).clamp(min=1e-20).log()).log()
            picks = (p.clamp(min=1e-20).log()[:, None] + gumbel).argmax(-1)  # (B, S, H * stride)
            picks[:, 0] = p.argmax(-1)
            values, elites = lowest(self._scored(cost, picks, space, horizon, noise.dtype), picks, c.elites)
            shares = one_hot(elites, n).to(p.dtype).mean(1) + c.smoothing
            p = c.momentum * p + (1 - c.momentum) * shares / shares.sum(-1, keepdim=True)
            trace.append(values[:, 0])
        actions = one_hot(elites[:, 0], n).to(noise.dtype).reshape(len(noise), horizon, space.size)
        return Plan(actions, values[:, 0], torch.stack(trace))

    def _scored(self, cost: Cost, picks: Tensor, space: ActionSpace, horizon: int, dtype: torch.dtype) -> Tensor:
        actions = one_hot(picks, space.discrete).to(dtype).reshape(*picks.shape[:2], horizon, space.size)
        values = cost(actions)
        if self.config.change:
            values = values + self.config.change * (picks.diff(dim=-1) != 0).sum(-1)
        return values.nan_to_num(nan=torch.inf, posinf=torch.inf)


__all__ = ["Categorical", "CategoricalConfig"]
