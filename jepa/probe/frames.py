"""State variables read off the frozen latents of single frames of episodes.

A window of an episode ends at the frame whose state is asked for. A world model observes the window (`history` frames,
more than one for a belief that builds up) and its read-out latents of the last `frames` of them, side by side, are the
features; any other method encodes those frames one by one. Velocities need two frames or a belief.

Every reader is fitted on the training split, settings are chosen on the validation split for each variable, and the
test split is reported on once: R² and Pearson's r, mean over a variable's numbers, and the mean error in its own unit.

Shapes: n frames probed, B windows, T frames of a window, N tokens, D width, F features, C regressed columns.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from jepa.data import blank
from jepa.errors import ConfigError, DataError
from jepa.methods.world import WorldModel
from jepa.nn.tokens import Normalise
from jepa.probe import variables as state
from jepa.probe.axes import Axes, check_finite
from jepa.probe.bootstrap import Bootstrap, Float64, pearson_columns, r2_columns
from jepa.probe.episodes import Batch, Place, Recordings, batches, some, spread_places
from jepa.probe.mlp import MlpConfig, mlp_probe
from jepa.probe.ridge import RidgeConfig, choose_ridge, predict_ridge
from jepa.probe.variables import VariableConfig

Row = dict[str, Any]
Embed = Callable[[Batch], Tensor]  # windows (B, T) -> features (B, F)
Role = Literal["run", "random", "pixels"]


@dataclass(frozen=True)
class FramesConfig:
    """Which state variables, of which frames, read from what."""

    variables: dict[str, VariableConfig] = field(default_factory=dict)  # by name
    per_episode: int = 16  # frames of each episode, evenly spread
    episodes: int | None = None  # at most so many of each split, drawn by seed 0; null: all
    history: int = 1  # frames that the model sees, the last one is probed
    frames: int = 1  # of them, those whose latents are read, side by side
    blank: float = 0.0  # share of a window's frames that are black, by episode and window; never its first
    tokens: Literal["mean", "all"] = "all"  # mean over a frame's tokens, or all of them side by side
    ridge: RidgeConfig | None = field(default_factory=RidgeConfig)  # linear; targets stay empty
    mlp: MlpConfig | None = field(default_factory=MlpConfig)  # a small network

    def __post_init__(self) -> None:
        if not self.variables:
            raise ConfigError("variables: name at least one, e.g. variables={agent: {array: proprio, unit: px}}")
        if self.ridge is None and self.mlp is None:
            raise ConfigError("ridge and mlp are both null: leave one of them")
        if self.ridge and self.ridge.targets:
            raise ConfigError("ridge.targets: state variables are named under variables; leave it out")
        blank.check_share(self.blank, "blank")
        if self.blank and self.history < 2:
            raise ConfigError(
                f"blank={self.blank:g} with history=1: the first frame of a window is never blank, so give history of "
                "2 or more. A model that looks back less far is shown the same windows and takes their end"
            )
        if not 1 <= self.frames <= self.history or self.per_episode < 1 or (self.episodes or 2) < 2:
            raise ConfigError(
                f"per_episode={self.per_episode}, episodes={self.episodes}, history={self.history}, frames="
                f"{self.frames}: allowed: per_episode from 1, episodes from 2, frames from 1 to history"
            )


@dataclass(frozen=True)
class Source:
    """Something that gives features of windows."""

    name: str  # in the table
    role: Role
    embed: Embed
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def baseline(self) -> bool:
        return self.role != "run"


@dataclass(frozen=True)
class Part:
    """Probed frames of one split."""

    split: str
    places: list[Place]
    features: list[Tensor]  # of each source: (n, F) float32
    arrays: dict[str, Tensor]  # (n, size) float64
    targets: Tensor  # (n, C) float64
    since: Any  # (n,) int64: frames since the last one that was not blank
    episodes: int  # in the split; those too short for the history have no place

    @property
    def clusters(self) -> Any:
        return np.array([episode for episode, _ in self.places])


# --- features -----------------------------------------------------------------------------------------------------


def of_world(model: WorldModel, normalise: Normalise, config: FramesConfig, device: torch.device) -> Embed:
    """Latents of a world model."""

    def embed(batch: Batch) -> Tensor:
        latents = model.readout(model.observe(batch.history(device, normalise)))  # (B, T, N, D)
        if latents.shape[1] < config.frames:
            raise ConfigError(
                f"frames={config.frames}, but this model keeps latents of {latents.shape[1]} frame(s) of what it saw"
            )
        return flat(latents[:, -config.frames :], config.tokens).flatten(1)

    return embed


def of_encoder(encode: Callable[[Tensor], Tensor], config: FramesConfig, device: torch.device) -> Embed:
    """Latents of an encoder of single images: uint8 (B, 3, h, w) to (B, N, D)."""

    def embed(batch: Batch) -> Tensor:
        shown = batch.frames[:, -config.frames :].flatten(0, 1).to(device)
        latents = encode(shown)
        latents = latents.view(len(batch.frames), config.frames, *latents.shape[1:])
        return flat(latents, config.tokens).flatten(1)

    return embed


def of_pixels(config: FramesConfig, size: tuple[int, int] | None) -> Embed:
    """The frames themselves, shrunk (None: to the area of 32 x 32 where larger)."""

    def embed(batch: Batch) -> Tensor:
        shown = batch.frames[:, -config.frames :].flatten(0, 1).float() / 255
        height, width = shown.shape[-2:]
        shrink = min(1.0, (32 * 32 / (height * width)) ** 0.5)
        wanted = size or (max(1, round(height * shrink)), max(1, round(width * shrink)))
        small = shown if wanted == (height, width) else F.interpolate(shown, wanted, mode="area")
        return small.reshape(len(batch.frames), -1)

    return embed


def flat(latents: Tensor, tokens: Literal["mean", "all"]) -> Tensor:
    """Latents (..., N, D) as one vector of each frame: (..., D) or (..., N * D)."""
    return latents.mean(dim=-2) if tokens == "mean" else latents.flatten(-2)


def gather(
    recordings: Recordings, sources: Sequence[Source], config: FramesConfig, size: int,
    advance: Callable[[int], None] = lambda done: None,
) -> Part:  # fmt: skip
    """Features by every source and the state of evenly spread frames of a split; each episode is read once.

    Raises:
        ConfigError: a variable of an array that there is not.
        DataError: episodes that cannot be read, none that is long enough, a state that is not finite or never varies.
    """
    chosen = some(len(recordings.lengths), config.episodes, 0)
    short = [recordings.lengths[i] for i in chosen]
    places = [(chosen[e], f) for e, f in spread_places(short, config.per_episode, config.history, 0)]
    if not places:
        longest = max(short, default=0)
        raise DataError(
            f"split {recordings.name!r} has no episode of {config.history} frames at the model's pace (the longest of "
            f"{len(short)} has {longest}): lower history"
        )
    found: list[list[Tensor]] = [[] for _ in sources]
    rows: dict[str, list[Tensor]] = {}
    since: list[Any] = []
    for batch in batches(recordings, places, config.history, 0, size):
        state.check(config.variables, {n: a.shape[-1] for n, a in batch.arrays.items()}, "variables")
        there = batch.there(config.history, config.blank)
        batch = batch.blanked(there) if config.blank else batch
        since.append(blank.since(there)[:, -1])
        with torch.no_grad():
            for parts, source in zip(found, sources, strict=True):
                parts.append(source.embed(batch).float().cpu())
        for name in {v.array for v in config.variables.values()}:
            rows.setdefault(name, []).append(batch.arrays[name][:, -1])
        advance(len(batch.frames))
    arrays = {name: torch.cat(parts) for name, parts in rows.items()}
    columns = state.targets(config.variables, arrays, recordings.name)
    return Part(
        recordings.name, places, [torch.cat(x) for x in found], arrays, columns, np.concatenate(since), len(chosen)
    )


# --- readers ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reader:
    """A ridge regression that reads all variables off features."""

    axes: Axes
    weight: Tensor  # (R, C)
    intercept: Tensor  # (C,)
    places: dict[str, slice]
    chosen: dict[str, dict[str, Any]]  # by variable

    @classmethod
    def fit(cls, train: Part, val: Part, config: FramesConfig, source: int = 0, name: str = "latents") -> Reader:
        """On the training split, penalties chosen on the validation split."""
        assert config.ridge is not None, "a linear reader needs its settings"
        axes, (x, y) = on_axes([train.features[source], val.features[source]], name)
        weight, intercept, chosen = choose_ridge(axes, (x, train.targets), (y, val.targets), config.ridge.alpha)
        places = state.places(config.variables, train.arrays)
        picked = {n: {"alpha": [c["alpha"] for c in chosen[at]], "val": float(np.mean([c["val"] for c in chosen[at]]))}
                  for n, at in places.items()}  # fmt: skip
        return cls(axes, weight, intercept, places, picked)

    def read(self, features: Tensor) -> Tensor:
        """Features (..., F) to columns (..., C) float64 on the CPU."""
        rows = features.flatten(0, -2).float().cpu()
        columns = predict_ridge(self.axes.apply(rows), self.weight, self.intercept)
        return columns.view(*features.shape[:-1], columns.shape[1])


def on_axes(features: Sequence[Tensor], name: str) -> tuple[Axes, list[Tensor]]:
    """Principal axes of the first part's features, and every part on them."""
    axes = Axes.fit(features[0], name)
    for part in features[1:]:
        check_finite(part, name)
    return axes, [axes.apply(part) for part in features]


