"""iCEM: the cross-entropy method made frugal, for planning at every step.

Pinneri et al. 2020 (arXiv 2008.06389), Algorithm 1, on top of CEM:

- noise coloured over time, so that candidates go somewhere instead of trembling on the spot;
- elites come back: a share of them joins the samples of the next iteration, and, moved on, of the next plan;
- the population shrinks: N_i = max(N gamma^-i, 2K);
- the mean joins the samples of the last iteration, and the best candidate seen is taken, not the mean;
- momentum on mean and spread.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from jepa.errors import ConfigError
from jepa.plan.solvers.base import Cost, Noise, Plan, Solver, Start, check_counts, inside, lowest, scored
from jepa.plan.space import ActionSpace


@dataclass(frozen=True)
class ICEMConfig:
    """Settings; elites, reuse, decay, momentum, std and colour as in the paper."""

    samples: int = 300  # candidates of the first iteration
    elites: int = 10  # best candidates that the next iteration is drawn around
    iterations: int = 10  # of a search
    std: float = 0.5  # first spread
    min_std: float = 0.0  # never narrower
    momentum: float = 0.1  # share of the old mean and spread kept
    colour: float = 2.0  # of the noise over time: 0 white, 2 red
    reuse: float = 0.3  # share of the elites that comes back
    decay: float = 1.25  # of the population, per iteration
    give: str = "best"  # or mean
    smooth: float = 0.0  # weight of squared changes between actions

    def __post_init__(self) -> None:
        check_counts("icem", samples=self.samples, elites=self.elites, iterations=self.iterations)
        if self.give not in ("best", "mean"):
            raise ConfigError(f"solver icem: give={self.give!r}; allowed: best, mean")
        if self.decay < 1.0 or not 0.0 <= self.reuse <= 1.0:
            raise ConfigError(f"solver icem: decay={self.decay}, reuse={self.reuse}; give decay >= 1, reuse in [0, 1]")


class ICEM(Solver):
    """Improved cross-entropy method."""

    Config = ICEMConfig

    @torch.no_grad()
    def search(self, cost: Cost, space: ActionSpace, horizon: int, noise: Noise, start: Start) -> Plan:
        """See `Solver.plan`."""
        c: ICEMConfig = self.config
        keep = round(c.reuse * c.elites)
        mean = space.inward(start.actions)
        std = torch.full_like(mean, c.std)
        back: Tensor | None = None if start.elites is None else space.inward(start.elites)[:, :keep]
        trace: list[Tensor] = []
        for i in range(c.iterations):
            count = max(int(c.samples * c.decay**-i), 2 * c.elites)
            eps = noise.coloured(count, horizon, space.size, c.colour, space.stride)
            z = mean[:, None] + std[:, None] * eps
            if back is not None and i == 0:  # rows without a plan before have no elites and keep their samples
                old = back.shape[1]
                z = torch.cat([torch.where(start.warm[:, None, None, None], back, z[:, :old]), z[:, old:]], dim=1)
            elif back is not None:
                z = torch.cat([back, z], dim=1)
            if i == c.iterations - 1:
                z = torch.cat([mean[:, None], z], dim=1)
            z = inside(z, space)
            values, elites = lowest(scored(cost, z, space, c.smooth), z, c.elites)
            mean = c.momentum * mean + (1 - c.momentum) * elites.mean(1)
            std = (c.momentum * std + (1 - c.momentum) * elites.std(1)).clamp(min=c.min_std)
            back = elites[:, :keep] if keep else None
            trace.append(values[:, 0])
        if c.give == "best":  # as long as elites come back, the best of the last iteration is the best of all
            return Plan(space.outward(elites[:, 0]), values[:, 0], torch.stack(trace), space.outward(elites))
        value = scored(cost, mean[:, None], space, c.smooth)[:, 0]
        return Plan(space.outward(mean), value, torch.stack(trace), space.outward(elites))


__all__ = ["ICEM", "ICEMConfig"]
