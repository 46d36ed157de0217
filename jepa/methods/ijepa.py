"""I-JEPA: predict the embeddings of masked blocks from a visible context.

Assran et al., "Self-supervised learning from images with a joint-embedding predictive architecture", CVPR 2023,
arXiv 2301.08243.

    jepa train ijepa-vit-b16 data.path=data/imagenet

loss = mean smooth-L1( predictor(context_encoder(x, context), targets), layer_norm(target_encoder(x))[targets] )
With `targets: centred` the teacher's tokens are first freed of what needs no understanding to predict: its answer to
an empty image (the position) and their mean over the image (overall colour and brightness). On small, plain pictures
these are nearly all that plain targets hold, and the encoder learns little else.

target_encoder <- m * target_encoder + (1 - m) * context_encoder, m linear from ema[0] to ema[1].

Shapes: B batch, N tokens, C contexts, T targets, Kc Kt kept tokens, D width.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from jepa import ema, losses, masks
from jepa.data import Batch
from jepa.methods.base import Output, Schedule
from jepa.methods.teacher import Taught, check_momentum
from jepa.nn.predictor import Predictor, PredictorConfig, repeat_blocks
from jepa.nn.tokens import gather_tokens, token_grid
from jepa.nn.vit import EncoderConfig, VisionTransformer


@dataclass(frozen=True)
class IJEPAConfig:
    """I-JEPA's own settings."""

    encoder: EncoderConfig = field(default_factory=EncoderConfig)  # context and target encoder
    predictor: PredictorConfig = field(
        default_factory=PredictorConfig
    )  # context tokens and target positions to target tokens
    masks: masks.MultiBlockConfig = field(
        default_factory=masks.MultiBlockConfig
    )  # which tokens are context, which targets
    ema: tuple[float, float] = (0.996, 1.0)  # target encoder's momentum, from the first to the last step
    loss: Literal["smooth_l1", "l1", "l2"] = "smooth_l1"  # distance of predicted and target embeddings
    targets: Literal["plain", "centred"] = "plain"  # centred: less what position and the whole image alone tell

    def __post_init__(self) -> None:
        check_momentum(self.ema)


class IJEPA(Taught):
    """Context encoder, EMA target encoder, predictor."""

    Config = IJEPAConfig
    config: IJEPAConfig
    phased = ("masks", "ema", "loss", "targets")
    target: VisionTransformer

    def __init__(self, config: IJEPAConfig, size: tuple[int, ...]) -> None:
        super().__init__(config, size)
        self.encoder = VisionTransformer(config.encoder, (size[0], size[1]))
        self.predictor = Predictor(
            config.predictor, self.encoder.width, config.encoder.resolved()[2], self.encoder.grid
        )
        self.target = ema.teacher(self.encoder)

    def sampler(self, seed: int, size: tuple[int, ...] | None = None) -> masks.Sampler:
        height, width = size or self.size
        grid = token_grid((height, width), self.config.encoder.patch)
        return masks.make_sampler(self.config.masks, grid, seed)

    def forward(self, x: Tensor, masks: masks.Masks | None, schedule: Schedule, batch: Batch | None = None) -> Output:
        assert masks is not None, "I-JEPA needs masks, got None"
        target = self.targets(x, masks)
        predicted = self.predict(x, masks)
        loss = losses.latent_loss(predicted, target, self.config.loss)
        with torch.no_grad():  # what always answering the batch mean would cost: a loss near it has learned nothing
            mean = target.mean(dim=(0, 1), keepdim=True).expand_as(target)
            baseline = losses.latent_loss(mean, target, self.config.loss)
        return Output(loss, {"loss": loss.detach(), "loss_of_mean": baseline})

    @torch.no_grad()
    def targets(self, images: Tensor, masks: masks.Masks) -> Tensor:
        """Normalised teacher embeddings of the target blocks: (T * C * B, Kt, D)."""
        tokens = self.target(images)  # (B, N, D): the teacher sees the whole image
        if self.config.targets == "centred":
            empty = self.target(torch.zeros_like(images[:1]))  # (1, N, D): what a position alone tells
            tokens = losses.centre_targets(tokens, empty)
        # the norm is per token, so gathering first gives the same values and touches fewer tokens
        blocks = losses.normalise_targets(gather_tokens(tokens, masks.target))
        return repeat_blocks(blocks, len(masks.target), len(masks.context))

    def predict(self, images: Tensor, masks: masks.Masks) -> Tensor:
        """Predicted embeddings of the target blocks: (T * C * B, Kt, D)."""
        context = self.encoder(images, masks.context)  # (C * B, Kc, D)
        predicted: Tensor = self.predictor(context, masks.context, masks.target)
        return predicted
