"""Several clips of a sample, and several views of each clip, as one answer.

A video is cut into C clips along time, and each clip into V views (left, middle and right of the frame). V-JEPA 2's
probes (arXiv 2506.09985, appendix on probing; its public evaluation code) attend to the tokens of all clips of a view
together and average the class probabilities of the views: `join_clips`, then `average_probabilities`. V-JEPA and
earlier work treat every clip by itself and average over clips and views alike: `separate_clips` instead. Probes of
one vector per sample (kNN, linear) take the mean over all clips and views: `average_features`.

Samples may have different numbers of clips: then they come as a list, one tensor for each.

Shapes: n samples, C clips, V views, N tokens, D width, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from jepa.config import ClipConfig
from jepa.errors import ConfigError

Samples = Tensor | Sequence[Tensor]  # (n, ...), or n tensors (...)


@dataclass(frozen=True)
class ClipsConfig(ClipConfig):
    """What of a video is looked at: its clips, and how a probe puts them together."""

    views: int = 1  # of a clip, evenly along the longer side of the frame; training samples have the middle one only
    join: bool = True  # whether a probe attends to all clips of a view together, or to each by itself

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.views < 1:
            raise ConfigError(f"views={self.views} must be at least 1")


def join_clips(tokens: Tensor) -> Tensor:
    """(n, C, V, N, D) to (n, V, C * N, D): a view's clips one after the other."""
    return tokens.transpose(1, 2).flatten(2, 3)


def separate_clips(tokens: Tensor) -> Tensor:
    """(n, C, V, N, D) to (n, C * V, N, D): every clip and view by itself."""
    return tokens.flatten(1, 2)


def average_probabilities(logits: Samples) -> Tensor:
    """Class probabilities of each sample: the mean of the softmax over its clips and views.

    Args:
        logits: (n, ..., K), or n tensors (..., K).

    Returns:
        (n, K) float64; rows sum to 1.
    """
    if isinstance(logits, Tensor):
        return average_features(logits.double().softmax(dim=-1))
    return average_features([x.double().softmax(dim=-1) for x in logits])


def average_features(features: Samples) -> Tensor:
    """One vector of each sample: the mean over its clips and views, which are already pooled over tokens.

    Args:
        features: (n, ..., D), or n tensors (..., D).

    Returns:
        (n, D) in the precision given.
    """
    if isinstance(features, Tensor):
        return features.reshape(len(features), -1, features.shape[-1]).mean(dim=1)
    return torch.stack([x.reshape(-1, x.shape[-1]).mean(dim=0) for x in features])


def embed_clips(embed: Callable[[Tensor], list[Tensor]], clips: Tensor, join: bool = True) -> list[Tensor]:
    """Tokens of clips (n, C, V, ...), each clip and view through the encoder by itself.

    Args:
        embed: clips (B, ...) to levels of tokens, each (B, N, D).

    Returns:
        For each level (n, V, C * N, D), or (n, C * V, N, D) where clips are not joined.
    """
    found = [level.reshape(*clips.shape[:3], *level.shape[1:]) for level in embed(clips.flatten(0, 2))]
    return [join_clips(level) if join else separate_clips(level) for level in found]
