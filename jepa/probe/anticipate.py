"""Anticipation: tokens of a time that has not been seen yet, from the frozen encoder and the frozen predictor.

As in V-JEPA 2's public evaluation code: the encoder sees the clip up to now, the predictor is asked for the places of
the tokens `seconds` later, and an attentive probe reads both together and names the action that starts then. Asked for
several steps, the predictor goes on from its own answer: the oldest tokens leave, the predicted ones take their place.

How a method looks ahead is its own affair (`Method.foresight`); whatever predicts tokens at places fits in.

Places are numbered time first, then row by row. A predictor with rotary positions may be asked past the clip it was
trained on; a table of positions ends where the training did, and asking for more is an error.

Shapes: B batch, t h w token grid, N = t h w context tokens, K predicted tokens of a step, L and D width of the tokens
that are predicted from and of those that a probe reads.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from jepa.errors import ConfigError
from jepa.methods.base import Foresight
from jepa.probe.attentive import AttentiveConfig
from jepa.probe.bootstrap import Float64


@dataclass(frozen=True)
class AnticipateConfig:
    """How far ahead is looked, and what the probe reads."""

    seconds: float = 1.0  # from the last frame seen to the first one predicted
    frames: int = 2  # predicted frames; rounded up to whole tubelets
    steps: int = 1  # predictions, each from the one before
    encoder: bool = True  # the probe also reads the tokens of what was seen
    predictor: bool = True  # false: only those, the yardstick for what predicting adds
    mask_token: int | None = None  # learned token that stands for what is predicted; null: the one that was trained

    def __post_init__(self) -> None:
        if not self.seconds >= 0 or self.frames < 1 or self.steps < 1:
            raise ConfigError(
                f"seconds={self.seconds}, frames={self.frames}, steps={self.steps}: allowed: seconds >= 0, frames and "
                "steps from 1"
            )
        if not (self.encoder or self.predictor):
            raise ConfigError("encoder=false, predictor=false: nothing to read; allow at least one of them")


@dataclass(frozen=True)
class AnticipationConfig(AnticipateConfig):
    """The class of what begins `seconds` after the clip ends, from seen and predicted tokens."""

    labels: tuple[str, ...] = ()  # kinds of labels, each with a query of its own; empty: all that the data set has
    onset: str = "onset"  # continuous target: seconds from the video's first frame to the start of the action
    k: int = 5  # recall counts a class among the k most likely ones
    probe: AttentiveConfig = field(default_factory=AttentiveConfig)  # size, grid and training of the attentive probe

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.k < 1 or len(set(self.labels)) < len(self.labels):
            raise ConfigError(f"k={self.k}, labels={list(self.labels)}: allowed: k from 1, every kind once")
        if self.probe.targets or not self.probe.classify:
            raise ConfigError("probe: anticipation classifies; leave targets and classify out")


def skipped(seconds: Tensor, fps: float, tubelet: int) -> Tensor:
    """Whole times of `tubelet` frames in `seconds` (B,), int64, rounded down."""
    # a hair is added: 0.3 s at 10 frames a second are 3 frames, though the product is below 3
    return torch.floor(seconds.double() * fps / tubelet + 1e-6).long()


class Anticipator(nn.Module):
    """Clips to tokens of what was seen and of what comes `seconds` later.

    Args:
        foresight: what `Method.foresight` gives.
        fps: frames a second of the clips.
        normalise: applied to the clips first, e.g. an `Encoder`'s.
    """

    def __init__(
        self,
        foresight: Foresight,
        fps: float,
        config: AnticipateConfig,
        normalise: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.foresight, self.fps, self.config, self.normalise = foresight, fps, config, normalise

    def forward(self, clips: Tensor, seconds: Tensor | None = None) -> Tensor:
        """Tokens (B, N + steps * K, D) of clips (B, 3, T, H, W), seen ones first; only what the configuration asks for.

        Args:
            seconds: (B,) how far ahead for each clip; None: the configuration's.

        Raises:
            ConfigError: tokens that are no whole number of times, or times past the predictor's positions.
        """
        with torch.no_grad():
            seen = self.foresight.look(clips if self.normalise is None else self.normalise(clips))
            if not self.config.predictor:
                return self.foresight.show(seen)
            if seconds is None:
                seconds = torch.full((len(seen),), self.config.seconds)
            ahead = self.future(seen, seconds.to(seen.device))
            return self.foresight.show(torch.cat([seen, ahead], dim=1) if self.config.encoder else ahead)

    def future(self, seen: Tensor, seconds: Tensor) -> Tensor:
        """Predicted tokens (B, steps * K, L) from seen ones (B, N, L)."""
        batch, count, _ = seen.shape
        (rows, columns), tubelet, reach = self.foresight.grid, self.foresight.tubelet, self.foresight.reach
        area, times = rows * columns, -(-self.config.frames // tubelet)
        if count % area or not count:
            raise ConfigError(f"{count} tokens are no whole number of times of {rows} x {columns} tokens")
        asked = times * area
        if asked > count:  # a context cannot be replaced by more tokens than it has
            raise ConfigError(f"frames={self.config.frames} are more than the {count // area * tubelet} frames seen")
        late = skipped(seconds, self.fps, tubelet)
        last = count // area + int(late.max()) + times
        if reach is not None and last > reach:
            most = (reach - times - count // area) * tubelet / self.fps
            hint = f"at most {most:g} s ahead" if most >= 0 else "shorter clips"
            raise ConfigError(
                f"predicting {float(seconds.max()):g} s ahead needs positions of {last} times; this predictor knows "
                f"{reach} (fixed tables end where training did). Use {hint}, or rotary positions"
            )
        places = torch.arange(count, device=seen.device).expand(batch, -1)
        wanted = count + area * late[:, None] + torch.arange(asked, device=seen.device)
        context, found = seen, []
        for _ in range(self.config.steps):
            found.append(self.foresight.predict(context, places, wanted))
            context = torch.cat([context[:, asked:], found[-1]], dim=1)
        return torch.cat(found, dim=1)


def in_top(scores: Tensor, labels: Tensor, k: int) -> Tensor:
    """Whether the right class is among the k with the highest scores: (..., n, C) and (n,) to (..., n) bool."""
    best = scores.topk(min(k, scores.shape[-1]), dim=-1).indices
    return (best == labels[:, None]).any(dim=-1)


def recall_columns(hit: Tensor, labels: Tensor) -> Float64:
    """Columns (n, 2 C) whose sums give the class-mean recall: hits of each class that occurs, then its samples.

    Args:
        hit: (n,) bool.
        labels: (n,) int64; -1, not known, counts for no class.
    """
    classes = torch.unique(labels[labels >= 0])
    there = (labels[:, None] == classes).double()
    return np.asarray(torch.cat([there * hit[:, None], there], dim=1).numpy())


def class_mean_recall(sums: Float64) -> Float64:
    """Summed `recall_columns` (..., 2 C) to the mean over classes that occur of hits / samples, (...)."""
    hits, there = np.split(sums, 2, axis=-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        share = np.where(there > 0, hits / there, np.nan)
    return np.asarray(np.nanmean(share, axis=-1))


def recall(hit: Tensor, labels: Tensor) -> float:
    """Class-mean recall of hits (n,) with labels (n,)."""
    return float(class_mean_recall(recall_columns(hit, labels).sum(axis=0)))
