"""RSSM: Dreamer's belief over the latents of a frozen encoder, for worlds that are seen in part.

Hafner et al., "Mastering diverse domains through world models" (DreamerV3), arXiv 2301.04104. Ours: what is
reconstructed is the frame's latent, not its pixels; and frames are hidden at random while training (`blank`), so that
the belief learns to carry on from actions alone.

    jepa train rssm data.path=data/two-room method.encoder.path=runs/lewm

x_t = layer_norm(frozen(o_t)), pooled onto `grid`;  e_t = MLP(x_t), or a learned vector where the frame is hidden
belief (h_t, z_t): see jepa.nn.belief;  x^_t = decoder(h_t, z_t)
loss = |x^_t - x_t|^2 / 2 + dynamics * max(free, KL(sg(q) || p)) + representation * max(free, KL(q || sg(p)))

divided by half the number of features, so that the first term is a mean squared error.

A frame of one single colour counts as missing wherever it comes from: the belief is not told it, and in training it is
no target. Out of training z is the likeliest one, so plans are costed the same every time.

Shapes: B batch, S plans, T frames, H steps, N pooled tokens of a frame, D encoder width, P proprioception, W width of
h, Z of z.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from jepa.data import Batch
from jepa.errors import ConfigError
from jepa.losses import curvature, normalise_targets
from jepa.masks import Masks
from jepa.methods.base import Output, Schedule
from jepa.methods.frozen import FrozenConfig, FrozenEncoder
from jepa.methods.world import HeadedWorldModel, History, Space, State
from jepa.nn import noise
from jepa.nn.belief import Belief, BeliefConfig, Distribution
from jepa.nn.heads import Heads, HeadsConfig
from jepa.nn.ranks import full_precision
from jepa.nn.tokens import coarse


@dataclass(frozen=True)
class RSSMConfig:
    """RSSM's own settings."""

    encoder: FrozenConfig = field(default_factory=FrozenConfig)  # what frames are seen through
    space: Space = field(default_factory=Space)  # sizes of actions and proprioception; filled in from the data set
    grid: int = 4  # rows and columns that tokens are pooled onto; a frame with fewer keeps its own
    belief: BeliefConfig = field(default_factory=BeliefConfig)  # h and z
    hidden: int = 512  # width inside embedding and decoder
    blank: float = 0.0  # share of frames hidden in training, keyed by sample; never a window's first
    dynamics: float = 0.5  # weight of moving the prior to the posterior
    representation: float = 0.1  # weight of moving the posterior to the prior
    free: float = 1.0  # nats below which KL costs nothing
    chunk: int = 1  # actions that one prediction covers: 1 only, see docs/methods/lewm.md
    straighten: float = 0.0  # weight of the curvature of the paths of h
    heads: HeadsConfig = field(default_factory=HeadsConfig)  # reward, value and uncertainty

    def __post_init__(self) -> None:
        if self.chunk != 1:
            raise ConfigError(
                f"chunk={self.chunk}: rssm predicts over one action at a time (chunk=1), because its belief is made of "
                "every step, and imagining one is a small recurrent cell, of which fewer save nothing. dinowm and lewm "
                "have chunks; or put several environment steps into one action with data.clip.stride"
            )
        if min(self.grid, self.hidden) < 1 or not 0 <= self.blank < 1:
            raise ConfigError(
                f"grid={self.grid}, hidden={self.hidden} must be at least 1, blank={self.blank:g} in [0, 1)"
            )
        if min(self.dynamics, self.representation, self.free, self.straighten) < 0:
            raise ConfigError("dynamics, representation, free, straighten: at least 0 each")


@dataclass(frozen=True)
class Beliefs:
    """Of every frame of a window."""

    h: Tensor  # (B, T, W)
    z: Tensor  # (B, T, Z)
    priors: list[Distribution]
    posteriors: list[Distribution]

    @property
    def features(self) -> Tensor:
        """Both side by side (B, T, W + Z)."""
        return torch.cat([self.h, self.z.to(self.h.dtype)], dim=-1)


