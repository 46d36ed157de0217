"""Gradient descent through the model: Adam on the actions of several restarts at once, the best point seen is taken.

The gradient planner of DINO-WM (arXiv 2411.04983, appendix; its Table 8 has it far behind CEM on learned models) with
Adam (arXiv 1412.6980) and restarts. The first restart begins at the plan before or the centre, the others around it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from jepa.errors import ConfigError
from jepa.plan.solvers.base import Cost, Noise, Plan, Solver, Start, inside, scored
from jepa.plan.space import ActionSpace

_WIDEST = 0.999  # of the way to the bounds, where tanh still has a slope


@dataclass(frozen=True)
class GradientConfig:
    """Settings, in the units of the search."""

    restarts: int = 16  # searches from different beginnings, side by side
    iterations: int = 60  # steps of Adam
    lr: float = 0.1  # learning rate
    betas: tuple[float, float] = (0.9, 0.999)  # Adam's running averages of gradient and square
    std: float = 1.0  # of the restarts
    bounds: Literal["project", "tanh"] = "project"  # back to the bounds after every step, or squashed into them
    noise: float = 0.0  # added to the actions at every step
    colour: float = 0.0  # of the restarts over time: 0 white, 2 red
    smooth: float = 0.0  # weight of squared changes between actions

    def __post_init__(self) -> None:
        if self.restarts < 1 or self.iterations < 1 or self.lr <= 0:
            raise ConfigError(
                f"solver gradient: restarts={self.restarts}, iterations={self.iterations}, lr={self.lr}; "
                "give at least 1, at least 1, above 0"
            )


class Gradient(Solver):
    """Adam through the model."""

    Config = GradientConfig
    gradients = True

    @torch.enable_grad()
    def search(self, cost: Cost, space: ActionSpace, horizon: int, noise: Noise, start: Start) -> Plan:
        """See `Solver.plan`.

        Raises:
            ConfigError: a cost without a gradient, or tanh without bounds.
        """
        c: GradientConfig = self.config
        if c.bounds == "tanh" and not bool((space.low.isfinite() & space.high.isfinite()).all()):
            raise ConfigError("solver gradient: bounds=tanh needs a bounded action space; use bounds=project")
        spread = c.std * noise.coloured(c.restarts, horizon, space.size, c.colour, space.stride)
        spread[:, 0] = 0.0
        free = self._freed(inside(space.inward(start.actions)[:, None] + spread, space), space).detach()
        first, second = torch.zeros_like(free), torch.zeros_like(free)
        best, lowest = free, torch.full(free.shape[:2], torch.inf, device=free.device, dtype=free.dtype)
        trace = []
        for i in range(c.iterations + 1):
            free.requires_grad_(True)
            values = scored(cost, self._bound(free, space), space, c.smooth)
            better = values.detach() < lowest
            lowest = torch.where(better, values.detach(), lowest)
            best = torch.where(better[:, :, None, None], free.detach(), best)
            trace.append(lowest.min(1).values)
            if i == c.iterations:
                break
            slope = self._slope(values, free)
            with torch.no_grad():
                first = c.betas[0] * first + (1 - c.betas[0]) * slope
                second = c.betas[1] * second + (1 - c.betas[1]) * slope.square()
                up, down = first / (1 - c.betas[0] ** (i + 1)), second / (1 - c.betas[1] ** (i + 1))
                free = free - c.lr * up / (down.sqrt() + 1e-8)
                if c.noise:
                    free = free + c.noise * noise.normal(c.restarts, horizon, space.size)
                if c.bounds == "project":
                    free = inside(free, space)
        with torch.no_grad():
            rows = torch.arange(len(best), device=best.device)
            chosen = self._bound(best[rows, lowest.argmin(1)], space)
            return Plan(space.outward(chosen), lowest.min(1).values, torch.stack(trace))

    def _bound(self, free: Tensor, space: ActionSpace) -> Tensor:
        """What is varied, to the units of the search."""
        if self.config.bounds == "project":
            return free
        low, high = space.inward(space.low), space.inward(space.high)
        return (low + high) / 2 + (high - low) / 2 * free.tanh()

    def _freed(self, z: Tensor, space: ActionSpace) -> Tensor:
        if self.config.bounds == "project":
            return z
        low, high = space.inward(space.low), space.inward(space.high)
        return (2 * (z - low) / (high - low) - 1).clamp(-_WIDEST, _WIDEST).atanh()

    def _slope(self, values: Tensor, free: Tensor) -> Tensor:
        total = values.where(values.isfinite(), torch.zeros_like(values)).sum()
        slope = None
        if total.requires_grad:
            (slope,) = torch.autograd.grad(total, free, allow_unused=True)
        if slope is None:
            raise ConfigError(
                "solver gradient: the cost has no gradient with respect to the actions; `imagine` runs without "
                "gradients, or goes through something that has none. Use cem, icem, mppi or sampling"
            )
        return slope.nan_to_num(0.0, 0.0, 0.0)


__all__ = ["Gradient", "GradientConfig"]
