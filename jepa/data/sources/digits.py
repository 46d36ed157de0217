"""The embedded default: real handwritten digits on cluttered coloured backgrounds, drawn when the dataset is built.

scikit-learn carries 1,797 digits of 8 x 8 pixels, each written by a person (UCI optical recognition of handwritten
digits). Here one of them is enlarged smoothly and put at a random place, size and colour over a coloured background
strewn with fragments of other digits. Class and position are known exactly; colour and clutter carry no class, so
pixels alone say little. Splits use different originals, for digits and for fragments alike.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from jepa import keyed
from jepa.data.sources.base import Sample, Source
from jepa.errors import ConfigError

Float = npt.NDArray[np.float64]
_LUMA = np.array([0.299, 0.587, 0.114])
_FIXED, _PER_FRAGMENT = 20, 10  # uniform numbers per image, and per fragment


@dataclass(frozen=True)
class Config:
    """Difficulty of the pictures."""

    size: int = 40  # height and width in pixels
    digit: tuple[int, int] = (16, 24)  # smallest and largest side of the digit in pixels
    clutter: int = 4  # fragments of other digits
    fragment: tuple[int, int] = (3, 5)  # smallest and largest side of a fragment, in pixels of the 8 x 8 original
    contrast: float = 0.35  # least difference in brightness (0 to 1) between digit and background
    clutter_contrast: float = 0.25  # the same for fragments
    ink: Literal["light", "dark", "both"] = "light"  # digit and fragments against the background; both: each by chance
    gradient: float = 0.2  # how far the background's colour drifts across the picture (0 to 1)
    samples: dict[str, int] = field(default_factory=lambda: {"train": 12000, "val": 2000, "test": 3000})  # pictures
    originals: dict[str, float] = field(
        default_factory=lambda: {"train": 0.6, "val": 0.15, "test": 0.25}
    )  # of the 1,797
    seed: int = 0  # of all pictures

    def __post_init__(self) -> None:
        low, high = self.digit
        if not 1 <= low <= high <= self.size:
            raise ConfigError(f"digit: need 1 <= smallest <= largest <= size={self.size}, got {self.digit}")
        if not 1 <= self.fragment[0] <= self.fragment[1] <= 8:
            raise ConfigError(f"fragment: need 1 <= smallest <= largest <= 8, got {self.fragment}")
        if self.clutter < 0:
            raise ConfigError(f"clutter: cannot be negative, got {self.clutter}")
        for name in ("contrast", "clutter_contrast", "gradient"):
            if not 0 <= getattr(self, name) <= 0.5:
                raise ConfigError(f"{name}: allowed are 0 to 0.5, got {getattr(self, name)}")
        if set(self.samples) != set(self.originals) or not self.samples:
            raise ConfigError(
                f"samples and originals must name the same splits, got {sorted(self.samples)} and "
                f"{sorted(self.originals)}"
            )
        if min(self.samples.values()) < 1:
            raise ConfigError(f"samples: every split needs at least 1, got {self.samples}")
        if min(self.originals.values()) <= 0 or sum(self.originals.values()) > 1 + 1e-9:
            raise ConfigError(f"originals: shares must be above 0 and sum to at most 1, got {self.originals}")


def open_source(config: Config) -> Source:
    """The source; tasks are (split, number)."""
    counts = {name: len(ids) for name, ids in split_originals(config).items()}
    if min(counts.values()) < 2:
        raise ConfigError(f"originals: every split needs at least 2 of the 1797 digits, got {counts}")
    return Source(
        splits={name: [(name, i) for i in range(n)] for name, n in config.samples.items()},
        maker=Maker(config),
        classes=[str(c) for c in range(10)],
        targets=["x", "y", "size"],
        notes=[f"original digits per split: {', '.join(f'{k} {v}' for k, v in counts.items())}; none is shared"],
    )


def load_originals() -> tuple[Float, npt.NDArray[np.int64]]:
    """All originals: ink (1797, 8, 8) between 0 and 1, and their classes (1797,)."""
    from sklearn.datasets import load_digits

    found = load_digits()
    return found.images / 16.0, found.target.astype(np.int64)


def split_originals(config: Config) -> dict[str, npt.NDArray[np.int64]]:
    """Numbers of the originals that belong to each split; disjoint."""
    total = len(load_originals()[1])
    mixed = keyed.generator("digits.originals", config.seed).permutation(total)
    edges = np.floor(np.cumsum([0.0, *config.originals.values()]) * total + 1e-6).astype(int)
    return {name: np.sort(mixed[edges[i] : edges[i + 1]]) for i, name in enumerate(config.originals)}


@dataclass(frozen=True)
class Scene:
    """A cluttered background, and the digit that goes onto it."""

    canvas: Float  # (H, W, 3) between 0 and 1, or a little beyond
    ink: Float  # (8, 8), the original
    colour: Float  # (3,)
    side: int  # of the digit, in pixels
    top: int
    left: int
    label: int
    original: int


class Maker:
    """Draws pictures; a pure function of (split, number)."""

    def __init__(self, config: Config) -> None:
        self.config = config

    def __getstate__(self) -> dict[str, Config]:
        return {"config": self.config}

    @cached_property
    def _originals(self) -> tuple[Float, npt.NDArray[np.int64]]:
        return load_originals()

    @cached_property
    def _split(self) -> dict[str, npt.NDArray[np.int64]]:
        return split_originals(self.config)

    def __call__(self, task: tuple[str, int]) -> Sample:
        split, number = task
        c, scene = self.config, self.scene(split, number)
        canvas, side = scene.canvas, scene.side
        _blend(canvas, _enlarge(scene.ink, side, side), scene.top, scene.left, scene.colour)
        pixels = np.clip(canvas * 255.0 + 0.5, 0, 255).astype(np.uint8)
        centre = ((scene.left + side / 2) / c.size, (scene.top + side / 2) / c.size, side / c.size)
        return Sample(pixels, scene.label, scene.original, f"{split}/{number}", centre)

    def scene(self, split: str, number: int) -> Scene:
        """What a picture shows, before the digit is put into it."""
        c, ids = self.config, self._split[split]
        u = keyed.uniform(f"digits.{split}", c.seed, number, _FIXED + _PER_FRAGMENT * c.clutter)
        original = int(ids[int(u[0] * len(ids))])
        side = c.digit[0] + int(u[1] * (c.digit[1] - c.digit[0] + 1))
        top, left = (int(v * (c.size - side + 1)) for v in u[2:4])

        background = _background(u[4:7], c)
        canvas = background + c.gradient * _drift(u[7:11], c.size)[..., None] * _signs(u[11:14])
        for numbers in u[_FIXED:].reshape(c.clutter, _PER_FRAGMENT):
            self._add_fragment(canvas, background, ids, original, numbers)
        inks, labels = self._originals
        colour = _contrasting(u[14:17], background, c.contrast, c.ink)
        return Scene(canvas, inks[original], colour, side, top, left, int(labels[original]), original)

    def _add_fragment(
        self, canvas: Float, background: Float, ids: npt.NDArray[np.int64], original: int, u: Float
    ) -> None:
        c = self.config
        other = int(ids[int(u[0] * len(ids))])
        if other == original:  # fragments come from other digits than the one shown
            other = int(ids[(np.searchsorted(ids, other) + 1) % len(ids)])
        cut = c.fragment[0] + int(u[1] * (c.fragment[1] - c.fragment[0] + 1))
        row, column = int(u[2] * (8 - cut + 1)), int(u[3] * (8 - cut + 1))
        scale = (c.digit[0] + u[4] * (c.digit[1] - c.digit[0])) / 8  # as large as the strokes of a digit
        side = max(1, round(cut * scale))
        ink = _enlarge(self._originals[0][other][row : row + cut, column : column + cut], side, side)
        top, left = (int(v * (c.size + side)) - side for v in u[5:7])  # may reach over the edge
        _blend(canvas, ink, top, left, _contrasting(u[7:10], background, c.clutter_contrast, c.ink))


def _enlarge(ink: Float, height: int, width: int) -> Float:
    """Smooth (bicubic) enlargement; the edge is sharpened a little, so that strokes look like ink and not like fog."""
    picture = Image.fromarray(ink.astype(np.float32)).resize((width, height), Image.Resampling.BICUBIC)
    return np.clip((np.asarray(picture, dtype=np.float64) - 0.15) / 0.6, 0.0, 1.0)


def _blend(canvas: Float, ink: Float, top: int, left: int, colour: Float) -> None:
    """Paint `colour` (3,) through `ink` (h, w) onto the canvas (H, W, 3), in place, cut at the edges."""
    size = canvas.shape[0]
    y0, y1, x0, x1 = max(top, 0), min(top + ink.shape[0], size), max(left, 0), min(left + ink.shape[1], size)
    if y0 >= y1 or x0 >= x1:
        return
    alpha = ink[y0 - top : y1 - top, x0 - left : x1 - left, None]
    region = canvas[y0:y1, x0:x1]
    region += alpha * (colour - region)


def _background(u: Float, config: Config) -> Float:
    """A background colour that leaves room for ink of the wanted kind."""
    if config.ink == "both":
        return 0.15 + 0.7 * u
    dark = 0.05 + (0.9 - config.contrast) * u
    return dark if config.ink == "light" else 1.0 - dark


def _signs(u: Float) -> Float:
    return 2.0 * u - 1.0


def _drift(u: Float, size: int) -> Float:
    """A smooth slope (H, W) with values between -1 and 1: bilinear between four random corners."""
    corner = _signs(u).reshape(2, 2)
    t = (np.arange(size) + 0.5) / size
    edge: Float = np.stack([1 - t, t])
    slope: Float = edge.T @ corner @ edge
    return slope


def _contrasting(u: Float, background: Float, contrast: float, ink: str) -> Float:
    """A colour whose brightness differs from the background's by at least `contrast`, as far as there is room."""
    luma = float(background @ _LUMA)
    darker, lighter = max(0.0, luma - contrast), max(0.0, 1.0 - luma - contrast)  # room on either side
    if ink == "light" or (ink == "both" and u[0] * (darker + lighter) >= darker):
        place = u[0] if ink == "light" else (u[0] * (darker + lighter) - darker) / max(lighter, 1e-9)
        wanted = 1.0 - (1.0 - place) * lighter
    else:
        place = u[0] if ink == "dark" else u[0] * (darker + lighter) / darker
        wanted = place * darker
    hue = _signs(u[1:3]) * 0.5
    tint = np.array([hue[0], 0.0, hue[1]])
    colour = wanted + tint - tint @ _LUMA  # the tint changes the hue, not the brightness
    # pull the colour towards the grey of the same brightness until it fits into [0, 1]
    excess = np.maximum(colour - 1.0, -colour).max()
    if excess > 0:
        spread = np.abs(colour - wanted)
        room = np.where(colour > wanted, 1.0 - wanted, wanted)
        fits = np.min(np.where(spread > 0, room / np.maximum(spread, 1e-12), np.inf))
        colour = wanted + (colour - wanted) * min(1.0, float(fits))
    return np.asarray(colour)
