"""Transformer block: pre-norm attention and MLP.

Shapes: B batch, N tokens, D width, h heads.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

Init = Literal["fixed", "fan_in"]
_STD = 0.02
NORM_EPS = 1e-6


class Attention(nn.Module):
    """Multi-head self-attention with one matrix for queries, keys and values."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, D) to (B, N, D)."""
        batch, tokens, width = x.shape
        qkv = self.qkv(x).view(batch, tokens, 3, self.heads, width // self.heads)
        # unbinding in place, not after a permutation: the backward then writes one (B, N, 3 D) gradient, uncopied
        q, k, v = (part.transpose(1, 2) for part in qkv.unbind(2))  # each (B, h, N, D / h)
        mixed = F.scaled_dot_product_attention(q, k, v)
        out: Tensor = self.proj(mixed.transpose(1, 2).reshape(batch, tokens, width))
        return out


class Mlp(nn.Module):
    """Two linear maps with an exact GELU between."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, D) to (B, N, D)."""
        out: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return out


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, width: int, heads: int, mlp_ratio: float = 4.0) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=NORM_EPS)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=NORM_EPS)
        self.mlp = Mlp(width, int(width * mlp_ratio))
        self.activation_checkpointing = False

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, D) to (B, N, D)."""
        if self.activation_checkpointing and torch.is_grad_enabled():
            # no randomness inside a block, so there is no generator state to keep
            out: Tensor = checkpoint(self._forward, x, use_reentrant=False, preserve_rng_state=False)
            return out
        return self._forward(x)

    def _forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


def init_transformer(module: nn.Module, blocks: nn.ModuleList, init: Init = "fixed") -> None:
    """Truncated-normal weights, zero biases; each block's two output maps shrink with depth (as in BEiT and I-JEPA).

    "fixed": standard deviation 0.02 everywhere, as in the official code, where every map has 768 inputs or more.
    "fan_in": 0.02 * sqrt(768 / inputs), the same at ViT-B's width and in step with it for narrow models and small
    patches. With 0.02 a patch of 5 x 5 pixels is drowned by its position, and blocks of width 192 hardly act.
    """
    for part in module.modules():
        if isinstance(part, nn.Linear | nn.Conv2d):
            inputs = part.weight[0].numel()
            nn.init.trunc_normal_(part.weight, std=_STD if init == "fixed" else _STD * (768 / inputs) ** 0.5)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
        elif isinstance(part, nn.LayerNorm):
            nn.init.ones_(part.weight)
            nn.init.zeros_(part.bias)
    with torch.no_grad():
        for depth, block in enumerate(blocks, start=1):
            assert isinstance(block, Block)
            block.attn.proj.weight.div_((2.0 * depth) ** 0.5)
            block.mlp.fc2.weight.div_((2.0 * depth) ** 0.5)
