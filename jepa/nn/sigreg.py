"""SIGReg: embeddings are held to a standard normal distribution, so that they cannot collapse.

Balestriero, LeCun, "LeJEPA: provable and scalable self-supervised learning without the heuristics", arXiv 2511.08544:
of a sketch of random directions, each one-dimensional projection of the embeddings is compared with N(0, 1) by the
test of Epps and Pulley, N * integral of |phi_N(t) - exp(-t^2 / 2)|^2 exp(-t^2 / 2) dt, phi_N(t) = mean of exp(i t x)
over N samples. The integral over [-max_t, max_t] is the trapezoid rule on [0, max_t], doubled.

Shapes: B samples of this rank, T frames, D width, P directions, K knots.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from jepa.errors import ConfigError
from jepa.nn import noise, ranks


@dataclass(frozen=True)
class SigRegConfig:
    """The sketch."""

    weight: float = 0.09  # of the term in the loss; depends on the batch, for the statistic grows with it
    directions: int = 1024  # random projections, drawn anew in every step
    knots: int = 17  # points of the integral
    max_t: float = 3.0  # where the integral ends

    def __post_init__(self) -> None:
        if self.weight < 0 or self.directions < 1 or self.knots < 2 or not 0 < self.max_t < float("inf"):
            raise ConfigError(
                f"weight={self.weight:g} must be at least 0, directions={self.directions} at least 1, "
                f"knots={self.knots} at least 2, max_t={self.max_t:g} above 0"
            )


class _Characteristic(torch.autograd.Function):
    """Mean over B of cos(k dt x) and sin(k dt x), k = 0 .. K - 1, of x (T, B, P): (2, K, T, P).

    By the angle addition formulas from one cosine and sine, so that neither K times the work nor K times the memory
    of x is needed, forward or backward.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, step: float, knots: int) -> Tensor:
        ctx.save_for_backward(x)
        ctx.step, ctx.knots = step, knots
        c, s = torch.cos(x * step), torch.sin(x * step)
        return torch.stack([torch.stack([a.mean(1), b.mean(1)]) for a, b in _multiples(c, s, knots)], dim=1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (x,) = ctx.saved_tensors
        c, s = torch.cos(x * ctx.step), torch.sin(x * ctx.step)
        total = torch.zeros_like(x)
        scaled = gradients[0] * (ctx.step / x.shape[1])
        for k, (a, b) in enumerate(_multiples(c, s, ctx.knots)):
            if k:
                total += (scaled[1, k] * k).unsqueeze(1) * a - (scaled[0, k] * k).unsqueeze(1) * b
        return total, None, None


def _multiples(c: Tensor, s: Tensor, knots: int) -> Any:
    """cos and sin of 0, 1, .. knots - 1 times an angle."""
    a, b = torch.ones_like(c), torch.zeros_like(s)
    for k in range(knots):
        yield a, b
        if k + 1 < knots:
            a, b = a * c - b * s, b * c + a * s


class SIGReg(nn.Module):
    """The statistic, averaged over directions and frames: 0-d, 0 for a perfect N(0, 1).

    Always in float32 (or float64): bfloat16 gives NaN. Over the samples of all ranks while training; directions are
    keyed by (seed, step) and the same on every rank.
    """

    def __init__(self, config: SigRegConfig) -> None:
        super().__init__()
        self.config = config

    def forward(self, z: Tensor, step: Tensor, seed: int = 0) -> Tensor:
        """Embeddings (B, T, D), each frame's a sample of its own; `step`: 0-d, on the device."""
        with ranks.full_precision(z.device):
            z = z.float() if z.dtype in (torch.bfloat16, torch.float16) else z
            directions = self.directions(z.shape[-1], step, seed).to(z.dtype)
            found = self.statistic(z.transpose(0, 1) @ directions)
        return found

    def directions(self, width: int, step: Tensor, seed: int) -> Tensor:
        """Unit vectors (D, P)."""
        drawn = noise.normal("sigreg", seed, step, width * self.config.directions)
        drawn = drawn.view(width, self.config.directions)
        out: Tensor = drawn / drawn.norm(dim=0)
        return out

    def statistic(self, x: Tensor) -> Tensor:
        """Of projections (T, B, P)."""
        config = self.config
        dt = config.max_t / (config.knots - 1)
        t = torch.arange(config.knots, device=x.device, dtype=x.dtype) * dt
        normal = torch.exp(-t.square() / 2)
        weights = 2 * dt * normal * torch.where((t > 0) & (t < t[-1]), 1.0, 0.5)
        found: Tensor = _Characteristic.apply(x, dt, config.knots)
        world = 1
        if self.training:
            found, world = ranks.mean(found), ranks.count()
        real, imaginary = found.unbind(0)  # (K, T, P)
        error = (real - normal.view(-1, 1, 1)).square() + imaginary.square()
        out: Tensor = (error.movedim(0, -1) @ weights.to(x.dtype)).mean() * (x.shape[1] * world)
        return out


__all__ = ["SIGReg", "SigRegConfig"]
