"""Attention among the few tokens of a window, with all that can be saved told relative to the window's first token.

Softmax stays the same when one number is taken from all scores of a query, and its weights a_ij sum to 1, so that with
k_j = K x_j, v_j = V x_j and x_0 the first token of the window

    scores of query i   q_i . k_j - q_i . k_0  = q_i . K (x_j - x_0)                 0 for the first token
    output of token i   P sum_j a_ij v_j       = P V x_0 + P sum_j>0 a_ij V (x_j - x_0)

The first token needs no query, key or value, only the W x W product P V: half of its work in a block, where a window is
computed anew at every step of a roll-out. The result is the same but for rounding.

Shapes: n new tokens, B states, S plans, W width, h heads, d width of a head, I = h * d.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class Window:
    """What later tokens need of a window's earlier ones. S is 1 in tensors that are the same for all plans."""

    first: Tensor  # x_0 (B, S, W)
    base: Tensor  # P V x_0 and the bias of P (B, S, W)
    keys: tuple[Tensor, ...]  # K (x_j - x_0) of the others, (B, S, h, d) each
    values: tuple[Tensor, ...]  # V (x_j - x_0)


class FewTokens:
    """Causal attention from window to window, with the weights of a `CausalAttention`; without dropout."""

    def __init__(self, qkv: nn.Linear, proj: nn.Linear, heads: int) -> None:
        """`qkv` (W to 3 I, no bias), `proj` (I to W): taken as they are now, so make this anew when they change."""
        assert "bias" not in dict(qkv.named_parameters()), "queries, keys and values with a bias"
        inner = qkv.weight.shape[0] // 3
        self.heads: int = heads
        self.scale: float = float(inner // heads) ** -0.5
        self.query, self.key_value = qkv.weight[:inner], qkv.weight[inner:]
        self.proj: nn.Linear = proj
        self.first: Tensor = proj.weight @ qkv.weight[2 * inner :]  # P V

    def __call__(self, x: Tensor, before: Window | None, last: bool = False) -> tuple[Tensor, Window]:
        """Normed tokens (n, B, S, W) to what attention adds to them, and the window with them.

        Args:
            before: the tokens before these; None where these begin the window.
            last: only what the last token gets, (1, B, S, W).
        """
        if before is None:
            base = F.linear(x[0], self.first, self.proj.bias)
            window, rest = Window(x[0], base, (), ()), x[1:]
            if len(x) == 1:
                return base.unsqueeze(0), window
            out = [] if last else [base]
        else:
            window, rest, out = before, x, []
        earlier = len(window.keys)
        keys, values = self._by_head(F.linear(rest - window.first, self.key_value), 2)
        window = Window(window.first, window.base, (*window.keys, *keys), (*window.values, *values))
        (queries,) = self._by_head(F.linear(rest[-1:] if last else rest, self.query), 1)
        for number, query in enumerate(queries, len(rest) - len(queries)):
            seen = earlier + number + 1
            mixed = self._mix(query, window.keys[:seen], window.values[:seen])
            out.append(F.linear(mixed, self.proj.weight) + window.base)
        return torch.stack(out), window

    def _by_head(self, x: Tensor, parts: int) -> tuple[Tensor, ...]:
        """(n, B, S, parts * I) to so many of (n, B, S, h, d)."""
        return x.view(*x.shape[:-1], parts, self.heads, -1).unbind(-3)

    def _mix(self, query: Tensor, keys: tuple[Tensor, ...], values: tuple[Tensor, ...]) -> Tensor:
        """sum_j>0 a_j v_j (B, S, I) of one query (B, S, h, d)."""
        scores = [(query * key).sum(-1) for key in keys]  # (B, S, h) each
        stacked = torch.stack([torch.zeros_like(scores[0]), *scores], dim=0) * self.scale
        weights = stacked.softmax(0).unsqueeze(-1)
        mixed = weights[1] * values[0]
        for weight, value in zip(weights[2:], values[1:], strict=True):
            mixed = torch.addcmul(mixed, weight, value)
        return mixed.flatten(-2)


__all__ = ["FewTokens", "Window"]
