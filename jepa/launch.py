"""Around the loop: taking the run folder, starting accelerate, building the method."""

from __future__ import annotations

import dataclasses
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from accelerate.utils import (
    DistributedDataParallelKwargs,
    DistributedType,
    GradientAccumulationPlugin,
    InitProcessGroupKwargs,
    ProjectConfiguration,
    broadcast_object_list,
)
from torch import nn

from jepa import attempts, checkpoint, environment, optim, phases, rundir, sharding, world
from jepa.config import MAIN_PHASE, Duration, RunConfig, to_dict
from jepa.errors import CheckpointError, ConfigError, DivergedError, JepaError, TrainingError
from jepa.masks import Masks
from jepa.methods import base
from jepa.nn.memory import keep_freed_memory
from jepa.nn.sharded import finite
from jepa.prepare import Plan, Stage, validate

T = TypeVar("T")


class HealthCheck(Protocol):
    """Looks at a method after `step` steps: metrics for metrics.jsonl, and warnings for the user."""

    def run(self, method: base.Method, step: int) -> tuple[dict[str, float], list[str]]: ...


@dataclass(frozen=True)
class Result:
    """How a run ended."""

    run_dir: Path
    step: int  # optimiser steps done
    total_steps: int
    checkpoint: Path  # the newest one
    again: bool = False  # stopped by a signal that means: save, and be started again

    @property
    def stopped(self) -> bool:
        """By a signal, before the end."""
        return self.step < self.total_steps


# --- the run folder -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Start:
    """Where a run starts from."""

    checkpoint: Path | None = None  # weights to load
    resumed: bool = False  # optimiser state and step too
    step: int = 0  # steps done by then, of a resumed run
    notes: tuple[str, ...] = ()  # sentences for the user
    why: str = ""  # where the run itself knows why it starts again
    attempts: attempts.Attempts = attempts.Attempts()  # noqa: RUF009 - frozen; roll-backs that count from here on


def planned(
    config: RunConfig,
    out: Path,
    resume: bool,
    extend: Duration | None,
    init_from: Path | str | None,
    place: tuple[int, environment.Resolved] | None = None,
) -> Plan:
    """A run's validated plan, with the length that it is extended to; `place` as for `validate`.

    Raises:
        ConfigError, DataError, CheckpointError: everything that can be found before anything is started.
    """
    if init_from is not None and (resume or extend is not None):
        raise ConfigError("--init-from starts a new run, --resume and --extend go on with one: give only one of them")
    if init_from is not None:
        checkpoint.resolve(init_from, files=())  # while there is no folder yet
    return validate(extended(config, out, extend) if extend is not None else config, place)


def begin(plan: Plan, out: Path, resume: bool, extend: bool, init_from: Path | str | None) -> Start:
    """Decide where the run starts and make the folder ready. Rank 0 does, under the lock; the others are told.

    Raises: see `look`.
    """
    if plan.rank != 0:
        return Start()
    if resume:
        attempts.settle(out, plan.g)
    start = look(plan, out, resume, extend, init_from)
    if start.resumed:
        start = dataclasses.replace(start, attempts=attempts.resumed(out, start.step))
        rundir.cut_back(out, start.step if start.step else -1)  # the health check of step 0 is made again
        attempts.settle(out, plan.g)  # the line of a roll-back to step 0 stays
    return start


def look(plan: Plan, out: Path, resume: bool, extend: bool, init_from: Path | str | None) -> Start:
    """Where a run would start from. Changes nothing.

    Raises:
        ConfigError: a run is there already, or one with another configuration.
        CheckpointError: no usable checkpoint.
    """
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
    state, old = checkpoint.read_state(found, *rundir.COMPARED), checkpoint.read_config(out)
    step: int = state["step"]
    if extend:
        old = _longer(plan, old, state)
    old, future = _with_future(plan, old, step)
    notes = [*rundir.check_changes(old, plan.config, state, plan.identity()), *future]
    where = f"going on from {found.name} of {plan.total_steps} steps"
    if step >= plan.total_steps:
        where = f"the run is finished, at step {step} of {plan.total_steps}; --extend makes it longer"
    return Start(found, resumed=True, step=step, notes=(*(f"{p}; an older one is used" for p in passed), *notes, where))


