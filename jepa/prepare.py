"""Checking a run before anything starts: configuration, data, method, masks and schedules of every phase."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

from jepa import cost, environment, optim, phases, restarts, rundir, sharding
from jepa.config import MAIN_PHASE, RunConfig
from jepa.data import TrainData, mix
from jepa.errors import ConfigError, JepaError
from jepa.methods import base
from jepa.methods.world import WorldModel
from jepa.phases import MAIN, Phase


@dataclass(frozen=True)
class Stage:
    """A validated phase; a run without `phases` has one, the main part."""

    phase: Phase
    config: RunConfig  # in force during it
    sources: tuple[mix.Stream, ...]  # the main one first
    schedules: optim.Schedules  # of the steps in `phase.rates`
    clock_steps: float  # length that the method's schedules are laid out over; not rounded, as in I-JEPA
    step_flops: float | None  # operations of one step over all processes, where they can be counted

    @property
    def name(self) -> str:
        return self.phase.name

    @property
    def start(self) -> int:
        """Its first step, 0-based."""
        return self.phase.span.start

    @property
    def stop(self) -> int:
        """The step behind its last one."""
        return self.phase.span.stop

    def values(self, step: int, method: base.Method) -> dict[str, float]:
        """Rates and the method's own scheduled values in force at `step` (0-based) of the run."""
        rates = self.schedules.at(step - self.phase.rates.start)
        return rates | method.schedule(step - self.phase.clock.start, self.clock_steps)


