"""Dreamer's belief: a deterministic path that remembers and a stochastic state that says what cannot be known.

Hafner et al., "Mastering diverse domains through world models" (DreamerV3), arXiv 2301.04104.

h_t = GRU(h_t-1, MLP(z_t-1, a_t-1));  prior p(z_t | h_t);  posterior q(z_t | h_t, e_t), e_t the frame's embedding

Shapes: B batch, T frames, H steps, F width of e_t, A numbers of an action, W width of h, Z of z, G groups, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from jepa.errors import ConfigError


@dataclass(frozen=True)
class BeliefConfig:
    """Size and kind of the belief."""

    width: int = 256  # of the deterministic path
    hidden: int = 256  # of the layers around it
    stochastic: Literal["categorical", "gaussian"] = "gaussian"  # what z is drawn from; classes learn more slowly
    groups: int = 32  # categorical: variables; gaussian: numbers
    classes: int = 16  # categorical: values of each
    unimix: float = 0.01  # categorical: share of the uniform distribution, so that nothing is ever impossible

    def __post_init__(self) -> None:
        if min(self.width, self.hidden, self.groups) < 1 or self.classes < 2 or not 0 <= self.unimix < 1:
            raise ConfigError(
                f"width={self.width}, hidden={self.hidden}, groups={self.groups} must be at least 1, classes="
                f"{self.classes} at least 2, unimix={self.unimix:g} in [0, 1)"
            )

    @property
    def size(self) -> int:
        """Z."""
        return self.groups * (self.classes if self.stochastic == "categorical" else 1)

    @property
    def parameters(self) -> int:
        """Numbers that tell a distribution of z; also how many random ones are drawn from to sample it."""
        return self.groups * (self.classes if self.stochastic == "categorical" else 2)


class Distribution:
    """Of z, from a network's output (..., parameters); in float32."""

    def __init__(self, out: Tensor, config: BeliefConfig) -> None:
        self.config = config
        if config.stochastic == "categorical":
            plain = torch.softmax(out.float().unflatten(-1, (config.groups, config.classes)), dim=-1)  # type: ignore[no-untyped-call]
            self.probabilities: Tensor = (1 - config.unimix) * plain + config.unimix / config.classes
        else:
            self.mean, raw = out.float().chunk(2, dim=-1)
            self.std = F.softplus(raw) + 0.1

    def mode(self) -> Tensor:
        """The likeliest z (..., Z)."""
        if self.config.stochastic == "gaussian":
            return self.mean
        return self._straight(self.probabilities.argmax(-1))

    def sample(self, drawn: Tensor) -> Tensor:
        """z (..., Z) from uniform numbers (..., parameters); gradients go through it (straight through, of classes)."""
        if self.config.stochastic == "gaussian":
            noise: Tensor = torch.special.ndtri(drawn[..., : self.config.groups])
            return self.mean + self.std * noise
        gumbel = -torch.log(-torch.log(drawn.view(self.probabilities.shape)))
        return self._straight((self.probabilities.log() + gumbel).argmax(-1))

    def _straight(self, chosen: Tensor) -> Tensor:
        """One-hot forward, the gradient of the probabilities backward."""
        hot = F.one_hot(chosen, self.config.classes).to(self.probabilities.dtype)
        hot = hot + self.probabilities - self.probabilities.detach()
        return hot.flatten(-2)

    def detach(self) -> Distribution:
        """The same, without gradient."""
        copy = object.__new__(Distribution)
        copy.config = self.config
        for name in ("probabilities", "mean", "std"):
            if hasattr(self, name):
                setattr(copy, name, getattr(self, name).detach())
        return copy

    def divergence(self, other: Distribution) -> Tensor:
        """KL(self || other), summed over groups: (...) in nats."""
        if self.config.stochastic == "categorical":
            ratio = self.probabilities.log() - other.probabilities.log()
            return (self.probabilities * ratio).sum((-1, -2))
        ratio, apart = self.std / other.std, (self.mean - other.mean) / other.std
        return 0.5 * (ratio.square() + apart.square() - 1 - 2 * ratio.log()).sum(-1)

    def spread(self) -> Tensor:
        """How open z is, mean over groups (...): the standard deviation of numbers, of classes the entropy in nats."""
        if self.config.stochastic == "gaussian":
            return self.std.mean(-1)
        return -(self.probabilities * self.probabilities.log()).sum(-1).mean(-1)


class Belief(nn.Module):
    """The recurrent step, and prior and posterior of z."""

    def __init__(self, config: BeliefConfig, embedding: int, action: int) -> None:
        """`embedding`: F; `action`: A."""
        super().__init__()
        self.config = config
        width, hidden = config.width, config.hidden
        self.enter = nn.Sequential(nn.Linear(config.size + action, hidden), nn.LayerNorm(hidden), nn.SiLU())
        self.cell = nn.GRUCell(hidden, width)
        self.prior_net = _mlp(width, hidden, config.parameters)
        self.posterior_net = _mlp(width + embedding, hidden, config.parameters)
        self.start = nn.Parameter(torch.zeros(width))

    def first(self, batch: int) -> Tensor:
        """h before anything has been seen (B, W)."""
        return torch.tanh(self.start).expand(batch, -1)

    def step(self, h: Tensor, z: Tensor, action: Tensor) -> Tensor:
        """h after an action: (R, W), (R, Z), (R, A) to (R, W)."""
        out: Tensor = self.cell(self.enter(torch.cat([z.to(h.dtype), action.to(h.dtype)], dim=-1)), h)
        return out

    def prior(self, h: Tensor) -> Distribution:
        """Of z before its frame is seen."""
        return Distribution(self.prior_net(h), self.config)

    def posterior(self, h: Tensor, embedding: Tensor) -> Distribution:
        """Of z after its frame is seen."""
        return Distribution(self.posterior_net(torch.cat([h, embedding.to(h.dtype)], dim=-1)), self.config)


def _mlp(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, hidden), nn.LayerNorm(hidden), nn.SiLU(), nn.Linear(hidden, outputs))


__all__ = ["Belief", "BeliefConfig", "Distribution"]