def extended(config: RunConfig, out: Path, duration: Duration) -> RunConfig:
    """The configuration with another length of the part that the run in `out` is in; its last step done says which.

    Raises:
        ConfigError: that part is no longer in the configuration. CheckpointError: no usable checkpoint.
    """
    name = MAIN_PHASE
    if rundir.has_run(out):
        name = _part(checkpoint.read_state(checkpoint.find(out, files=(checkpoint.folder.STATE,))[0]))
    if name not in (MAIN_PHASE, *phases.present(config)):
        raise ConfigError(f"the run in {out} is in its phase {name!r}, which this configuration does not have")
    return phases.with_duration(config, name, duration)


def _part(state: Mapping[str, Any]) -> str:
    return str(state.get("phase", MAIN_PHASE))


def _longer(plan: Plan, old: RunConfig, state: Mapping[str, Any]) -> RunConfig:
    """What was saved, with the new length of the part that is extended."""
    name = _part(state)
    before, after = (
        next((p.span.steps for p in phases.layout(c, plan.data.size) if p.name == name), 0) for c in (old, plan.config)
    )
    if after <= before:
        raise ConfigError(
            f"--extend gives the new total length{'' if name == MAIN_PHASE else f' of phase {name!r}'}, {after} steps, "
            f"but the run already has {before}. Give a longer one; an extension that was interrupted goes on with "
            "--resume"
        )
    part = plan.config.train if name == MAIN_PHASE else phases.present(plan.config)[name]
    return phases.with_duration(old, name, part.duration)


def _with_future(plan: Plan, old: RunConfig, step: int) -> tuple[RunConfig, list[str]]:
    """What was saved, with the phases that have not begun as they are now, and sentences about that.

    Steps done are those of a run that had today's phases from the start, because their rates are compared.

    Raises:
        ConfigError: other phases than those that have begun come first, or rates of steps done would be others.
    """
    before, now = (list(to_dict(config.phases).items()) for config in (old, plan.config))
    if before == now:
        return old, []
    begun = [p.name for p in phases.layout(old, plan.data.size) if p.span.start < step and p.name != MAIN_PHASE]
    names = list(phases.present(plan.config))
    if names[: len(begun)] != begun:
        if not set(begun) <= set(names):
            return old, []  # what is missing is named key by key
        raise ConfigError(f"phases that have begun stay the first ones, in this order: {', '.join(begun)}")
    kept = {name: phase for name, phase in old.phases.items() if name in begun}
    future = {name: phase for name, phase in plan.config.phases.items() if name not in begun}
    place = plan.world, plan.precision
    earlier = dataclasses.replace(plan.config, phases=old.phases)
    pairs = zip(rates(plan.config, step, place), rates(earlier, step, place), strict=True)
    other = sorted({name for now_values, values in pairs for name in values if now_values[name] != values[name]})
    if other:
        raise ConfigError(
            f"with these phases the {step} steps done would have had another {', '.join(other)}. Give the first phase "
            "that is added, changed or left out sections optim (for lr, wd) and method (for the method's own values), "
            "empty ones ({}) will do: they begin schedules of their own, so that those before it stay"
        )
    return dataclasses.replace(old, phases=kept | future), ["phases that had not begun are now as given"]


