"""World models with known dynamics, whose best plans are known."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from jepa.methods.world import History, Space, State, WorldModel
from jepa.plan import ActionSpace, Look

SIDE = 4
LOOK = Look((SIDE, SIDE), mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


@dataclass(frozen=True)
class PointConfig:
    space: Space = field(default_factory=lambda: Space(action=2))
    stride: int = 1


class Point(WorldModel):
    """A point in [0, 1]^2 whose place is the colour of its frames; every action moves it by itself."""

    Config = PointConfig

    def __init__(self, config: Any = None, size: tuple[int, ...] = (1, SIDE, SIDE)) -> None:
        super().__init__(config or PointConfig(), size)
        self.gain = nn.Parameter(torch.ones(()))
        self.seen: list[History] = []
        self.most = 0  # candidates imagined at a time

    def observe(self, history: History) -> State:
        self.seen.append(history)
        proprio = None if history.proprio is None else self.proprio_scale(history.proprio)
        return State(history.frames.mean((-1, -2))[:, :, None, :2], proprio)

    def moves(self, actions: Tensor) -> Tensor:
        return actions.reshape(*actions.shape[:3], self.config.stride, -1).sum(-2)

    def imagine(self, state: State, actions: Tensor) -> State:
        self.most = max(self.most, actions.shape[0] * actions.shape[1])
        way = self.moves(actions).cumsum(2) * self.gain
        place = state.latents[:, None, -1:, 0] + way  # (B, S, H, 2)
        return State(place[..., None, :], place if self.space.proprio else None)

    def reward(self, state: State) -> Tensor | None:
        """Higher further right."""
        return state.latents[..., 0, 0]

    def uncertainty(self, state: State) -> Tensor | None:
        """Unsure above."""
        return state.latents[..., 0, 1]


class Compass(Point):
    """Five discrete actions: stay, right, left, up, down, a tenth each."""

    def moves(self, actions: Tensor) -> Tensor:
        ways = torch.tensor([[0.0, 0.0], [0.1, 0.0], [-0.1, 0.0], [0.0, 0.1], [0.0, -0.1]])
        return (actions.reshape(*actions.shape[:3], self.config.stride, 5) @ ways).sum(-2)


def point(stride: int = 1, proprio: int = 0) -> Point:
    return Point(PointConfig(Space(action=2 * stride, proprio=proprio), stride))


def compass(stride: int = 1) -> Compass:
    return Compass(PointConfig(Space(action=5 * stride, discrete=5), stride))


def box(bound: float = 0.1, stride: int = 1) -> ActionSpace:
    return ActionSpace.box([-bound, -bound], [bound, bound], stride)


def picture(places: Any) -> np.ndarray[Any, Any]:
    """uint8 frames (B, H, W, 3) of places (B, 2)."""
    places = np.asarray(places, dtype=np.float64)
    frames = np.zeros((len(places), SIDE, SIDE, 3), np.uint8)
    frames[..., :2] = np.round(255 * places)[:, None, None]
    return frames


def frames(places: Any) -> Tensor:
    """The same as the model sees them, (B, 3, H, W)."""
    return LOOK(picture(places), torch.device("cpu"))


def seen(places: Any) -> History:
    """Histories of one frame."""
    x = frames(places)
    return History(x[:, None], x.new_zeros(len(x), 0, 2))
