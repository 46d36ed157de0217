"""The contract of world models: methods that tell how latents change with actions.

A world model trains on windows of episodes: T frames and, between them, T - 1 actions (a clip with a stride of k frames
has actions of k steps each, side by side). Then it is used in three moves, which planners and evaluations know and
nothing else:

    state = model.observe(history)           what has been seen, encoded once
    future = model.imagine(state, actions)   S imagined futures of each state, H steps long
    latents = model.readout(future)          what a goal or a probe is compared with

Actions and proprioception go in as the data set and the environment have them; normalisation is inside, in buffers that
travel with the weights (`Scale`).

Shapes: B batch, S candidate plans, T frames seen, H imagined steps, N tokens of a frame (1 where a frame is one
vector), D width, A numbers of one action, P of proprioception.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from jepa.data import Batch
from jepa.errors import ConfigError
from jepa.methods.base import Method
from jepa.nn.heads import Heads


@dataclass(frozen=True)
class Space:
    """Numbers that come with the frames of an episode. Zeros are filled in from the data set when a run starts."""

    action: int = 0  # A: of one action of the model, clip.stride steps of the episode side by side
    proprio: int = 0  # P: of the array `data.steps.proprio` at one frame; 0 without it
    discrete: int = 0  # choices of a discrete action, one-hot in each of the stride's parts of A; 0: continuous
    blank: bool = False  # whether frames may be missing (data.steps.blank)


@dataclass(frozen=True)
class History:
    """What has been seen, oldest first."""

    frames: Tensor  # (B, T, 3, H, W) normalised as in training
    actions: Tensor  # (B, T - 1, A) those that led from frame to frame; T - 1 may be 0
    proprio: Tensor | None = None  # (B, T, P)


@dataclass(frozen=True)
class State:
    """Where a model is, or imagines to be. Tensors begin with (B, ...) when seen and (B, S, ...) when imagined."""

    latents: Tensor  # (B, T, N, D) seen; (B, S, H, N, D) imagined: step h is after action h
    proprio: Tensor | None = None  # (B, T, P) or (B, S, H, P) normalised, for models that predict it
    memory: dict[str, Tensor] = field(default_factory=dict)  # whatever else the model needs to go on

    def map(self, change: Any) -> State:
        """`change` applied to every tensor."""
        proprio = None if self.proprio is None else change(self.proprio)
        memory = {name: change(tensor) for name, tensor in self.memory.items()}
        return replace(self, latents=change(self.latents), proprio=proprio, memory=memory)

    def rows(self, index: Any) -> State:
        """Some of the batch."""
        return self.map(lambda t: t[index])


class Scale(nn.Module):
    """(x - mean) / std per number; the statistics are those of the training split and travel with the weights."""

    mean: Tensor
    std: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("std", torch.ones(size))

    def fit(self, mean: Tensor, std: Tensor) -> None:
        """Take over statistics (size,). A number that never changes keeps its scale."""
        if mean.shape != self.mean.shape:
            raise ConfigError(f"statistics of {tuple(mean.shape)} numbers for a model of {tuple(self.mean.shape)}")
        self.mean.copy_(mean)
        self.std.copy_(torch.where(std > 1e-6, std, torch.ones_like(std)))

    def forward(self, x: Tensor) -> Tensor:
        """To the units of the model."""
        return (x.to(self.mean.dtype) - self.mean) / self.std

    def back(self, x: Tensor) -> Tensor:
        """To the units of the data set."""
        return x * self.std + self.mean


class WorldModel(Method):
    """Base class of world models. Their Config has a field ``space: Space``."""

    inputs: ClassVar[tuple[str, ...]] = ("clip",)
    episodes: ClassVar[bool] = True
    config: Any
    reach: int | None = None  # most steps that `imagine` was made for; None: any

    def __init__(self, config: Any, size: tuple[int, ...]) -> None:
        super().__init__(config, size)
        space: Space = config.space
        self.action_scale, self.proprio_scale = Scale(space.action), Scale(space.proprio)

    @property
    def space(self) -> Space:
        """Sizes of actions and proprioception."""
        found: Space = self.config.space
        return found

    def needs(self) -> dict[str, tuple[int, ...]]:
        """Arrays that `forward` reads of each window, by name, and their shapes; a reward head adds its own."""
        frames = self.size[0]
        found: dict[str, tuple[int, ...]] = {"action": (frames - 1, self.space.action)}
        return found | ({"proprio": (frames, self.space.proprio)} if self.space.proprio else {})

    def window(self, x: Tensor, batch: Batch | None) -> History:
        """The window that a training step gets: x (B, 3, T, H, W) and the batch's arrays."""
        assert batch is not None and batch.steps is not None, "a world model trains on episodes; give data.steps"
        steps = {name: value.to(x.device, non_blocking=True) for name, value in batch.steps.items()}
        proprio = steps.get("proprio") if self.space.proprio else None
        return History(x.transpose(1, 2), steps["action"], proprio)

    def observe(self, history: History) -> State:
        """Encode what has been seen. A model that looks back less far takes the newest frames."""
        raise NotImplementedError

    def imagine(self, state: State, actions: Tensor) -> State:
        """Roll out: actions (B, S, H, A) from a seen state (B, ...) to an imagined one (B, S, H, ...)."""
        raise NotImplementedError

    def readout(self, state: State) -> Tensor:
        """Latents in which states are compared, (..., N, D): of what was seen (B, T, N, D), or (B, S, H, N, D)."""
        return state.latents

    def reward(self, state: State) -> Tensor | None:
        """Predicted reward of every imagined step (B, S, H); None for a model without such a head."""
        return None

    def value(self, state: State) -> Tensor | None:
        """Predicted return that follows every imagined step (B, S, H); None for a model without such a head."""
        return None

    def uncertainty(self, state: State) -> Tensor | None:
        """How unsure the model is of every imagined step (B, S, H), larger is less sure; None where it cannot tell."""
        return None


class HeadedWorldModel(WorldModel):
    """A world model with heads (`jepa.nn.heads`), which read one vector of every state."""

    gated = True
    heads: Heads

    def check_length(self, config: Any, size: tuple[int, ...]) -> None:
        """Raises ConfigError when windows are too short; of every phase of a run."""
        raise NotImplementedError

    def enter(self, config: Any, size: tuple[int, ...]) -> None:
        """Windows may be longer or shorter in another phase.

        Raises:
            ConfigError: frames of another size, or too few of them.
        """
        if size[-2:] != self.size[-2:]:
            raise ConfigError(
                f"frames of {size[-2:]}: this world model was made for frames of {self.size[-2:]}, so data.image_size "
                "stays"
            )
        self.check_length(config, size)
        super().enter(config, size)

    def summary(self, state: State) -> Tensor:
        """What the heads read, (..., F): of what was seen (B, T, F), or of what is imagined (B, S, H, F)."""
        raise NotImplementedError

    def needs(self) -> dict[str, tuple[int, ...]]:
        return super().needs() | self.heads.needs(self.size[0])

    def after_step(self, values: dict[str, float], keep: Tensor | None = None) -> None:
        self.heads.after_step(keep)

    def reward(self, state: State) -> Tensor | None:
        return None if self.heads.reward is None else self.heads.reward(self.summary(state))

    def value(self, state: State) -> Tensor | None:
        return None if self.heads.value is None else self.heads.value(self.summary(state))

    def uncertainty(self, state: State) -> Tensor | None:
        return state.memory.get("uncertainty")


__all__ = ["HeadedWorldModel", "History", "Scale", "Space", "State", "WorldModel"]
