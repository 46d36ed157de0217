"""Around the loop: checking a run before anything starts, taking its folder, and starting accelerate."""

from __future__ import annotations

import dataclasses
import difflib
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers
from accelerate.utils import (
    DistributedDataParallelKwargs,
    DistributedType,
    GradientAccumulationPlugin,
    InitProcessGroupKwargs,
    ProjectConfiguration,
    broadcast_object_list,
)
from torch import nn

from jepa import checkpoint, cost, environment, optim, rundir
from jepa.config import RunConfig
from jepa.data import TrainData, mix
from jepa.errors import CheckpointError, ConfigError, TrainingError
from jepa.masks import Masks
from jepa.methods import base
from jepa.nn.memory import keep_freed_memory

T = TypeVar("T")
# Longer than the slowest checkpoint or health check of rank 0, during which the others wait in a collective.
_PATIENCE = timedelta(hours=1)


class HealthCheck(Protocol):
    """Looks at a method after `step` steps: metrics for metrics.jsonl, and warnings for the user."""

    def run(self, method: base.Method, step: int) -> tuple[dict[str, float], list[str]]: ...


# --- before anything starts ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Plan:
    """A validated run on this many processes. All lengths are in optimiser steps; 0 means never."""

    config: RunConfig  # resolved
    rank: int
    world: int
    precision: environment.Resolved
    sources: tuple[mix.Stream, ...]  # the main one first
    total_steps: int
    schedules: optim.Schedules
    checkpoint_every: int
    keep_every: int
    monitor_every: int
    step_flops: float | None  # operations of one step over all processes, where they can be counted

    @property
    def data(self) -> TrainData:
        """The main source, whose samples are counted in epochs."""
        return self.sources[0].data

    @property
    def schedule_steps(self) -> float:
        """Length that the method's own schedules are laid out over; not rounded, as in I-JEPA."""
        return self.config.optim.schedule_scale * self.total_steps

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights; autocast lowers that of the maths."""
        return torch.float64 if self.precision == "fp64" else torch.float32

    def flops(self, steps: int) -> dict[str, float]:
        """Operations of so many steps as a metric; empty where they cannot be counted."""
        return {} if self.step_flops is None else {"flops": steps * self.step_flops}

    def due(self, step: int, every: int) -> bool:
        """Whether something done every so many steps is due after `step` steps; always at the end."""
        return every > 0 and (step % every == 0 or step == self.total_steps)

    def identity(self) -> dict[str, Any]:
        """What a continuation is compared with, besides the configuration."""
        main, *others = (_dataset(source.data) for source in self.sources)
        same = {"precision": self.precision, "world": self.world, "dataset": main}
        decoders = {s.name: s.data.decoder for s in self.sources if s.data.decoder is not None}
        return same | ({"mix": others} if others else {}) | ({"decoders": decoders} if decoders else {})


def validate(config: RunConfig) -> Plan:
    """Check everything that can be checked without a device or a process group.

    Raises:
        ConfigError: configuration, process count, precision or method that cannot be used.
        DataError: the data set is missing or damaged.
    """
    rank, world = environment.rank_and_world()
    config = rundir.resolved(config)
    settings = config.train
    precision = environment.resolve_precision(settings.precision, environment.device_type())
    sources = mix.streams(config, world)
    _check_method(config, sources)
    _check_trackers(settings.trackers)
    for name in ("log_every", "threads"):
        value = getattr(settings, name)
        if value is not None and value < 1:
            raise ConfigError(f"train.{name}: got {value}, allowed: at least 1")
    if settings.keep < 0:
        raise ConfigError(f"train.keep: got {settings.keep}, allowed: 0 (keep all) or more")
    data = sources[0].data

    def steps(duration: Any) -> int:
        return int(duration.to_steps(settings.batch, data.size)) if duration is not None else 0

    total = steps(settings.duration)
    if total < 1:
        raise ConfigError(f"train.duration={settings.duration} is no step at all; give at least 1 step")
    return Plan(
        config=config,
        rank=rank,
        world=world,
        precision=precision,
        sources=tuple(sources),
        total_steps=total,
        schedules=optim.Schedules(config.optim, settings.batch, data.size, total),
        checkpoint_every=steps(settings.checkpoint_every) or total,
        keep_every=steps(settings.keep_every),
        monitor_every=steps(config.monitor.every),
        step_flops=cost.step_flops(config) if rank == 0 else None,
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
    method.expect([base.kind_of(size) for size in sizes])
    optim.param_groups(method)
    for source, size in zip(sources, sizes, strict=True):
        sampler = method.sampler(source.seed, size)
        if sampler is not None:
            sampler(0, np.arange(2, dtype=np.int64))


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


# --- the run folder -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Start:
    """Where a run starts from."""

    checkpoint: Path | None = None  # weights to load
    resumed: bool = False  # optimiser state and step too
    notes: tuple[str, ...] = ()  # sentences for the user


def begin(plan: Plan, out: Path, resume: bool, extend: bool, init_from: Path | str | None) -> Start:
    """Decide where the run starts and make the folder ready. Rank 0 does, under the lock; the others are told.

    Raises:
        ConfigError: a run is there already, or one with another configuration.
        CheckpointError: no usable checkpoint.
    """
    if plan.rank != 0:
        return Start()
    if not resume:
        if rundir.has_run(out):
            raise ConfigError(
                f"{out} already holds a run. Go on with it (--resume, or --extend for a longer one), or give another "
                "folder with --out"
            )
        if init_from is None:
            return Start()
        source = checkpoint.resolve(init_from, files=(checkpoint.folder.MODEL, checkpoint.folder.CONFIG))
        return Start(source, notes=(f"weights from {source}",))
    found, passed = checkpoint.find(out)
    if not (found / checkpoint.folder.OPTIM).is_file():
        raise CheckpointError(
            f"{found} was imported and has no optimiser state, so it cannot be resumed. Start a new run from its "
            f"weights: --init-from {out} with another --out"
        )
    state, old = checkpoint.read_state(found), checkpoint.read_config(out)
    if extend:
        old = _extended(plan, old)
    notes = rundir.check_changes(old, plan.config, state, plan.identity())
    step = int(state["step"])
    rundir.cut_back(out, step if step else -1)  # the health check of step 0 is made again
    where = f"going on from {found.name} of {plan.total_steps} steps"
    if step >= plan.total_steps:
        where = f"the run is finished, at step {step} of {plan.total_steps}; --extend makes it longer"
    return Start(found, resumed=True, notes=(*(f"{p}; an older one is used" for p in passed), *notes, where))


def _extended(plan: Plan, old: RunConfig) -> RunConfig:
    before, duration = old.train.duration.to_steps(old.train.batch, plan.data.size), plan.config.train.duration
    if plan.total_steps <= before:
        raise ConfigError(
            f"--extend gives the new total length, {plan.total_steps} steps, but the run already has {before}. "
            "Give a longer one; an extension that was interrupted goes on with --resume"
        )
    return dataclasses.replace(old, train=dataclasses.replace(old.train, duration=duration))


# --- accelerate ---------------------------------------------------------------------------------------------------


@contextmanager
def accelerator(plan: Plan, out: Path) -> Iterator[Accelerator]:
    """accelerate's device placement, mixed precision, DDP and trackers, for the time of a run.

    Raises:
        ConfigError: a launcher set-up that this loop does not train under.
        TrainingError: a decoding process died.
    """
    settings = plan.config.train
    made = Accelerator(
        cpu=environment.device_type() == "cpu",  # several CPU processes are a group for accelerate only when told so
        mixed_precision=plan.precision if plan.precision in environment.DTYPES else "no",
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),  # the loop scales its losses itself
        kwargs_handlers=[
            DistributedDataParallelKwargs(
                broadcast_buffers=False, find_unused_parameters=False, gradient_as_bucket_view=True
            ),
            InitProcessGroupKwargs(timeout=_PATIENCE),
        ],
        log_with=list(settings.trackers) or None,
        project_config=ProjectConfiguration(project_dir=str(out), logging_dir=str(out / "tb")),
    )
    try:
        supported = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)
        if made.distributed_type not in supported or made.num_processes != plan.world:
            raise ConfigError(
                f"accelerate started {made.num_processes} process(es) as {made.distributed_type.value}; this loop "
                f"trains {plan.world} by {', '.join(t.value for t in supported)}. Use plain `accelerate launch` "
                "without FSDP, DeepSpeed or Megatron"
            )
        if settings.threads is not None:
            torch.set_num_threads(settings.threads)
        if made.device.type == "cpu":
            keep_freed_memory()
        if settings.trackers:
            made.init_trackers(plan.config.name.replace("/", "-") or "run")
        yield made
        made.end_training()
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        # torch notices a dead worker by a signal, wherever the loop happens to be
        raise TrainingError(
            f"a decoding process died ({error}). Mostly that is for want of memory: use fewer data.workers or a "
            "smaller data.prefetch, then continue with --resume"
        ) from None
    finally:
        # accelerate's state is per process: without this, a second run in it would inherit the first one's precision
        AcceleratorState._reset_state()
        GradientState._reset_state()
        PartialState._reset_state()


@dataclass(frozen=True)
class Built:
    """A method ready to train: itself, as wrapped for the devices, its optimiser, and the state of a resumed run."""

    method: base.Method
    wrapped: nn.Module
    optimizer: torch.optim.AdamW
    state: dict[str, Any]


def build(plan: Plan, accelerator: Accelerator, start: Start) -> Built:
    """Make the method and its optimiser, on the device, with the weights that the run starts from.

    Raises:
        CheckpointError: the checkpoint is of another architecture.
    """
    settings = plan.config.train
    method = checkpoint.create(plan.config).to(plan.dtype).train()
    method.expect([base.kind_of(source.data.config.size) for source in plan.sources])
    method.checkpoint_blocks(settings.activation_checkpointing)
    if start.checkpoint is not None:
        checkpoint.load_model(start.checkpoint, method)
    if settings.compile:
        for part in method.children():  # in place, so that names in the state dict stay as they are
            part.compile()
    with warnings.catch_warnings():
        # The option's successor would still send buffers around at the start, and accelerate does not know it yet.
        warnings.filterwarnings("ignore", message=".*broadcast_buffers.*", category=FutureWarning)
        wrapped = accelerator.prepare_model(method)
    optimizer = optim.build_optimizer(method, plan.config.optim)
    state: dict[str, Any] = {}
    if start.resumed and start.checkpoint is not None:
        checkpoint.load_optim(start.checkpoint, method, optimizer)
        state = checkpoint.read_state(start.checkpoint)
        if accelerator.scaler is not None:
            accelerator.scaler.load_state_dict(state["scaler"])
    return Built(method, wrapped, optimizer, state)


def agree(accelerator: Accelerator, value: T) -> T:
    """Rank 0's value, on every rank."""
    if accelerator.num_processes == 1:
        return value
    box = [value]
    broadcast_object_list(box)
    return box[0]


