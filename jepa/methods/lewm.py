"""LeWorldModel: encoder and predictor end to end from pixels, kept from collapse by SIGReg alone.

Maes et al., "LeWorldModel: stable end-to-end joint-embedding predictive architecture from pixels", arXiv 2603.19312.

    jepa train lewm data.path=data/two-room

z_t = projector(ViT(frame_t)), c_t = action_encoder(a_t)
loss = mean |predictor(z_t-2, z_t-1, z_t; c_t-2, c_t-1, c_t) - z_t+1|^2 + weight * SIGReg(z)

No teacher and no stopped gradient: the target is the encoder's own embedding of the next frame. There is one latent for
each frame, so a plan is a few small matrix products; the predictor sees `history` frames.

With `chunk: K` (variable-length world models, arXiv 2606.21775) it also learns to predict over 2 .. K actions at once,
so that imagining H steps takes H / K predictions in a row, and errors add up that much less often. `straighten` adds
the curvature of latent paths (arXiv 2603.12231); `heads` rewards, values and uncertainty.

Shapes: B batch, S plans, T frames, H steps, D latent width, A numbers of an action, W runs of history, K chunk.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from jepa.data import Batch
from jepa.errors import ConfigError
from jepa.losses import curvature
from jepa.masks import Masks
from jepa.methods.base import Output, Schedule
from jepa.methods.world import HeadedWorldModel, History, Space, State
from jepa.nn import noise
from jepa.nn.causal import ActionEncoder, CausalConfig, CausalPredictor, ChunkEncoder, causal
from jepa.nn.frames import FrameEncoder, Norm, Pool, Projector
from jepa.nn.heads import Heads, HeadsConfig
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
    straighten: float = 0.0  # weight of the curvature of latent paths
    chunk: int = 1  # most actions that one prediction covers; 1: as in the paper
    heads: HeadsConfig = field(default_factory=HeadsConfig)  # reward, value and uncertainty

    def __post_init__(self) -> None:
        if min(self.latent, self.hidden, self.history, self.chunk) < 1 or self.straighten < 0:
            raise ConfigError(
                f"latent={self.latent}, hidden={self.hidden}, history={self.history}, chunk={self.chunk}: at least 1 "
                f"each, straighten={self.straighten:g}: at least 0"
            )


class LeWM(HeadedWorldModel):
    """Frame encoder, action encoder, causal predictor."""

    Config = LeWMConfig
    config: LeWMConfig
    couples_samples = True

    def __init__(self, config: LeWMConfig, size: tuple[int, ...]) -> None:
        super().__init__(config, size)
        if config.space.action < 1:
            raise ConfigError("lewm needs actions: train on episodes, with a section data.steps")
        if config.space.proprio:
            raise ConfigError("lewm sees pixels only: leave data.steps.proprio out")
        self.check_length(config, size)
        latent, hidden, norm = config.latent, config.hidden, config.norm
        self.encoder = FrameEncoder(config.encoder, (size[-2], size[-1]), config.tokens, latent, hidden, norm)
        self.action_encoder = ActionEncoder(config.space.action, latent)
        self.predictor = CausalPredictor(config.predictor, latent, config.history)
        self.projector = Projector(latent, hidden, latent, norm)
        self.sigreg = SIGReg(config.sigreg)
        space = config.space.action
        self.chunks = ChunkEncoder(space, config.chunk, latent) if config.chunk > 1 else None
        self.heads = Heads(config.heads, latent, latent)

    def check_length(self, config: LeWMConfig, size: tuple[int, ...]) -> None:
        """Raises ConfigError when windows are too short; of every phase of a run."""
        needed = max(2, config.chunk + 1, 3 if config.straighten else 2)
        if size[0] < needed:
            raise ConfigError(
                f"windows of {size[0]} frames are too short: chunk={config.chunk} and straighten={config.straighten:g} "
                f"need {needed}. Set data.clip.frames"
            )

    def schedule(self, step: int, total_steps: float) -> dict[str, float]:
        return {"noise_step": float(step)}

    # --- training -------------------------------------------------------------------------------------------------

    def forward(self, x: Tensor, masks: Masks | None, schedule: Schedule, batch: Batch | None = None) -> Output:
        assert batch is not None and batch.steps is not None, "lewm trains on episodes, got a batch without steps"
        history, config = self.window(x, batch), self.config
        z, actions = self.encoder.each(history.frames), self.action_scale(history.actions)
        told: Tensor = self.action_encoder(actions)
        predicted, error = self.prediction(z, told)
        sketch = self.sigreg(z, schedule["noise_step"], self.seed)
        loss = error + config.sigreg.weight * sketch
        metrics = {"loss_prediction": error, "loss_of_copy": latent_error(z[:, :-1], z[:, 1:]), "sigreg": sketch}
        if self.chunks is not None:
            metrics["loss_chunk"] = self.chunk_error(z, told, self.chunks(told, actions), batch.g.to(z.device))
            loss = loss + metrics["loss_chunk"]
        if config.straighten:
            metrics["curvature"] = curvature(z)
            loss = loss + config.straighten * metrics["curvature"]
        more, parts = self.heads.loss(z, predicted, told, batch.steps, batch.g, self.seed)
        return Output(loss + more, {name: value.detach() for name, value in (metrics | parts).items()})

    def prediction(self, z: Tensor, told: Tensor) -> tuple[Tensor, Tensor]:
        """The next latents of all but the last frame (B, T - 1, D), and their mean squared error over all runs.

        Where the window is longer than `history`, each frame is predicted in several runs; the one with the most frames
        before it is given back.

        Args:
            z: (B, T, D) of all frames; told: embedded actions, (B, T - 1, D).
        """
        runs = _runs(z.shape[1] - 1, self.config.history, z.device)  # (W, L)
        predicted = self.predict(z[:, runs].flatten(0, 1), told[:, runs].flatten(0, 1)).view(len(z), *runs.shape, -1)
        best = torch.cat([predicted[:, 0], predicted[:, 1:, -1]], dim=1)
        return best, latent_error(predicted, z[:, runs + 1])

    def chunk_error(self, z: Tensor, told: Tensor, chunks: Tensor, g: Tensor) -> Tensor:
        """Mean squared error of predictions over 2 .. K actions: one length for each frame of each run, keyed by g.

        The frames before are told single actions, as when imagining.

        Args:
            z: (B, T, D); told: (B, T - 1, D); chunks: (B, T - 1, K, D); g: sample numbers (B,).
        """
        runs = _runs(z.shape[1] - 1, self.config.history, z.device)  # (W, L)
        most = (z.shape[1] - 1 - runs).clamp(max=chunks.shape[2])  # actions that follow
        drawn = noise.uniform("chunk", self.seed, g, runs.numel()).view(-1, *runs.shape)
        length = 2 + (drawn * (most - 1).clamp(min=1)).long()
        fits = (most >= 2).expand_as(length)
        rows = torch.arange(len(z), device=z.device).view(-1, 1, 1)
        condition = chunks[rows, runs, length.clamp(max=chunks.shape[2]) - 1]
        target = z[rows, (runs + length).clamp(max=z.shape[1] - 1)]
        frames, count = z[:, runs].flatten(0, 1), runs.shape[1]
        places = torch.arange(count, device=z.device)
        single = causal(count, z.device)
        mask = (
            torch.cat([single, torch.zeros_like(single)], 1),
            torch.cat([single.tril(-1), torch.eye(count, device=z.device) > 0], 1),
        )
        out = self.predictor(
            torch.cat([frames, frames], dim=1),
            torch.cat([told[:, runs].flatten(0, 1), condition.flatten(0, 1)], dim=1),
            torch.cat(mask),
            torch.cat([places, places]),
        )
        predicted = self.projector(out[:, count:]).unflatten(0, (len(z), -1))
        each = (predicted.float() - target.float()).square().mean(-1)
        return torch.where(fits, each, 0.0).sum() / fits.sum()

    def predict(self, z: Tensor, actions: Tensor) -> Tensor:
        """Latents (B, T, D) and embedded actions (B, T, D), T at most `history`, to next latents (B, T, D)."""
        out: Tensor = self.projector(self.predictor(z, actions))
        return out

    def embed(self, actions: Tensor) -> Tensor:
        """Actions (..., A) as the data set has them to (..., D)."""
        out: Tensor = self.action_encoder(self.action_scale(actions))
        return out

    def after_step(self, values: dict[str, float], keep: Tensor | None = None) -> None:
        super().after_step(values, keep)
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
        """Each prediction joins the window that the next one is made from; with chunks, K of them at once."""
        seen, known = state.latents.squeeze(2), state.memory["actions"]
        scaled = self.action_scale(actions)
        told: Tensor = self.action_encoder(scaled)
        if self.chunks is None:
            z = self.predictor.roll(seen, known, told, self.projector)
        else:
            z = self._leap(seen, known, told, self.chunks(told, scaled, every=self.config.chunk))
        return State(z.unsqueeze(3), memory=self.heads.doubt(seen[:, -1], z, told))

    def _leap(self, seen: Tensor, known: Tensor, told: Tensor, chunks: Tensor) -> Tensor:
        """Rounds of up to K predictions, each from the last frame of the round before, to (B, S, H, D)."""
        batch, count, steps, _ = told.shape
        z, known = (x.repeat_interleave(count, dim=0) for x in (seen, known))
        known = torch.cat([known, told.flatten(0, 1)], dim=1)  # (R, T - 1 + H, D)
        rounds, before = chunks.flatten(0, 1), z.shape[1]
        for number in range(rounds.shape[1]):
            first = max(0, z.shape[1] - self.config.history)
            left = min(self.config.chunk, steps - number * self.config.chunk)
            between = known[:, first : z.shape[1] - 1]
            ahead = self.predictor.jump(z[:, first:], between, rounds[:, number, :left], self.projector)
            z = torch.cat([z, ahead], dim=1)
        return z[:, before:].view(batch, count, steps, -1)

    def summary(self, state: State) -> Tensor:
        """The latents, one for each frame."""
        return state.latents.squeeze(-2)

    def encode(self, x: Tensor) -> Tensor:
        tokens: Tensor = self.encoder(x)
        return tokens

    def encoders(self) -> dict[str, nn.Module]:
        return {"context": self.encoder}


def latent_error(predicted: Tensor, target: Tensor) -> Tensor:
    """Mean squared error in float32, 0-d."""
    return (predicted.float() - target.float()).square().mean()


def _runs(length: int, most: int, device: torch.device) -> Tensor:
    """Frames of all runs of at most `most` among `length`: (W, L)."""
    each = min(length, most)
    starts = torch.arange(length - each + 1, device=device)
    return starts.unsqueeze(1) + torch.arange(each, device=device)


__all__ = ["LeWM", "LeWMConfig"]
