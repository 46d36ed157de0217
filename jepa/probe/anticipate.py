"""Anticipation: tokens of a time that has not been seen yet, from the frozen encoder and the frozen predictor.

As in V-JEPA 2's public evaluation code: the encoder sees the clip up to now, the predictor is asked for the places of
the tokens `seconds` later, and an attentive probe reads both together and names the action that starts then. Asked for
several steps, the predictor goes on from its own answer: the oldest tokens leave, the predicted ones take their place.

Anything that predicts tokens at places fits in: a `Predict` takes context tokens and the numbers of their places, and
the numbers of the places to predict. `predict_with` makes one of each kind of predictor here.

Places are numbered time first, then row by row. A predictor with rotary positions may be asked past the clip it was
trained on; a table of positions ends where the training did, and asking for more is an error.

Shapes: B batch, t h w token grid, N = t h w context tokens, K predicted tokens of a step, D width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from jepa.errors import ConfigError
from jepa.masks import Masks
from jepa.nn.predictor import Predictor
from jepa.probe.bootstrap import Float64

Predict = Callable[[Tensor, Tensor, Tensor], Tensor]  # context (B, N, D), its places (B, N), places (B, K): (B, K, D)


@dataclass(frozen=True)
class AnticipateConfig:
    """How far ahead is looked, and what the probe reads."""

    seconds: float = 1.0  # from the last frame seen to the first one predicted
    frames: int = 2  # predicted frames; rounded up to whole tubelets
    steps: int = 1  # predictions, each from the one before
    encoder: bool = True  # the probe also reads the tokens of what was seen
    predictor: bool = True  # false: only those, the yardstick for what predicting adds

    def __post_init__(self) -> None:
        if not self.seconds >= 0 or self.frames < 1 or self.steps < 1:
            raise ConfigError(
                f"seconds={self.seconds}, frames={self.frames}, steps={self.steps}: allowed: seconds >= 0, frames and "
                "steps from 1"
            )
        if not (self.encoder or self.predictor):
            raise ConfigError("encoder=false, predictor=false: nothing to read; allow at least one of them")


@dataclass(frozen=True)
class Clock:
    """How places of tokens and time go together."""

    fps: float  # frames a second of the clips
    tubelet: int  # frames in a token
    grid: tuple[int, int]  # rows and columns of tokens

    @property
    def area(self) -> int:
        """Tokens at one time."""
        return self.grid[0] * self.grid[1]

    def times(self, frames: int) -> int:
        """Times that `frames` frames take, rounded up."""
        return -(-frames // self.tubelet)

    def skipped(self, seconds: Tensor) -> Tensor:
        """Whole times in `seconds` (B,), int64, rounded down."""
        # a hair is added: 0.3 s at 10 frames a second are 3 frames, though the product is below 3
        return torch.floor(seconds.double() * self.fps / self.tubelet + 1e-6).long()


class Anticipator(nn.Module):
    """Clips to tokens of what was seen and of what comes `seconds` later.

    Args:
        encode: clips (B, 3, T, H, W) to tokens (B, N, D), e.g. a `jepa.checkpoint.Encoder`.
        predict: see `predict_with`.
        known: how many times the predictor's positions reach; None: any.
    """

    def __init__(
        self,
        encode: Callable[[Tensor], Tensor],
        predict: Predict,
        clock: Clock,
        config: AnticipateConfig,
        known: int | None = None,
    ) -> None:
        super().__init__()
        self.encode, self.predict, self.clock, self.config, self.known = encode, predict, clock, config, known

    def forward(self, clips: Tensor, seconds: Tensor | None = None) -> Tensor:
        """Tokens (B, N + steps * K, D), seen ones first; only the parts that the configuration asks for.

        Args:
            seconds: (B,) how far ahead for each clip; None: the configuration's.

        Raises:
            ConfigError: tokens that are no whole number of times, or times past the predictor's positions.
        """
        with torch.no_grad():
            seen = self.encode(clips)
            if not self.config.predictor:
                return seen
            if seconds is None:
                seconds = torch.full((len(seen),), self.config.seconds)
            ahead = self.future(seen, seconds.to(seen.device))
            return torch.cat([seen, ahead], dim=1) if self.config.encoder else ahead

    def future(self, seen: Tensor, seconds: Tensor) -> Tensor:
        """Predicted tokens (B, steps * K, D) from seen ones (B, N, D)."""
        batch, count, _ = seen.shape
        area, times = self.clock.area, self.clock.times(self.config.frames)
        if count % area or not count:
            raise ConfigError(
                f"{count} tokens are no whole number of times of {self.clock.grid[0]} x {self.clock.grid[1]} tokens"
            )
        asked = times * area
        if asked > count:  # a context cannot be replaced by more tokens than it has
            raise ConfigError(
                f"frames={self.config.frames} are more than the {count // area * self.clock.tubelet} frames seen"
            )
        skipped = self.clock.skipped(seconds)
        last = count // area + int(skipped.max()) + times
        if self.known is not None and last > self.known:
            most = (self.known - times - count // area) * self.clock.tubelet / self.clock.fps
            hint = f"at most {most:g} s ahead" if most >= 0 else "shorter clips"
            raise ConfigError(
                f"predicting {float(seconds.max()):g} s ahead needs positions of {last} times; this predictor knows "
                f"{self.known} (fixed tables end where training did). Use {hint}, or rotary positions"
            )
        places = torch.arange(count, device=seen.device).expand(batch, -1)
        wanted = count + area * skipped[:, None] + torch.arange(asked, device=seen.device)
        context, found = seen, []
        for _ in range(self.config.steps):
            found.append(self.predict(context, places, wanted))
            context = torch.cat([context[:, asked:], found[-1]], dim=1)
        return torch.cat(found, dim=1)


def predict_with(predictor: nn.Module, grid: tuple[int, int], mask_token: int = 1) -> tuple[Predict, int | None]:
    """A predictor of this package as a `Predict`, and how many times its positions reach (None: any).

    Args:
        predictor: one that is called (context, [places], [places]), or jepa/nn/video_predictor.py's.
        grid: rows and columns of tokens.
        mask_token: which learned token of a video predictor stands for a place to predict, modulo their number; 1 as
            in V-JEPA 2's evaluation code.
    """
    area = grid[0] * grid[1]
    if isinstance(predictor, Predictor):
        table = predictor.predictor_pos_embed
        return lambda seen, at, wanted: predictor(seen, [at], [wanted]), table.shape[1] // area
    model: Any = predictor
    if not hasattr(model, "mask_tokens"):
        return lambda seen, at, wanted: model(seen, [at], [wanted]), None
    known = None if model.tables is not None else int(model.grid[0])

    def video(seen: Tensor, at: Tensor, wanted: Tensor) -> Tensor:
        # rotary tables are made for as many times as are asked for; fixed ones must be the predictor's own
        times = int(wanted.max()) // area + 1 if known is None else known
        (out,) = model([seen], Masks([at], [wanted]), (times, *grid), [mask_token % len(model.mask_tokens)])
        return torch.as_tensor(out)

    return video, known


def recall_columns(scores: Tensor, labels: Tensor, k: int = 5) -> Float64:
    """Columns (n, 2 C) whose sums give the class-mean recall at k: hits of each class, then samples of each class.

    Args:
        scores: (n, C) logits or probabilities.
        labels: (n,) int64.
    """
    classes = scores.shape[1]
    hit = (scores.topk(min(k, classes), dim=1).indices == labels[:, None]).any(dim=1)
    there = torch.nn.functional.one_hot(labels, classes).double()
    return np.asarray(torch.cat([there * hit[:, None], there], dim=1).numpy())


def class_mean_recall(sums: Float64) -> Float64:
    """Summed `recall_columns` (..., 2 C) to the mean over classes that occur of hits / samples, (...)."""
    hits, there = np.split(sums, 2, axis=-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        share = np.where(there > 0, hits / there, np.nan)
    return np.asarray(np.nanmean(share, axis=-1))
