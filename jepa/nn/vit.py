"""Vision transformer encoder without a class token, with fixed sine-cosine positions (as in I-JEPA).

Shapes: B batch, N tokens, K kept tokens, M index sets, D width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from jepa.errors import ConfigError
from jepa.nn.attention import NORM_EPS, Block, Init, init_transformer
from jepa.nn.positions import table_for
from jepa.nn.tokens import PatchEmbed, gather_tokens, sincos_table, token_grid

Size = Literal["tiny", "small", "base", "large", "huge", "giant"]
SIZES: dict[str, tuple[int, int, int, float]] = {  # width, depth, heads, MLP ratio
    "tiny": (192, 12, 3, 4.0),
    "small": (384, 12, 6, 4.0),
    "base": (768, 12, 12, 4.0),
    "large": (1024, 24, 16, 4.0),
    "huge": (1280, 32, 16, 4.0),
    "giant": (1408, 40, 16, 48 / 11),
}


@dataclass(frozen=True)
class EncoderConfig:
    """A ViT: a named size, any part of which can be set by hand."""

    size: Size = "base"  # sets width, depth, heads and mlp_ratio
    patch: tuple[int, int] = (16, 16)  # patch (height, width) in pixels; one number means square
    width: int | None = None  # default: the size's
    depth: int | None = None  # blocks; default: the size's
    heads: int | None = None  # attention heads; default: the size's
    mlp_ratio: float | None = None  # hidden width of the MLP / width; default: the size's
    init: Init = "fixed"  # weights at the start: std 0.02, or fan_in: in step with each map's inputs

    def __post_init__(self) -> None:
        width, depth, heads, ratio = self.resolved()
        if min(width, depth, heads) < 1 or ratio <= 0:
            raise ConfigError(f"width={width}, depth={depth}, heads={heads}, mlp_ratio={ratio} must be positive")
        if width % heads:
            raise ConfigError(f"width {width} is not a multiple of heads {heads}")
        if width % 4:
            raise ConfigError(f"width {width} must be a multiple of 4 (2D sine-cosine positions)")

    def resolved(self) -> tuple[int, int, int, float]:
        """(width, depth, heads, MLP ratio) with the named size filled in."""
        width, depth, heads, ratio = SIZES[self.size]
        return self.width or width, self.depth or depth, self.heads or heads, self.mlp_ratio or ratio


class VisionTransformer(nn.Module):
    """Images to tokens. Parameter names follow the official I-JEPA encoder."""

    pos_embed: Tensor

    def __init__(self, config: EncoderConfig, image_size: tuple[int, int]) -> None:
        """Raises ConfigError when the patch does not divide the image."""
        super().__init__()
        width, depth, heads, ratio = config.resolved()
        self.width, self.image_size = width, image_size
        self.grid = token_grid(image_size, config.patch)
        self.patch_embed = PatchEmbed(config.patch, width)
        self.register_buffer("pos_embed", sincos_table(width, self.grid))
        self.blocks = nn.ModuleList(Block(width, heads, ratio) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=NORM_EPS)
        init_transformer(self, self.blocks, config.init)

    def resize(self, image_size: tuple[int, int]) -> None:
        """Take images of another size from here on; positions are interpolated.

        Raises:
            ConfigError: the patch does not divide it.
        """
        grid = token_grid(image_size, self.patch_embed.patch)
        self.pos_embed = table_for(self.pos_embed, (1, *self.grid), (1, *grid)).contiguous()
        self.image_size, self.grid = image_size, grid

    def forward(self, images: Tensor, keep: list[Tensor] | None = None) -> Tensor:
        """Normalised images (B, 3, H, W) to tokens.

        Args:
            images: floats of the size the encoder was built for.
            keep: M index sets, each (B, K): only these tokens enter the blocks.

        Returns:
            (B, N, D), or (M * B, K, D) index set by index set.
        """
        if images.shape[-2:] != torch.Size(self.image_size):
            raise ConfigError(
                f"got images of {tuple(images.shape[-2:])} (height, width); this encoder takes {self.image_size}"
            )
        patches = self.patch_embed.unfold(images)
        if keep is None:
            x = self.patch_embed.project(patches) + self.pos_embed
        else:  # dropped patches are not embedded, and no gradient has to be scattered back over them
            x = self.patch_embed.project(gather_tokens(patches, keep)) + gather_tokens(self.pos_embed, keep)
        for block in self.blocks:
            x = block(x)
        out: Tensor = self.norm(x)
        return out
