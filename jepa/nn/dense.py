"""V-JEPA 2.1's encoder and predictor: several supervised levels, patch embeddings by modality, answers for all tokens.

Shapes: B batch, T frames, H W image, N tokens, K_i kept tokens of set i, L levels, S packed rows, D width, P width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from jepa.errors import ConfigError
from jepa.masks import Masks
from jepa.nn.attention import NORM_EPS, init_transformer, unpack
from jepa.nn.positions import PositionConfig
from jepa.nn.rope import Grid
from jepa.nn.tokens import TubeletEmbed, zero_of
from jepa.nn.video import VideoEncoderConfig, VideoTransformer
from jepa.nn.video_predictor import VideoPredictor, VideoPredictorConfig

OFFICIAL_LEVELS = {12: (2, 5, 8, 11), 24: (5, 11, 17, 23), 40: (9, 19, 29, 39), 48: (11, 23, 37, 47)}  # by depth


def supervised_levels(depth: int, levels: tuple[int, ...] | None) -> tuple[int, ...]:
    """Blocks (0-based) whose output is supervised: as given, the official ones, or up to four evenly spaced ones.

    Raises:
        ConfigError: not ascending, or not ending with the last block.
    """
    if levels is None:
        count = min(4, depth)
        return OFFICIAL_LEVELS.get(depth) or tuple(depth * (i + 1) // count - 1 for i in range(count))
    if not levels or sorted(set(levels)) != list(levels) or levels[0] < 0 or levels[-1] != depth - 1:
        raise ConfigError(f"levels: got {list(levels)}, allowed: ascending blocks from 0, the last one {depth - 1}")
    return levels


class MultiLevelTransformer(VideoTransformer):
    """`VideoTransformer` with a norm for each supervised level instead of a final one, and a way in for each modality.

    Names follow the official encoder. An image is embedded as one time step of its own, not as a repeated frame.
    """

    def __init__(
        self, config: VideoEncoderConfig, size: tuple[int, ...], position: PositionConfig, levels: tuple[int, ...]
    ) -> None:
        if len(size) == 2:  # built for images alone, it still holds the parts for clips, as every checkpoint does
            size = (config.tubelet, *size)
        super().__init__(config, size, position)
        del self.norm  # the last level has its own
        self.supervised = levels
        self.norms_block = nn.ModuleList(nn.LayerNorm(self.width, eps=NORM_EPS) for _ in levels)
        self.patch_embed_img = TubeletEmbed((1, *config.patch), self.width)
        init_transformer(self.patch_embed_img, nn.ModuleList(), config.init)
        self.img_mod_embed = _modality(self.width)
        self.video_mod_embed = _modality(self.width)

    def use_kinds(self, kinds: Sequence[str]) -> None:
        """Train only the ways in for these kinds of input; the others stay as they are."""
        for kind, parameters in self._ways_in().items():
            for parameter in parameters:
                parameter.requires_grad_(kind in kinds)

    def forward(self, x: Tensor, keep: list[Tensor] | None = None, fused: bool = False) -> Tensor | list[Tensor]:  # type: ignore[override]
        """As `VideoTransformer.forward`; `fused` gives all levels side by side, (B, N, L * D), instead of the last."""
        rows = torch.cat(self._run(x, keep, self.supervised if fused else self.supervised[-1:]), dim=-1)
        return rows if keep is None else unpack(rows, keep)

    def levels(self, x: Tensor, after: Sequence[int]) -> list[Tensor]:
        """Tokens (B, N, D) after each of these supervised blocks, each through its own norm."""
        if not set(after) <= set(self.supervised):
            raise ConfigError(f"levels {list(after)}: this encoder has norms after blocks {list(self.supervised)} only")
        return super().levels(x, after)

    def _unfold(self, x: Tensor, image: bool) -> Tensor:
        return self.patch_embed_img.unfold(x.unsqueeze(2)) if image else self.patch_embed.unfold(x)

    def _project(self, patches: Tensor, image: bool) -> Tensor:
        embed, modality = self.patch_embed_img if image else self.patch_embed, self._modality(image)
        idle = zero_of(p for p in self._ways_in()["clip" if image else "image"] if p.requires_grad)
        return embed.project(patches) + (modality + idle).view(-1)

    def _modality(self, image: bool) -> Tensor:
        return self.img_mod_embed if image else self.video_mod_embed

    def _normed(self, hidden: Tensor, level: int) -> Tensor:
        out: Tensor = self.norms_block[self.supervised.index(level)](hidden)
        return out

    def _ways_in(self) -> dict[str, list[nn.Parameter]]:
        return {
            "clip": [*self.patch_embed.parameters(), self.video_mod_embed],
            "image": [*self.patch_embed_img.parameters(), self.img_mod_embed],
        }


class DensePredictor(VideoPredictor):
    """`VideoPredictor` over fused levels that answers for visible tokens too. Names follow the official predictor."""

    def __init__(
        self,
        config: VideoPredictorConfig,
        encoder_width: int,
        encoder_heads: int,
        grid: Grid,
        position: PositionConfig,
        levels: int,
    ) -> None:
        super().__init__(config, encoder_width, encoder_heads, grid, position, levels)
        self.predictor_proj_context = nn.Linear(self.width, levels * encoder_width)
        init_transformer(self.predictor_proj_context, nn.ModuleList(), config.init)
        self.img_mod_embed = _modality(self.width)
        self.video_mod_embed = _modality(self.width)

    def use_kinds(self, kinds: Sequence[str]) -> None:
        """Train only the modality embeddings for these kinds of input."""
        self.img_mod_embed.requires_grad_("image" in kinds)
        self.video_mod_embed.requires_grad_("clip" in kinds)

    def forward(  # type: ignore[override]
        self, visible: list[Tensor], masks: Masks, grid: Grid, token: list[int], kind: str
    ) -> tuple[list[Tensor], list[Tensor]]:
        """As `VideoPredictor.forward`, for a "clip" or an "image".

        Returns:
            Per spec the answers for masked tokens (B, Kt_i, L * D), and those for visible tokens (B, Kc_i, L * D).
        """
        used, idle = self.video_mod_embed, self.img_mod_embed
        if kind == "image":
            used, idle = idle, used
        mark = used + zero_of([idle] if idle.requires_grad else [])
        x = self._through(visible, masks, grid, token, mark)
        counts = [v.shape[1] for v in visible]
        masked = [tokens[:, count:] for tokens, count in zip(x, counts, strict=True)]
        seen = [tokens[:, :count] for tokens, count in zip(x, counts, strict=True)]
        return self._leave(masked, self.predictor_proj), self._leave(seen, self.predictor_proj_context)


def _modality(width: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(1, 1, width) * 1e-6)
