"""Vision transformer for clips and images: tubelets of pixels to tokens, positions in time, rows and columns.

Shapes: B batch, T frames, H W image, N tokens, K_i kept tokens of index set i, S packed rows, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, overload

import torch
from torch import Tensor, nn

from jepa.errors import ConfigError
from jepa.nn.attention import NORM_EPS, Block, Init, Parts, init_transformer, parts_of, unpack
from jepa.nn.positions import PositionConfig, table_for
from jepa.nn.rope import Grid, Rotary, RotaryTables
from jepa.nn.tokens import PatchEmbed, TubeletEmbed, gather_packed, sincos_table_3d, token_grid

Size = Literal["tiny", "small", "base", "large", "huge", "giant", "gigantic"]
SIZES: dict[str, tuple[int, int, int, float]] = {  # width, depth, heads, MLP ratio
    "tiny": (192, 12, 3, 4.0),
    "small": (384, 12, 6, 4.0),
    "base": (768, 12, 12, 4.0),
    "large": (1024, 24, 16, 4.0),
    "huge": (1280, 32, 16, 4.0),
    "giant": (1408, 40, 22, 48 / 11),
    "gigantic": (1664, 48, 26, 64 / 13),
}


@dataclass(frozen=True)
class VideoEncoderConfig:
    """A ViT for clips: a named size, any part of which can be set by hand."""

    size: Size = "base"  # sets width, depth, heads and mlp_ratio; heads of giant and gigantic are V-JEPA's (64 wide)
    patch: tuple[int, int] = (16, 16)  # patch (height, width) in pixels; one number means square
    tubelet: int = 2  # frames in one token
    width: int | None = None  # default: the size's
    depth: int | None = None  # blocks; default: the size's
    heads: int | None = None  # attention heads; default: the size's
    mlp_ratio: float | None = None  # hidden width of the MLP / width; default: the size's
    init: Init = "fixed"  # weights at the start: std 0.02, or fan_in: in step with each map's inputs

    def __post_init__(self) -> None:
        width, depth, heads, ratio = self.resolved()
        if min(width, depth, heads, self.tubelet) < 1 or ratio <= 0:
            raise ConfigError(
                f"width={width}, depth={depth}, heads={heads}, mlp_ratio={ratio}, tubelet={self.tubelet}: "
                "all must be above 0"
            )
        if width % heads:
            raise ConfigError(f"width {width} is not a multiple of heads {heads}")

    def resolved(self) -> tuple[int, int, int, float]:
        """(width, depth, heads, MLP ratio) with the named size filled in."""
        width, depth, heads, ratio = SIZES[self.size]
        return self.width or width, self.depth or depth, self.heads or heads, self.mlp_ratio or ratio


class VideoTransformer(nn.Module):
    """Clips or images to tokens. Parameter names follow the official V-JEPA encoder.

    Built for clips (T, H, W) it also takes clips of other lengths and sizes, and images, each repeated to one tubelet.
    Built for images (H, W) it is the official encoder with `num_frames=1`: 2D patches.
    """

    pos_embed: Tensor  # of sine-cosine positions

    def __init__(self, config: VideoEncoderConfig, size: tuple[int, ...], position: PositionConfig) -> None:
        """Raises ConfigError when tubelets do not divide `size`, or heads are too narrow for rotary positions."""
        super().__init__()
        width, depth, heads, ratio = config.resolved()
        self.config, self.width, self.size = config, width, size
        self.patch_embed: PatchEmbed | TubeletEmbed
        if len(size) == 2:
            self.patch_embed = PatchEmbed(config.patch, width)
        else:
            self.patch_embed = TubeletEmbed((config.tubelet, *config.patch), width)
        self.grid = self.grid_of(size)
        self.tables = (
            RotaryTables(width // heads, position.layout, position.base_grid) if position.kind == "rope" else None
        )
        if self.tables is None:
            self.register_buffer("pos_embed", sincos_table_3d(width, self.grid, position.uniform))
        self.blocks = nn.ModuleList(Block(width, heads, ratio) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=NORM_EPS)
        init_transformer(self, self.blocks, config.init)

    def grid_of(self, size: Sequence[int]) -> Grid:
        """Tokens along time, rows and columns for clips (T, H, W) or images (H, W).

        Raises:
            ConfigError: tubelets or patches that do not divide it, or clips for an encoder of images.
        """
        if len(size) not in (2, 3):
            raise ConfigError(
                f"got inputs of {tuple(size)}; this encoder takes clips (frames, height, width) or images"
            )
        rows, columns = token_grid((size[-2], size[-1]), self.config.patch)
        if len(size) == 2:
            return 1, rows, columns
        if isinstance(self.patch_embed, PatchEmbed):
            raise ConfigError(f"got clips of {tuple(size)} (frames, height, width); this encoder takes images")
        frames, step = size[0], self.config.tubelet
        if frames < step or frames % step:
            raise ConfigError(
                f"clips of {frames} frames are not a multiple of method.encoder.tubelet={step} frames; use "
                f"{max(step, frames // step * step)} or {(frames // step + 1) * step} frames (data.clip.frames)"
            )
        return frames // step, rows, columns

    def resize(self, size: tuple[int, ...]) -> None:
        """Be an encoder of clips or images of another size, as if it had been built for them; tables are interpolated.

        Raises:
            ConfigError: see `grid_of`.
        """
        grid = self.grid_of(size)
        if self.tables is None:
            self.pos_embed = table_for(self.pos_embed, self.grid, grid).contiguous()
        self.size, self.grid = size, grid

    @overload
    def forward(self, x: Tensor, keep: None = None) -> Tensor: ...
    @overload
    def forward(self, x: Tensor, keep: list[Tensor]) -> list[Tensor]: ...
    def forward(self, x: Tensor, keep: list[Tensor] | None = None) -> Tensor | list[Tensor]:
        """Normalised clips (B, 3, T, H, W) or images (B, 3, H, W) to tokens.

        Args:
            keep: M index sets, each (B, K_i): only these tokens enter the blocks, all sets in one pass.

        Returns:
            (B, N, D); with `keep` one tensor (B, K_i, D) per index set.
        """
        (tokens,) = self._run(x, keep, (len(self.blocks) - 1,))
        return tokens if keep is None else unpack(tokens, keep)

    def levels(self, x: Tensor, after: Sequence[int]) -> list[Tensor]:
        """Tokens (B, N, D) after each of these blocks (0-based, ascending), normalised as the last ones are."""
        return self._run(x, None, after)

    def _run(self, x: Tensor, keep: list[Tensor] | None, after: Sequence[int]) -> list[Tensor]:
        hidden, rotary, parts = self._enter(x, keep)
        found = []
        for level, block in enumerate(self.blocks):
            hidden = block(hidden, rotary, parts)
            if level in after:
                found.append(self._normed(hidden, level))
            if level == after[-1]:
                break
        return found

    def _enter(self, x: Tensor, keep: list[Tensor] | None) -> tuple[Tensor, Rotary | None, Parts | None]:
        """Embedded tokens (B, N, D), or rows (S, D) of the kept ones; their rotary tables; how rows are packed."""
        grid, image = self.grid_of(x.shape[2:]), x.ndim == 4
        patches = self._unfold(x, image)
        if keep is not None:  # dropped patches are not embedded, and no gradient has to be scattered back over them
            patches = gather_packed(patches, keep)
        hidden = self._project(patches, image)
        if self.tables is None:
            table = table_for(self.pos_embed, self.grid, grid)
            hidden = hidden + (table if keep is None else gather_packed(table, keep))
        return hidden, rotary_of(self.tables, grid, keep, x), None if keep is None else parts_of(keep)

    def _unfold(self, x: Tensor, image: bool) -> Tensor:
        if image and isinstance(self.patch_embed, TubeletEmbed):
            x = x.unsqueeze(2).expand(-1, -1, self.config.tubelet, -1, -1)
        return self.patch_embed.unfold(x)

    def _project(self, patches: Tensor, image: bool) -> Tensor:
        return self.patch_embed.project(patches)

    def _normed(self, hidden: Tensor, level: int) -> Tensor:
        out: Tensor = self.norm(hidden)
        return out


def rotary_of(tables: RotaryTables | None, grid: Grid, keep: list[Tensor] | None, like: Tensor) -> Rotary | None:
    """Tables for whole sequences (N, 1, 1, d), or for the rows (S, 1, 1, d) of kept tokens."""
    if tables is None:
        return None
    cosine, sine = tables.of(grid, like)
    if keep is not None:
        rows = torch.cat([index.flatten() for index in keep])
        cosine, sine = cosine[rows], sine[rows]
    return cosine[:, None, None], sine[:, None, None]
