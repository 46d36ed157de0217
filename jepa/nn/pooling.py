"""Attentive pooling: learned queries read a set of tokens by cross-attention; with a linear map behind, a classifier.

The probe of V-JEPA (Bardes et al., arXiv 2404.08471, section 4) and V-JEPA 2 (Assran et al., arXiv 2506.09985): the
encoder stays frozen, this small transformer on its tokens is trained. Parameter names are the official ones, so
published probes load. Its layer norms have an epsilon of 1e-5 where the encoder's have 1e-6.

Shapes: B batch, N tokens, Q queries, D width, h heads, C classes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from jepa.errors import ConfigError
from jepa.nn.attention import Block, Mlp

PROBE_NORM_EPS = 1e-5


class CrossAttention(nn.Module):
    """Queries attend to tokens. The result is not projected again: V-JEPA's probe has no such map."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(width, 2 * width)

    def forward(self, queries: Tensor, x: Tensor) -> Tensor:
        """Queries (B, Q, D) over tokens (B, N, D) to (B, Q, D)."""
        batch, count, width = queries.shape
        q = self.q(queries).view(batch, count, self.heads, width // self.heads).transpose(1, 2)
        kv = self.kv(x).view(batch, x.shape[1], 2, self.heads, width // self.heads)
        k, v = (part.transpose(1, 2) for part in kv.unbind(2))  # each (B, h, N, D / h)
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, count, width)


class CrossAttentionBlock(nn.Module):
    """q + attention(q, norm(x)), then q + mlp(norm(q))."""

    def __init__(self, width: int, heads: int, mlp_ratio: float = 4.0) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=PROBE_NORM_EPS)
        self.xattn = CrossAttention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=PROBE_NORM_EPS)
        self.mlp = Mlp(width, int(width * mlp_ratio))

    def forward(self, queries: Tensor, x: Tensor) -> Tensor:
        """Queries (B, Q, D) over tokens (B, N, D) to (B, Q, D)."""
        queries = queries + self.xattn(queries, self.norm1(x))
        out: Tensor = queries + self.mlp(self.norm2(queries))
        return out


class AttentivePooler(nn.Module):
    """Tokens to one vector for each query.

    Args:
        width: D.
        heads: of every attention.
        depth: 1 is a cross-attention block alone; deeper ones have depth - 1 self-attention blocks before it.
        queries: Q.
        complete_block: False makes the last block bare cross-attention, without norm, residual or MLP.

    Raises:
        ConfigError: heads that do not divide the width, or a depth or number of queries below 1.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        depth: int = 1,
        queries: int = 1,
        mlp_ratio: float = 4.0,
        complete_block: bool = True,
    ) -> None:
        super().__init__()
        if heads < 1 or width % heads:
            fitting = [n for n in range(1, width + 1) if width % n == 0 and width // n >= 8] or [1]
            raise ConfigError(f"heads={heads} does not divide the width {width}; these do: {fitting}")
        if depth < 1 or queries < 1:
            raise ConfigError(f"depth={depth}, queries={queries}: allowed: 1 or more")
        self.query_tokens = nn.Parameter(torch.zeros(1, queries, width))
        self.cross_attention_block = (
            CrossAttentionBlock(width, heads, mlp_ratio) if complete_block else CrossAttention(width, heads)
        )
        # named only where there are any: the official state dict of depth 1 has no `blocks`
        self.blocks = nn.ModuleList(Block(width, heads, mlp_ratio) for _ in range(depth - 1)) if depth > 1 else None
        for part in self.modules():
            if isinstance(part, nn.LayerNorm):
                part.eps = PROBE_NORM_EPS
        self._start()

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, D) to (B, Q, D)."""
        for block in self.blocks or ():
            x = block(x)
        out: Tensor = self.cross_attention_block(self.query_tokens.expand(len(x), -1, -1), x)
        return out

    def _start(self) -> None:
        """Truncated-normal weights of std 0.02, zero biases; output maps shrink with depth, the last block as the one
        before it."""
        nn.init.trunc_normal_(self.query_tokens, std=0.02)
        for part in self.modules():
            if isinstance(part, nn.Linear):
                nn.init.trunc_normal_(part.weight, std=0.02)
                nn.init.zeros_(part.bias)
        with torch.no_grad():
            level = 1
            for level, block in enumerate(self.blocks or (), start=1):
                assert isinstance(block, Block)
                block.attn.proj.weight.div_((2.0 * level) ** 0.5)
                block.mlp.fc2.weight.div_((2.0 * level) ** 0.5)
            if isinstance(self.cross_attention_block, CrossAttentionBlock):
                self.cross_attention_block.mlp.fc2.weight.div_((2.0 * level) ** 0.5)


class AttentiveClassifier(nn.Module):
    """An attentive pooler with one query and a linear map to classes (or to targets)."""

    def __init__(
        self,
        width: int,
        heads: int,
        classes: int,
        depth: int = 1,
        mlp_ratio: float = 4.0,
        complete_block: bool = True,
    ) -> None:
        """Raises ConfigError as `AttentivePooler`."""
        super().__init__()
        self.pooler = AttentivePooler(width, heads, depth, 1, mlp_ratio, complete_block)
        self.linear = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, D) to (B, C)."""
        out: Tensor = self.linear(self.pooler(x).squeeze(1))
        return out


class AttentiveClassifiers(nn.Module):
    """An attentive pooler with a query for each of several questions (verb, noun, action), and a linear map for each.

    V-JEPA 2's probe for action anticipation (arXiv 2506.09985, section on EPIC-KITCHENS-100).
    """

    def __init__(
        self, width: int, heads: int, classes: tuple[int, ...], depth: int = 1, mlp_ratio: float = 4.0
    ) -> None:
        """`classes`: of each question. Raises ConfigError as `AttentivePooler`."""
        super().__init__()
        self.pooler = AttentivePooler(width, heads, depth, len(classes), mlp_ratio)
        self.linears = nn.ModuleList(nn.Linear(width, count) for count in classes)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, D) to the logits of all questions side by side, (B, sum of C)."""
        answers = self.pooler(x).unbind(1)
        return torch.cat([linear(one) for linear, one in zip(self.linears, answers, strict=True)], dim=1)