class Table:
    """Rows of one suite, as `jepa.probe.rows.Table` makes them. The run's own latents come first."""

    def __init__(self, config: FramesConfig, parts: tuple[Part, Part, Part], boot: Bootstrap, protocol: str) -> None:
        self.config, self.parts, self.boot, self.protocol = config, parts, boot, protocol
        self.places = state.places(config.variables, parts[0].arrays)
        self.rows: list[Row] = []
        self.missing: list[Row] = []  # errors by frames since the last one that was not blank
        self._first: dict[tuple[str, str], Float64] = {}  # of the run's own: summed columns by probe and metric

    def add(self, source: Source, number: int) -> None:
        """All rows of source `number`."""
        train, val, test = self.parts
        if self.config.ridge:
            reader = Reader.fit(train, val, self.config, number, source.name)
            check_finite(test.features[number], source.name)
            self._read(source, "ridge", reader.read(test.features[number]), reader.chosen)
        if self.config.mlp:
            axes, on = on_axes([part.features[number] for part in self.parts], source.name)
            scale = float(axes.variance.mean().clamp_min(1e-12).sqrt())  # a network's first weights expect about 1
            x, v, t = (part / scale for part in on)
            fit, chosen = mlp_probe((x, train.targets), (v, val.targets), t, self.places, self.config.mlp)
            self._read(source, "mlp", fit, chosen)

    def _read(self, source: Source, kind: str, fit: Tensor, chosen: Mapping[str, dict[str, Any]]) -> None:
        test = self.parts[2]
        for name, variable in self.config.variables.items():
            at = self.places[name]
            truth, answer = test.targets[:, at].numpy(), fit[:, at].numpy()
            off = variable.error(test.arrays[variable.array], fit[:, at]).numpy()
            ones = np.ones_like(off)
            figures = {
                "r2": r2_columns(truth, answer),
                "pearson": pearson_columns(truth, answer),
                "error": (np.stack([off, ones], axis=1), _mean),
            }
            for metric, (columns, statistic) in figures.items():
                row = self._row(source, f"{kind}:{name}", metric, columns, statistic, chosen[name])
                if metric == "error":
                    row["unit"] = variable.shown
            if self.config.blank:
                about = {k: row[k] for k in ("encoder", "role", "probe", "unit")}
                self.missing += [about | self._after(off, count) for count in np.unique(test.since).tolist()]

    def _row(
        self, source: Source, probe: str, metric: str, columns: Float64, of: Callable[[Float64], Float64],
        chosen: dict[str, Any],
    ) -> Row:  # fmt: skip
        found, boot = self.boot.of(columns, of), self.boot
        row: Row = {
            "encoder": source.name, "role": source.role, "baseline": source.baseline, "probe": probe, "metric": metric,
            "value": found.value, "low": found.low, "high": found.high, "chosen": chosen, "n_test": len(columns),
            "n_clusters": boot.clusters, "protocol": self.protocol,
        }  # fmt: skip
        first = self._first.setdefault((probe, metric), columns)
        if source.baseline:
            gap = boot.gap(first, columns, of)
            row["gap"] = {"value": gap.value, "low": gap.low, "high": gap.high}
        self.rows.append(row)
        return row

    def _after(self, off: Float64, count: int) -> Row:
        """The mean error where the last frame that was not blank is so many frames back."""
        here = (self.parts[2].since == count).astype(np.float64)
        found = self.boot.of(np.stack([off * here, here], axis=1), _mean)
        return {"since": count, "value": found.value, "low": found.low, "high": found.high, "n_test": int(here.sum())}


def _mean(sums: Float64) -> Float64:
    return np.asarray(np.divide(sums[:, 0], sums[:, 1], out=np.full(len(sums), np.nan), where=sums[:, 1] > 0))