def rates(
    config: RunConfig, steps: int, place: tuple[int, environment.Resolved] | None = None
) -> list[dict[str, float]]:
    """All scheduled values of the first steps of a run; `place` as for `validate`."""
    plan = validate(config, place)
    with torch.device("meta"):
        method = base.create(plan.config.method, plan.config.data.size)
    found: list[dict[str, float]] = []
    for stage in plan.stages:
        method.enter(base.resolve(stage.config.method)[1], stage.config.data.size)
        found += [stage.values(step, method) for step in range(stage.start, min(stage.stop, steps))]
    return found


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
            InitProcessGroupKwargs(timeout=timedelta(seconds=settings.collective_seconds)),
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
                "without FSDP, DeepSpeed or Megatron; for sharded training set train.sharding=fsdp"
            )
        if settings.threads is not None:
            torch.set_num_threads(settings.threads)
        if made.device.type == "cpu":
            keep_freed_memory()
        if settings.trackers:
            made.init_trackers(plan.config.name.replace("/", "-") or "run")
        yield made
        for tracker in made.trackers:
            with suppress(Exception):  # of whatever library: a failing one was told of while it ran, see jepa.record
                tracker.finish()
        made.trackers = []
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
    state: dict[str, Any] = {}
    if start.resumed and start.checkpoint is not None:
        state = checkpoint.read_state(start.checkpoint)
    # of the sizes that the weights to load were last used at: their tables of positions are of those
    made_for = plan.after(int(state["step"])).config if state else plan.config
    method = checkpoint.create(made_for).to(plan.dtype).train()
    method.seed = start.attempts.seed(plan.config.seed)
    method.expect([base.kind_of(source.data.config.size) for source in plan.stages[0].sources])
    if start.checkpoint is not None:
        checkpoint.load_model(start.checkpoint, method)
    else:
        world.fit(method, plan.data)
        checkpoint.frozen.load(method)
    split = sharding.wanted(plan.config, plan.world)
    if settings.compile:
        sharding.compiled(method, split)
    if split:
        sharding.shard(method, accelerator.device, plan.world)
    with warnings.catch_warnings():
        # The option's successor would still send buffers around at the start, and accelerate does not know it yet.
        warnings.filterwarnings("ignore", message=".*broadcast_buffers.*", category=FutureWarning)
        wrapped = accelerator.prepare_model(method, evaluation_mode=split)  # which is without DDP
    optimizer = optim.build_optimizer(method, plan.config.optim)
    if start.resumed and start.checkpoint is not None:
        checkpoint.load_optim(start.checkpoint, method, optimizer)
        if accelerator.scaler is not None:
            accelerator.scaler.load_state_dict(state["scaler"])
    return Built(method, wrapped, optimizer, state)


def agree(accelerator: Accelerator, value: T) -> T:
    """Rank 0's value, on every rank."""
    if accelerator.num_processes == 1:
        return value
    broadcast_object_list(box := [value])
    return box[0]


def introduce(stage: Stage) -> str:
    """What begins with a phase, in words."""
    sizes = []
    for size, batch in ((source.data.config.size, source.batch) for source in stage.sources):
        kind, shape = base.kind_of(size), "x".join(map(str, size))
        sizes.append(f"{batch} {kind}s of {shape}")
    steps = stage.stop - stage.start
    return f"phase {stage.name}: {steps} steps from step {stage.start}, each of {' and '.join(sizes)}"


def everywhere(accelerator: Accelerator, main: bool, act: Callable[[], None]) -> None:
    """Do something on rank 0, and raise on every rank what it could not do."""
    failure: JepaError | None = None
    if main:
        try:
            act()
        except JepaError as error:
            failure = error
    failure = agree(accelerator, failure)
    if failure is not None:
        raise failure


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
    """Whether every trainable weight is finite; reads one number from the device. See `jepa.nn.sharded.finite`."""
    return finite(p for p in model.parameters() if p.requires_grad)


def not_finite(good: Path | None, what: str) -> DivergedError:
    """The error for a run that diverged: what happened, what is still good, what to try."""
    left = f"the last good checkpoint is {good}" if good is not None else "no checkpoint was written"
    return DivergedError(
        f"{what}; {left}. Resuming would repeat the same steps. Try a new run from it (--init-from) with a lower "
        "optim.lr, a longer optim.warmup, optim.clip_norm=1, or train.precision=fp32"
    )
