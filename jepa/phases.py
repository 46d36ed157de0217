"""The parts of a run one after the other: the main part, which the other sections describe, then those of `phases`.

A phase says only what differs from the main part: sizes, crops, batches, what the method reads anew in each step.
Sections `optim` and `method` begin new schedules, laid out over the phase and over those behind it that have no such
section; without one the schedules of the phase before go on, and were laid out over both from the start. Rates of its
own begin where those before ended, without a warm-up. So

    phases: {cooldown: {duration: {steps: 12000}, data: {clip: {frames: 64}}, optim: {shape: linear, final_lr: 1e-6}}}

cools down with a rate of its own, and `phases: {larger: {duration: {epochs: 100}, data: {image_size: 224}}}` only
enlarges the pictures under one cosine. Everything here is a pure function of the configuration and the data set's size.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jepa import config as configuration
from jepa.config import (
    MAIN_PHASE,
    DataConfig,
    Duration,
    MixConfig,
    OptimConfig,
    PhaseConfig,
    RunConfig,
    TrainConfig,
    build,
    merge,
    unknown_key,
)
from jepa.errors import ConfigError

# What may differ. The data sets, their order and seeds, the sources and everything built once stay the same.
DATA = ("image_size", "clip", "crop_scale", "crop_ratio", "hflip", "interpolation", "workers", "prefetch",
        "decode_seconds")  # fmt: skip
MIX = (*DATA, "batch", "weight")
OPTIM = ("lr", "start_lr", "final_lr", "warmup", "shape", "weight_decay", "final_weight_decay", "schedule_scale",
         "clip_norm")  # fmt: skip
TRAIN = ("batch", "micro_batch", "activation_checkpointing")
MAIN = "data"  # the name of the main source
_SPACING = ("fps", "stride", "duration")  # of a clip's frames: exactly one


@dataclass(frozen=True)
class Span:
    """Steps [start, stop), 0-based."""

    start: int
    stop: int

    @property
    def steps(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True)
class Phase:
    """One part of a run."""

    name: str
    config: RunConfig  # in force during it: its changes applied, no phases
    span: Span  # its own steps
    rates: Span  # steps that learning rate and weight decay are laid out over
    clock: Span  # steps that the method's own schedules are laid out over
    first: Mapping[str, int]  # by source, the g of its first sample

    def g(self, step: int) -> int:
        """Samples of the main source seen after `step` steps of the run, of which the last one lies in here."""
        return self.first[MAIN] + (step - self.span.start) * self.config.train.batch

    @property
    def shifts(self) -> dict[str, int]:
        """By source, what is added to ``step * batch`` to give the first g of a step; 0 if the batch never changed."""
        return {name: self.first[name] - self.span.start * batch for name, batch in batches(self.config).items()}


def batches(config: RunConfig) -> dict[str, int]:
    """Samples of each source in a step."""
    return {MAIN: config.train.batch} | {name: source.batch for name, source in config.mix.items()}


def present(config: RunConfig) -> dict[str, PhaseConfig]:
    """The phases that are not left out."""
    return {name: phase for name, phase in config.phases.items() if phase is not None}


def layout(config: RunConfig, dataset_size: int) -> tuple[Phase, ...]:
    """All parts of a run in order; those without a step are left out, unless there is no other.

    Raises:
        ConfigError: a phase that changes what has to stay, or with values that cannot be used.
    """
    parts = [(MAIN_PHASE, dataclasses.replace(config, phases={}), True, True)]
    for name, phase in present(config).items():
        changed = in_force(config, name, parts[-1][1].optim)
        if phase.optim is None:
            changed = dataclasses.replace(changed, optim=parts[-1][1].optim)
        if phase.method is None:
            changed = dataclasses.replace(changed, method=parts[-1][1].method)
        parts.append((name, changed, phase.optim is not None, phase.method is not None))
    spans: list[Span] = []
    first = [dict.fromkeys(batches(config), 0)]
    for _, part, _, _ in parts:
        start = spans[-1].stop if spans else 0
        steps = part.train.duration.to_steps(part.train.batch, dataset_size)
        spans.append(Span(start, start + steps))
        first.append({source: g + steps * batches(part)[source] for source, g in first[-1].items()})
    rates = _stretches(spans, [begins for _, _, begins, _ in parts])
    clocks = _stretches(spans, [begins for _, _, _, begins in parts])
    found = [
        Phase(name, part, span, rate, clock, g)
        for (name, part, _, _), span, rate, clock, g in zip(parts, spans, rates, clocks, first, strict=False)
    ]
    return tuple(phase for phase in found if phase.span.steps) or (found[0],)


def _stretches(spans: list[Span], begins: list[bool]) -> list[Span]:
    """For each part the steps of the schedule it lies in: from the last part that begins one to the next that does."""
    edges = [span.start for span, new in zip(spans, begins, strict=True) if new] + [spans[-1].stop]
    numbers = [sum(begins[: i + 1]) - 1 for i in range(len(spans))]
    return [Span(edges[n], edges[n + 1]) for n in numbers]


def in_force(config: RunConfig, name: str, before: OptimConfig | None = None) -> RunConfig:
    """The configuration during a phase by its own sections: the main part's with the phase's changes.

    Args:
        before: rates of the phase before (default: the main part's). A phase's own begin where those end, unless it
            says otherwise: a jump of the rate or of weight decay has to be asked for.

    Raises:
        ConfigError: a key that does not exist or may not differ, or a value of the wrong type, with its place.
    """
    phase, where = present(config)[name], f"phases.{name}"
    _check(phase.data, DATA, DataConfig, f"{where}.data")
    _check(phase.optim or {}, OPTIM, OptimConfig, f"{where}.optim")
    _check(phase.train, TRAIN, TrainConfig, f"{where}.train")
    for source, changes in phase.mix.items():
        if source not in config.mix:
            raise ConfigError(unknown_key(f"{where}.mix.{source}", source, list(config.mix)))
        _check(changes, MIX, MixConfig, f"{where}.mix.{source}")
    last = before or config.optim
    ended: dict[str, Any] = {"lr": last.lr if last.shape == "constant" else last.final_lr, "warmup": {"steps": 0}}
    ended["weight_decay"] = last.final_weight_decay
    main = configuration.to_dict(dataclasses.replace(config, phases={}))
    changed = main | {
        "data": _data(main["data"], phase.data),
        "mix": {source: _data(values, phase.mix.get(source, {})) for source, values in main["mix"].items()},
        "method": merge(main["method"], phase.method or {}),
        "optim": merge(main["optim"], ended | (phase.optim or {})),
        "train": main["train"] | phase.train | {"duration": configuration.to_dict(phase.duration)},
    }
    try:
        return build(RunConfig, changed)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None


def _data(values: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    clip = changes.get("clip")
    if isinstance(clip, dict) and isinstance(values["clip"], dict) and set(_SPACING) & clip.keys():
        values = values | {"clip": {k: v for k, v in values["clip"].items() if k not in _SPACING}}
    return merge(values, changes)


def _check(changes: Mapping[str, Any], allowed: tuple[str, ...], cls: type[Any], where: str) -> None:
    known = [f.name for f in dataclasses.fields(cls)]
    for key in changes:
        if key not in known:
            raise ConfigError(unknown_key(f"{where}.{key}", key, list(allowed)))
        if key not in allowed:
            raise ConfigError(
                f"{where}.{key}: this stays the same for the whole run. A phase may change: {', '.join(allowed)}"
            )


def with_duration(config: RunConfig, name: str, duration: Duration) -> RunConfig:
    """The configuration with another length of one of its parts."""
    if name == MAIN_PHASE:
        return dataclasses.replace(config, train=dataclasses.replace(config.train, duration=duration))
    changed = dataclasses.replace(present(config)[name], duration=duration)
    return dataclasses.replace(config, phases=config.phases | {name: changed})
