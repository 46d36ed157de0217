"""The embedded default for video: real handwritten digits moving, bouncing and turning over coloured clutter.

The pictures are those of `digits` (same originals, same splits, same clutter); here the digit moves in a straight line
at constant speed, bounces off the edges, and turns at constant speed about its centre. The class can be read from one
frame; direction, speed and spin only from several in their order.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from jepa import keyed
from jepa.data.sources import digits
from jepa.data.sources.base import Sample, Source
from jepa.errors import ConfigError

Float = npt.NDArray[np.float64]
TARGETS = ["vx", "vy", "speed", "spin", "x", "y"]
_FIXED = 8  # uniform numbers per video, besides those of the clutter


@dataclass(frozen=True)
class Config:
    """Difficulty of the videos."""

    size: int = 40  # height and width in pixels
    frames: int = 16  # frames of each video
    fps: float = 8.0  # written into the file
    digit: tuple[int, int] = (16, 22)  # smallest and largest side of the digit in pixels
    speed: tuple[float, float] = (0.5, 2.5)  # slowest and fastest, in pixels per frame
    spin: float = 10.0  # fastest turn either way, in degrees per frame
    clutter: int = 4  # still fragments of other digits
    fragment: tuple[int, int] = (3, 5)  # smallest and largest side of a fragment, in pixels of the 8 x 8 original
    contrast: float = 0.35  # least difference in brightness (0 to 1) between digit and background
    clutter_contrast: float = 0.25  # the same for fragments
    ink: Literal["light", "dark", "both"] = "light"  # digit and fragments against the background; both: each by chance
    gradient: float = 0.2  # how far the background's colour drifts across the picture (0 to 1)
    samples: dict[str, int] = field(default_factory=lambda: {"train": 3000, "val": 600, "test": 1200})  # videos
    originals: dict[str, float] = field(
        default_factory=lambda: {"train": 0.6, "val": 0.15, "test": 0.25}
    )  # of the 1,797
    seed: int = 0  # of all videos

    def __post_init__(self) -> None:
        self.still()  # checks what it shares with the pictures
        if self.frames < 2 or self.fps <= 0:
            raise ConfigError(f"frames={self.frames}, fps={self.fps:g}: need at least 2 frames and fps above 0")
        if not 0 <= self.speed[0] <= self.speed[1] <= self.size / 4:
            raise ConfigError(f"speed: need 0 <= slowest <= fastest <= size / 4 = {self.size / 4:g}, got {self.speed}")
        if not 0 <= self.spin <= 90:
            raise ConfigError(f"spin: allowed are 0 to 90 degrees per frame, got {self.spin:g}")
        if self.digit[1] >= self.size:
            raise ConfigError(f"digit: the largest must be smaller than size={self.size} to move, got {self.digit}")

    def still(self) -> digits.Config:
        """The pictures that the videos are made from."""
        return digits.Config(
            size=self.size, digit=self.digit, clutter=self.clutter, fragment=self.fragment, contrast=self.contrast,
            clutter_contrast=self.clutter_contrast, ink=self.ink, gradient=self.gradient, samples=self.samples,
            originals=self.originals, seed=self.seed,
        )  # fmt: skip


def open_source(config: Config) -> Source:
    """The source; tasks are (split, number)."""
    still = digits.open_source(config.still())
    return Source(
        splits=still.splits, maker=Maker(config), classes=still.classes, targets=list(TARGETS), notes=still.notes
    )


class Maker:
    """Draws videos; a pure function of (split, number)."""

    def __init__(self, config: Config) -> None:
        self.config = config

    def __getstate__(self) -> dict[str, Config]:
        return {"config": self.config}

    def __setstate__(self, state: dict[str, Config]) -> None:
        self.config = state["config"]

    @cached_property
    def _scenes(self) -> digits.Maker:
        return digits.Maker(self.config.still())

    def __call__(self, task: tuple[str, int]) -> Sample:
        split, number = task
        c = self.config
        scene = self._scenes.scene(split, number)
        u = keyed.uniform(f"moving-digits.{split}", c.seed, number, _FIXED)
        speed = c.speed[0] + u[0] * (c.speed[1] - c.speed[0])
        angle, spin = 2 * math.pi * u[1], c.spin * (2 * u[2] - 1)
        velocity = np.array([math.cos(angle), math.sin(angle)]) * speed  # x, y in pixels per frame
        room = c.size - scene.side
        start = u[3:5] * room
        path = bounce(start + velocity * np.arange(c.frames)[:, None], room)  # (T, 2)
        frames = self.draw(scene, path, spin)
        travel = (path[-1] - path[0]) / (c.frames - 1)  # bounces included
        centre = path.mean(axis=0) + scene.side / 2
        values = (*(travel / c.size), speed / c.size, spin, *(centre / c.size))
        return Sample(
            frames, scene.label, scene.original, f"{split}/{number}", tuple(float(v) for v in values), fps=c.fps
        )

    def draw(self, scene: digits.Scene, path: Float, spin: float) -> npt.NDArray[np.uint8]:
        """Frames (T, H, W, 3) of a scene whose digit has its upper left corner at `path` (T, 2), turned by `spin` more
        degrees in every frame."""
        size = self.config.size
        frames = np.empty((len(path), size, size, 3), dtype=np.uint8)
        for t, (left, top) in enumerate(path):
            ink = _placed(scene.ink, size, scene.side, float(left), float(top), spin * t)
            canvas = scene.canvas + ink[..., None] * (scene.colour - scene.canvas)
            frames[t] = np.clip(canvas * 255.0 + 0.5, 0, 255).astype(np.uint8)
        return frames


def bounce(place: Float, room: float) -> Float:
    """Positions folded back into [0, room], as if off elastic walls."""
    if room <= 0:
        return np.zeros_like(place)
    folded: Float = np.abs((place + room) % (2 * room) - room)
    return folded


def _placed(ink: Float, size: int, side: int, left: float, top: float, degrees: float) -> Float:
    """The digit's ink (8, 8) as coverage (size, size) at a place between pixels, turned about its centre."""
    radians = math.radians(degrees)
    cos, sin = math.cos(radians), math.sin(radians)
    scale = ink.shape[0] / side
    cx, cy, half = left + side / 2, top + side / 2, ink.shape[0] / 2
    # PIL maps output to input: shift to the centre, turn back, scale to the original's pixels
    matrix = (
        cos * scale, sin * scale, half - scale * (cos * cx + sin * cy),
        -sin * scale, cos * scale, half - scale * (-sin * cx + cos * cy),
    )  # fmt: skip
    padded = np.pad(ink, 2).astype(np.float32)
    shifted = (matrix[0], matrix[1], matrix[2] + 2, matrix[3], matrix[4], matrix[5] + 2)
    picture = Image.fromarray(padded).transform(
        (size, size), Image.Transform.AFFINE, shifted, Image.Resampling.BICUBIC, fillcolor=0
    )
    return np.clip((np.asarray(picture, dtype=np.float64) - 0.15) / 0.6, 0.0, 1.0)
