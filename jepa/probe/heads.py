"""G attentive probes of one shape as one computation, and how much of it fits into memory.

The formulas are those of `jepa.nn.pooling.AttentiveClassifier`, or of `AttentiveClassifiers` for a probe with several
queries; tests hold them together. What the heads share is
done once, and the cross-attention is done in an order that never makes the keys and values of every token:

- The queries do not depend on the input. So a head's logit of a token is one dot product of the normalised token with
  a vector u = scale * (Wk^T q), and its values are taken after averaging, Wv (sum of weight * token): 2 D h products a
  token where keys and values take 2 D^2, D / h times less. A key's bias adds the same to all logits of a query, so it
  drops out.
- Normalisation without scale and shift is the same for all heads; scale and shift go into the next weights.
- Everything else is one batched product over heads. `torch.func.vmap` over the module was 8 to 40 times slower at depth
  1 and 1.5 times at depth 4 on a CPU, for it has no rule for attention there.

Shapes: B batch, N tokens, D width, h attention heads of width d = D / h, g probes, Q queries of a
probe, C outputs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from jepa import keyed
from jepa.nn.pooling import PROBE_NORM_EPS, AttentiveClassifier, AttentiveClassifiers
from jepa.probe.fit import Params, Room


@dataclass(frozen=True)
class HeadShape:
    """Size of one probe."""

    width: int  # D
    heads: int  # of every attention
    depth: int  # 1: cross-attention only
    outputs: int | tuple[int, ...]  # classes, or targets; several: of each query, side by side
    mlp_ratio: float = 4.0

    @property
    def queries(self) -> int:
        """Q."""
        return 1 if isinstance(self.outputs, int) else len(self.outputs)

    def module(self, seed: int) -> AttentiveClassifier | AttentiveClassifiers:
        """One probe with weights drawn from `seed`; torch's generator is left as it was.

        Raises:
            ConfigError: heads that do not divide the width, or a depth below 1.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(keyed.words("probe.attentive", seed, 0, 1)[0, 0]))
            if isinstance(self.outputs, int):
                return AttentiveClassifier(self.width, self.heads, self.outputs, self.depth, self.mlp_ratio)
            return AttentiveClassifiers(self.width, self.heads, self.outputs, self.depth, self.mlp_ratio)

    def room(self, tokens: int, gib: float, probes: int, size: int, device: torch.device) -> Room:
        """How many samples and probes to work on at once so that training keeps about `gib` GiB for backward.

        Args:
            size: bytes of one number.
        """
        d, hidden = self.width, self.width * self.mlp_ratio
        scores = 3 * tokens * self.heads * self.queries  # logits, weights, and the gradient of one of them
        # normed, qkv, mixed, sum, normed, hidden twice, sum; the sum of the next block starts from the last
        block = tokens * (7 * d + 2 * hidden)
        each = (self.depth - 1) * block + scores + self.queries * ((2 * self.heads + 8) * d + 2 * hidden)
        shared = 3 * tokens * d
        if device.type == "cpu" and self.depth > 1:  # one at a time: what it works on then stays in the cache
            probes = 1
        return Room.within(gib * 2**30, shared * size, each * size, probes)


def forward(shape: HeadShape, p: Params, x: Tensor) -> Tensor:
    """Outputs (g, B, C) of g probes on tokens (B, N, D)."""
    normed = F.layer_norm(x, x.shape[-1:], eps=PROBE_NORM_EPS)
    looked_for, values = _reading(shape, p)
    if shape.depth == 1:
        pooled = _read_shared(looked_for, normed)
    else:
        z = _first_block(shape, p, x, normed)
        for i in range(1, shape.depth - 1):
            z = _block(shape, p, f"pooler.blocks.{i}.", z)
        pooled = _read_own(looked_for, z)
    return _finish(shape, p, pooled, values)


def _linear(x: Tensor, p: Params, name: str) -> Tensor:
    """(g, M, in) to (g, M, out)."""
    if len(x) == 1:
        return F.linear(x, p[f"{name}.weight"][0], p[f"{name}.bias"][0])
    return torch.baddbmm(p[f"{name}.bias"].unsqueeze(1), x, p[f"{name}.weight"].transpose(1, 2))


def _norm(x: Tensor, p: Params, name: str) -> Tensor:
    """(g, M, D), every probe with its own scale and shift."""
    if len(x) == 1:
        return F.layer_norm(x, x.shape[-1:], p[f"{name}.weight"][0], p[f"{name}.bias"][0], PROBE_NORM_EPS)
    normed = F.layer_norm(x, x.shape[-1:], eps=PROBE_NORM_EPS)
    return torch.addcmul(p[f"{name}.bias"].unsqueeze(1), normed, p[f"{name}.weight"].unsqueeze(1))


# --- self-attention blocks ----------------------------------------------------------------------------------------


def _first_block(shape: HeadShape, p: Params, x: Tensor, normed: Tensor) -> Tensor:
    """From tokens that all probes share, (B, N, D), to each probe's own, (g, B, N, D)."""
    at = "pooler.blocks.0."
    weight = p[f"{at}attn.qkv.weight"]  # (g, 3 D, D)
    count, (batch, tokens, width) = len(weight), x.shape
    folded = weight * p[f"{at}norm1.weight"].unsqueeze(1)
    shift = torch.baddbmm(p[f"{at}attn.qkv.bias"].unsqueeze(2), weight, p[f"{at}norm1.bias"].unsqueeze(2))
    flat = normed.reshape(1, batch * tokens, width).expand(count, -1, -1)
    qkv = torch.baddbmm(shift.transpose(1, 2), flat, folded.transpose(1, 2))
    return _after_qkv(shape, p, at, x.unsqueeze(0), qkv)


