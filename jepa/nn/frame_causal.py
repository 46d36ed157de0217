"""A transformer over the frames of an episode: tokens look at their own frame and at earlier ones, never at later ones.

What has been computed of earlier frames (their keys and values) can be handed back in as `Past`, so that a roll-out
computes each frame once. That is exact as long as the positions of those frames stay the same.

Shapes: B batch, T frames, N tokens of a frame, D width, h heads, d width of a head, P frames in the past, C width of
the condition.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from jepa.nn.attention import Mlp
from jepa.nn.rope import Rotary, turned

KeyValue = tuple[Tensor, Tensor]  # each (B, h, P * N, d)
_FEW = 32  # tokens of a frame up to which one masked attention is faster than one attention for each frame


@dataclass(frozen=True)
class Past:
    """Keys and values of frames that were computed before, block by block."""

    blocks: tuple[KeyValue, ...]
    frames: int  # P

    def repeat(self, times: int) -> Past:
        """For a batch in which every element stands so many times in a row: B to B * times."""
        return Past(tuple((_repeat(k, times), _repeat(v, times)) for k, v in self.blocks), self.frames)

    def first(self, frames: int) -> Past | None:
        """Of the first so many frames alone, or of all where there are fewer; None for none."""
        frames = min(frames, self.frames)
        if not frames:
            return None
        ends = [k.shape[2] * frames // self.frames for k, _ in self.blocks]
        kept = ((k[:, :, :end], v[:, :, :end]) for (k, v), end in zip(self.blocks, ends, strict=True))
        return Past(tuple(kept), frames)


def _repeat(x: Tensor, times: int) -> Tensor:
    return x.unsqueeze(1).expand(-1, times, *x.shape[1:]).flatten(0, 1)


class FrameAttention(nn.Module):
    """Multi-head attention in which frames see themselves and earlier frames."""

    def __init__(self, width: int, heads: int, head_width: int, bias: bool = True, dropout: float = 0.0) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.qkv = nn.Linear(width, 3 * heads * head_width, bias=bias)
        self.proj = nn.Linear(heads * head_width, width)

    def forward(self, x: Tensor, rotary: Rotary | None, past: KeyValue | None, last: bool) -> tuple[Tensor, KeyValue]:
        """(B, T, N, D) to (B, T, N, D), or with `last` to the newest frame's (B, 1, N, D); and keys and values."""
        batch, frames, tokens, _ = x.shape
        qkv = self.qkv(x).view(batch, frames, tokens, 3, self.heads, -1)
        q, k, v = qkv.unbind(-3) if rotary is None else turned(qkv, rotary)
        q, k, v = q[:, -1:] if last else q, k.flatten(1, 2).transpose(1, 2), v.flatten(1, 2).transpose(1, 2)
        if past is not None:
            k, v = torch.cat([past[0], k], dim=2), torch.cat([past[1], v], dim=2)
        elif not torch.is_grad_enabled():
            k, v = k.contiguous(), v.contiguous()
        mixed = self._attend(q, k, v)  # (B, T or 1, N, h, d)
        return self.proj(mixed.flatten(-2)), (k, v)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Queries (B, T, N, h, d) of the newest frames; keys and values (B, h, (P + T) * N, d)."""
        frames, tokens = q.shape[1:3]
        if torch.compiler.is_exporting() or (frames > 1 and tokens <= _FEW):  # exported: for any number of frames
            ends = torch.arange(k.shape[2], device=q.device) // tokens
            mixed = self._sdpa(q.flatten(1, 2), k, v, ends[-frames * tokens :, None] >= ends)
            return mixed.unflatten(1, (frames, tokens))  # type: ignore[no-untyped-call, no-any-return]
        # no mask: the fast kernels take none, and nothing is computed to be thrown away
        ends_at = [k.shape[2] - (frames - 1 - frame) * tokens for frame in range(frames)]
        each = [self._sdpa(q[:, i], k[:, :, :end], v[:, :, :end], None) for i, end in enumerate(ends_at)]
        return torch.stack(each, dim=1) if frames > 1 else each[0].unsqueeze(1)

    def _sdpa(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        dropout = self.dropout if self.training else 0.0
        return F.scaled_dot_product_attention(q.transpose(1, 2), k, v, attn_mask=mask, dropout_p=dropout).transpose(
            1, 2
        )


class FrameBlock(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)).

    With a condition (adaptive layer norm, arXiv 2212.09748): both branches are shifted and scaled before, and gated
    after, by a linear map of the frame's condition that starts at zero, so that a new block lets everything through.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        head_width: int,
        hidden: int,
        *,
        eps: float,
        qkv_bias: bool = True,
        dropout: float = 0.0,
        condition: int = 0,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=eps, elementwise_affine=not condition)
        self.attn = FrameAttention(width, heads, head_width, qkv_bias, dropout)
        self.norm2 = nn.LayerNorm(width, eps=eps, elementwise_affine=not condition)
        self.mlp = Mlp(width, hidden, dropout)
        self.dropout = dropout
        self.modulation = nn.Linear(condition, 6 * width) if condition else None
        self.activation_checkpointing = False

    def forward(
        self,
        x: Tensor,
        rotary: Rotary | None = None,
        condition: Tensor | None = None,
        past: KeyValue | None = None,
        last: bool = False,
    ) -> tuple[Tensor, KeyValue]:
        """Tokens (B, T, N, D) to tokens, and the keys and values of these frames and the past.

        Args:
            rotary: tables for these frames, each (T, N, 1, 1, d).
            condition: (B, T, C).
            past: of the frames before.
            last: give only the newest frame's tokens (B, 1, N, D).
        """
        if self.activation_checkpointing and torch.is_grad_enabled():
            out: tuple[Tensor, KeyValue] = checkpoint(
                self._forward, x, rotary, condition, past, last, use_reentrant=False,
                preserve_rng_state=self.dropout > 0,
            )  # fmt: skip
            return out
        return self._forward(x, rotary, condition, past, last)

    def _forward(
        self, x: Tensor, rotary: Rotary | None, condition: Tensor | None, past: KeyValue | None, last: bool
    ) -> tuple[Tensor, KeyValue]:
        if self.modulation is None:
            mixed, keys = self.attn(self.norm1(x), rotary, past, last)
            x = (x[:, -1:] if last else x) + F.dropout(mixed, self.dropout, self.training)
            return x + self.mlp(self.norm2(x)), keys
        assert condition is not None, "a block with adaptive norms needs a condition"
        changes = self.modulation(F.silu(condition)).unsqueeze(2).chunk(6, dim=-1)  # each (B, T, 1, D)
        mixed, keys = self.attn(self.norm1(x) * (1 + changes[1]) + changes[0], rotary, past, last)
        if last:
            x, changes = x[:, -1:], tuple(change[:, -1:] for change in changes)
        x = x + changes[2] * F.dropout(mixed, self.dropout, self.training)
        return x + changes[5] * self.mlp(self.norm2(x) * (1 + changes[4]) + changes[3]), keys


def through(
    blocks: nn.ModuleList,
    x: Tensor,
    rotary: Rotary | None = None,
    condition: Tensor | None = None,
    past: Past | None = None,
    last: bool = False,
) -> tuple[Tensor, Past]:
    """All blocks one after the other; arguments as for `FrameBlock`."""
    frames, found = x.shape[1] + (past.frames if past is not None else 0), []
    for number, block in enumerate(blocks):
        final = last and number == len(blocks) - 1
        x, keys = block(x, rotary, condition, past.blocks[number] if past is not None else None, final)
        found.append(keys)
    return x, Past(tuple(found), frames)


__all__ = ["FrameAttention", "FrameBlock", "Past", "through"]
