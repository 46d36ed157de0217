"""V-JEPA 2-AC's predictor: a block-causal transformer over the tokens of an action, a state and a frame's patches.

Every frame is a block [action, state, (camera), patches]; tokens see their own block and earlier ones. Patches are
turned by their time, row and column, the tokens before them by their time alone (arXiv 2506.09985, section 3.1). Names
follow the official predictor.

Shapes: B batch, T frames, N patches of a frame, D encoder width, P width, A action, Q state (Q - E its own, E camera).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from jepa.errors import ConfigError
from jepa.nn.attention import NORM_EPS, Init, init_transformer
from jepa.nn.frame_causal import FrameBlock, Past, through
from jepa.nn.rope import Layout, RotaryTables


@dataclass(frozen=True)
class ActionPredictorConfig:
    """The predictor's size; the defaults are the published ones (300 M parameters)."""

    depth: int = 24  # blocks
    width: int = 1024  # of its tokens
    heads: int = 16  # attention heads
    mlp_ratio: float = 4.0  # hidden width of the MLP / width
    layout: Layout = "tiled"  # of rotary frequencies: tiled belongs to the published weights, paired is a true rotation
    init: Init = "fixed"  # weights at the start: std 0.02, or fan_in: in step with each map's inputs

    def __post_init__(self) -> None:
        if min(self.depth, self.width, self.heads) < 1 or self.width % self.heads:
            raise ConfigError(
                f"depth={self.depth}, width={self.width}, heads={self.heads}: all at least 1, and width a multiple "
                "of heads"
            )


class ActionPredictor(nn.Module):
    """Latents, actions and states of frames to the latents of the frames that follow."""

    def __init__(
        self,
        config: ActionPredictorConfig,
        encoder_width: int,
        grid: tuple[int, int],
        action: int,
        state: int = 0,
        extrinsics: int = 0,
        states_ahead: bool = False,
    ) -> None:
        """`state`, `extrinsics`: numbers of their tokens, 0 for none; `states_ahead`: predict the next state too."""
        super().__init__()
        width = config.width
        self.grid, self.state, self.extrinsics = grid, state, extrinsics
        self.longest: int | None = None  # frames that tables are made for; None: as many as come (exports say how many)
        self.before = 1 + bool(state) + bool(extrinsics)  # tokens before the patches
        self.tables = RotaryTables(width // config.heads, config.layout)
        self.predictor_embed = nn.Linear(encoder_width, width)
        self.action_encoder = nn.Linear(action, width)
        self.state_encoder = nn.Linear(state, width) if state else None
        self.extrinsics_encoder = nn.Linear(extrinsics, width) if extrinsics else None
        self.predictor_blocks = nn.ModuleList(
            FrameBlock(width, config.heads, width // config.heads, int(width * config.mlp_ratio), eps=NORM_EPS)
            for _ in range(config.depth)
        )
        self.predictor_norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.predictor_proj = nn.Linear(width, encoder_width)
        self.state_proj = nn.Linear(width, state) if states_ahead else None
        init_transformer(self, self.predictor_blocks, config.init)

    def forward(
        self, latents: Tensor, actions: Tensor, states: Tensor | None = None, past: Past | None = None,
        last: bool = False, told: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None, Past]:  # fmt: skip
        """Latents of the frames that follow, the change of their states (where it is predicted), and the new past.

        Args:
            latents: (B, T, N, D).
            actions: (B, T, A), t leads from frame t to t + 1.
            states: (B, T, Q), the camera's pose last.
            past: of frames before these.
            last: only what follows the newest frame.
            told: action tokens (B, T, P) in place of the actions'.

        Returns:
            (B, T, N, D) or (B, 1, N, D), not normalised; likewise (B, T, Q - E) or None.
        """
        tokens = [(self.action_encoder(actions) if told is None else told).unsqueeze(2)]
        if self.state_encoder is not None or self.extrinsics_encoder is not None:
            assert states is not None, "this predictor takes a state with every frame"
            if self.state_encoder is not None:
                tokens.append(self.state_encoder(states[..., : self.state]).unsqueeze(2))
            if self.extrinsics_encoder is not None:
                tokens.append(self.extrinsics_encoder(states[..., self.state :]).unsqueeze(2))
        x = torch.cat([*tokens, self.predictor_embed(latents)], dim=2)  # (B, T, before + N, P)
        start = past.frames if past is not None else 0
        stop = start + latents.shape[1]
        rotary = tuple(
            table[start:stop, :, None, None]
            for table in self.tables.of_frames((self.longest or _ceil(stop), *self.grid), self.before, x)
        )
        x, now = through(self.predictor_blocks, x, (rotary[0], rotary[1]), past=past, last=last)
        x = self.predictor_norm(x)
        change = self.state_proj(x[:, :, 1]) if self.state_proj is not None else None
        return self.predictor_proj(x[:, :, self.before :]), change, now


def _ceil(frames: int) -> int:
    """Tables are made for a multiple of eight frames, so that a longer roll-out rarely needs new ones."""
    return -(-frames // 8) * 8


__all__ = ["ActionPredictor", "ActionPredictorConfig"]
