"""Predictive sampling: the best of some disturbed copies of the plan before, and that plan itself.

Howell et al. 2022 (arXiv 2212.00541), Algorithm 1: one round, never worse than what was already planned. The simplest
solver there is, and a baseline for the others.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from jepa.errors import ConfigError
from jepa.plan.solvers.base import Cost, Noise, Plan, Solver, Start, inside, lowest, scored
from jepa.plan.space import ActionSpace


@dataclass(frozen=True)
class SamplingConfig:
    """Settings."""

    samples: int = 300  # candidates of an iteration
    iterations: int = 1  # rounds around the best so far; the original has one
    std: float = 1.0  # spread of the noise
    colour: float = 0.0  # smooth noise instead of the original's splines
    smooth: float = 0.0  # weight of squared changes between actions

    def __post_init__(self) -> None:
        if self.samples < 2 or self.iterations < 1:
            raise ConfigError(
                f"solver sampling: samples={self.samples}, iterations={self.iterations}; give at least 2 and 1"
            )


class PredictiveSampling(Solver):
    """Predictive sampling."""

    Config = SamplingConfig

    @torch.no_grad()
    def search(self, cost: Cost, space: ActionSpace, horizon: int, noise: Noise, start: Start) -> Plan:
        """See `Solver.plan`."""
        c: SamplingConfig = self.config
        best = inside(space.inward(start.actions), space)
        trace = []
        for _ in range(c.iterations):
            z = inside(
                best[:, None] + c.std * noise.coloured(c.samples, horizon, space.size, c.colour, space.stride), space
            )
            z[:, 0] = best
            values, found = lowest(scored(cost, z, space, c.smooth), z, 1)
            best = found[:, 0]
            trace.append(values[:, 0])
        return Plan(space.outward(best), trace[-1], torch.stack(trace))


__all__ = ["PredictiveSampling", "SamplingConfig"]
