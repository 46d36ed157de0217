"""Attention as batched products, for CPUs that multiply in bfloat16 by AVX512-BF16 but have no AMX tiles.

There torch's fused attention is slow, and the same spelt out 2 to 6 times as fast, forward and backward together
(docs/performance.md). Scores are rounded to bfloat16 before the softmax, as in the official I-JEPA code under autocast;
the fused kernel keeps them in float32.

Shapes: G sequences times heads, Q queries, N keys, d features of a head.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

_HERE = torch.cpu._is_avx512_bf16_supported() and not torch.cpu._is_amx_tile_supported()
_AT_ONCE = 2**20  # scores that a thread works on at once: what they take stays in the caches
_KEPT = 2**25  # scores of a call up to which their softmax is kept for the backward; beyond it is computed again


def faster(q: Tensor) -> bool:
    """Whether `attend` is the faster way for such queries, on this machine."""
    return _HERE and q.dtype == torch.bfloat16 and q.device.type == "cpu" and not torch.compiler.is_exporting()


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(d)) v: (B, h, Q, d), (B, h, N, d), (B, h, N, d) to (B, h, Q, d)."""
    rows: Tensor = _Attend.apply(*(x.flatten(0, 1) for x in (q, k, v)))
    return rows.unflatten(0, q.shape[:2])  # type: ignore[no-untyped-call, no-any-return]


class _Attend(torch.autograd.Function):
    """Part by part of G, forward and backward."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        kept, out = [], torch.empty_like(q)
        keep = any(ctx.needs_input_grad) and len(q) * q.shape[1] * k.shape[1] <= _KEPT
        for part in _parts(q, k):
            weights = _weights(q[part], k[part])
            torch.bmm(weights, v[part], out=out[part])
            if keep:
                kept.append(weights)
        ctx.save_for_backward(q, k, v, *kept)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v, *kept = ctx.saved_tensors
        scale = q.shape[-1] ** -0.5
        d_q, d_k, d_v = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
        for i, part in enumerate(_parts(q, k)):
            weights, g = kept[i] if kept else _weights(q[part], k[part]), grad[part]
            torch.bmm(weights.transpose(1, 2), g, out=d_v[part])
            d_weights = torch.bmm(g, v[part].transpose(1, 2))
            d_scores = torch._softmax_backward_data(d_weights, weights, -1, weights.dtype)
            _scaled(scale, d_scores, k[part], d_q[part])
            _scaled(scale, d_scores.transpose(1, 2), q[part], d_k[part])
        return d_q, d_k, d_v


def _parts(q: Tensor, k: Tensor) -> list[slice]:
    if torch.compiler.is_compiling():  # a loop would be compiled anew for every number of tokens
        return [slice(None)]
    step = torch.get_num_threads() * max(1, _AT_ONCE // max(1, q.shape[1] * k.shape[1]))  # as many for each thread
    return [slice(start, start + step) for start in range(0, len(q), step)]


def _weights(q: Tensor, k: Tensor) -> Tensor:
    """(G, Q, N), each row sums to 1."""
    scores = q.new_empty(len(q), q.shape[1], k.shape[1])
    return torch.softmax(_scaled(q.shape[-1] ** -0.5, q, k.transpose(1, 2), scores), dim=-1)


def _scaled(scale: float, a: Tensor, b: Tensor, out: Tensor) -> Tensor:
    """scale a b, in one pass over `out`."""
    return torch.baddbmm(out, a, b, beta=0, alpha=scale, out=out)
