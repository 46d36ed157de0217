"""I-JEPA's predictor: a narrow transformer that fills in target tokens from context tokens.

Shapes: B batch, C context sets, T target blocks, Kc context tokens, Kt target tokens, D encoder width, P width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from jepa.errors import ConfigError
from jepa.nn.attention import NORM_EPS, Block, Init, init_transformer
from jepa.nn.positions import table_for
from jepa.nn.tokens import gather_tokens, sincos_table


@dataclass(frozen=True)
class PredictorConfig:
    """The predictor's size."""

    depth: int = 6  # blocks
    width: int = 384  # of its tokens; narrower than the encoder
    heads: int | None = None  # default: as many as the encoder
    mlp_ratio: float = 4.0  # hidden width of the MLP / width
    init: Init = "fixed"  # weights at the start: std 0.02, or fan_in: in step with each map's inputs

    def __post_init__(self) -> None:
        if self.depth < 1 or self.width < 4 or self.width % 4:
            raise ConfigError(f"depth={self.depth}, width={self.width}: width must be a multiple of 4, depth >= 1")


class Predictor(nn.Module):
    """Context tokens and target positions to predicted target tokens. Names follow the official predictor."""

    predictor_pos_embed: Tensor

    def __init__(self, config: PredictorConfig, encoder_width: int, encoder_heads: int, grid: tuple[int, int]) -> None:
        super().__init__()
        heads = config.heads or encoder_heads
        if config.width % heads:
            raise ConfigError(
                f"predictor width {config.width} is not a multiple of its heads {heads}; set predictor.heads"
            )
        self.grid = grid
        self.predictor_embed = nn.Linear(encoder_width, config.width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, config.width))
        self.register_buffer("predictor_pos_embed", sincos_table(config.width, grid))
        self.predictor_blocks = nn.ModuleList(Block(config.width, heads, config.mlp_ratio) for _ in range(config.depth))
        self.predictor_norm = nn.LayerNorm(config.width, eps=NORM_EPS)
        self.predictor_proj = nn.Linear(config.width, encoder_width)
        init_transformer(self, self.predictor_blocks, config.init)
        nn.init.trunc_normal_(self.mask_token, std=0.02)

    def resize(self, grid: tuple[int, int]) -> None:
        """Positions for another token grid, interpolated."""
        self.predictor_pos_embed = table_for(self.predictor_pos_embed, (1, *self.grid), (1, *grid)).contiguous()
        self.grid = grid

    def forward(self, context: Tensor, context_at: list[Tensor], target_at: list[Tensor]) -> Tensor:
        """Predicted tokens of each target block from each context.

        Args:
            context: (C * B, Kc, D), context set by context set.
            context_at: C index sets (B, Kc).
            target_at: T index sets (B, Kt).

        Returns:
            (T * C * B, Kt, D): target by target, in it context by context, in it sample by sample.
        """
        contexts, targets = len(context_at), len(target_at)
        x = self.predictor_embed(context)
        x = x + gather_tokens(self.predictor_pos_embed, context_at).to(x.dtype)
        kept = x.shape[1]
        queries = self.mask_token + gather_tokens(self.predictor_pos_embed, target_at)  # (T * B, Kt, P)
        queries = repeat_blocks(queries.to(x.dtype), targets, contexts)
        x = torch.cat([x.repeat(targets, 1, 1), queries], dim=1)  # (T * C * B, Kc + Kt, P)
        for block in self.predictor_blocks:
            x = block(x)
        out: Tensor = self.predictor_proj(self.predictor_norm(x[:, kept:]))
        return out


def repeat_blocks(x: Tensor, blocks: int, times: int) -> Tensor:
    """(T * B, K, D) made of T blocks of B rows, to (T * C * B, K, D): each block of B rows repeated C times."""
    if times == 1:
        return x
    return x.view(blocks, 1, -1, *x.shape[1:]).expand(-1, times, -1, -1, -1).reshape(-1, *x.shape[1:])
