"""The plain PyTorch baseline of ``jepa bench step method=vjepa``: V-JEPA 2 as its public code goes about it.

Same model, same masks, same mathematics as `jepa.methods.vjepa`, and the habits of a straightforward loop: a 3D
convolution embeds the whole clip before most of it is dropped, every mask is a pass of its own, rotary angles are
computed in every attention of every call and for every head, turned features are cut apart and put together again, the
predictor sorts its tokens and back in a Python loop over the batch. It exists to be measured against, in the same
run; nothing else uses it.

Shapes: B batch, N tokens, K kept tokens, h heads, D width, P predictor width.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from jepa.bench.flops import Geometry


def _pick(tokens: Tensor, index: Tensor) -> Tensor:
    """Tokens (B, N, D) at index (B, K) -> (B, K, D)."""
    return torch.gather(tokens, 1, index.unsqueeze(-1).repeat(1, 1, tokens.shape[-1]))


def _turn(x: Tensor, place: Tensor) -> Tensor:
    """x (B, h, N, d) by places (B, h, N) or (N,), in the tiled layout of V-JEPA 2."""
    pairs = x.shape[-1] // 2
    omega = 1.0 / 10000 ** (torch.arange(pairs, dtype=x.dtype, device=x.device) / pairs)
    angle = place.unsqueeze(-1) * omega
    cosine, sine = torch.cat([angle.cos(), angle.cos()], dim=-1), torch.cat([angle.sin(), angle.sin()], dim=-1)
    first, second = x[..., 0::2], x[..., 1::2]
    return x * cosine + torch.stack([-second, first], dim=-1).flatten(-2) * sine


class _Block(nn.Module):
    def __init__(self, width: int, heads: int, hidden: int, grid: tuple[int, ...]) -> None:
        super().__init__()
        self.heads, self.grid, self.part = heads, grid, width // heads // 3 // 2 * 2
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor, index: Tensor | None = None) -> Tensor:
        b, n, d = x.shape
        q, k, v = self.qkv(self.norm1(x)).reshape(b, n, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        at = torch.arange(n, device=x.device) if index is None else index.unsqueeze(1).repeat(1, self.heads, 1)
        rows, columns = self.grid[1:]
        places = (at // (rows * columns), at // columns % rows, at % columns)
        turned = []
        for features in (q, k):
            cuts = [features[..., i * self.part : (i + 1) * self.part] for i in range(3)]
            pieces = [_turn(cut, place.to(x.dtype)) for cut, place in zip(cuts, places, strict=True)]
            turned.append(torch.cat([*pieces, features[..., 3 * self.part :]], dim=-1).to(v.dtype))
        mixed = F.scaled_dot_product_attention(turned[0], turned[1], v)
        x = x + self.proj(mixed.transpose(1, 2).reshape(b, n, d))
        hidden: Tensor = self.fc2(F.gelu(self.fc1(self.norm2(x))))
        return x + hidden


class _Encoder(nn.Module):
    def __init__(self, g: Geometry) -> None:
        super().__init__()
        time, height, width = g.patch
        self.embed = nn.Conv3d(3, g.width, (time, height, width), (time, height, width))
        self.blocks = nn.ModuleList(_Block(g.width, g.heads, g.hidden, g.grid) for _ in range(g.depth))
        self.norm = nn.LayerNorm(g.width, eps=1e-6)

    def forward(self, clips: Tensor, keep: Tensor | None = None) -> Tensor:
        x = self.embed(clips).flatten(2).transpose(1, 2)  # (B, N, D)
        if keep is not None:
            x = _pick(x, keep)
        for block in self.blocks:
            x = block(x, keep)
        out: Tensor = self.norm(x)
        return out


class _Predictor(nn.Module):
    def __init__(self, g: Geometry) -> None:
        super().__init__()
        self.enter, self.leave = nn.Linear(g.width, g.predictor_width), nn.Linear(g.predictor_width, g.width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, g.predictor_width))
        self.tokens = g.tokens
        self.blocks = nn.ModuleList(
            _Block(g.predictor_width, g.predictor_heads, g.predictor_hidden, g.grid) for _ in range(g.predictor_depth)
        )
        self.norm = nn.LayerNorm(g.predictor_width, eps=1e-6)

    def forward(self, context: Tensor, keep: Tensor, target: Tensor) -> Tensor:
        x = self.enter(context)
        asked = _pick(self.mask_token.repeat(len(x), self.tokens, 1), target)
        x, index = torch.cat([x, asked], dim=1), torch.cat([keep, target], dim=1)
        order = torch.argsort(index, dim=1)
        index = torch.stack([index[i, row] for i, row in enumerate(order)])
        x = torch.stack([x[i, row] for i, row in enumerate(order)])
        for block in self.blocks:
            x = block(x, index)
        x = self.norm(x)
        x = torch.stack([x[i, row] for i, row in enumerate(torch.argsort(order, dim=1))])
        out: Tensor = self.leave(x[:, keep.shape[1] :])
        return out


class PlainVJEPA:
    """Model, optimiser and EMA of the baseline. `step` trains on one batch and returns its loss (0-d)."""

    def __init__(self, geometry: Geometry, device: torch.device, dtype: torch.dtype) -> None:
        self.device, self.dtype = device, dtype
        self.encoder = _Encoder(geometry).to(device)
        self.predictor = _Predictor(geometry).to(device)
        self.target = copy.deepcopy(self.encoder)
        trained = [p for m in (self.encoder, self.predictor) for p in m.parameters()]
        self.optimiser = torch.optim.AdamW(trained, lr=1e-4, weight_decay=0.04)

    def step(self, clips: Tensor, context: list[Tensor], targets: list[Tensor]) -> Tensor:
        """Clips: normalised floats (B, 3, T, H, W); context i belongs to target i: lists of int64 (B, K)."""
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            with torch.no_grad():
                teacher = self.target(clips)
                teacher = F.layer_norm(teacher, teacher.shape[-1:])
            visible = [self.encoder(clips, keep) for keep in context]
            losses = [
                F.l1_loss(self.predictor(tokens, keep, target), _pick(teacher, target))
                for tokens, keep, target in zip(visible, context, targets, strict=True)
            ]
            loss = torch.stack(losses).mean()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimiser.step()
        self.optimiser.zero_grad()
        with torch.no_grad():
            slow: list[Tensor] = list(self.target.parameters())
            fast: list[Tensor] = list(self.encoder.parameters())
            torch._foreach_mul_(slow, 0.999)
            torch._foreach_add_(slow, fast, alpha=0.001)
        return loss.detach()
