"""Moving digits that hit a given edge at a given time: what is about to happen, to be told before it does.

As `moving_digits`, but drawn backwards from the event: at second `onset` the digit touches one of the four edges, drawn
evenly, at a place and an angle drawn evenly. What it did before follows from that, bounces included. So which edge it
is can be told ahead of time from place and motion, not from one frame, and each edge is as likely as any other.

Labels are of three kinds, as in EPIC-KITCHENS' verb, noun and action: `edge`, `digit`, and both together as `event`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from jepa import keyed
from jepa.data.sources import digits, moving_digits
from jepa.data.sources.base import Sample, Source
from jepa.data.sources.moving_digits import bounce
from jepa.errors import ConfigError

EDGES = ("left", "right", "top", "bottom")
_FIXED = 8  # uniform numbers per video, besides those of the clutter


@dataclass(frozen=True)
class Config(moving_digits.Config):
    """Difficulty of the videos."""

    frames: int = 32  # frames of each video
    speed: tuple[float, float] = (1.0, 2.5)  # slowest and fastest, in pixels per frame
    spin: float = 0.0  # fastest turn either way, in degrees per frame
    event: tuple[int, int] = (24, 30)  # frames between which the digit hits its edge
    angle: float = 60.0  # steepest angle at which it comes, in degrees from the straight way
    samples: dict[str, int] = field(default_factory=lambda: {"train": 2000, "val": 500, "test": 1000})  # videos

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.event[0] <= self.event[1] <= self.frames - 1:
            raise ConfigError(f"event: need 1 <= first <= last <= frames - 1 = {self.frames - 1}, got {self.event}")
        if not 0 <= self.angle < 90 or self.speed[0] <= 0:
            raise ConfigError(f"angle={self.angle:g}, speed={self.speed}: need 0 <= angle < 90 and speed above 0")


def open_source(config: Config) -> Source:
    """The source; tasks are (split, number)."""
    still = digits.open_source(config.still())
    numbers = [str(i) for i in range(10)]
    events = [f"{edge} {digit}" for edge in EDGES for digit in numbers]
    return Source(
        splits=still.splits, maker=Maker(config), classes=list(EDGES), targets=["onset"], notes=still.notes,
        kinds={"edge": list(EDGES), "digit": numbers, "event": events},
    )  # fmt: skip


class Maker(moving_digits.Maker):
    """Draws videos; a pure function of (split, number)."""

    config: Config

    def __call__(self, task: tuple[str, int]) -> Sample:
        split, number = task
        c = self.config
        scene = self._scenes.scene(split, number)
        u = keyed.uniform(f"bouncing-digits.{split}", c.seed, number, _FIXED)
        edge = int(u[0] * len(EDGES))
        when = c.event[0] + u[1] * (c.event[1] - c.event[0])  # in frames
        speed = c.speed[0] + u[2] * (c.speed[1] - c.speed[0])
        slant, spin = math.radians(c.angle * (2 * u[3] - 1)), c.spin * (2 * u[4] - 1)
        room = c.size - scene.side
        outwards = math.cos(slant) * speed * (1 if edge % 2 else -1)
        at = [room if edge % 2 else 0.0, u[5] * room]  # across the edge, along it
        velocity = [outwards, math.sin(slant) * speed]
        if edge >= 2:  # top and bottom are hit along y
            at, velocity = at[::-1], velocity[::-1]
        times = np.arange(c.frames)[:, None] - when
        path = bounce(np.array(at) + np.array(velocity) * times, room)  # (T, 2), x and y
        frames = self.draw(scene, path, spin)
        labels = (edge, scene.label, 10 * edge + scene.label)
        return Sample(
            frames, edge, scene.original, f"{split}/{number}", (when / c.fps,), fps=c.fps, kinds=labels
        )  # fmt: skip
