"""A world model that knows TwoRoom exactly: it reads the red dot's place off the frame and moves it by the rules.

With it, what a plan achieves depends on the planner and the harness alone. And a run folder that holds it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from jepa import checkpoint, config
from jepa.config import RunConfig
from jepa.methods.world import History, Space, State, WorldModel

SIZE, SPEED, RADIUS, BORDER, WALL, HALF, DOOR, DOOR_HALF = 224.0, 5.0, 7.0, 14.0, 112.0, 5.0, 49.0, 14.0 + 1.75
UNIT = 100.0  # pixels in one unit of the latents
CHOICES = torch.tensor([[0.0, 0.0], [1.0, 0.0], [-1.0, 0.0]])  # of tests/Line-v0


@dataclass(frozen=True)
class RoomsConfig:
    """Nothing to choose but the actions, and mistakes to make."""

    space: Space = field(default_factory=lambda: Space(action=2))
    reach: int | None = None
    blind: bool = False  # knows nothing of actions
    speed: float = SPEED  # pixels of 224 in a step
    walls: bool = True


class Rooms(WorldModel):
    """Latents: the dot's place, (…, 1, 2)."""

    Config: ClassVar[type] = RoomsConfig
    inputs: ClassVar[tuple[str, ...]] = ("clip", "episode")
    calls = 0

    def __init__(self, config: RoomsConfig, size: tuple[int, ...]) -> None:
        super().__init__(config, size)
        self.reach = config.reach
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1))
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1))

    def encoders(self) -> dict[str, nn.Module]:
        return {"context": nn.Identity()}

    def observe(self, history: History) -> State:
        Rooms.calls += 1
        frames = history.frames * self.std + self.mean
        red = (frames[:, :, 0] - frames[:, :, 1]).clamp(min=0.1) - 0.1  # (B, T, H, W)
        height, width = red.shape[-2:]
        y = (torch.arange(height) + 0.5) * SIZE / height - 0.5
        x = (torch.arange(width) + 0.5) * SIZE / width - 0.5
        mass = red.sum((-2, -1)).clamp(min=1e-6)
        place = torch.stack([(red.sum(-2) * x).sum(-1) / mass, (red.sum(-1) * y).sum(-1) / mass], -1)
        return State(place[:, :, None] / UNIT)

    def imagine(self, state: State, actions: Tensor) -> State:
        rows, samples, horizon = actions.shape[:3]
        place = state.latents[:, -1, 0, :][:, None].expand(rows, samples, 2) * UNIT
        seen, width = [], self.config.space.discrete or 2
        for h in range(horizon):
            steps = () if self.config.blind else actions[:, :, h].unflatten(-1, (-1, width)).unbind(-2)
            for step in steps:
                step = step @ CHOICES if self.config.space.discrete else step
                place = moved(place, step, self.config.speed, self.config.walls)
            seen.append(place)
        return State(torch.stack(seen, 2)[:, :, :, None] / UNIT)


def moved(place: Tensor, action: Tensor, speed: float = SPEED, walls: bool = True) -> Tensor:
    """One step of swm/TwoRoom-v1 with its default walls, (..., 2)."""
    if not walls:
        return place + action.clamp(-1, 1) * speed
    wanted = (place + action.clamp(-1, 1) * speed).clamp(BORDER + RADIUS, SIZE - BORDER - RADIUS)
    x, y = wanted.unbind(-1)
    shut = (y < DOOR - DOOR_HALF) | (y > DOOR + DOOR_HALF)
    left = place[..., 0] < WALL
    near, far = WALL - HALF - RADIUS, WALL + HALF + RADIUS
    x = torch.where(shut & left & (x > near), torch.full_like(x, near - 0.5), x)
    x = torch.where(shut & ~left & (x < far), torch.full_like(x, far + 0.5), x)
    return torch.stack([x, y], -1)


def run_folder(folder: Path, *overrides: str, stride: int = 5, size: int = 64, data: Path | None = None) -> Path:
    """A run folder with a checkpoint of Rooms."""
    values: dict[str, Any] = {
        "name": "rooms",
        "method": {"name": "tests.plan.rooms:Rooms", "space": {"action": 2 * stride}},
        "data": {
            "path": str(data or ""),
            "image_size": size,
            "clip": {"frames": 3, "stride": stride},
            "steps": {"action": "action"},
        },
    }
    settings = config.build(RunConfig, config.override(values, list(overrides)))
    checkpoint.save(folder, 1, checkpoint.create(settings), None, {}, settings)
    return folder
