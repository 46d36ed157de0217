"""One vector for each frame: a ViT, pooled, and a projector.

Shapes: B batch, T frames, H W image, D latent width.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from jepa.errors import ConfigError
from jepa.nn.ranks import BatchNorm
from jepa.nn.vit import EncoderConfig, VisionTransformer

Pool = Literal["cls", "mean"]
Norm = Literal["batch", "layer"]


class Projector(nn.Module):
    """Linear, norm, GELU, linear. After a ViT's layer norm nothing could be Gaussian; after this everything can."""

    def __init__(self, inputs: int, hidden: int, outputs: int, norm: Norm = "batch") -> None:
        super().__init__()
        self.fc1 = nn.Linear(inputs, hidden)
        self.norm = BatchNorm(hidden) if norm == "batch" else nn.LayerNorm(hidden)
        self.fc2 = nn.Linear(hidden, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """(..., inputs) to (..., outputs)."""
        out: Tensor = self.fc2(F.gelu(self.norm(self.fc1(x))))
        return out


class FrameEncoder(nn.Module):
    """Images or the frames of clips, each by itself, to one latent per frame."""

    def __init__(
        self, config: EncoderConfig, image_size: tuple[int, int], pool: Pool, latent: int, hidden: int, norm: Norm
    ) -> None:
        """`latent`: D; `hidden`: inside the projector."""
        super().__init__()
        self.vit = VisionTransformer(config, image_size)
        self.width, self.grid = latent, (1, 1)
        self.class_token = nn.Parameter(torch.randn(1, 1, self.vit.width) * 0.02) if pool == "cls" else None
        self.projector = Projector(self.vit.width, hidden, latent, norm)

    def forward(self, x: Tensor) -> Tensor:
        """Normalised clips (B, 3, T, H, W) to (B, T, D), images (B, 3, H, W) to (B, 1, D).

        Raises:
            ConfigError: another size than it was built for.
        """
        frames = x.unsqueeze(2) if x.ndim == 4 else x
        return self.each(frames.transpose(1, 2))

    def each(self, frames: Tensor) -> Tensor:
        """Frames (B, T, 3, H, W) to (B, T, D)."""
        batch, steps = frames.shape[:2]
        if frames.shape[-2:] != torch.Size(self.vit.image_size):
            raise ConfigError(
                f"got frames of {tuple(frames.shape[-2:])} (height, width); this model takes {self.vit.image_size}"
            )
        flat = frames.flatten(0, 1)
        if self.class_token is None:
            pooled = self.vit(flat).mean(dim=1)
        else:
            tokens = self.vit.patch_embed(flat) + self.vit.pos_embed
            tokens = torch.cat([self.class_token.expand(tokens.shape[0], -1, -1).to(tokens.dtype), tokens], dim=1)
            for block in self.vit.blocks:
                tokens = block(tokens)
            pooled = self.vit.norm(tokens[:, 0])
        out: Tensor = self.projector(pooled)
        return out.view(batch, steps, -1)


__all__ = ["FrameEncoder", "Norm", "Pool", "Projector"]
