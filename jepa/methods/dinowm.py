"""DINO-WM: a frame-causal predictor over the patch tokens of any frozen encoder.

Zhou et al., "DINO-WM: world models on pre-trained visual features enable zero-shot planning", arXiv 2411.04983;
Terver et al., "What drives success in physical planning with joint-embedding predictive world models?",
arXiv 2512.24497 (adaptive layer norms for actions, roll-out loss).

    jepa train dinowm-pusht data.path=data/pusht

z_t = [frozen(o_t), embedded proprioception, embedded a_t]   tokens of frame t, side by side
one step  = mean over t of |predictor(z_<=t) - z_t+1|^2      (features and proprioception, not the action)
roll-out  = the same of `rollout` frames in a row, each predicted from the predictions before it; gradients go through

With `chunk: K` it also learns to predict over 2 .. K actions at once (variable-length world models, arXiv 2606.21775):
the newest frame is told the chunk instead of its action. Imagining H steps then takes H / K predictions in a row.

The predictor looks at the newest `history` frames. Longer training clips are for the roll-out loss.

Shapes: B batch, S plans, T frames, H imagined steps, N patches of a frame, D width, A action, P proprioception, Q its
embedding, E embedded action, K chunk.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor, nn

from jepa import losses
from jepa.data import Batch
from jepa.errors import ConfigError
from jepa.masks import Masks
from jepa.methods.base import Output, Schedule
from jepa.methods.frozen import FrozenConfig, FrozenWorldModel
from jepa.methods.world import History, Space, State
from jepa.nn.causal import ChunkEncoder
from jepa.nn.frame_causal import Past
from jepa.nn.heads import HeadsConfig
from jepa.nn.leap import Chunk, leap_error, leap_out
from jepa.nn.patch_predictor import PatchPredictor, PatchPredictorConfig
from jepa.nn.rollout import Ahead, Frames, roll_out


@dataclass(frozen=True)
class DinoWMConfig:
    """DINO-WM's own settings; the defaults are the published ones."""

    encoder: FrozenConfig = field(default_factory=FrozenConfig)  # frozen: what the latents are
    predictor: PatchPredictorConfig = field(default_factory=PatchPredictorConfig)  # frames to those that follow
    space: Space = field(default_factory=Space)  # numbers that come with the frames
    history: int = 3  # frames that the predictor looks at
    action_width: int = 10  # of an embedded action; more for adaptive layer norms
    proprio_width: int = 10  # of embedded proprioception
    rollout: int = 0  # steps of the roll-out loss; 0: off
    rollout_weight: float = 1.0  # of the roll-out loss
    chunk: int = 1  # most actions that one prediction covers; 1: as in the paper
    loss: Literal["l1", "l2", "smooth_l1"] = "l2"  # distance of latents; l2 is the mean squared error
    heads: HeadsConfig = field(default_factory=HeadsConfig)  # reward, value and uncertainty
    straighten: float = 0.0  # weight of the curvature of paths in a learned projection, which is then the readout
    projection: int = 64  # numbers of that projection
    coarse: int = 4  # rows and columns that tokens are averaged onto, for heads and projection

    def __post_init__(self) -> None:
        if min(self.history, self.action_width, self.proprio_width, self.chunk) < 1:
            raise ConfigError(
                f"history={self.history}, action_width={self.action_width}, proprio_width={self.proprio_width}, "
                f"chunk={self.chunk}: all at least 1"
            )


