"""A causal transformer over frames that are one vector each, told of actions by AdaLN-zero, and its fast roll-out.

The predictor of LeWorldModel (Maes et al., arXiv 2603.19312); layers are laid out as in stable-worldmodel's, so that
its weights map onto these one by one (`jepa.export.lewm`).

Shapes: B batch, S plans, R = B * S rows, T frames seen, H steps to imagine, n tokens, D latent width,
W width of the transformer, h heads, d width of a head.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from jepa.errors import ConfigError
from jepa.nn.few_tokens import FewTokens, Window


@dataclass(frozen=True)
class CausalConfig:
    """The predictor's size."""

    depth: int = 6  # blocks
    width: int = 192  # of its tokens
    heads: int = 16  # attention heads
    head_width: int = 64  # of each head; heads times this need not be the width
    hidden: int = 2048  # width inside the MLPs
    dropout: float = 0.1  # in training, of attention, of both branches, and of the input

    def __post_init__(self) -> None:
        if min(self.depth, self.width, self.heads, self.head_width, self.hidden) < 1 or not 0 <= self.dropout < 1:
            raise ConfigError(
                f"depth={self.depth}, width={self.width}, heads={self.heads}, head_width={self.head_width}, "
                f"hidden={self.hidden} must be at least 1 and dropout={self.dropout:g} in [0, 1)"
            )


