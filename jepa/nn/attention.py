"""Transformer block: pre-norm attention and MLP.

Blocks take one batch of equally long sequences (B, N, D), or several such batches of different lengths packed into
rows (S, D), as the masks of V-JEPA give them: everything but attention then runs on all rows at once, without padding.

Shapes: B batch, N tokens, S packed rows, D width, h heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from jepa.nn import products
from jepa.nn.rope import Rotary, turned

Init = Literal["fixed", "fan_in"]
_STD = 0.02
NORM_EPS = 1e-6
Parts = list[tuple[int, int]]  # (B, N) of each batch in a packed tensor: its rows are the tokens of each in turn


def parts_of(batches: Sequence[Tensor]) -> Parts:
    """How tensors (B, N_i, ...) or index sets (B, N_i) are packed."""
    return [(batch.shape[0], batch.shape[1]) for batch in batches]


def unpack(rows: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """Rows (S, D) to views (B, N_i, D), shaped like these tensors or index sets."""
    parts = parts_of(like)
    pieces = torch.split(rows, [batch * tokens for batch, tokens in parts])
    return [piece.view(*part, -1) for piece, part in zip(pieces, parts, strict=True)]


class Attention(nn.Module):
    """Multi-head self-attention with one matrix for queries, keys and values."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, rotary: Rotary | None = None, parts: Parts | None = None) -> Tensor:
        """(B, N, D) to (B, N, D), or packed (S, D) to (S, D).

        Args:
            rotary: tables of `jepa.nn.rope` for these tokens: each (1 or B, N, 1, 1, d), or (S, 1, 1, d) when packed.
            parts: of a packed x; tokens attend to those of their own sequence.
        """
        q, k, v = self._split(x, rotary)
        mixed = _attend(q, k, v) if parts is None else _attend_apart(q, k, v, parts)
        out: Tensor = self.proj(mixed)
        return out

    def weights(self, x: Tensor, rotary: Rotary | None = None, queries: Tensor | None = None) -> Tensor:
        """softmax(q k^T / sqrt(D / h)), which `forward` never keeps: (B, N, D) to (B, h, Q, N), each row sums to 1.

        Args:
            queries: places (Q,) of the tokens that look; None: all N.
        """
        q, k, _ = self._split(x, rotary)
        q = q if queries is None else q[:, queries]
        scores = q.transpose(1, 2) @ k.permute(0, 2, 3, 1) * q.shape[-1] ** -0.5
        return torch.softmax(scores, dim=-1)

    def _split(self, x: Tensor, rotary: Rotary | None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, each (..., h, D / h), the first two turned."""
        qkv = self.qkv(x).view(*x.shape[:-1], 3, self.heads, -1)
        # unbinding in place, not after a permutation: the backward then writes one (B, N, 3 D) gradient, uncopied
        q, k, v = qkv.unbind(-3) if rotary is None else turned(qkv, rotary)
        return q, k, v


def _attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Each (B, N, h, D / h), to (B, N, D)."""
    attend = products.attend if products.faster(q) else F.scaled_dot_product_attention
    mixed = attend(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
    return mixed.transpose(1, 2).flatten(2)


def _attend_apart(q: Tensor, k: Tensor, v: Tensor, parts: Parts) -> Tensor:
    """Each (S, h, D / h), to (S, D)."""
    rows = [batch * tokens for batch, tokens in parts]
    cut = zip(parts, *(torch.split(x, rows) for x in (q, k, v)), strict=True)
    mixed = [_attend(*(x.view(*shape, *x.shape[1:]) for x in part)).flatten(0, 1) for shape, *part in cut]
    return torch.cat(mixed) if len(mixed) > 1 else mixed[0]


class Mlp(nn.Module):
    """Two linear maps with an exact GELU between, each followed by dropout."""

    def __init__(self, width: int, hidden: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.dropout = dropout
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, D) to (B, N, D)."""
        out: Tensor = self.fc2(self._dropped(F.gelu(self.fc1(x))))
        return self._dropped(out)

    def _dropped(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout) if self.dropout and self.training else x


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, width: int, heads: int, mlp_ratio: float = 4.0) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=NORM_EPS)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=NORM_EPS)
        self.mlp = Mlp(width, int(width * mlp_ratio))
        self.activation_checkpointing = False

    def forward(self, x: Tensor, rotary: Rotary | None = None, parts: Parts | None = None) -> Tensor:
        """(B, N, D) to (B, N, D), or packed (S, D) to (S, D); arguments as for `Attention`."""
        if self.activation_checkpointing and torch.is_grad_enabled():
            # no randomness inside a block, so there is no generator state to keep
            out: Tensor = checkpoint(self._forward, x, rotary, parts, use_reentrant=False, preserve_rng_state=False)
            return out
        return self._forward(x, rotary, parts)

    def _forward(self, x: Tensor, rotary: Rotary | None, parts: Parts | None) -> Tensor:
        x = x + self.attn(self.norm1(x), rotary, parts)
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


def init_transformer(module: nn.Module, blocks: nn.ModuleList, init: Init = "fixed") -> None:
    """Truncated-normal weights, zero biases; each block's two output maps shrink with depth (as in BEiT and I-JEPA).

    "fixed": standard deviation 0.02 everywhere, as in the official code, where every map has 768 inputs or more.
    "fan_in": 0.02 * sqrt(768 / inputs), the same at ViT-B's width and in step with it for narrow models and small
    patches. With 0.02 a patch of 5 x 5 pixels is drowned by its position, and blocks of width 192 hardly act.
    """
    for part in module.modules():
        if isinstance(part, nn.Linear | nn.Conv2d | nn.Conv3d):
            inputs = part.weight[0].numel()
            nn.init.trunc_normal_(part.weight, std=_STD if init == "fixed" else _STD * (768 / inputs) ** 0.5)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
        elif isinstance(part, nn.LayerNorm) and part.elementwise_affine:
            nn.init.ones_(part.weight)
            nn.init.zeros_(part.bias)
    with torch.no_grad():
        for depth, block in enumerate(blocks, start=1):
            block.get_parameter("attn.proj.weight").div_((2.0 * depth) ** 0.5)
            block.get_parameter("mlp.fc2.weight").div_((2.0 * depth) ** 0.5)
