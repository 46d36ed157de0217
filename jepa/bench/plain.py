"""The plain PyTorch baseline of ``jepa bench step``: I-JEPA as one would first write it.

Same model, same masks, same mathematics as `jepa.methods.ijepa`, and none of its care for speed: a convolution
embeds the patches of the whole image before most are dropped, attention is spelt out as two products and a softmax,
one predictor input is assembled mask by mask, the optimiser and the EMA walk over the parameters one at a time.
Like any sensible first version it does spare the target encoder autograd. It exists to be measured against, in the
same run; nothing else uses it.

Shapes: B batch, N tokens, K kept tokens, D width, P predictor width.
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


class _Block(nn.Module):
    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        b, n, d = x.shape
        q, k, v = self.qkv(self.norm1(x)).reshape(b, n, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        weights = ((q @ k.transpose(-2, -1)) * (d // self.heads) ** -0.5).softmax(dim=-1)
        x = x + self.proj((weights @ v).transpose(1, 2).reshape(b, n, d))
        hidden: Tensor = self.fc2(F.gelu(self.fc1(self.norm2(x))))
        return x + hidden


class _Encoder(nn.Module):
    position: Tensor

    def __init__(self, g: Geometry) -> None:
        super().__init__()
        height, width = g.patch
        self.embed = nn.Conv2d(3, g.width, (height, width), (height, width))
        self.register_buffer("position", torch.randn(1, g.tokens, g.width) * 0.02)
        self.blocks = nn.ModuleList(_Block(g.width, g.heads, g.hidden) for _ in range(g.depth))
        self.norm = nn.LayerNorm(g.width, eps=1e-6)

    def forward(self, images: Tensor, keep: Tensor | None = None) -> Tensor:
        x = self.embed(images).flatten(2).transpose(1, 2) + self.position  # (B, N, D)
        if keep is not None:
            x = _pick(x, keep)
        for block in self.blocks:
            x = block(x)
        out: Tensor = self.norm(x)
        return out


class _Predictor(nn.Module):
    position: Tensor

    def __init__(self, g: Geometry) -> None:
        super().__init__()
        self.enter, self.leave = nn.Linear(g.width, g.predictor_width), nn.Linear(g.predictor_width, g.width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, g.predictor_width))
        self.register_buffer("position", torch.randn(1, g.tokens, g.predictor_width) * 0.02)
        self.blocks = nn.ModuleList(
            _Block(g.predictor_width, g.predictor_heads, g.predictor_hidden) for _ in range(g.predictor_depth)
        )
        self.norm = nn.LayerNorm(g.predictor_width, eps=1e-6)

    def forward(self, context: Tensor, keep: Tensor, targets: list[Tensor]) -> Tensor:
        position = self.position.repeat(context.shape[0], 1, 1)
        x = self.enter(context) + _pick(position, keep)
        asked = torch.cat([self.mask_token + _pick(position, target) for target in targets])
        x = torch.cat([x.repeat(len(targets), 1, 1), asked], dim=1)  # (T·B, K + Kt, P)
        for block in self.blocks:
            x = block(x)
        out: Tensor = self.leave(self.norm(x)[:, context.shape[1] :])
        return out


class PlainIJEPA:
    """Model, optimiser and EMA of the baseline. `step` trains on one batch and returns its loss (0-d)."""

    def __init__(self, geometry: Geometry, device: torch.device, dtype: torch.dtype) -> None:
        self.device, self.dtype = device, dtype
        self.encoder = _Encoder(geometry).to(device)
        self.predictor = _Predictor(geometry).to(device)
        self.target = copy.deepcopy(self.encoder)
        trained = [p for m in (self.encoder, self.predictor) for p in m.parameters()]
        self.optimiser = torch.optim.AdamW(trained, lr=1e-4, weight_decay=0.05, foreach=False, fused=False)

    def step(self, images: Tensor, context: list[Tensor], targets: list[Tensor]) -> Tensor:
        """Images: normalised floats (B, 3, H, W); context and targets: lists of int64 (B, K)."""
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            with torch.no_grad():
                teacher = self.target(images)
                teacher = F.layer_norm(teacher, teacher.shape[-1:])
                wanted = torch.cat([_pick(teacher, target) for target in targets])
            losses = [
                F.smooth_l1_loss(self.predictor(self.encoder(images, keep), keep, targets), wanted) for keep in context
            ]
            loss = torch.stack(losses).mean()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimiser.step()
        self.optimiser.zero_grad()
        with torch.no_grad():
            for slow, fast in zip(self.target.parameters(), self.encoder.parameters(), strict=True):
                slow.mul_(0.996).add_(0.004 * fast)
        return loss.detach()
