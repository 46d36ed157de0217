"""A world whose imagination is known in closed form: a dot in a drawn frame, moved by its actions.

The frame is black with a dot, spread over the four pixels around its place, so that the centre of brightness is that
place to a 1/255 of a pixel's brightness. The model reads the centre, and imagines `gain` times each action: its
one-step error is |1 - gain| |a|, its open loop's |1 - gain| |sum of a|, and that of standing still |sum of a|.

Shapes: B batch, T frames, S plans, H steps, side: pixels of a frame.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from jepa.data import Batch
from jepa.masks import Masks
from jepa.methods.base import Output, Schedule
from jepa.methods.world import History, Space, State, WorldModel
from jepa.monitor.imagination import Windows
from jepa.probe.episodes import Recording

SIDE = 24


@dataclass(frozen=True)
class Config:
    space: Space = field(default_factory=Space)
    gain: float = 1.0  # how much of an action the model believes in
    look_back: int = 0  # frames that `observe` keeps; 0: all
    unsure: bool = False  # whether it tells how far it believes to have gone


class Centre(nn.Module):
    """Frames (B, 3, h, w) to the centre of brightness, one token (B, 1, 2) of x and y; clips one of each frame."""

    width = 2

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim == 5:
            return self(x.transpose(1, 2).flatten(0, 1)).view(len(x), x.shape[2], 2)
        light = x.mean(dim=1)
        y, x_ = (torch.arange(n, dtype=light.dtype) for n in light.shape[1:])
        total = light.sum(dim=(1, 2))
        centre = torch.stack([(light.sum(dim=1) * x_).sum(dim=1), (light.sum(dim=2) * y).sum(dim=1)], dim=1)
        return self.scale * (centre / total[:, None])[:, None]


class PointMass(WorldModel):
    """Knows where the dot is, and about how actions move it."""

    Config = Config

    def __init__(self, config: Config, size: tuple[int, ...]) -> None:
        super().__init__(config, size)
        self.encoder = Centre()

    def forward(self, x: Tensor, masks: Masks | None, schedule: Schedule, batch: Batch | None = None) -> Output:
        return Output((self.encoder.scale - 1).square().sum())

    def encoders(self) -> dict[str, nn.Module]:
        return {"context": self.encoder}

    def observe(self, history: History) -> State:
        frames = history.frames[:, -self.config.look_back :]
        return State(self.encoder(frames.flatten(0, 1)).unflatten(0, frames.shape[:2]))

    def imagine(self, state: State, actions: Tensor) -> State:
        start = state.latents[:, None, -1:]  # (B, 1, 1, N, D)
        moved = self.config.gain * actions.cumsum(dim=2)[..., None, :]
        return State(start + moved, memory={"moved": moved})

    def uncertainty(self, state: State) -> Tensor | None:
        return state.memory["moved"].norm(dim=-1).mean(dim=-1) if self.config.unsure else None


def model(gain: float = 1.0, look_back: int = 0, unsure: bool = False) -> PointMass:
    """In eval mode, for frames of SIDE pixels and actions of two numbers."""
    return PointMass(Config(Space(action=2), gain, look_back, unsure), (4, SIDE, SIDE)).eval()


def draw(places: Tensor) -> Tensor:
    """Frames (..., 3, SIDE, SIDE) from 0 to 1 of dots at (..., 2) in pixels, x then y."""
    ticks = torch.arange(SIDE, dtype=places.dtype)
    across, down = ((1 - (places[..., i : i + 1] - ticks).abs()).clamp_min(0) for i in (0, 1))
    return (down[..., :, None] * across[..., None, :])[..., None, :, :].expand(*places.shape[:-1], 3, SIDE, SIDE)


def walk(length: int, seed: int) -> tuple[Tensor, Tensor]:
    """Places (length, 2) inside the frame and the actions (length - 1, 2) between them; mostly towards somewhere."""
    g = torch.Generator().manual_seed(seed)
    at = [4 + (SIDE - 8) * torch.rand(2, generator=g, dtype=torch.float64)]
    aim = torch.randn(2, generator=g, dtype=torch.float64)
    for _ in range(length - 1):
        aim = aim + 0.5 * torch.randn(2, generator=g, dtype=torch.float64)
        step = 0.8 * aim / aim.norm().clamp_min(1)
        following = (at[-1] + step).clamp(2, SIDE - 3)
        aim = torch.where(following == at[-1] + step, aim, -aim)
        at.append(following)
    places = torch.stack(at)
    return places, places.diff(dim=0)


def windows(count: int, seen: int, horizon: int) -> tuple[Windows, Tensor]:
    """Exact ones in float64, and the true places (count, seen + horizon, 2)."""
    made = [walk(seen + horizon, seed) for seed in range(count)]
    places, actions = (torch.stack([m[i] for m in made]) for i in (0, 1))
    return Windows(draw(places), actions, None, seen), places


class Keeper(PointMass):
    """Where a frame is black it goes on from the frame before by what was done; `forgetful` it knows no place there."""

    forgetful = False

    def observe(self, history: History) -> State:
        found = super().observe(history).latents.nan_to_num()
        black = history.frames.amax((-3, -2, -1)) == 0  # (B, T)
        for t in range(1, found.shape[1]):
            before = (
                torch.zeros_like(found[:, t]) if self.forgetful else found[:, t - 1] + history.actions[:, t - 1, None]
            )
            found[:, t] = torch.where(black[:, t, None, None], before.to(found.dtype), found[:, t])
        return State(found)


def keeper(forgetful: bool = False) -> Keeper:
    """In eval mode."""
    made = Keeper(Config(Space(action=2)), (4, SIDE, SIDE)).eval()
    made.forgetful = forgetful
    return made


class Walks:
    """Recordings of dots: frames of bytes, so that places are known to about a hundredth of a pixel."""

    def __init__(self, name: str, lengths: Sequence[int], seed: int) -> None:
        self.name, self.lengths = name, lengths
        self._made = [walk(length, 1000 * seed + i) for i, length in enumerate(lengths)]
        self.reads = 0

    def read(self, episode: int) -> Recording:
        self.reads += 1
        places, actions = self._made[episode]
        angle = torch.atan2(places[:, 1:] - SIDE / 2, places[:, :1] - SIDE / 2)
        frames = (draw(places) * 255).round().to(torch.uint8)
        return Recording(frames, actions.float(), None, {"place": places, "angle": angle})

    def actions(self, episode: int) -> Tensor:
        return self._made[episode][1].float()


class Short(PointMass):
    """Was made for three steps."""

    reach = 3
