"""What an action of a model may be, and how it becomes actions of the environment.

Solvers search in units of their own, z = (action - centre) / scale, in which a standard normal is a fair first guess:
those of the training data where its statistics are known (so do DINO-WM, LeWM), else those of the bounds.

Shapes: a numbers of one action of the environment, A = stride * a numbers of one action of the model, time first.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from jepa.errors import ConfigError
from jepa.methods.world import WorldModel


@dataclass(frozen=True)
class ActionSpace:
    """The actions of a model."""

    low: Tensor  # (A,) in units of the environment; -inf where unbounded
    high: Tensor  # (A,)
    centre: Tensor  # (A,) where a search begins
    scale: Tensor  # (A,) what it takes for one unit
    stride: int = 1  # actions of the environment in one of the model
    discrete: int = 0  # n choices, one-hot in each of the stride's parts; 0: continuous

    @classmethod
    def box(
        cls, low: Any, high: Any, stride: int = 1, mean: Tensor | None = None, std: Tensor | None = None
    ) -> ActionSpace:
        """Continuous actions between `low` and `high` (a,), infinite where unbounded.

        Args:
            mean, std: statistics of the data set, (a,) or (A,), whose units the search uses. Without them it uses those
                of the bounds: their middle, and half the distance between them.

        Raises:
            ConfigError: bounds that exclude everything, or neither bounds nor statistics to take units from.
        """
        lower, upper = (torch.as_tensor(x, dtype=torch.float32).reshape(-1) for x in (low, high))
        if lower.shape != upper.shape or not bool((lower < upper).all()):
            raise ConfigError(
                f"action bounds low={lower.tolist()}, high={upper.tolist()}: give low < high for each number"
            )
        lower, upper = lower.repeat(stride), upper.repeat(stride)
        if mean is None or std is None:
            if not bool((lower.isfinite() & upper.isfinite()).all()):
                raise ConfigError(
                    f"the action space is unbounded (low {lower.tolist()}, high {upper.tolist()}) and nothing says how "
                    "large actions are: give mean and std of the data set's actions, or finite bounds"
                )
            return cls(lower, upper, (lower + upper) / 2, (upper - lower) / 2, stride)
        centre, scale = (_tiled(x, lower.numel(), stride) for x in (mean, std))
        return cls(lower, upper, torch.minimum(torch.maximum(centre, lower), upper), scale, stride)

    @classmethod
    def choices(cls, n: int, stride: int = 1) -> ActionSpace:
        """One of n actions at every step of the environment, one-hot for the model."""
        if n < 2:
            raise ConfigError(f"a discrete action space of {n}: give at least 2 choices")
        ones = torch.ones(n * stride)
        return cls(torch.zeros(n * stride), ones, torch.zeros(n * stride), ones, stride, n)

    @classmethod
    def of(cls, space: Any, stride: int = 1, model: WorldModel | None = None) -> ActionSpace:
        """From a Gymnasium space of a single environment: Box or Discrete from 0.

        Args:
            model: its statistics of actions give the units of the search, and its number of actions is checked.

        Raises:
            ConfigError: another kind of space, or one that is not what the model was trained with.
        """
        if hasattr(space, "n") and hasattr(space, "start"):
            if int(space.start) != 0:
                raise ConfigError(f"{space}: a discrete action space that begins at {space.start}; give one from 0")
            found = cls.choices(int(space.n), stride)
        elif hasattr(space, "low") and hasattr(space, "high"):
            known = model is not None and model.space.action == space.low.size * stride
            scales = model.action_scale if model is not None and known else None
            found = cls.box(
                space.low,
                space.high,
                stride,
                scales.mean.detach().cpu().float() if scales is not None else None,
                scales.std.detach().cpu().float() if scales is not None else None,
            )
        else:
            raise ConfigError(f"cannot plan in {space}: Box and Discrete action spaces are supported")
        if model is not None:
            found.expect(model)
        return found

    @property
    def size(self) -> int:
        """A."""
        return self.low.numel()

    def expect(self, model: WorldModel) -> None:
        """Refuse a model that was trained with other actions.

        Raises:
            ConfigError: the numbers or the kind of actions differ.
        """
        wanted = model.space
        if wanted.action != self.size or wanted.discrete != self.discrete:
            kind = f"one-hot of {self.discrete}" if self.discrete else "continuous"
            trained = f"one-hot of {wanted.discrete}" if wanted.discrete else "continuous"
            raise ConfigError(
                f"the space has {self.size} numbers ({self.stride} steps of {self.size // self.stride}, {kind}), "
                f"but the model was trained on {wanted.action} ({trained}). Plan in the environment, and with the "
                "stride, that its episodes came from"
            )

    def to(self, device: torch.device | str, dtype: torch.dtype = torch.float32) -> ActionSpace:
        """On a device."""
        parts = {name: getattr(self, name).to(device, dtype) for name in ("low", "high", "centre", "scale")}
        return replace(self, **parts)

    def clip(self, actions: Tensor) -> Tensor:
        """Within the bounds: (..., A) in units of the environment."""
        return torch.minimum(torch.maximum(actions, self.low), self.high)

    def outward(self, z: Tensor) -> Tensor:
        """From the units of the search (..., A) to those of the environment, within the bounds."""
        return self.clip(z * self.scale + self.centre)

    def inward(self, actions: Tensor) -> Tensor:
        """To the units of the search."""
        return (actions - self.centre) / self.scale

    def split(self, actions: Tensor) -> Tensor:
        """Model actions (B, h, A) to those of the environment: (B, h * stride, a), or whole numbers if discrete."""
        steps = self.clip(actions).reshape(len(actions), actions.shape[1] * self.stride, self.size // self.stride)
        return steps.argmax(-1) if self.discrete else steps

    def join(self, steps: Tensor) -> Tensor:
        """The other way: (B, h * stride, a), or whole numbers (B, h * stride), to model actions (B, h, A)."""
        if self.discrete:
            steps = torch.nn.functional.one_hot(steps.long(), self.discrete).to(self.low.dtype)
        return steps.reshape(len(steps), steps.shape[1] // self.stride, self.size)


def _tiled(x: Tensor, size: int, stride: int) -> Tensor:
    x = torch.as_tensor(x, dtype=torch.float32).reshape(-1)
    if x.numel() * stride == size:
        x = x.repeat(stride)
    if x.numel() != size:
        raise ConfigError(f"statistics of {x.numel()} numbers for actions of {size} ({stride} steps): give one or all")
    return x
