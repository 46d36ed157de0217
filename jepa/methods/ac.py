"""V-JEPA 2-AC: an action-conditioned predictor over a frozen video encoder.

Assran et al., "V-JEPA 2: self-supervised video models enable understanding, prediction and planning",
arXiv 2506.09985, section 3.

    jepa train ac-vit-g16 data.path=data/droid method.encoder.path=runs/vjepa2-vit-g16

h_t = layer_norm(frozen(frame t, doubled to a clip of one tubelet))
P(h_1..t, a_1..t, s_1..t) = layer_norm(predictor) at time t          what follows frame t, from all up to it
loss = mean_t |P(h_1..t, a_1..t, s_1..t) - h_t+1|                    teacher forcing (equation 2)
     + mean_t |P's own roll-out from frame 1 - h_t+1|, t <= rollout  (equation 3); gradients go through

Blocks of tokens [action, state, patches] of a frame see themselves and earlier blocks. States (`data.steps.proprio`)
are the true ones in training; when a plan is imagined, `motion` says how they go on: by a head of the predictor, which
is trained beside it, or by the action itself, as the official planner does for poses of an end effector.

With `chunk: K` it also learns to predict over 2 .. K actions at once (see jepa.nn.leap): the newest frame's action
token tells them all, its state is where the first one begins, and `motion` takes it to where the last one ends.

Shapes: B batch, S plans, T frames, H imagined steps, N patches of a frame, D width, A action, P state, E the camera's
part of it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from jepa import losses
from jepa.data import Batch
from jepa.errors import ConfigError
from jepa.masks import Masks
from jepa.methods.base import Output, Schedule
from jepa.methods.frozen import FrozenConfig, FrozenWorldModel
from jepa.methods.world import History, Space, State
from jepa.nn.action_predictor import ActionPredictor, ActionPredictorConfig
from jepa.nn.causal import ChunkEncoder
from jepa.nn.frame_causal import Past
from jepa.nn.heads import HeadsConfig
from jepa.nn.leap import Chunk, leap_error, leap_out
from jepa.nn.pose import moved
from jepa.nn.rollout import Ahead, Frames, roll_out

_POSE = 7  # numbers of a pose: position, angles, gripper


@dataclass(frozen=True)
class ACConfig:
    """V-JEPA 2-AC's own settings."""

    encoder: FrozenConfig = field(default_factory=FrozenConfig)  # frozen: what the latents are
    predictor: ActionPredictorConfig = field(default_factory=ActionPredictorConfig)  # frames to those that follow
    space: Space = field(default_factory=Space)  # numbers that come with the frames
    rollout: int = 2  # steps of the roll-out loss; 0: off
    window: int | None = None  # most frames it looks at when it imagines; null: as many as in training
    motion: Literal["predict", "pose", "add", "hold"] = "predict"  # how states go on in a plan: see above
    extrinsics: int = 0  # the last so many numbers of the state are the camera's pose: a token of their own, held
    chunk: int = 1  # most actions that one prediction covers; 1: as in the paper
    loss: Literal["l1", "l2", "smooth_l1"] = "l1"  # distance of layer-normed latents
    heads: HeadsConfig = field(default_factory=HeadsConfig)  # reward, value and uncertainty
    straighten: float = 0.0  # weight of the curvature of paths in a learned projection, which is then the readout
    projection: int = 64  # numbers of that projection
    coarse: int = 4  # rows and columns that tokens are averaged onto, for heads and projection

    def __post_init__(self) -> None:
        if self.chunk < 1:
            raise ConfigError(f"chunk: got {self.chunk}, allowed: at least 1")
        if self.window is not None and self.window < 1:
            raise ConfigError(f"window: got {self.window}, allowed: at least 1, or null")
        state = self.space.proprio - self.extrinsics
        if self.space.proprio and state < 0:
            raise ConfigError(f"extrinsics={self.extrinsics}: the state has only {self.space.proprio} numbers")
        action = self.space.action
        if self.motion == "pose" and state and action and (state != _POSE or action % _POSE):
            raise ConfigError(
                f"motion=pose: the state has {state} numbers (without extrinsics) and an action {action}; both must "
                f"be poses of {_POSE} (position, angles, gripper), an action one for each of its steps"
            )
        if self.motion == "add" and state and action and action % state:
            raise ConfigError(f"motion=add: actions of {action} numbers cannot be added to states of {state}")


