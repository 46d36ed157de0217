"""DINO-WM's predictor: a frame-causal ViT over patch tokens that carry the action and proprioception of their frame.

Every token of a frame is [patch features, embedded proprioception, embedded action] side by side (arXiv 2411.04983,
section 3.1), or the action comes in through adaptive layer norms (arXiv 2512.24497). Positions are learned, one for
each token of each frame in the window.

Shapes: B batch, T frames, N patches of a frame, D encoder width, Q embedded proprioception, E embedded action, P width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from jepa.errors import ConfigError
from jepa.nn.frame_causal import FrameBlock, Past, through

_EPS = 1e-5  # of its layer norms, as official


@dataclass(frozen=True)
class PatchPredictorConfig:
    """The predictor's size; the defaults are the published ones."""

    depth: int = 6  # blocks
    heads: int = 16  # attention heads
    head_width: int = 64  # of each head, whatever the width
    hidden: int = 2048  # hidden width of the MLP
    width: int | None = None  # of its tokens; null: what they are made of side by side, as official
    dropout: float = 0.1  # in attention and after every map
    action: Literal["concat", "adaln"] = "concat"  # how actions come in: with every token, or by adaptive layer norms

    def __post_init__(self) -> None:
        if min(self.depth, self.heads, self.head_width, self.hidden, self.width or 1) < 1 or not 0 <= self.dropout < 1:
            raise ConfigError(
                f"depth={self.depth}, heads={self.heads}, head_width={self.head_width}, hidden={self.hidden}, "
                f"width={self.width}: all at least 1; dropout={self.dropout:g}: from 0 to below 1"
            )


class PatchPredictor(nn.Module):
    """Tokens of frames to those of the frames that follow."""

    def __init__(
        self, config: PatchPredictorConfig, encoder_width: int, proprio: int, action: int, tokens: int, frames: int
    ) -> None:
        """`proprio`, `action`: widths of their embeddings; `tokens` of a frame; `frames`: most that it looks at."""
        super().__init__()
        self.adaln, self.frames = config.action == "adaln", frames
        self.parts = (encoder_width, proprio, 0 if self.adaln else action)
        width = config.width or sum(self.parts)
        self.enter = nn.Linear(sum(self.parts), width) if config.width else None
        self.leave = nn.Linear(width, encoder_width + proprio) if config.width else None
        self.positions = nn.Parameter(torch.randn(1, frames, tokens, width))
        self.blocks = nn.ModuleList(
            FrameBlock(
                width, config.heads, config.head_width, config.hidden, eps=_EPS, qkv_bias=False, dropout=config.dropout,
                condition=action if self.adaln else 0,
            )
            for _ in range(config.depth)
        )  # fmt: skip
        self.norm = nn.LayerNorm(width, eps=_EPS)
        for block in self.blocks:
            assert isinstance(block, FrameBlock)
            if block.modulation is not None:
                nn.init.zeros_(block.modulation.weight)
                nn.init.zeros_(block.modulation.bias)

    def tokens(self, latents: Tensor, proprio: Tensor | None, actions: Tensor) -> Tensor:
        """(B, T, N, D), (B, T, N, Q) and (B, T, E) side by side: (B, T, N, D + Q [+ E])."""
        parts = [latents]
        if proprio is not None:
            parts.append(proprio.to(latents.dtype))
        if not self.adaln:
            parts.append(actions.to(latents.dtype).unsqueeze(2).expand(-1, -1, latents.shape[2], -1))
        return torch.cat(parts, dim=-1)

    def forward(
        self, tokens: Tensor, actions: Tensor, past: Past | None = None, last: bool = False
    ) -> tuple[Tensor, Past]:
        """What follows each frame, and the new past.

        Args:
            tokens: of `tokens`.
            actions: embedded (B, T, E), for adaptive layer norms.
            past: of frames before these.
            last: only what follows the newest frame.

        Returns:
            (B, T or 1, N, D + Q [+ E]); what stands in the action's place means nothing.
        """
        x = tokens if self.enter is None else self.enter(tokens)
        start = past.frames if past is not None else 0
        stop = start + x.shape[1]
        assert stop <= self.frames, f"{stop} frames, the predictor has positions for {self.frames}"
        x = x + self.positions[:, start:stop]
        x, now = through(self.blocks, x, condition=actions if self.adaln else None, past=past, last=last)
        x = self.norm(x)
        return (x if self.leave is None else self.leave(x)), now

    def split(self, tokens: Tensor) -> tuple[Tensor, Tensor | None]:
        """Predicted tokens to patch features (B, T, N, D) and proprioception (B, T, N, Q); the action is dropped."""
        width, proprio, _ = self.parts
        return tokens[..., :width], tokens[..., width : width + proprio] if proprio else None


__all__ = ["PatchPredictor", "PatchPredictorConfig"]
