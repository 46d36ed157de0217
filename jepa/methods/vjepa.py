"""V-JEPA and V-JEPA 2: predict the embeddings of masked space-time blocks of a clip from its visible tokens.

Bardes et al., "Revisiting feature prediction for learning visual representations from video", arXiv 2404.08471;
Assran et al., "V-JEPA 2: self-supervised video models enable understanding, prediction and planning",
arXiv 2506.09985.

    jepa train vjepa2-vit-l16 data.path=data/k710

loss = mean over mask specs i of  mean |predictor(encoder(x, visible_i), masked_i) - layer_norm(target(x))[masked_i]|
target <- m * target + (1 - m) * encoder     (equation 1 of both papers; an L1 distance, as published)

The two differ in settings: V-JEPA 2 has rotary positions and one mask token per source (`mask_token: source`), V-JEPA
a sine-cosine table (`position.kind: sincos`) and one mask token per mask spec (`mask_token: mask`). Images go through
the same model, each repeated to one tubelet.

`targets: centred` frees the teacher's tokens of what position and the whole clip alone tell (as in ijepa.py),
`targets: motion` of all that stays where it is. Short runs of small models on plain videos learn little of motion from
plain targets: still background is most of what there is to predict.

Shapes: B batch, T frames, H W image, N tokens, Kc_i and Kt_i visible and masked tokens of spec i, D width.
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
from jepa.nn.positions import PositionConfig
from jepa.nn.tokens import gather_packed
from jepa.nn.video import VideoEncoderConfig, VideoTransformer
from jepa.nn.video_predictor import VideoPredictor, VideoPredictorConfig


@dataclass(frozen=True)
class VJEPAConfig:
    """V-JEPA's own settings; the defaults are those of V-JEPA 2."""

    encoder: VideoEncoderConfig = field(default_factory=VideoEncoderConfig)  # context and target encoder
    predictor: VideoPredictorConfig = field(default_factory=VideoPredictorConfig)  # visible to masked tokens
    position: PositionConfig = field(default_factory=PositionConfig)  # how tokens know where they are, in both
    masks: masks.VideoMasksConfig = field(default_factory=masks.VideoMasksConfig)  # which tokens are masked
    mask_token: Literal["source", "mask"] = "source"  # the predictor's mask token goes by source, or by mask spec
    ema: tuple[float, float] = (0.99925, 0.99925)  # target encoder's momentum, from the first to the last step
    loss: Literal["l1", "smooth_l1", "l2"] = "l1"  # distance of embeddings; l2 is half the squared one, as official
    targets: Literal["plain", "centred", "motion"] = "plain"  # centred, motion: see above

    def __post_init__(self) -> None:
        check_momentum(self.ema)


class VJEPA(TaughtVideo):
    """Context encoder, EMA target encoder, predictor."""

    Config = VJEPAConfig
    config: VJEPAConfig
    inputs = ("clip", "image")
    phased = ("masks", "ema", "loss", "targets")
    target: VideoTransformer

    def __init__(self, config: VJEPAConfig, size: tuple[int, ...]) -> None:
        super().__init__(config, size)
        self.encoder = VideoTransformer(config.encoder, size, config.position)
        heads = config.encoder.resolved()[2]
        self.predictor = VideoPredictor(config.predictor, self.encoder.width, heads, self.encoder.grid, config.position)
        self.target = ema.teacher(self.encoder)
        self.expect([kind_of(size)])

    def expect(self, kinds: Sequence[str]) -> None:
        """Freezes the mask tokens that no source or mask spec uses.

        Raises:
            ConfigError: targets of motion where nothing can move.
        """
        still = "image" in kinds or self.encoder.grid[0] < 2
        if self.config.targets == "motion" and still:
            raise ConfigError(
                "targets=motion needs clips of at least two time steps (data.clip.frames / method.encoder.tubelet) "
                "and no images among the sources; use targets=centred or plain"
            )
        specs = [len(self.config.masks.of(kind)) for kind in kinds]
        self.predictor.use_tokens(i for source, count in enumerate(specs) for i in self._mask_tokens(source, count))

    def sampler(self, seed: int, size: tuple[int, ...] | None = None) -> masks.Sampler:
        size = size or self.size
        return masks.make_video_sampler(self.config.masks, self.encoder.grid_of(size), seed, kind_of(size))

    def forward(self, x: Tensor, masks: masks.Masks | None, schedule: Schedule, batch: Batch | None = None) -> Output:
        assert masks is not None, "V-JEPA needs masks, got None"
        targets = self.targets(x, masks)
        predicted = self.predict(x, masks, batch.source if batch is not None else 0)
        loss = self._distance(predicted, targets)
        with torch.no_grad():  # what always answering the batch mean would cost: a loss near it has learned nothing
            means = [t.mean(dim=(0, 1), keepdim=True).expand_as(t) for t in targets]
            baseline = self._distance(means, targets)
        return Output(loss, {"loss": loss.detach(), "loss_of_mean": baseline})

    @torch.no_grad()
    def targets(self, x: Tensor, masks: masks.Masks) -> list[Tensor]:
        """Normalised teacher embeddings of the masked tokens: (B, Kt_i, D) per mask spec."""
        tokens = self.target(x)  # (B, N, D): the teacher sees the whole clip
        if self.config.targets == "motion":
            steps = self.encoder.grid_of(x.shape[2:])[0]
            moved = losses.motion_targets(tokens, self.target(torch.zeros_like(x[:1])), steps)
            return unpack(gather_packed(moved, masks.target), masks.target)
        if self.config.targets == "centred":
            tokens = losses.centre_targets(tokens, self.target(torch.zeros_like(x[:1])))
        # the norm is per token, so gathering first gives the same values
        rows = losses.normalise_targets(gather_packed(tokens, masks.target))
        return unpack(rows, masks.target)

    def predict(self, x: Tensor, masks: masks.Masks, source: int = 0) -> list[Tensor]:
        """Predicted embeddings of the masked tokens: (B, Kt_i, D) per mask spec."""
        visible = self.encoder(x, masks.context)  # (B, Kc_i, D) per spec, all in one pass
        grid = self.encoder.grid_of(x.shape[2:])
        predicted: list[Tensor] = self.predictor(visible, masks, grid, self._mask_tokens(source, len(visible)))
        return predicted

    def foresight(self, which: str, mask_token: int | None = None) -> Foresight | None:
        token = self._mask_tokens(0, 1)[0] if mask_token is None else mask_token

        def predict(seen: Tensor, at: Tensor, wanted: Tensor) -> Tensor:
            grid = self.predictor.grid_for(wanted)
            out: list[Tensor] = self.predictor([seen], masks.Masks([at], [wanted]), grid, [token])
            return out[0]

        return Foresight(
            self.encoders()[which], predict, lambda tokens: tokens, self.encoder.grid[1:], self.config.encoder.tubelet,
            self.predictor.reach,
        )  # fmt: skip

    def _distance(self, predicted: list[Tensor], targets: list[Tensor]) -> Tensor:
        """Mean over mask specs of each spec's mean."""
        each = [losses.power_loss(p, t, self.config.loss) for p, t in zip(predicted, targets, strict=True)]
        return torch.stack(each).mean()

    def _mask_tokens(self, source: int, specs: int) -> list[int]:
        """Which mask token each of so many mask specs of a source uses."""
        return [source if self.config.mask_token == "source" else i for i in range(specs)]