@dataclass(frozen=True)
class Plan:
    """A validated run on this many processes. All lengths are in optimiser steps; 0 means never."""

    config: RunConfig  # resolved
    rank: int
    world: int
    precision: environment.Resolved
    stages: tuple[Stage, ...]
    checkpoint_every: int
    keep_every: int
    monitor_every: int

    @property
    def data(self) -> TrainData:
        """The main source, whose samples are counted in epochs."""
        return self.stages[0].sources[0].data

    @property
    def total_steps(self) -> int:
        return self.stages[-1].stop

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights; autocast lowers that of the maths."""
        return torch.float64 if self.precision == "fp64" else torch.float32

    @property
    def ends(self) -> tuple[int, ...]:
        """Steps done at the end of each phase but the last."""
        return tuple(stage.stop for stage in self.stages[:-1])

    def at(self, step: int) -> Stage:
        """The stage that `step` (0-based) lies in; the last one past the end."""
        return next((stage for stage in self.stages if step < stage.stop), self.stages[-1])

    def after(self, steps: int) -> Stage:
        """The stage of the last of so many steps done, whose sizes the weights then have; the first one before any."""
        return self.at(max(0, steps - 1))

    def g(self, steps: int) -> int:
        """Samples of the main source seen after so many steps."""
        return self.after(steps).phase.g(steps)

    def first(self, step: int) -> dict[str, int]:
        """By source, the g of the first sample of `step` (0-based)."""
        phase = self.at(step).phase
        return {n: phase.first[n] + (step - phase.span.start) * b for n, b in phases.batches(phase.config).items()}

    def where(self, steps: int) -> dict[str, Any]:
        """How a line of metrics after so many steps begins; it names the phase where a run has several."""
        named = {"phase": self.after(steps).name} if len(self.stages) > 1 else {}
        return {"step": steps, "g": self.g(steps), **named}

    def flops(self, steps: int) -> dict[str, float]:
        """Operations of so many steps as a metric; empty where they cannot be counted."""
        total = 0.0
        for stage in self.stages:
            if stage.step_flops is None:
                return {}
            total += stage.step_flops * max(0, min(steps, stage.stop) - stage.start)
        return {"flops": total}

    def announce(self, out: Path, device: torch.device, step: int, why: str = "") -> restarts.Tally:
        """Write down that the run starts after `step` steps: from here on there is one in this folder."""
        rundir.write_config(out, self.config)
        rundir.write_environment(out, environment.record(device, self.precision, self.world))
        if step >= self.total_steps:  # a finished run has nothing to start
            return restarts.Tally()
        return restarts.record(out, step, self.world, why)

    def due(self, step: int, every: int) -> bool:
        """Whether something done every so many steps is due after `step` steps; always at the end of a phase."""
        return every > 0 and (step % every == 0 or step == self.total_steps or step in self.ends)

    def identity(self) -> dict[str, Any]:
        """What a continuation is compared with, besides the configuration."""
        sources = self.stages[0].sources
        main, *others = (_dataset(source.data) for source in sources)
        same = {"precision": self.precision, "world": self.world, "dataset": main}
        decoders = {s.name: s.data.decoder for s in sources if s.data.decoder is not None}
        return same | ({"mix": others} if others else {}) | ({"decoders": decoders} if decoders else {})


def validate(config: RunConfig, place: tuple[int, environment.Resolved] | None = None) -> Plan:
    """Check everything that can be checked without a device or a process group, for every phase of the run.

    Args:
        place: number of processes and precision of a run that will start elsewhere; None: as it would start here.

    Raises:
        ConfigError: configuration, process count, precision or method that cannot be used.
        DataError: the data set is missing or damaged.
    """
    rank, world = environment.rank_and_world() if place is None else (0, place[0])
    config = rundir.resolved(config)
    settings = config.train
    if place is None:
        precision = environment.resolve_precision(settings.precision, environment.device_type())
    else:
        precision = place[1]
    opened = mix.streams(config, world)
    size = opened[0].data.size
    _check_trackers(settings.trackers)
    sharding.check(config, precision)
    for name in ("log_every", "threads"):
        value = getattr(settings, name)
        if value is not None and value < 1:
            raise ConfigError(f"train.{name}: got {value}, allowed: at least 1")

    def steps(duration: Any) -> int:
        return int(duration.to_steps(settings.batch, size)) if duration is not None else 0

    for name in ("step_seconds", "collective_seconds"):
        seconds = getattr(settings, name)
        if seconds is not None and not seconds > 0:
            raise ConfigError(f"train.{name}: got {seconds:g}, allowed: above 0")
    if settings.keep < 0:
        raise ConfigError(f"train.keep: got {settings.keep}, allowed: 0 (keep all) or more")
    if settings.keep_best is not None and not steps(config.monitor.every):
        raise ConfigError(f"train.keep_best={settings.keep_best} needs health checks: set monitor.every")
    _check_alarms(config, bool(steps(config.monitor.every)))
    stages: list[Stage] = []
    for phase in phases.layout(config, size):
        with _named(phase.name):
            before = stages[-1] if stages else None
            sources = opened if phase.name == MAIN_PHASE else None
            stages.append(_stage(phase, config, before, world, size, sources, count=rank == 0))

    return Plan(
        config=config,
        rank=rank,
        world=world,
        precision=precision,
        stages=tuple(stages),
        checkpoint_every=steps(settings.checkpoint_every) or stages[-1].stop,
        keep_every=steps(settings.keep_every),
        monitor_every=steps(config.monitor.every),
    )


@contextmanager
def _named(phase: str) -> Iterator[None]:
    """Errors inside say which phase they are of."""
    try:
        yield
    except JepaError as error:
        if phase == MAIN_PHASE:
            raise
        raise type(error)(f"phases.{phase}: {error}") from None


def _stage(
    phase: Phase,
    run: RunConfig,
    before: Stage | None,
    world: int,
    size: int,
    opened: list[mix.Stream] | None,
    count: bool,
) -> Stage:
    if phase.span.steps < 1:
        raise ConfigError(f"train.duration={run.train.duration} is no step at all; give at least 1 step")
    config = rundir.resolved(phase.config)
    sources = opened or mix.streams(config, world)
    _check_method(config, sources)
    if phase.name != MAIN_PHASE:
        _check_change(run, config)
    if before is not None and before.phase.rates == phase.rates:
        schedules = before.schedules
    else:
        schedules = optim.Schedules(config.optim, config.train.batch, size, phase.rates.steps)
    if before is not None and before.phase.clock == phase.clock:
        clock_steps = before.clock_steps
    else:
        clock_steps = config.optim.schedule_scale * phase.clock.steps
    return Stage(
        phase=phase,
        config=config,
        sources=tuple(sources),
        schedules=schedules,
        clock_steps=clock_steps,
        step_flops=cost.step_flops(config) if count else None,
    )


def _dataset(data: TrainData) -> dict[str, Any]:
    return {"name": data.manifest.name, "hash": data.manifest.hash, "size": data.size}


def _check_method(config: RunConfig, sources: list[mix.Stream]) -> None:
    cls, _ = base.resolve(config.method)
    most = max(source.accumulation for source in sources)
    if cls.couples_samples and most > 1:
        raise ConfigError(
            f"method {config.method['name']!r} couples the samples of a batch, so its loss over {most} "
            f"micro-batches is not that of the batch. Unset train.micro_batch={config.train.micro_batch}, use a "
            "smaller train.batch, or more processes"
        )
    sizes = [source.data.config.size for source in sources]
    with torch.device("meta"):  # real sizes, no memory
        method = base.create(config.method, sizes[0])
    for source, size in zip(sources, sizes, strict=True):
        if base.kind_of(size) not in cls.inputs:
            raise ConfigError(
                f"method {config.method['name']!r} trains on {' and '.join(cls.inputs)}s, {source.name} holds "
                f"{base.kind_of(size)}s"
            )
    for source in sources:
        _check_steps(config.method["name"], method, source)
    method.expect([base.kind_of(size) for size in sizes])
    optim.param_groups(method)
    for source, size in zip(sources, sizes, strict=True):
        sampler = method.sampler(source.seed, size)
        if sampler is not None:
            sampler(0, np.arange(2, dtype=np.int64))


def _check_steps(name: str, method: base.Method, source: mix.Stream) -> None:
    """Whether the arrays of episodes are there for a method that trains on them, and not asked for in vain."""
    where = "data" if source.name == MAIN else f"mix.{source.name}"
    steps = source.data.config.steps
    if steps is None or not isinstance(method, WorldModel):
        if method.episodes:
            raise ConfigError(
                f"method {name!r} trains on episodes: set {where}.steps, e.g. {where}.steps={{action: action}}, and "
                "build a data set that has actions (docs/episodes.md)"
            )
        if steps is not None:
            raise ConfigError(f"method {name!r} does not look at actions. Leave {where}.steps out")
        return
    read = {"action", *(["proprio"] if steps.proprio else []), *steps.also}
    missing = sorted(method.needs().keys() - read)
    if missing:
        raise ConfigError(f"method {name!r} needs {', '.join(missing)} of every window: add to {where}.steps.also")


def _check_change(run: RunConfig, config: RunConfig) -> None:
    """Whether the method of the main part can go on as that of a phase: same weights, same ones trained."""
    (cls, before), (_, after) = base.resolve(run.method), base.resolve(config.method)
    changed = [f.name for f in dataclasses.fields(before) if getattr(before, f.name) != getattr(after, f.name)]
    fixed = [f"method.{name}" for name in changed if name not in cls.phased]
    if fixed or run.method["name"] != config.method["name"]:
        raise ConfigError(
            f"{', '.join(fixed) or 'method.name'}: this stays the same for the whole run. A phase of method "
            f"{run.method['name']!r} may change: {', '.join(cls.phased) or 'nothing of it'}"
        )
    trained = []
    for each in (run, config):
        with torch.device("meta"):
            method = base.create(each.method, each.data.size)
        method.expect([base.kind_of(s) for s in (each.data.size, *(m.size for m in each.mix.values()))])
        if each is run:
            method.enter(after, config.data.size)
        trained.append({n: p.shape for n, p in method.named_parameters() if p.requires_grad})
    different = sorted(n for n in trained[0].keys() | trained[1].keys() if trained[0].get(n) != trained[1].get(n))
    if different:
        raise ConfigError(
            f"the phase would train other weights than the main part ({', '.join(different[:3])}"
            f"{', ...' if len(different) > 3 else ''}), which one optimiser cannot: keep the number of mask specs and "
            "what decides the shape of weights"
        )


def _check_alarms(config: RunConfig, looks: bool) -> None:
    for name in ("collapse", "dead", "drift"):
        act = getattr(config.health, name).act
        if act in ("stop", "rollback") and not looks:
            raise ConfigError(f"health.{name}.act={act} needs health checks: set monitor.every")


def _check_trackers(names: tuple[str, ...]) -> None:
    available = {str(t) for t in get_available_trackers()}
    for name in names:
        if name in available:
            continue
        known = sorted(str(t) for t in LOGGER_TYPE_TO_CLASS)
        near = difflib.get_close_matches(name, known, n=1)
        what = "is not installed" if name in known else f"is not known{f'. Did you mean {near[0]!r}?' if near else ''}"
        raise ConfigError(
            f"train.trackers: {name!r} {what}. Usable here: {', '.join(sorted(available)) or 'none'}; [] for none "
            "(metrics.jsonl is always written)"
        )
