"""V-JEPA 2.1: V-JEPA 2 with a loss on visible tokens too, several supervised levels, and images as images.

"V-JEPA 2.1", arXiv 2603.14482; where the paper leaves things open, as its public training code does them.

    jepa train vjepa21-vit-l16 data.path=data/k710 mix.images.path=data/imagenet

h = concat over levels l of layer_norm(target_l(x))                      target_l: after some blocks, each its own norm
z, v = predictor(concat over levels l of encoder_l(x, visible))          z: answers for masked, v: for visible tokens
loss = mean |z - h[masked]| + lambda(step) * mean( |v - h[visible]| / sqrt(d) )     both averaged over mask specs
d = distance of a visible token to the nearest masked one, in tokens along time, rows and columns
target <- m * target + (1 - m) * encoder

Each modality has its own patch embedding (clips 2 x 16 x 16, images 1 x 16 x 16) and learned embeddings that mark its
tokens in the encoder and the predictor; lambda differs too. It is 0 up to the first number of `context_warmup`, rises
linearly to the second and then holds; both are shares of the schedule (the official code: steps 15 000 and 30 000).

Shapes: B batch, T frames, H W image, N tokens, Kc_i and Kt_i visible and masked tokens of spec i, D width, L levels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from jepa import ema, losses, masks
from jepa.data import Batch
from jepa.errors import ConfigError
from jepa.methods.base import Foresight, Output, Schedule, kind_of
from jepa.methods.teacher import TaughtVideo, check_momentum
from jepa.nn.attention import unpack
from jepa.nn.dense import DensePredictor, MultiLevelTransformer, supervised_levels
from jepa.nn.positions import PositionConfig
from jepa.nn.rope import Layout
from jepa.nn.tokens import gather_packed
from jepa.nn.video import VideoEncoderConfig
from jepa.nn.video_predictor import VideoPredictorConfig

KINDS = ("clip", "image")
Sides = tuple[
    list[Tensor], list[Tensor]
]  # masked tokens (B, Kt_i, ...) and visible tokens (B, Kc_i, ...) per mask spec


@dataclass(frozen=True)
class CorrectedPositionConfig(PositionConfig):
    """How tokens know where they are: rotary, paired, rescaled to the grid of 256 px."""

    layout: Layout = "paired"  # rope: tiled belongs to V-JEPA 2's weights, paired (a true rotation) to those of 2.1
    base_grid: int | None = 16  # rope: rescale rows and columns to a grid of this side; null: as they are


@dataclass(frozen=True)
class MixedMasksConfig(masks.VideoMasksConfig):
    """Which tokens are masked, in clips and in images."""

    image_specs: tuple[masks.BlockSpec, ...] | None = (masks.BlockSpec(blocks=10),)  # of images; null: as for clips


@dataclass(frozen=True)
class VJEPA21Config:
    """V-JEPA 2.1's own settings."""

    encoder: VideoEncoderConfig = field(default_factory=VideoEncoderConfig)  # context and target encoder
    levels: tuple[int, ...] | None = None  # supervised blocks, 0-based; default: official, else up to four, evenly
    predictor: VideoPredictorConfig = field(default_factory=VideoPredictorConfig)  # fused levels to all levels
    position: CorrectedPositionConfig = field(default_factory=CorrectedPositionConfig)  # of tokens, in both
    masks: MixedMasksConfig = field(default_factory=MixedMasksConfig)  # which tokens are masked
    mask_token: int = 1  # number of the predictor's mask token that is used, modulo how many it has
    context_weight: float = 0.5  # lambda of clips once warmed up: weight of the loss on visible tokens
    image_context_weight: float = 0.5  # lambda of images
    context_warmup: tuple[float, float] = (0.04, 0.08)  # shares of the schedule between which lambda rises from 0
    by_distance: bool = True  # divide a visible token's loss by the root of its distance to the nearest masked one
    distance_per_16: bool = False  # measure that distance in units of grid side // 16 tokens
    ema: tuple[float, float] = (0.99925, 0.99925)  # target encoder's momentum, from the first to the last step
    loss: Literal["l1", "smooth_l1", "l2"] = "l1"  # distance of embeddings; l2 is half the squared one, as official
    targets: Literal["plain", "centred"] = "plain"  # centred: less what position and the whole clip alone tell

    def __post_init__(self) -> None:
        check_momentum(self.ema)
        start, end = self.context_warmup
        if not 0 <= start <= end <= 1:
            raise ConfigError(f"context_warmup: got [{start}, {end}], allowed: 0 <= start <= end <= 1")
        if min(self.context_weight, self.image_context_weight) < 0:
            raise ConfigError("context_weight and image_context_weight must be at least 0")
        supervised_levels(self.encoder.resolved()[1], self.levels)