# --- small device matters -----------------------------------------------------------------------------------------


def to_device(masks: Masks | None, device: torch.device) -> Masks | None:
    """Masks on the device; through page-locked memory for CUDA, where a copy from anything else makes the host wait."""
    if masks is None:
        return None
    if device.type == "cuda":
        masks = Masks([m.pin_memory() for m in masks.context], [m.pin_memory() for m in masks.target])
    return masks.to(device, non_blocking=True)


def seed_noise(seed: int, step: int, rank: int, device: torch.device) -> None:
    """Make what a method draws from torch's global generators a function of the step, so that resuming repeats it."""
    number = zlib.crc32(f"{seed}/{step}/{rank}".encode())
    torch.default_generator.manual_seed(number)
    if device.type == "cuda":
        torch.cuda.manual_seed(number)
    elif device.type == "mps":
        torch.mps.manual_seed(number)


def all_finite(model: nn.Module) -> bool:
    """Whether every trainable weight is finite; reads one number from the device."""
    weights = [p.detach() for p in model.parameters() if p.requires_grad]
    return bool(torch.isfinite(torch.stack(torch._foreach_norm(weights))).all())


def not_finite(good: Path | None, what: str) -> TrainingError:
    """The error for a run that diverged: what happened, what is still good, what to try."""
    left = f"the last good checkpoint is {good}" if good is not None else "no checkpoint was written"
    return TrainingError(
        f"{what}; {left}. Resuming would repeat the same steps. Try a new run from it (--init-from) with a lower "
        "optim.lr, a longer optim.warmup, optim.clip_norm=1, or train.precision=fp32"
    )