class RSSM(HeadedWorldModel):
    """Frozen encoder, embedding, belief, decoder of latents."""

    Config = RSSMConfig
    config: RSSMConfig

    def __init__(self, config: RSSMConfig, size: tuple[int, ...]) -> None:
        super().__init__(config, size)
        if config.space.action < 1:
            raise ConfigError("rssm needs actions: train on episodes, with a section data.steps")
        self.check_length(config, size)
        self.encoder = FrozenEncoder(config.encoder, (size[-2], size[-1]))
        self.pooled = (min(config.grid, self.encoder.grid[0]), min(config.grid, self.encoder.grid[1]))
        self.features = self.pooled[0] * self.pooled[1] * self.encoder.width + config.space.proprio
        width, hidden = config.belief.width, config.hidden
        self.embed = nn.Sequential(nn.Linear(self.features, hidden), nn.LayerNorm(hidden), nn.SiLU())
        self.missing = nn.Parameter(torch.randn(hidden) * 0.02) if config.blank or config.space.blank else None
        self.belief = Belief(config.belief, hidden, config.space.action)
        known = width + config.belief.size
        self.decoder = nn.Sequential(
            nn.Linear(known, hidden), nn.LayerNorm(hidden), nn.SiLU(), nn.Linear(hidden, self.features)
        )
        self.heads = Heads(config.heads, known, config.space.action)

    def check_length(self, config: RSSMConfig, size: tuple[int, ...]) -> None:
        """Raises ConfigError when windows are too short."""
        needed = 3 if config.straighten else 2
        if size[0] < needed:
            raise ConfigError(f"windows of {size[0]} frames are too short, {needed} are needed. Set data.clip.frames")

    # --- training -------------------------------------------------------------------------------------------------

    def forward(self, x: Tensor, masks: Masks | None, schedule: Schedule, batch: Batch | None = None) -> Output:
        assert batch is not None and batch.steps is not None, "rssm trains on episodes, got a batch without steps"
        history, config, g = self.window(x, batch), self.config, batch.g.to(x.device)
        target, there = self.seen(history)
        actions = self.action_scale(history.actions)
        beliefs = self.follow(target, there & self.shown(g, there.shape[1]), actions, g)
        error = (self.decoder(beliefs.features).float() - target.float()).square().mean(-1)
        error = (error * there).sum() / there.sum().clamp(min=1)
        dynamics, representation, apart = self.balance(beliefs)
        kl = config.dynamics * dynamics + config.representation * representation
        loss = error + 2 / self.features * kl
        metrics = {"loss_reconstruction": error, "kl": apart, "loss_of_copy": self.copying(target, there)}
        if config.straighten:
            metrics["curvature"] = curvature(beliefs.h)
            loss = loss + config.straighten * metrics["curvature"]
        more, parts = self.heads.loss(
            beliefs.features, beliefs.features[:, 1:], actions, batch.steps, g, self.seed
        )  # fmt: skip
        return Output(loss + more, {name: value.detach() for name, value in (metrics | parts).items()})

    def seen(self, history: History) -> tuple[Tensor, Tensor]:
        """What is to be known of frames, (B, T, features) with proprioception last, and whether they are there (B, T).

        Raises:
            ConfigError: no proprioception for a model that was trained with it.
        """
        frames = history.frames
        tokens = self.encoder.frames(frames.flatten(0, 1))  # (M, N, D)
        pooled = coarse(tokens, self.encoder.grid, self.pooled)
        x = normalise_targets(pooled.float()).reshape(*frames.shape[:2], -1)
        if self.space.proprio:
            if history.proprio is None:
                raise ConfigError("this model was trained with proprioception: give it with every frame")
            x = torch.cat([x, self.proprio_scale(history.proprio).to(x.dtype)], dim=-1)
        there = (frames.amax((-1, -2)) > frames.amin((-1, -2))).any(-1)
        return x, there

    def shown(self, g: Tensor, frames: int) -> Tensor:
        """Frames that training does not hide (B, T)."""
        if not (self.training and self.config.blank):
            return torch.ones(len(g), frames, dtype=torch.bool, device=g.device)
        shown = noise.uniform("rssm.blank", self.seed, g, frames) >= self.config.blank
        return shown | (torch.arange(frames, device=g.device) == 0)

    def follow(self, x: Tensor, shown: Tensor, actions: Tensor, g: Tensor | None = None) -> Beliefs:
        """Beliefs from what is seen.

        Args:
            x: (B, T, features). shown: (B, T). actions: scaled, (B, T - 1, A).
            g: sample numbers (B,) to draw z by; None takes the likeliest.
        """
        batch, frames, _ = x.shape
        embedded = self.embed(x)
        blank = torch.zeros_like(embedded[0, 0]) if self.missing is None else self.missing.to(embedded.dtype)
        embedded = torch.where(shown.unsqueeze(-1), embedded, blank)
        numbers = self.config.belief.parameters
        drawn = None
        if g is not None and self.training:
            drawn = noise.uniform("rssm.z", self.seed, g, frames * numbers).view(batch, frames, numbers)
        h = self.belief.first(batch)
        hs: list[Tensor] = []
        zs: list[Tensor] = []
        priors, posteriors = [], []
        with full_precision(x.device):  # a recurrence adds up what bfloat16 rounds off
            for t in range(frames):
                h = self.belief.step(h, zs[-1], actions[:, t - 1]) if t else h
                posterior = self.belief.posterior(h, embedded[:, t])
                hs.append(h)
                zs.append(posterior.mode() if drawn is None else posterior.sample(drawn[:, t]))
                priors.append(self.belief.prior(h))
                posteriors.append(posterior)
        return Beliefs(torch.stack(hs, 1), torch.stack(zs, 1), priors, posteriors)

    def balance(self, beliefs: Beliefs) -> tuple[Tensor, Tensor, Tensor]:
        """KL that moves the prior, KL that moves the posterior, and their common value, in nats for each frame.

        DreamerV3, equation 5; the first frame has nothing to predict it from and counts like any other.
        """
        pairs = list(zip(beliefs.posteriors, beliefs.priors, strict=True))
        moving = torch.stack([q.detach().divergence(p) for q, p in pairs], 1)
        held = torch.stack([q.divergence(p.detach()) for q, p in pairs], 1)
        free = self.config.free
        return moving.clamp(min=free).mean(), held.clamp(min=free).mean(), held.mean()

    def copying(self, x: Tensor, there: Tensor) -> Tensor:
        """What taking the frame before for the next one would cost."""
        both = there[:, 1:] & there[:, :-1]
        return ((x[:, 1:] - x[:, :-1]).square().mean(-1) * both).sum() / both.sum().clamp(min=1)

    # --- use ------------------------------------------------------------------------------------------------------

    def observe(self, history: History) -> State:
        """The belief after all frames; latents (B, T, N, D) are what it holds for them, also where a frame is missing.

        Raises:
            ConfigError: a frame is missing and the model was trained without any.
        """
        x, there = self.seen(history)
        if self.missing is None and not bool(there.all()):
            raise ConfigError(
                "a frame is missing (one single colour), and this model never met that: train it with method.blank or "
                "data.steps.blank above 0"
            )
        beliefs = self.follow(x, there, self.action_scale(history.actions))
        memory = {"h": beliefs.h[:, -1], "z": beliefs.z[:, -1]}
        return self._state(self.decoder(beliefs.features), memory)

    def imagine(self, state: State, actions: Tensor) -> State:
        """The likeliest future under the prior."""
        batch, count, steps, _ = actions.shape
        told = self.action_scale(actions).flatten(0, 1)
        h, z = (state.memory[name].repeat_interleave(count, dim=0) for name in ("h", "z"))
        known, unsure = [torch.cat([h, z.to(h.dtype)], dim=-1)], []
        with full_precision(actions.device):
            for step in range(steps):
                h = self.belief.step(h, z, told[:, step])
                prior = self.belief.prior(h)
                z = prior.mode()
                known.append(torch.cat([h, z.to(h.dtype)], dim=-1))
                unsure.append(prior.spread())
        features = torch.stack(known, dim=1)
        uncertainty = torch.stack(unsure, dim=1)
        if self.heads.ensemble is not None:
            uncertainty = self.heads.ensemble.disagreement(features[:, :-1], told)
        features = features[:, 1:].reshape(batch, count, steps, -1)
        memory = {"belief": features, "uncertainty": uncertainty.view(batch, count, steps)}
        return self._state(self.decoder(features), memory)

    def _state(self, decoded: Tensor, memory: dict[str, Tensor]) -> State:
        """Decoded (..., features) as latents (..., N, D) and proprioception."""
        size = self.features - self.space.proprio
        latents, proprio = decoded[..., :size], decoded[..., size:]
        shape = (*latents.shape[:-1], self.pooled[0] * self.pooled[1], self.encoder.width)
        return State(latents.reshape(shape), proprio if self.space.proprio else None, memory)

    def summary(self, state: State) -> Tensor:
        """The belief. `uncertainty` is the ensemble's, or without one how open the prior leaves z (`spread`)."""
        return state.memory["belief"]

    def encode(self, x: Tensor) -> Tensor:
        tokens: Tensor = self.encoder(x)
        return tokens

    def encoders(self) -> dict[str, nn.Module]:
        return {"context": self.encoder}


__all__ = ["RSSM", "RSSMConfig"]