class DinoWM(FrozenWorldModel):
    """Frozen encoder, embeddings of action and proprioception, predictor."""

    Config = DinoWMConfig
    config: DinoWMConfig

    def __init__(self, config: DinoWMConfig, size: tuple[int, ...]) -> None:
        super().__init__(config, size)
        self.action_embed = nn.Linear(config.space.action, config.action_width)
        proprio = config.proprio_width if config.space.proprio else 0
        self.proprio_embed = nn.Linear(config.space.proprio, proprio) if proprio else None
        self.predictor = PatchPredictor(
            config.predictor, self.encoder.width, proprio, config.action_width, self.encoder.tokens, config.history
        )
        self.extend(proprio)
        wide = config.action_width
        self.chunks = ChunkEncoder(config.space.action, config.chunk, wide) if config.chunk > 1 else None

    def forward(self, x: Tensor, masks: Masks | None, schedule: Schedule, batch: Batch | None = None) -> Output:
        history = self.window(x, batch)
        return self.learn(self.latents(history.frames), history.actions, history.proprio, batch)

    def learn(self, latents: Tensor, actions: Tensor, proprio: Tensor | None, batch: Batch | None = None) -> Output:
        """The loss of T frames' latents (B, T, N, D), T - 1 actions (B, T - 1, A) and proprioception (B, T, P).

        `batch`: what heads learn from, for a model that has some.
        """
        seen = self.frames(latents, actions, proprio)
        count = min(seen.count - 1, self.config.history)
        one_step = self.ahead(seen.part(0, count))
        total = loss = self.distance(one_step, seen.part(1, count + 1))
        metrics = {"loss_one_step": loss.detach()}
        if steps := self.config.rollout:
            start = min(self.config.history, seen.count - steps)  # frames that are seen before the roll-out
            rolled = self._follow(seen, one_step, start, steps)
            loss = self.distance(rolled, seen.part(start, start + steps))
            total, metrics["loss_rollout"] = total + self.config.rollout_weight * loss, loss.detach()
        if self.chunks is not None:
            g = torch.arange(len(latents)) if batch is None else batch.g
            loss = leap_error(self, self.chunks, seen, one_step.past, g.to(latents.device), self.seed)
            total, metrics["loss_chunk"] = total + loss, loss.detach()
        more, parts = self.also(_state(seen), _state(one_step), seen.actions, batch)
        total, metrics = total + more, metrics | parts
        with torch.no_grad():  # what saying that nothing moves would cost
            still = self.distance(seen.part(0, count), seen.part(1, count + 1))
        return Output(total, {"loss": total.detach(), **metrics, "loss_of_copy": still})

    def _follow(self, seen: Frames, one_step: Ahead, start: int, steps: int) -> Frames:
        """So many frames predicted in a row after the first `start` ones; the first of them is that of one step."""
        known, found = seen.part(0, start), Frames(*_each(one_step, start - 1), seen.actions[:, start - 1 : start])
        for step in range(start, start + steps - 1):
            newest = replace(found.part(found.count - 1, found.count), actions=seen.actions[:, step : step + 1])
            known = known.join(newest)
            nxt = self.ahead(known.part(max(0, known.count - self.config.history), known.count), last=True)
            found = found.join(Frames(nxt.latents, nxt.proprio, newest.actions))
        return found

    def frames(self, latents: Tensor, actions: Tensor, proprio: Tensor | None) -> Frames:
        """Frames as the predictor takes them; without an action after the newest one, zeros stand there.

        Args:
            latents: (B, T, N, D). actions: (B, T or T - 1, A) and proprio: (B, T, P) as the data set has them.
        """
        if actions.shape[1] < latents.shape[1]:
            actions = (
                torch.cat([actions, torch.zeros_like(actions[:, :1])], dim=1)
                if actions.shape[1]
                else actions.new_zeros(len(latents), 1, self.space.action)
            )
        embedded = None
        if self.proprio_embed is not None and proprio is not None:
            embedded = self.proprio_embed(self.proprio_scale(proprio))
            embedded = embedded.unsqueeze(2).expand(-1, -1, latents.shape[2], -1)
        return Frames(latents, embedded, self.action_scale(actions))

    def embedded(self, actions: Tensor) -> Tensor:
        """Scaled actions (..., A) to (..., E)."""
        out: Tensor = self.action_embed(actions)
        return out

    def ahead(self, frames: Frames, past: Past | None = None, last: bool = False, chunk: Chunk | None = None) -> Ahead:
        """What follows each of these frames; see `jepa.nn.rollout.Predictor` and `jepa.nn.leap.Leaper`."""
        actions = self.embedded(frames.actions) if chunk is None else chunk.told
        tokens = self.predictor.tokens(frames.latents, frames.proprio, actions)
        out, past = self.predictor(tokens, actions, past, last)
        return Ahead(*self.predictor.split(out), past)

    def distance(self, found: Frames | Ahead, wanted: Frames) -> Tensor:
        """Mean over all features of patches and proprioception, side by side as official; no gradient to `wanted`."""
        ours, theirs = (
            x.latents if x.proprio is None else torch.cat([x.latents, x.proprio.to(x.latents.dtype)], dim=-1)
            for x in (found, wanted)
        )
        return losses.latent_loss(ours, theirs.detach(), self.config.loss)

    def observe(self, history: History) -> State:
        """The newest `history` frames. `proprio` of the state is the embedded one (B, T, Q), the predictor's own."""
        frames = history.frames[:, -self.config.history :]
        count = frames.shape[1]
        actions = history.actions[:, history.actions.shape[1] - (count - 1) :]
        embedded = None
        if self.proprio_embed is not None and history.proprio is not None:
            embedded = self.proprio_embed(self.proprio_scale(history.proprio[:, -count:]))
        return State(self.latents(frames), embedded, {"actions": actions})

    def imagine(self, state: State, actions: Tensor) -> State:
        """Roll out. Imagined proprioception (B, S, H, Q) is the mean of what the patches of a frame say.

        Raises:
            ConfigError: actions of another size, or a state without the proprioception that the model needs.
        """
        seen = self._seen(state, actions)
        at_once = self.plans_at_once(state, actions.shape[1], self.config.history * self.config.chunk)
        parts = [
            roll_out(self, seen, self.action_scale(piece), self.config.history)
            if self.chunks is None
            else leap_out(self, self.chunks, seen, self.action_scale(piece), self.config.history)
            for piece in torch.split(actions, at_once, dim=1)
        ]
        proprio = [p.mean(dim=-2) for _, p in parts if p is not None]
        future = State(torch.cat([z for z, _ in parts], dim=1), torch.cat(proprio, dim=1) if proprio else None)
        return self.doubted(state, future, actions)

    def _seen(self, state: State, actions: Tensor) -> Frames:
        self.check(state, actions)
        latents, before = state.latents, state.memory["actions"]
        before = torch.cat([before, before.new_zeros(len(before), 1, self.space.action)], dim=1)
        proprio = state.proprio
        if proprio is not None:
            proprio = proprio.unsqueeze(2).expand(-1, -1, latents.shape[2], -1)
        return Frames(latents, proprio, self.action_scale(before))


def _state(frames: Frames | Ahead) -> State:
    """What is known of frames, as states have it: proprioception is the mean of what a frame's patches say."""
    return State(frames.latents, None if frames.proprio is None else frames.proprio.mean(dim=-2))


def _each(ahead: Ahead, at: int) -> tuple[Tensor, Tensor | None]:
    return ahead.latents[:, at : at + 1], None if ahead.proprio is None else ahead.proprio[:, at : at + 1]


__all__ = ["DinoWM", "DinoWMConfig"]
