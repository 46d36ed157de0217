"""V-JEPA's predictor: a narrow transformer that fills in the masked tokens of a clip from the visible ones.

Attention with rotary positions does not depend on the order of its tokens, so they are not sorted: visible tokens come
first, then mask tokens. All mask specs go through in one pass, packed by rows.

Shapes: B batch, Kc_i and Kt_i visible and masked tokens of spec i, S packed rows, D encoder width, P width.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from jepa.errors import ConfigError
from jepa.masks import Masks
from jepa.nn.attention import NORM_EPS, Block, Init, init_transformer, parts_of, unpack
from jepa.nn.positions import PositionConfig, table_for
from jepa.nn.rope import Grid, RotaryTables
from jepa.nn.tokens import gather_packed, sincos_table_3d, zero_of
from jepa.nn.video import rotary_of


@dataclass(frozen=True)
class VideoPredictorConfig:
    """The predictor's size and its mask tokens."""

    depth: int = 12  # blocks
    width: int = 384  # of its tokens; narrower than the encoder
    heads: int | None = None  # default: as many as the encoder
    mlp_ratio: float = 4.0  # hidden width of the MLP / width
    mask_tokens: int = 2  # learned tokens that stand for masked places; which one is used: method.mask_token
    zero_init_mask_tokens: bool = True  # start them at zero; false: random, as weights
    init: Init = "fixed"  # weights at the start: std 0.02, or fan_in: in step with each map's inputs

    def __post_init__(self) -> None:
        if self.depth < 1 or self.width < 1 or self.mask_tokens < 1:
            raise ConfigError(
                f"depth={self.depth}, width={self.width}, mask_tokens={self.mask_tokens}: all must be at least 1"
            )


class VideoPredictor(nn.Module):
    """Visible tokens and masked places to predicted tokens. Names follow the official predictor."""

    predictor_pos_embed: Tensor  # of sine-cosine positions

    def __init__(
        self,
        config: VideoPredictorConfig,
        encoder_width: int,
        encoder_heads: int,
        grid: Grid,
        position: PositionConfig,
        levels: int = 1,
    ) -> None:
        """`levels`: encoder levels that are given and predicted, side by side on the feature axis."""
        super().__init__()
        width, heads = config.width, config.heads or encoder_heads
        if width % heads:
            raise ConfigError(f"predictor width {width} is not a multiple of its heads {heads}; set predictor.heads")
        self.grid, self.width = grid, width
        self.tables = (
            RotaryTables(width // heads, position.layout, position.base_grid) if position.kind == "rope" else None
        )
        self.predictor_embed = _entrance(encoder_width, width, levels)
        self.mask_tokens = nn.ParameterList(nn.Parameter(torch.zeros(1, 1, width)) for _ in range(config.mask_tokens))
        if self.tables is None:
            self.register_buffer("predictor_pos_embed", sincos_table_3d(width, grid, position.uniform))
        self.predictor_blocks = nn.ModuleList(Block(width, heads, config.mlp_ratio) for _ in range(config.depth))
        self.predictor_norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.predictor_proj = nn.Linear(width, levels * encoder_width)
        init_transformer(self, self.predictor_blocks, config.init)
        if not config.zero_init_mask_tokens:
            for token in self.mask_tokens:
                nn.init.trunc_normal_(token, std=0.02)

    def use_tokens(self, numbers: Iterable[int]) -> None:
        """Train only the mask tokens of these numbers (modulo how many there are); the others stay as they are."""
        used = {number % len(self.mask_tokens) for number in numbers}
        for number, token in enumerate(self.mask_tokens):
            token.requires_grad_(number in used)

    def resize(self, grid: Grid) -> None:
        """Be a predictor for another token grid, as if it had been built for it; tables are interpolated."""
        if self.tables is None:
            self.predictor_pos_embed = table_for(self.predictor_pos_embed, self.grid, grid).contiguous()
        self.grid = grid

    @property
    def reach(self) -> int | None:
        """How many times along the clip its positions know; None: any, for they are rotary."""
        return None if self.tables is not None else self.grid[0]

    def grid_for(self, places: Tensor) -> Grid:
        """The grid (times, rows, columns) that holds all these places.

        A rotary grid grows along time with what is asked for; a fixed table stays its own, past whose end is nothing.
        """
        _, rows, columns = self.grid
        return (self.reach or int(places.max()) // (rows * columns) + 1, rows, columns)

    def forward(self, visible: list[Tensor], masks: Masks, grid: Grid, token: list[int]) -> list[Tensor]:
        """Predicted tokens of every mask spec.

        Args:
            visible: encoded tokens (B, Kc_i, D) of each spec.
            masks: places of visible (`context`) and masked (`target`) tokens; context i belongs to target i.
            grid: tokens along time, rows and columns.
            token: number of the mask token each spec uses (modulo how many there are).

        Returns:
            One tensor (B, Kt_i, D) per spec.
        """
        x = self._through(visible, masks, grid, token)
        masked = [tokens[:, v.shape[1] :] for tokens, v in zip(x, visible, strict=True)]
        return self._leave(masked, self.predictor_proj)

    def _through(
        self, visible: list[Tensor], masks: Masks, grid: Grid, token: list[int], mark: Tensor | None = None
    ) -> list[Tensor]:
        """What the blocks make of visible and mask tokens together: (B, Kc_i + Kt_i, P) per spec.

        mark: (1, 1, P), added to every token.
        """
        entered = self.predictor_embed(torch.cat([v.flatten(0, 1) for v in visible]))
        # zero times every token: in a run of several sources all of them get gradients from every forward
        idle = zero_of(t for t in self.mask_tokens if t.requires_grad)
        context = unpack(entered, visible)
        sequences, places = [], []
        for tokens, at, asked, which in zip(context, masks.context, masks.target, token, strict=True):
            query = self.mask_tokens[which % len(self.mask_tokens)] + idle
            queries = query.to(tokens.dtype).expand(*asked.shape, -1)
            sequences.append(torch.cat([tokens, queries], dim=1).flatten(0, 1))
            places.append(torch.cat([at, asked], dim=1))
        x = torch.cat(sequences)  # (S, P)
        if self.tables is None:
            x = x + gather_packed(table_for(self.predictor_pos_embed, self.grid, grid), places).to(x.dtype)
        if mark is not None:
            x = x + mark.to(x.dtype).view(-1)
        rotary, parts = rotary_of(self.tables, grid, places, x), parts_of(places)
        for block in self.predictor_blocks:
            x = block(x, rotary, parts)
        return unpack(x, places)

    def _leave(self, tokens: list[Tensor], head: nn.Module) -> list[Tensor]:
        rows = torch.cat([t.flatten(0, 1) for t in tokens])
        return unpack(head(self.predictor_norm(rows)), tokens)


def _entrance(encoder_width: int, width: int, levels: int) -> nn.Module:
    if levels == 1:
        return nn.Linear(encoder_width, width)
    return nn.Sequential(nn.Linear(levels * encoder_width, encoder_width), nn.GELU(), nn.Linear(encoder_width, width))
