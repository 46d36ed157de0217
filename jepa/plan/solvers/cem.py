"""Cross-entropy method: sample plans around a mean, keep the best, take their mean and spread, again.

Rubinstein 1999; as in DINO-WM (arXiv 2411.04983) and LeWM (arXiv 2603.19312): 300 samples, 30 elites, 30 iterations
(LeWM: 10 except on Push-T), a first spread of one standard deviation of the data, the mean among the samples, no
spread of past iterations kept.

    z_s ~ N(mu, sigma^2),   mu, sigma <- mean and standard deviation of the elites
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from jepa.plan.solvers.base import check_counts
from jepa.plan.solvers.gaussian import Gaussian


@dataclass(frozen=True)
class CEMConfig:
    """Settings, in the units of the search (1 is one standard deviation of the data's actions)."""

    samples: int = 300  # candidates of an iteration
    elites: int = 30  # best candidates that the next iteration is drawn around
    iterations: int = 30  # of a search
    std: float = 1.0  # first spread
    min_std: float = 0.0  # never narrower; a little helps receding horizons
    momentum: float = 0.0  # share of the old mean and spread kept
    colour: float = 0.0  # of the noise over time: 0 white, 2 red
    smooth: float = 0.0  # weight of squared changes between actions

    def __post_init__(self) -> None:
        check_counts("cem", samples=self.samples, elites=self.elites, iterations=self.iterations)


class CEM(Gaussian):
    """Cross-entropy method."""

    Config = CEMConfig

    def moved(self, mean: Tensor, std: Tensor, values: Tensor, elites: Tensor) -> tuple[Tensor, Tensor]:
        """Those of the elites."""
        c: CEMConfig = self.config
        spread = c.momentum * std + (1 - c.momentum) * elites.std(1)
        return c.momentum * mean + (1 - c.momentum) * elites.mean(1), spread.clamp(min=c.min_std)


__all__ = ["CEM", "CEMConfig"]