class VJEPA21(TaughtVideo):
    """Context encoder, EMA target encoder, predictor."""

    Config = VJEPA21Config
    config: VJEPA21Config
    inputs = KINDS
    phased = (
        *("masks", "ema", "loss", "targets", "context_weight", "image_context_weight", "context_warmup"),
        *("by_distance", "distance_per_16"),
    )
    target: MultiLevelTransformer

    def __init__(self, config: VJEPA21Config, size: tuple[int, ...]) -> None:
        super().__init__(config, size)
        _, depth, heads, _ = config.encoder.resolved()
        levels = supervised_levels(depth, config.levels)
        self.encoder = MultiLevelTransformer(config.encoder, size, config.position, levels)
        self.predictor = DensePredictor(
            config.predictor, self.encoder.width, heads, self.encoder.grid, config.position, len(levels)
        )
        self.predictor.use_tokens([config.mask_token])
        self.target = ema.teacher(self.encoder)
        self.expect([kind_of(size)])

    def expect(self, kinds: Sequence[str]) -> None:
        """Freezes the parts of a modality that no source has."""
        self.encoder.use_kinds(kinds)
        self.predictor.use_kinds(kinds)

    def sampler(self, seed: int, size: tuple[int, ...] | None = None) -> masks.Sampler:
        size = size or self.size
        return masks.make_video_sampler(self.config.masks, self.encoder.grid_of(size), seed, kind_of(size))

    def schedule(self, step: int, total_steps: float) -> dict[str, float]:
        start, end = (share * total_steps for share in self.config.context_warmup)
        risen = (step - start) / (end - start) if end > start else float(step >= end)
        risen = min(max(risen, 0.0), 1.0)
        return {
            "momentum": ema.momentum(step, total_steps, *self.config.ema),
            "context_weight": risen * self.config.context_weight,
            "image_context_weight": risen * self.config.image_context_weight,
        }

    def forward(self, x: Tensor, masks: masks.Masks | None, schedule: Schedule, batch: Batch | None = None) -> Output:
        assert masks is not None, "V-JEPA 2.1 needs masks, got None"
        targets, answers = self.targets(x, masks), self.predict(x, masks)
        nearness = self.nearness(x, masks)
        weight = schedule["context_weight" if kind_of(x.shape[2:]) == "clip" else "image_context_weight"]
        masked, seen = self._distances(answers, targets, nearness)
        with torch.no_grad():  # what always answering the batch mean would cost: a loss near it has learned nothing
            means = tuple([t.mean(dim=(0, 1), keepdim=True).expand_as(t) for t in side] for side in targets)
            mean_masked, mean_seen = self._distances((means[0], means[1]), targets, nearness)
        loss = masked + weight * seen
        metrics = {"loss": loss, "loss_masked": masked, "loss_visible": seen}
        metrics["loss_of_mean"] = mean_masked + weight * mean_seen
        return Output(loss, {name: value.detach() for name, value in metrics.items()})

    @torch.no_grad()
    def targets(self, x: Tensor, masks: masks.Masks) -> Sides:
        """Normalised teacher embeddings: of masked (B, Kt_i, L * D) and of visible tokens (B, Kc_i, L * D)."""
        tokens = self.target(x, fused=True)  # (B, N, L * D): the teacher sees the whole clip
        if self.config.targets == "centred":  # level by level, because the mean is over tokens only
            tokens = losses.centre_targets(tokens, self.target(torch.zeros_like(x[:1]), fused=True))
        both = [*masks.target, *masks.context]
        rows = losses.normalise_levels(gather_packed(tokens, both), len(self.encoder.supervised))
        found = unpack(rows, both)
        return found[: len(masks.target)], found[len(masks.target) :]

    def predict(self, x: Tensor, masks: masks.Masks) -> Sides:
        """Predicted embeddings of masked (B, Kt_i, L * D) and of visible tokens (B, Kc_i, L * D), per mask spec."""
        visible = self.encoder(x, masks.context, fused=True)  # (B, Kc_i, L * D) per spec, all in one pass
        size = x.shape[2:]
        grid = self.encoder.grid_of(size)
        masked, seen = self.predictor(visible, masks, grid, [self.config.mask_token] * len(visible), kind_of(size))
        return masked, seen

    @torch.no_grad()
    def nearness(self, x: Tensor, masks: masks.Masks) -> list[Tensor]:
        """1 / sqrt(distance to the nearest masked token) of the visible tokens, or 1: (B, Kc_i) per mask spec."""
        if not self.config.by_distance:
            return [torch.ones(at.shape, device=at.device) for at in masks.context]
        grid = self.encoder.grid_of(x.shape[2:])
        unit = max(1, grid[1] // 16) if self.config.distance_per_16 else 1
        far = [losses.distance_to(target, grid) for target in masks.target]
        return [(d.gather(1, at) / unit).rsqrt() for d, at in zip(far, masks.context, strict=True)]

    def foresight(self, which: str, mask_token: int | None = None) -> Foresight | None:
        """Predicts all levels from all levels; the last one is shown, as the encoder's output is the last level."""
        token = self.config.mask_token if mask_token is None else mask_token
        encoder = self.encoders()[which]

        def predict(seen: Tensor, at: Tensor, wanted: Tensor) -> Tensor:
            grid = self.predictor.grid_for(wanted)
            out: Sides = self.predictor([seen], masks.Masks([at], [wanted]), grid, [token], "clip")
            return out[0][0]

        return Foresight(
            lambda clips: encoder(clips, fused=True), predict, lambda tokens: tokens[..., -self.encoder.width :],
            self.encoder.grid[1:], self.config.encoder.tubelet, self.predictor.reach,
        )  # fmt: skip

    def _distances(self, answers: Sides, targets: Sides, nearness: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Of masked and of visible tokens: the mean over mask specs of each spec's mean."""
        kind = self.config.loss
        masked = [losses.power_loss(a, t, kind) for a, t in zip(answers[0], targets[0], strict=True)]
        by_spec = zip(answers[1], targets[1], nearness, strict=True)
        seen = [losses.power_loss(a, t, kind, near) for a, t, near in by_spec]
        return torch.stack(masked).mean(), torch.stack(seen).mean()
