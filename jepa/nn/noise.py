"""Keyed randomness on the device: `jepa.keyed` in torch, for noise that a model draws while it trains.

A number is a pure function of (stream, seed, index). The index is a tensor (a step, sample numbers g), so nothing is
read back from the device, and every rank that asks for the same numbers gets them.

Shapes: B indices, n numbers of each.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from jepa import keyed

_M0, _M1 = 0xD2511F53, 0xCD9E8D57
_W0, _W1 = 0x9E3779B9, 0xBB67AE85
_LOW = 0xFFFFFFFF


def words(stream: str, seed: int, index: Tensor, count: int) -> Tensor:
    """Random 32-bit words (held in int64) for each index (B,) of whole numbers: (B, count), those of `keyed.words`."""
    flat = index.reshape(-1, 1).to(torch.int64)
    block = torch.arange(-(-count // 4), device=index.device).view(1, -1)
    k0, k1 = keyed.key(stream, seed)
    c0, c1, c2, c3 = block, torch.zeros_like(block), flat & _LOW, (flat >> 32) & _LOW
    for _ in range(10):
        p0, p1 = c0 * _M0, c2 * _M1  # products of 32-bit words wrap in int64; masked, both halves are right
        c0, c1, c2, c3 = ((p1 >> 32) & _LOW) ^ c1 ^ k0, p1 & _LOW, ((p0 >> 32) & _LOW) ^ c3 ^ k1, p0 & _LOW
        k0, k1 = (k0 + _W0) & _LOW, (k1 + _W1) & _LOW
    return torch.stack([c.expand(len(flat), block.shape[1]) for c in (c0, c1, c2, c3)], dim=-1).flatten(1)[:, :count]


def uniform(stream: str, seed: int, index: Tensor, count: int) -> Tensor:
    """Uniform float32 numbers in (0, 1) for each index (B,): (B, count), on a grid of 2**-24."""
    drawn = ((words(stream, seed, index, count) >> 8).float() + 0.5) * 2.0**-24
    return drawn.clamp(max=1 - 2.0**-24)  # float32 rounds the last of the grid to 1, whose normal quantile is infinite


def normal(stream: str, seed: int, index: Tensor, count: int) -> Tensor:
    """Standard normal float32 numbers for each index (B,): (B, count), by Box and Muller."""
    drawn = uniform(stream, seed, index, 2 * (-(-count // 2)))
    radius, angle = drawn.chunk(2, dim=-1)
    length = torch.sqrt(-2 * torch.log(radius))
    return torch.cat([length * torch.cos(2 * math.pi * angle), length * torch.sin(2 * math.pi * angle)], -1)[:, :count]


__all__ = ["normal", "uniform", "words"]