def _block(shape: HeadShape, p: Params, at: str, z: Tensor) -> Tensor:
    """(g, B, N, D) to the same."""
    qkv = _linear(_norm(z.flatten(1, 2), p, f"{at}norm1"), p, f"{at}attn.qkv")
    return _after_qkv(shape, p, at, z, qkv)


def _after_qkv(shape: HeadShape, p: Params, at: str, z: Tensor, qkv: Tensor) -> Tensor:
    count, (batch, tokens, width) = len(qkv), z.shape[1:]
    parts = qkv.view(count * batch, tokens, 3, shape.heads, width // shape.heads).unbind(2)
    q, k, v = (part.transpose(1, 2) for part in parts)
    mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(count, batch * tokens, width)
    z = z.flatten(1, 2) + _linear(mixed, p, f"{at}attn.proj")
    hidden = F.gelu(_linear(_norm(z, p, f"{at}norm2"), p, f"{at}mlp.fc1"))
    return (z + _linear(hidden, p, f"{at}mlp.fc2")).view(count, batch, tokens, width)


# --- cross-attention ----------------------------------------------------------------------------------------------


_CROSS = "pooler.cross_attention_block."


def _reading(shape: HeadShape, p: Params) -> tuple[Tensor, Tensor]:
    """What the queries look for: u (g, Q h, D) on normalised tokens; and the values' weights (g, h, d, D)."""
    query = p["pooler.query_tokens"].flatten(1, 2)  # (g, Q, D)
    count, queries, width = query.shape
    q = _linear(query, p, f"{_CROSS}xattn.q").view(count, queries, shape.heads, 1, -1)
    kv = p[f"{_CROSS}xattn.kv.weight"].view(count, 2, shape.heads, -1, width)
    looked_for = (q @ kv[:, None, 0]).reshape(count, queries * shape.heads, width) * (width // shape.heads) ** -0.5
    return looked_for * p[f"{_CROSS}norm1.weight"].unsqueeze(1), kv[:, 1]


def _read_shared(looked_for: Tensor, normed: Tensor) -> Tensor:
    """Averages (g, h, B, D) of shared normalised tokens (B, N, D)."""
    count, heads, width = looked_for.shape
    scores = F.linear(normed, looked_for.reshape(count * heads, width)).transpose(1, 2)  # (B, g h, N)
    return (scores.softmax(dim=-1) @ normed).view(-1, count, heads, width).permute(1, 2, 0, 3)


def _read_own(looked_for: Tensor, z: Tensor) -> Tensor:
    """The same from each probe's own tokens (g, B, N, D)."""
    count, batch, tokens, width = z.shape
    normed = F.layer_norm(z, (width,), eps=PROBE_NORM_EPS)
    scores = torch.bmm(normed.view(count, batch * tokens, width), looked_for.transpose(1, 2))
    weights = scores.view(count * batch, tokens, -1).transpose(1, 2).softmax(dim=-1)  # (g B, h, N)
    pooled = torch.bmm(weights, normed.view(count * batch, tokens, width))
    return pooled.view(count, batch, -1, width).transpose(1, 2)


def _finish(shape: HeadShape, p: Params, pooled: Tensor, values: Tensor) -> Tensor:
    """Averaged tokens (g, Q h, B, D) and the values' weights (g, h, d, D) to outputs (g, B, C)."""
    count, _, batch, width = pooled.shape
    scale, shift = (p[f"{_CROSS}norm1.{n}"].view(count, 1, 1, 1, width) for n in ("weight", "bias"))
    pooled = pooled.unflatten(1, (shape.queries, shape.heads))  # type: ignore[no-untyped-call]
    read = torch.addcmul(shift, pooled, scale) @ values[:, None].transpose(3, 4)  # (g, Q, h, B, d): weights sum to 1
    bias = p[f"{_CROSS}xattn.kv.bias"].view(count, 2, 1, width)[:, 1]
    query = p["pooler.query_tokens"].flatten(1, 2).unsqueeze(2)  # (g, Q, 1, D)
    z = query + read.transpose(2, 3).reshape(count, shape.queries, batch, width) + bias.unsqueeze(1)
    z = z.flatten(1, 2)
    hidden = F.gelu(_linear(_norm(z, p, f"{_CROSS}norm2"), p, f"{_CROSS}mlp.fc1"))
    z = z + _linear(hidden, p, f"{_CROSS}mlp.fc2")
    if isinstance(shape.outputs, int):
        return _linear(z, p, "linear")
    each = z.unflatten(1, (shape.queries, batch)).unbind(1)  # type: ignore[no-untyped-call]
    return torch.cat([_linear(x, p, f"linears.{i}") for i, x in enumerate(each)], dim=2)


def heads_for(width: int) -> int:
    """Attention heads of width 64 or a little more: the most that divide `width`, as ViTs have."""
    return int(max(n for n in range(1, max(1, width // 64) + 1) if width % n == 0))


def parameters(module: nn.Module) -> dict[str, Tensor]:
    """Parameters by name."""
    return {name: value.detach() for name, value in module.named_parameters()}
