"""LeWorldModel: encoder and predictor end to end from pixels, kept from collapse by SIGReg alone.

Maes et al., "LeWorldModel: stable end-to-end joint-embedding predictive architecture from pixels", arXiv 2603.19312.

    jepa train lewm data.path=data/two-room

z_t = projector(ViT(frame_t)), c_t = action_encoder(a_t)
loss = mean |predictor(z_t-2, z_t-1, z_t; c_t-2, c_t-1, c_t) - z_t+1|^2 + weight * SIGReg(z)

No teacher and no stopped gradient: the target is the encoder's own embedding of the next frame. There is one latent for
each frame, so a plan is a few small matrix products; the predictor sees `history` frames.

Shapes: B batch, S plans, T frames, H steps, D latent width, A numbers of an action.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor, nn

from jepa.data import Batch
from jepa.errors import ConfigError
from jepa.masks import Masks
from jepa.methods.base import Output, Schedule
from jepa.methods.world import History, Space, State, WorldModel
from jepa.nn.causal import ActionEncoder, CausalConfig, CausalPredictor
from jepa.nn.frames import FrameEncoder, Norm, Pool, Projector
from jepa.nn.ranks import BatchNorm
from jepa.nn.sigreg import SIGReg, SigRegConfig
from jepa.nn.vit import EncoderConfig


@dataclass(frozen=True)
class LeWMConfig:
    """LeWorldModel's own settings."""

    space: Space = field(default_factory=Space)  # sizes of actions; filled in from the data set
    encoder: EncoderConfig = field(
        default_factory=lambda: EncoderConfig(size="tiny", patch=(14, 14), init="fan_in")
    )  # sees one frame at a time
    tokens: Pool = "cls"  # what of the encoder is a frame's vector: a class token, or the mean of its patch tokens
    latent: int = 192  # D
    hidden: int = 2048  # width inside the two projectors
    norm: Norm = "batch"  # inside the projectors: batch norm (over all ranks) as in the paper, or layer norm
    history: int = 3  # frames that the predictor looks back at
    predictor: CausalConfig = field(default_factory=CausalConfig)  # from latents and actions to the next latent
    sigreg: SigRegConfig = field(default_factory=SigRegConfig)  # what keeps the latents from collapsing

    def __post_init__(self) -> None:
        if min(self.latent, self.hidden, self.history) < 1:
            raise ConfigError(f"latent={self.latent}, hidden={self.hidden}, history={self.history}: at least 1 each")


class LeWM(WorldModel):
    """Frame encoder, action encoder, causal predictor."""

    Config = LeWMConfig
    config: LeWMConfig
    couples_samples = True
    gated = True

    def __init__(self, config: LeWMConfig, size: tuple[int, ...]) -> None:
        super().__init__(config, size)
        if config.space.action < 1:
            raise ConfigError("lewm needs actions: train on episodes, with a section data.steps")
        if config.space.proprio:
            raise ConfigError("lewm sees pixels only: leave data.steps.proprio out")
        latent, hidden, norm = config.latent, config.hidden, config.norm
        self.encoder = FrameEncoder(config.encoder, (size[-2], size[-1]), config.tokens, latent, hidden, norm)
        self.action_encoder = ActionEncoder(config.space.action, latent)
        self.predictor = CausalPredictor(config.predictor, latent, config.history)
        self.projector = Projector(latent, hidden, latent, norm)
        self.sigreg = SIGReg(config.sigreg)

    def schedule(self, step: int, total_steps: float) -> dict[str, float]:
        return {"noise_step": float(step)}

    # --- training -------------------------------------------------------------------------------------------------

    def forward(self, x: Tensor, masks: Masks | None, schedule: Schedule, batch: Batch | None = None) -> Output:
        history = self.window(x, batch)
        z = self.encoder.each(history.frames)
        error, copy = self.prediction_error(z, self.embed(history.actions))
        sketch = self.sigreg(z, schedule["noise_step"], self.seed)
        loss = error + self.config.sigreg.weight * sketch
        return Output(loss, {"loss_prediction": error.detach(), "loss_copy": copy, "sigreg": sketch.detach()})

    def prediction_error(self, z: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        """Mean squared error of the next latent, and that of taking the last one for it.

        Args:
            z: (B, T, D) of all frames; actions: embedded, (B, T - 1, D).
        """
        predicted = self.predict(_windows(z[:, :-1], self.config.history), _windows(actions, self.config.history))
        target = _windows(z[:, 1:], self.config.history)
        copy = (z[:, 1:] - z[:, :-1]).detach().float().square().mean()
        return (predicted.float() - target.float()).square().mean(), copy

    def predict(self, z: Tensor, actions: Tensor) -> Tensor:
        """Latents (B, T, D) and embedded actions (B, T, D), T at most `history`, to next latents (B, T, D)."""
        out: Tensor = self.projector(self.predictor(z, actions))
        return out

    def embed(self, actions: Tensor) -> Tensor:
        """Actions (..., A) as the data set has them to (..., D)."""
        out: Tensor = self.action_encoder(self.action_scale(actions))
        return out

    def after_step(self, values: dict[str, float], keep: Tensor | None = None) -> None:
        for module in self.modules():
            if isinstance(module, BatchNorm):
                module.fold(keep)

    # --- use --------------------------------------------------------------------------------------------------------

    def observe(self, history: History) -> State:
        """The newest `history` frames."""
        newest = self.config.history
        z = self.encoder.each(history.frames[:, -newest:])
        between = history.actions[:, history.actions.shape[1] - (z.shape[1] - 1) :]
        return State(z.unsqueeze(2), memory={"actions": self.embed(between)})

    def imagine(self, state: State, actions: Tensor) -> State:
        """Each prediction joins the window that the next one is made from."""
        z = self.predictor.roll(state.latents.squeeze(2), state.memory["actions"], self.embed(actions), self.projector)
        return State(z.unsqueeze(3))

    def encode(self, x: Tensor) -> Tensor:
        tokens: Tensor = self.encoder(x)
        return tokens

    def encoders(self) -> dict[str, nn.Module]:
        return {"context": self.encoder}


def _windows(x: Tensor, length: int) -> Tensor:
    """(B, T, D) to all its runs of `length` frames (B * W, length, D); as it is where it is no longer than that."""
    if x.shape[1] <= length:
        return x
    return x.unfold(1, length, 1).permute(0, 1, 3, 2).flatten(0, 1)


__all__ = ["LeWM", "LeWMConfig"]