class CausalAttention(nn.Module):
    """Pre-normed self-attention."""

    def __init__(self, config: CausalConfig) -> None:
        super().__init__()
        inner = config.heads * config.head_width
        self.heads, self.dropout = config.heads, config.dropout
        self.norm = nn.LayerNorm(config.width)
        self.qkv = nn.Linear(config.width, 3 * inner, bias=False)
        self.proj = nn.Linear(inner, config.width)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """(R, n, W) to (R, n, W).

        Args:
            mask: (n, n) true where a token may look; None: at those before it and at itself.
        """
        q, k, v = self.qkv(self.norm(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # (R, h, n, d) each
        dropout = self.dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=mask is None)
        mixed = self.proj(mixed.transpose(1, 2).flatten(2))
        return F.dropout(mixed, self.dropout, self.training)


class AdaLNBlock(nn.Module):
    """x + gate * attention(modulated norm of x), then the same with an MLP; all six from the condition, zero at first.

    Peebles, Xie, "Scalable diffusion models with transformers" (DiT), arXiv 2212.09748, section 3.2.
    """

    called_apart = ("modulation",)  # by the predictor, before the block: see jepa.sharding

    def __init__(self, config: CausalConfig) -> None:
        super().__init__()
        self.width, self.dropout = config.width, config.dropout
        self.attn = CausalAttention(config)
        self.mlp_norm = nn.LayerNorm(config.width)
        self.fc1 = nn.Linear(config.width, config.hidden)
        self.fc2 = nn.Linear(config.hidden, config.width)
        self.modulation = nn.Linear(config.width, 6 * config.width)
        self.activation_checkpointing = False

    def forward(self, x: Tensor, told: Tensor, mask: Tensor | None = None) -> Tensor:
        """(R, n, W) and `told` = `modulation(silu(c))` (R, n, 6 W); the mask as for `CausalAttention`."""
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = told.chunk(6, dim=-1)
        x = x + gate * self.attn(self._norm(x, shift, scale), mask)
        hidden = F.gelu(self.fc1(self.mlp_norm(self._norm(x, mlp_shift, mlp_scale))))
        out = self.fc2(F.dropout(hidden, self.dropout, self.training))
        return x + mlp_gate * F.dropout(out, self.dropout, self.training)

    def on(
        self, x: Tensor, told: Tensor, attend: FewTokens, before: Window | None, last: bool
    ) -> tuple[Tensor, Window]:
        """`forward` as roll-outs need it: tokens (n, B, S, W) in front of the batch, without dropout.

        Args:
            told: (n, B, S, 6 W), with 1 added to both scales.
            attend: attention with this block's weights; before, last: as it takes them.
        """
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = told.chunk(6, dim=-1)
        normed = F.layer_norm(x, (self.width,), eps=1e-6)
        mixed, window = attend(self.attn.norm(torch.addcmul(shift, normed, scale)), before, last)
        if last:
            x, gate, mlp_shift, mlp_scale, mlp_gate = (t[-1:] for t in (x, gate, mlp_shift, mlp_scale, mlp_gate))
        x = torch.addcmul(x, gate, mixed)
        normed = F.layer_norm(x, (self.width,), eps=1e-6)
        out = self.fc2(F.gelu(self.fc1(self.mlp_norm(torch.addcmul(mlp_shift, normed, mlp_scale)))))
        return torch.addcmul(x, mlp_gate, out), window

    def _norm(self, x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        return F.layer_norm(x, (self.width,), eps=1e-6) * (1 + scale) + shift


class CausalPredictor(nn.Module):
    """Latents and actions up to a frame to what tells the latent of the next frame."""

    def __init__(self, config: CausalConfig, latent: int, window: int) -> None:
        """`latent`: D; `window`: most frames that it looks back at, for which it has positions."""
        super().__init__()
        self.config, self.window = config, window
        self.positions = nn.Parameter(torch.randn(1, window, latent))
        same = latent == config.width
        self.latent_in = nn.Identity() if same else nn.Linear(latent, config.width)
        self.action_in = nn.Identity() if same else nn.Linear(latent, config.width)
        self.blocks = nn.ModuleList(AdaLNBlock(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.width)
        self.latent_out = nn.Identity() if same else nn.Linear(config.width, latent)
        for block in self.blocks:
            assert isinstance(block, AdaLNBlock)
            nn.init.zeros_(block.modulation.weight)
            nn.init.zeros_(block.modulation.bias)

    def forward(self, z: Tensor, actions: Tensor, mask: Tensor | None = None, at: Tensor | None = None) -> Tensor:
        """Latents (B, T, D) with embedded actions (B, T, D), the one at t taken in frame t, to (B, T, D).

        Args:
            mask, at: for tokens that are not one frame after the other: who looks at whom (T, T), and the place of
                each (T,).
        """
        places = self.positions[:, : z.shape[1]] if at is None else self.positions[:, at]
        x = self.latent_in(F.dropout(z + places, self.config.dropout, self.training))
        for block, told in zip(self.blocks, self.told(actions), strict=True):
            x = block(x, told, mask)
        return self._out(x)

    def told(self, actions: Tensor) -> list[Tensor]:
        """What each block is told of embedded actions (..., D): (..., 6 W). It does not depend on where they stand."""
        condition = F.silu(self.action_in(actions))
        return [block.modulation(condition) for block in self._blocks()]

    def roll(self, z: Tensor, known: Tensor, plans: Tensor, finish: Callable[[Tensor], Tensor]) -> Tensor:
        """Imagine: each prediction, after `finish` (.., D), is the next frame's latent.

        As running `forward` on the newest `window` frames in every step, but: what frames seen and actions known make
        of keys and values is shared by all plans; while the window fills up they are kept from step to step; what
        actions tell is worked out once; of the last block only the token that predicts is; and attention is that of
        `jepa.nn.few_tokens`. Without dropout, also in training.

        Args:
            z: latents seen (B, T, D).
            known: embedded actions between them (B, T - 1, D).
            plans: embedded actions to try (B, S, H, D).

        Returns:
            (B, S, H, D).
        """
        count, steps = plans.shape[1:3]
        fast = self._few()
        told_known = self._modulations(known.transpose(0, 1).unsqueeze(2))  # (T - 1, B, 1, 6 W) each
        told_plans = self._modulations(plans.permute(2, 0, 1, 3).contiguous())  # (H, B, S, 6 W) each
        seen = z.shape[1] - 1  # tokens whose action is known
        frames = [z[:, -1:].expand(-1, count, -1)]  # (B, S, D) each, 1 + imagined
        kept: list[Window] | None = None
        start = -1
        for step in range(steps):
            first = max(0, seen + step + 1 - self.window)  # frame at place 0
            begin = max(0, first - seen)  # first of the plans' tokens in the window
            if first != start:
                start, kept = first, self._shared(z[:, first:seen], [t[first:] for t in told_known], fast)
            else:
                begin = step  # those before are in `kept`
            x = self._entering(frames[begin:], seen + begin - first)
            x, kept = self._on(x, [t[begin : step + 1] for t in told_plans], fast, kept)
            frames.append(finish(self._out(x[0])))
        return torch.stack(frames[1:], dim=2)

    def jump(self, z: Tensor, known: Tensor, chunks: Tensor, finish: Callable[[Tensor], Tensor]) -> Tensor:
        """One prediction for each number of actions: what follows the last frame after 1, 2, .. K of them, at once.

        Args:
            z: (R, T, D) the newest frames, T at most `window`.
            known: embedded actions between them (R, T - 1, D).
            chunks: what tells the first k actions after the last frame (R, K, D).

        Returns:
            (R, K, D).
        """
        seen, count, fast = z.shape[1] - 1, chunks.shape[1], self._few()
        kept = self._shared(z[:, :seen], self._modulations(known.transpose(0, 1).unsqueeze(2)), fast)
        x = self._entering([z[:, seen:].expand(-1, count, -1)], seen)
        x, _ = self._on(x, self._modulations(chunks.unsqueeze(0)), fast, kept)
        return finish(self._out(x[0]))

    def _shared(self, z: Tensor, told: list[Tensor], fast: list[FewTokens]) -> list[Window] | None:
        """What the frames at the window's beginning (B, n, D), the same for all plans, leave to those after them."""
        if not z.shape[1]:
            return None
        return self._on(self._entering(list(z.unsqueeze(2).unbind(1)), 0), told, fast, None)[1]

    def _entering(self, frames: list[Tensor], place: int) -> Tensor:
        """Tokens (n, B, S, W) of frames (B, S, D) that stand one after the other from this place on."""
        places = self.positions[0, place : place + len(frames), None, None]
        out: Tensor = self.latent_in(torch.stack(frames) + places)
        return out

    def _modulations(self, actions: Tensor) -> list[Tensor]:
        """`told`, with 1 added to both scales: x * (1 + scale) + shift is then one operation."""
        found = self.told(actions)
        width = self.config.width
        for told in found:
            told[..., width : 2 * width].add_(1)
            told[..., 4 * width : 5 * width].add_(1)
        return found

    def _on(
        self, x: Tensor, told: list[Tensor], fast: list[FewTokens], before: list[Window] | None
    ) -> tuple[Tensor, list[Window]]:
        """New tokens (n, B, S, W) through all blocks: the last one's output (1, B, S, W), and their windows."""
        kept: list[Window] = []
        for number, (block, attend) in enumerate(zip(self._blocks(), fast, strict=True)):
            x, window = block.on(
                x, told[number], attend, None if before is None else before[number], number == len(fast) - 1
            )
            kept.append(window)
        return x, kept

    def _few(self) -> list[FewTokens]:
        return [FewTokens(block.attn.qkv, block.attn.proj, block.attn.heads) for block in self._blocks()]

    def _blocks(self) -> list[AdaLNBlock]:
        return [block for block in self.blocks if isinstance(block, AdaLNBlock)]

    def _out(self, x: Tensor) -> Tensor:
        out: Tensor = self.latent_out(self.norm(x))
        return out


class ActionEncoder(nn.Module):
    """Actions (..., A) to (..., D): a linear map to few numbers, then an MLP."""

    def __init__(self, actions: int, width: int, narrow: int = 10) -> None:
        super().__init__()
        self.narrow = nn.Linear(actions, narrow)
        self.fc1 = nn.Linear(narrow, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, actions: Tensor) -> Tensor:
        """(..., A) to (..., D)."""
        out: Tensor = self.fc2(F.silu(self.fc1(self.narrow(actions))))
        return out


class ChunkEncoder(nn.Module):
    """Several actions in a row as one: the first's own code, and for two or more what the others add to it."""

    def __init__(self, actions: int, most: int, width: int) -> None:
        """`most`: K, actions in the longest chunk."""
        super().__init__()
        self.most = most
        self.fc1 = nn.Linear((most - 1) * (actions + 1), 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, first: Tensor, actions: Tensor, every: int = 1) -> Tensor:
        """All chunks that begin at each `every`-th action, (..., T, D) and (..., T, A) to (..., T / every, K, D).

        Entry k - 1 tells actions t .. t + k - 1. Those that would go past the end are of no use.
        """
        more = F.pad(actions, (0, 0, 0, self.most - 1))
        runs = more.unfold(-2, self.most, every).transpose(-1, -2)[..., 1:, :]  # (..., T, K - 1, A), without the first
        lengths = torch.ones(self.most, self.most - 1, device=actions.device, dtype=actions.dtype).tril(-1)
        kept = runs.unsqueeze(-3) * lengths.unsqueeze(-1)  # (..., T, K, K - 1, A)
        told = torch.cat([kept, lengths.unsqueeze(-1).expand(*kept.shape[:-1], 1)], dim=-1)
        added = self.fc2(F.silu(self.fc1(told.flatten(-2))))
        longer = torch.arange(self.most, device=actions.device).view(-1, 1) > 0
        return first[..., ::every, None, :] + torch.where(longer, added, 0.0)


def causal(count: int, device: torch.device) -> Tensor:
    """Who looks at whom, (count, count): each at those before it and at itself."""
    return torch.ones(count, count, dtype=torch.bool, device=device).tril()


__all__ = ["ActionEncoder", "AdaLNBlock", "CausalConfig", "CausalPredictor", "ChunkEncoder", "causal"]