class AC(FrozenWorldModel):
    """Frozen encoder and action-conditioned predictor."""

    Config = ACConfig
    config: ACConfig

    def __init__(self, config: ACConfig, size: tuple[int, ...]) -> None:
        super().__init__(config, size)
        space = config.space
        self.state = max(0, space.proprio - config.extrinsics)  # numbers of the state token
        self.predictor = ActionPredictor(
            config.predictor,
            self.encoder.width,
            self.encoder.grid,
            space.action,
            self.state,
            config.extrinsics if space.proprio else 0,
            states_ahead=config.motion == "predict" and self.state > 0,
        )
        self.extend(space.proprio)
        wide = config.predictor.width
        self.chunks = ChunkEncoder(space.action, config.chunk, wide) if config.chunk > 1 else None

    def latents(self, frames: Tensor) -> Tensor:
        """Layer-normed tokens (B, T, N, D) of frames (B, T, 3, H, W)."""
        return losses.normalise_targets(super().latents(frames))

    def forward(self, x: Tensor, masks: Masks | None, schedule: Schedule, batch: Batch | None = None) -> Output:
        history = self.window(x, batch)
        return self.learn(self.latents(history.frames), history.actions, history.proprio, batch)

    def learn(self, latents: Tensor, actions: Tensor, proprio: Tensor | None, batch: Batch | None = None) -> Output:
        """The loss of T frames' latents (B, T, N, D), T - 1 actions (B, T - 1, A) and states (B, T, P).

        `batch`: what heads learn from, for a model that has some.
        """
        states = self.proprio_scale(proprio) if proprio is not None else None
        told = self.action_scale(actions)
        forced, change, past = self._forced(latents[:, :-1], told, _upto(states, -1))
        loss = self._distance(forced, latents[:, 1:])
        total, metrics = loss, {"loss_one_step": loss.detach()}
        if steps := self.config.rollout:
            rolled = self._rolled(latents[:, :1], forced[:, :1], told, states, steps)
            loss = self._distance(rolled, latents[:, 1 : steps + 1])
            total, metrics["loss_rollout"] = total + loss, loss.detach()
        if change is not None and states is not None:
            wanted = states[:, 1:, : self.state] - states[:, :-1, : self.state]
            loss = F.mse_loss(change, wanted)
            total, metrics["loss_state"] = total + loss, loss.detach()
        if self.chunks is not None:
            g = torch.arange(len(latents)) if batch is None else batch.g
            seen = Frames(latents, states, F.pad(told, (0, 0, 0, 1)))
            loss = leap_error(self, self.chunks, seen, past, g.to(latents.device), self.seed)
            total, metrics["loss_chunk"] = total + loss, loss.detach()
        moved = self._moved(states[:, :-1], told, change) if states is not None and self.heads.any else None
        more, parts = self.also(State(latents, states), State(forced, moved), told, batch)
        total, metrics = total + more, metrics | parts
        with torch.no_grad():  # what saying that nothing moves would cost
            still = self._distance(latents[:, :-1], latents[:, 1:])
        return Output(total, {"loss": total.detach(), **metrics, "loss_of_copy": still})

    def _forced(self, latents: Tensor, actions: Tensor, states: Tensor | None) -> tuple[Tensor, Tensor | None, Past]:
        """Layer-normed predictions (B, T, N, D) of what follows each frame, the change of its state, the past."""
        found, change, past = self.predictor(latents, actions, states)
        return losses.normalise_targets(found), change, past

    def _rolled(self, first: Tensor, second: Tensor, actions: Tensor, states: Tensor | None, steps: int) -> Tensor:
        """Predictions (B, steps, N, D) in a row from the first frame, of which the first one is known already."""
        known = torch.cat([first, second], dim=1)
        for step in range(2, steps + 1):
            found, _, _ = self.predictor(known, actions[:, :step], _upto(states, step), last=True)
            known = torch.cat([known, losses.normalise_targets(found)], dim=1)
        return known[:, 1:]

    def _distance(self, found: Tensor, wanted: Tensor) -> Tensor:
        return losses.latent_loss(found, wanted, self.config.loss)

    def distance(self, found: Ahead, wanted: Frames) -> Tensor:
        """Of latents; where the predictor tells how states go on, that of states is added."""
        loss = self._distance(found.latents, wanted.latents)
        if self.predictor.state_proj is None or found.proprio is None or wanted.proprio is None:
            return loss
        return loss + F.mse_loss(found.proprio[..., : self.state], wanted.proprio[..., : self.state])

    @property
    def frames_at_once(self) -> int:
        """Most frames that the predictor looks at in a plan."""
        return self.config.window or self.size[0] - 1

    def observe(self, history: History) -> State:
        count = min(history.frames.shape[1], self.frames_at_once)
        actions = history.actions[:, history.actions.shape[1] - (count - 1) :]
        states = None if history.proprio is None or not self.space.proprio else history.proprio[:, -count:]
        latents = self.latents(history.frames[:, -count:])
        return State(latents, None if states is None else self.proprio_scale(states), {"actions": actions})

    def imagine(self, state: State, actions: Tensor) -> State:
        """Roll out; the states of imagined frames follow `motion`.

        Raises:
            ConfigError: actions of another size, or a state without the proprioception that the model needs.
        """
        self.check(state, actions)
        before = state.memory["actions"]
        before = torch.cat([before, before.new_zeros(len(before), 1, self.space.action)], dim=1)
        seen = Frames(state.latents, state.proprio if self.space.proprio else None, self.action_scale(before))
        window = self.frames_at_once
        at_once = self.plans_at_once(state, actions.shape[1], window * self.config.chunk)
        parts = [
            roll_out(self, seen, self.action_scale(piece), window)
            if self.chunks is None
            else leap_out(self, self.chunks, seen, self.action_scale(piece), window)
            for piece in torch.split(actions, at_once, dim=1)
        ]
        states = [s for _, s in parts if s is not None]
        future = State(torch.cat([z for z, _ in parts], dim=1), torch.cat(states, dim=1) if states else None)
        return self.doubted(state, future, actions)

    def embedded(self, actions: Tensor) -> Tensor:
        """Scaled actions (..., A) to action tokens (..., P)."""
        out: Tensor = self.predictor.action_encoder(actions)
        return out

    def ahead(self, frames: Frames, past: Past | None = None, last: bool = False, chunk: Chunk | None = None) -> Ahead:
        """What follows each of these frames; see `jepa.nn.rollout.Predictor` and `jepa.nn.leap.Leaper`."""
        told = None if chunk is None else chunk.told
        found, change, past = self.predictor(frames.latents, frames.actions, frames.proprio, past, last, told)
        newest = frames.part(frames.count - 1, frames.count) if last else frames
        states = newest.proprio
        if states is not None and chunk is not None and change is None:
            states = self._led(states, chunk)
        elif states is not None:
            states = self._moved(states, newest.actions, change)
        return Ahead(losses.normalise_targets(found), states, past)

    def _led(self, states: Tensor, chunk: Chunk) -> Tensor:
        """Scaled states (B, 1, P) after all actions of a chunk, one by one."""
        for at in range(chunk.actions.shape[1]):
            after = self._moved(states, chunk.actions[:, at : at + 1], None)
            states = torch.where((at < chunk.length).view(-1, 1, 1), after, states)
        return states

    def _moved(self, states: Tensor, actions: Tensor, change: Tensor | None) -> Tensor:
        """Scaled states (B, T, P) after scaled actions (B, T, A)."""
        own, camera = states[..., : self.state], states[..., self.state :]
        if change is not None:
            own = own + change
        elif self.config.motion in ("pose", "add") and self.state:
            true = self.proprio_scale.back(states)
            pose, rest = true[..., : self.state], true[..., self.state :]
            for motion in torch.split(self.action_scale.back(actions), self.state, dim=-1):
                pose = moved(pose, motion) if self.config.motion == "pose" else pose + motion
            own = self.proprio_scale(torch.cat([pose, rest], dim=-1))[..., : self.state]
        return torch.cat([own, camera], dim=-1)


def _upto(states: Tensor | None, stop: int) -> Tensor | None:
    return None if states is None else states[:, :stop]


__all__ = ["AC", "ACConfig"]
