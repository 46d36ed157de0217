"""Model-predictive path integral control: the mean of sampled plans, the better the heavier.

Williams et al. 2017 (arXiv 1509.01149); several iterations over the elites, with their spread, as in TD-MPC2
(arXiv 2310.16828, 512 samples, 64 elites, 6 iterations, temperature 0.5, spread between 0.05 and 2):

    w_s ~ exp(-(cost_s - min cost) / temperature),   mu <- sum_s w_s z_s,   sigma^2 <- sum_s w_s (z_s - mu)^2
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from jepa.errors import ConfigError
from jepa.plan.solvers.base import check_counts
from jepa.plan.solvers.gaussian import Gaussian


@dataclass(frozen=True)
class MPPIConfig:
    """Settings, those of TD-MPC2."""

    samples: int = 512  # candidates of an iteration
    elites: int = 64  # only the best are weighed; as many as samples: all of them
    iterations: int = 6  # of a search
    temperature: float = 0.5  # in the units of the cost
    relative: bool = False  # the temperature is one of the standard deviation of the elites' costs instead
    std: float = 2.0  # first spread
    min_std: float = 0.05  # never narrower
    adapt: bool = True  # the spread follows the weighted elites; off: it stays, as in the original
    colour: float = 0.0  # of the noise over time: 0 white, 2 red
    smooth: float = 0.0  # weight of squared changes between actions

    def __post_init__(self) -> None:
        check_counts("mppi", samples=self.samples, elites=self.elites, iterations=self.iterations)
        if self.temperature <= 0:
            raise ConfigError(f"solver mppi: temperature={self.temperature}; give a positive one")


class MPPI(Gaussian):
    """Model-predictive path integral control."""

    Config = MPPIConfig

    def moved(self, mean: Tensor, std: Tensor, values: Tensor, elites: Tensor) -> tuple[Tensor, Tensor]:
        """Those of the weighted elites."""
        c: MPPIConfig = self.config
        heat = values.std(1, keepdim=True).clamp(min=1e-12) * c.temperature if c.relative else c.temperature
        weights = torch.softmax(-(values - values[:, :1]) / heat, dim=1)[:, :, None, None]
        mean = (weights * elites).sum(1)
        if c.adapt:
            std = (weights * (elites - mean[:, None]).square()).sum(1).sqrt().clamp(c.min_std, c.std)
        return mean, std


__all__ = ["MPPI", "MPPIConfig"]
