"""What methods with an EMA teacher have in common: `self.target` follows `self.encoder` and is what is probed.

A method makes `encoder`, `predictor` and, last, ``self.target = ema.teacher(self.encoder)``; its config has `ema`, the
momentum from the first to the last step.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

from torch import Tensor, nn

from jepa import ema
from jepa.errors import ConfigError
from jepa.methods.base import Method


def check_momentum(momentum: tuple[float, float]) -> None:
    """Raises ConfigError unless both numbers are shares."""
    if not all(0 <= m <= 1 for m in momentum):
        raise ConfigError(f"ema: got {list(momentum)}, allowed: two numbers between 0 and 1")


class Taught(Method):
    """Context encoder, predictor, and the encoder's moving average as target encoder."""

    encoder: Any  # of the classes of jepa.nn that can `resize`
    predictor: Any
    target: Any
    gated = True

    def train(self, mode: bool = True) -> Self:
        """As in torch, except that the teacher stays in eval mode."""
        super().train(mode)
        self.target.eval()
        return self

    def enter(self, config: Any, size: tuple[int, ...]) -> None:
        """Positions are those of the phase before, interpolated to the new grid (rotary ones are made for any grid)."""
        super().enter(config, size)
        for encoder in (self.encoder, self.target):
            encoder.resize(size)
        self.predictor.resize(self.encoder.grid)

    def schedule(self, step: int, total_steps: float) -> dict[str, float]:
        """Momentum in force at `step`."""
        return {"momentum": ema.momentum(step, total_steps, *self.config.ema)}

    def after_step(self, values: dict[str, float], keep: Tensor | None = None) -> None:
        """The teacher follows."""
        ema.update(self.target.parameters(), self.encoder.parameters(), values["momentum"], keep)

    def encode(self, x: Tensor) -> Tensor:
        """The teacher's normalised tokens (B, N, D)."""
        tokens: Tensor = self.target(x)
        return tokens

    def encoders(self) -> dict[str, nn.Module]:
        """Both."""
        return {"context": self.encoder, "target": self.target}


class TaughtVideo(Taught):
    """The same of clips and images, whose encoder gives its levels."""

    def encode_levels(self, x: Tensor, after: Sequence[int]) -> list[Tensor]:
        """Normalised tokens (B, N, D) after each of these blocks (0-based, ascending) of the encoder that is probed."""
        levels: list[Tensor] = self.target.levels(x, after)
        return levels


__all__ = ["Taught", "TaughtVideo", "check_momentum"]
