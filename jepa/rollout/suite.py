"""A roll-out suite: which windows of which episodes, which state is read off, what is drawn.

Suites are YAML files in eval/, read strictly; `jepa rollout RUN key=value ...` without one takes the defaults.

Protocol 1: windows begin evenly spread over held-out episodes. Errors are distances between the model's read-out
latents and its own of the frames that followed (jepa/monitor/imagination.py); in units, distances of the state that a
ridge regression reads off imagined latents and the recorded one. The regression is fitted to the model's latents of
real frames of the training split, its penalty chosen on the validation split. Intervals are percentiles of a bootstrap
over episodes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from jepa import suites
from jepa.data import blank
from jepa.errors import ConfigError
from jepa.probe.frames import FramesConfig
from jepa.probe.suite import BootstrapConfig, SplitsConfig

PROTOCOL = "1"
Plan = Literal["shuffled", "zero"]


@dataclass(frozen=True)
class WindowsConfig:
    """Where roll-outs begin and how far they go, in the model's own steps."""

    seen: int = 3  # frames that the model sees first
    horizon: int = 10  # steps imagined after them
    per_episode: int = 4  # windows of each episode, evenly spread
    episodes: int | None = None  # at most so many of the test split, drawn by seed 0; null: all
    blank: float = 0.0  # share of the frames seen that are black, by episode and window; never a window's first
    batch: int = 16  # windows at a time

    def __post_init__(self) -> None:
        blank.check_share(self.blank, "blank")
        if self.blank and self.seen < 2:
            raise ConfigError(f"seen=1 with blank={self.blank:g}: a window's first frame is never blank; see more")
        if min(self.seen, self.horizon, self.per_episode, self.batch) < 1 or (self.episodes or 2) < 2:
            raise ConfigError(
                f"seen={self.seen}, horizon={self.horizon}, per_episode={self.per_episode}, batch={self.batch}, "
                f"episodes={self.episodes}: all from 1, episodes from 2"
            )


@dataclass(frozen=True)
class PicturesConfig:
    """Roll-outs as pictures. Nothing of this is ever used to train the model."""

    episodes: int = 3  # roll-outs drawn, the first of each episode
    decoder_steps: int = 0  # training steps of a small decoder on frozen latents; 0: nearest training frames instead
    lr: float = 1e-3  # of the decoder
    width: int = 64  # channels of the decoder
    size: int = 64  # longer side of its pictures, in pixels
    bank: int = 1000  # frames of the training split that the decoder learns from, or that are looked through

    def __post_init__(self) -> None:
        if min(self.episodes, self.width, self.bank) < 1 or self.decoder_steps < 0 or self.size < 8 or self.lr <= 0:
            raise ConfigError(
                f"episodes={self.episodes}, width={self.width} and bank={self.bank} must be at least 1, decoder_steps="
                f"{self.decoder_steps} at least 0, size={self.size} at least 8, lr={self.lr:g} above 0"
            )


@dataclass(frozen=True)
class RolloutSuite:
    """One evaluation of imagination."""

    name: str = "rollout"  # of the result file; default: the suite's file name
    protocol: Literal["1"] = "1"  # rules the numbers are made by
    dataset: str | None = None  # folder made by `jepa data build`; null: the run's own
    splits: SplitsConfig = field(default_factory=SplitsConfig)  # train and val: of the state reader; test: rolled out
    windows: WindowsConfig = field(default_factory=WindowsConfig)  # where roll-outs begin
    plans: tuple[Plan, ...] = ("shuffled", "zero")  # imagined beside the true actions: another episode's, and none
    state: FramesConfig | None = None  # state variables that imagined latents are decoded to; null: latents only
    pictures: PicturesConfig | None = None  # null: none
    bootstrap: BootstrapConfig = field(default_factory=BootstrapConfig)  # intervals

    def __post_init__(self) -> None:
        if self.state and (self.state.frames != 1 or self.state.ridge is None):
            raise ConfigError(
                "state: imagined latents are read one step at a time by a linear reader: leave frames=1 and ridge as "
                "they are"
            )


def load_suite(name: str | Path | None, overrides: list[str] | None = None) -> RolloutSuite:
    """A suite from a file or a shipped name ("tworoom-rollout"), or the defaults, with ``key=value`` overrides.

    Raises:
        ConfigError: no such suite, an unknown key or wrong type, with its place; or another protocol.
    """
    return suites.load("rollout", RolloutSuite, PROTOCOL, name, overrides)
