"""What solvers share that draw plans around a mean, keep the best, and move mean and spread towards them."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from jepa.plan.solvers.base import Cost, Noise, Plan, Solver, Start, inside, lowest, scored
from jepa.plan.space import ActionSpace


class Gaussian(Solver):
    """Base class. The Config has samples, elites, iterations, std, colour and smooth."""

    @torch.no_grad()
    def search(self, cost: Cost, space: ActionSpace, horizon: int, noise: Noise, start: Start) -> Plan:
        """See `Solver.plan`. The mean is among the samples; the plan is the last mean."""
        c = self.config
        mean = space.inward(start.actions)
        std = torch.full_like(mean, c.std)
        trace = []
        for _ in range(c.iterations):
            eps = noise.coloured(c.samples, horizon, space.size, c.colour, space.stride)
            z = inside(mean[:, None] + std[:, None] * eps, space)
            z[:, 0] = inside(mean, space)
            values, elites = lowest(scored(cost, z, space, c.smooth), z, c.elites)
            mean, std = self.moved(mean, std, values, elites)
            trace.append(values[:, 0])
        value = scored(cost, mean[:, None], space, c.smooth)[:, 0]
        return Plan(space.outward(mean), value, torch.stack(trace))

    @abstractmethod
    def moved(self, mean: Tensor, std: Tensor, values: Tensor, elites: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and spread (B, H, A) of the next iteration.

        Args:
            mean: (B, H, A) and std: those that the samples were drawn by.
            values: (B, K) costs of the best, in rising order. elites: (B, K, H, A) of these.
        """


__all__ = ["Gaussian"]
