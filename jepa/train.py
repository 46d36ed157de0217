"""Pretraining: one loop for every method, on a CPU, one GPU, or many under `accelerate launch`.

In the order of a run: validate everything, take the run folder, build, loop over its phases and their steps, stop.

Only the model passes through accelerate: it re-shards prepared loaders and steps prepared schedulers once per
process. Batches come from sample numbers and rates from the step (see jepa.data and jepa.optim), so there is no
loader or scheduler state, and a checkpoint holds weights, optimiser state and a few numbers.

Nothing is read back from the device inside a step. Losses are summed there and read every `train.log_every` steps;
that is when a loss that is not finite is noticed, and nothing is saved before it has been looked for.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from jepa import checkpoint, environment, launch, optim, rundir
from jepa.config import Duration, RunConfig
from jepa.data import Batch, mix
from jepa.guard import Guard, follow
from jepa.interrupt import Interrupts
from jepa.launch import HealthCheck, Result
from jepa.methods import base
from jepa.nn.tokens import Normalise
from jepa.prepare import Plan, Stage
from jepa.progress import Clock, Display, Window
from jepa.record import Record


def train(
    config: RunConfig,
    out: Path | str,
    *,
    resume: bool = False,
    extend: Duration | None = None,
    init_from: Path | str | None = None,
    trace: bool = False,
    monitor: Callable[..., HealthCheck] | None = None,
    quiet: bool = False,
) -> Result:
    """Train a run in the folder `out`.

    Args:
        resume: go on with the run in `out` from its newest good checkpoint; see `rundir.MAY_CHANGE`.
        extend: go on with it to this new length (of the phase it is in); schedules are laid out anew over it.
        init_from: weights of another run or checkpoint to start a new run with.
        trace: write every sample number with its crop and mask keys to trace-rankR.jsonl.
        monitor: makes the health check on rank 0, called as ``monitor(config, manifest, device, autocast=dtype or
            None, run_dir=out)``; `jepa.monitor.Monitor` is one.
        quiet: show nothing.

    Raises:
        ConfigError, DataError, CheckpointError: found before anything is started.
        TrainingError: the run cannot go on (loss not finite, disk full, too many bad samples).
    """
    out = Path(out)
    plan, resume = launch.planned(config, out, resume, extend, init_from), resume or extend is not None
    lock = rundir.lock(out, new=not resume) if plan.rank == 0 else contextlib.nullcontext()
    with lock, Interrupts() as interrupts:
        start = launch.begin(plan, out, resume, extend is not None, init_from)
        with launch.accelerator(plan, out) as accelerator:
            run = Run(plan, out, accelerator, launch.agree(accelerator, start), interrupts, monitor, trace, quiet)
            with run.display, contextlib.closing(run.record):
                return run.go()


class Run:
    """A run in progress. `step` counts optimiser steps done; step k (0-based) trains on g in [k B, (k + 1) B)."""

    def __init__(
        self,
        plan: Plan,
        out: Path,
        accelerator: Any,
        start: launch.Start,
        interrupts: Interrupts,
        monitor: Callable[..., HealthCheck] | None = None,
        trace: bool = False,
        quiet: bool = False,
    ) -> None:
        self.plan, self.out, self.monitor = plan, out, monitor
        self.accelerator, self.interrupts = accelerator, interrupts
        self.device, self.main = accelerator.device, accelerator.is_main_process
        built = launch.build(plan, accelerator, start)
        self.method, self.wrapped, self.optimizer, state = built.method, built.wrapped, built.optimizer, built.state
        self.normalise = Normalise(plan.config.data.mean, plan.config.data.std).to(self.device, plan.dtype)
        self.step = int(state.get("step", 0))
        self.device_seconds = float(state.get("device_seconds", 0.0))
        self.skipped = int(state.get("skipped", 0))
        self.saved = start.checkpoint if start.resumed else None
        self.window, self.clock = Window(self.device, state.get("window")), Clock()
        self.guard = Guard(plan.config.train.guard, self.device, state.get("guard"))
        self.display = Display(plan.total_steps, self.step, shown=self.main and not quiet)
        for note in start.notes:
            self.display.say(note, "yellow")
        self.enter(plan.at(self.step))
        if self.saved is None:  # a full disk or a read-only folder shows now, not an epoch later
            self.save()
        if self.main:
            rundir.write_config(out, plan.config)  # from here on there is a run in this folder
            rundir.write_environment(out, environment.record(self.device, plan.precision, plan.world))
        self.record = Record(out, accelerator, self.display, trace)

    # --- the loop -----------------------------------------------------------------------------------------------

    def go(self) -> Result:
        """Train to the end, or until a signal asks to stop."""
        plan, stopped = self.plan, False
        if self.step == 0 and plan.monitor_every:
            self.check_health()
        while self.step < plan.total_steps and not stopped:
            if self.stage is not plan.at(self.step):
                self.enter(plan.at(self.step))
            stopped = self.go_through()
        self.save()
        assert self.saved is not None
        result = Result(self.out, self.step, plan.total_steps, self.saved)
        if result.stopped:
            self.display.say(
                f"Stopped by a signal after step {self.step} of {plan.total_steps}; everything is saved in "
                f"{self.saved}. Go on with: jepa train {self.out} --resume"
            )
        return result

    def enter(self, stage: Stage) -> None:
        """Put a phase's settings and sizes in force; weights, teacher and optimiser state stay as they are."""
        plan, first = self.plan, self.step == stage.start and self.step > 0
        self.stage, self.config = stage, stage.config
        self.method.enter(base.resolve(stage.config.method)[1], stage.config.data.size)
        self.method.checkpoint_blocks(stage.config.train.activation_checkpointing)
        self.sources = mix.streams(stage.config, plan.world, self.out, stage.phase.shifts)
        self.samplers = [self.method.sampler(s.seed, s.data.config.size) for s in self.sources]
        self.health_check = None
        if self.monitor is not None and self.main:
            given = {"autocast": environment.DTYPES.get(plan.precision), "run_dir": self.out}
            self.health_check = self.monitor(stage.config, plan.data.manifest, self.device, **given)
        if first:
            self.display.say(launch.introduce(stage))
            if stage.config.train.compile:
                torch.compiler.reset()  # traced once more for the new sizes, instead of for any size
            self.guard.forget()

    def go_through(self) -> bool:
        """Train to the end of the phase. Returns whether a signal asked to stop before."""
        plan = self.plan
        loader = mix.mixed_batches(
            self.sources, micro_batch=self.config.train.micro_batch, rank=plan.rank, world=plan.world,
            start_step=self.step, total_steps=self.stage.stop, trace=self.record.tracing,
        )  # fmt: skip
        self.clock.reset()
        for batch in self.clock.waiting(loader):
            if batch.micro == batch.source == 0:
                self.begin_step()
            self.micro_step(batch)
            if batch.last and self.finish_step():
                return True
        return False

    def begin_step(self) -> None:
        """Put the step's rates in force and draw its masks."""
        plan, step = self.plan, self.step
        self.values = self.stage.values(step, self.method)
        optim.apply(self.optimizer, self.values)
        # full() runs on the device; tensor(..., device=...) would copy from the host and wait for it
        self.schedule = {k: torch.full((), v, dtype=plan.dtype, device=self.device) for k, v in self.values.items()}
        self.masks = [  # for the rank's whole share at once: a sampler that looks at its batch must see all of it
            draw(step, s.numbers(step, plan.rank, plan.world)) if draw is not None else None
            for draw, s in zip(self.samplers, self.sources, strict=True)
        ]
        launch.seed_noise(self.config.seed, step, plan.rank, self.device)

    def micro_step(self, batch: Batch) -> None:
        """Forward and backward; gradients add up to those of the step's whole batch."""
        assert batch.step == self.step, f"the loader is at step {batch.step}, the loop at {self.step}"
        source, drawn = self.sources[batch.source], self.masks[batch.source]
        masks = drawn.slice(batch.micro * len(batch), (batch.micro + 1) * len(batch)) if drawn is not None else None
        self.record.trace(batch, masks)
        images = self.normalise(batch.images.to(self.device, non_blocking=True))
        with contextlib.nullcontext() if batch.last else self.accelerator.no_sync(self.wrapped):
            output = self.wrapped(images, launch.to_device(masks, self.device), self.schedule, batch=batch)
            self.accelerator.backward(output.loss * source.share)
        self.window.add(output.metrics | {"loss": output.loss}, source.share)
        if len(self.sources) > 1:
            self.window.add({f"{source.name}/loss": output.loss}, 1 / source.accumulation)

    def finish_step(self) -> bool:
        """Optimiser step, teacher, and whatever is due after it. Returns whether to stop here."""
        plan, settings = self.plan, self.config
        done = self.step + 1
        saving = plan.due(done, plan.checkpoint_every)
        logging = saving or plan.due(done, settings.train.log_every)
        keep = self.guard.judge(self.window, self.accelerator)
        taken, norm = optim.take_step(self.optimizer, self.accelerator.scaler, settings.optim.clip_norm, logging, keep)
        if taken:
            follow(self.method, self.values, keep)
        self.skipped += not taken
        self.optimizer.zero_grad(set_to_none=True)
        self.step = done
        self.window.close_step()
        self.display.tick(done)
        # One process looks at its flag after every step. Several must agree on the step, and do so in the exchange
        # that a line of metrics needs anyway, so that the steps between carry no extra collective.
        stop = self.write_line(norm) if logging and norm is not None else self.interrupts.requested and plan.world == 1
        if plan.due(done, plan.monitor_every):
            self.check_health()
        if saving or stop:
            self.save()
        return stop

    # --- what happens between steps -----------------------------------------------------------------------------

    def write_line(self, norm: Tensor) -> bool:
        """Read the sums from the device, write a line, and say whether some rank was asked to stop.

        Raises:
            TrainingError: the loss is not finite, or the guard skipped too many steps.
        """
        steps, guarded = self.window.steps, self.guard.figures()
        vector = self.window.vector(norm, float(self.interrupts.requested), *guarded)
        numbers: list[float] = self.accelerator.reduce(vector, reduction="mean").tolist()
        means, (grad_norm, stop, *figures) = self.window.means(numbers), numbers[-2 - len(guarded) :]
        seconds, rates = self.clock.rates(steps, sum(s.batch for s in self.sources))
        self.device_seconds += seconds * self.plan.world
        row = {**self.plan.where(self.step), **means, **self.values}
        row |= {"grad_norm": grad_norm, **rates, "peak_memory_gib": environment.peak_memory_gib(self.device)}
        row |= {"device_seconds": self.device_seconds, **self.plan.flops(self.step)}
        counted, warnings = self.guard.report(figures, self.step, self.saved)
        row |= counted | ({"warnings": warnings} if warnings else {})
        if self.accelerator.scaler is not None:
            overflows = self.skipped - counted.get("guarded", 0)
            row |= {"loss_scale": self.accelerator.scaler.get_scale(), "skipped": overflows}
        self.record.add(row)
        if not math.isfinite(means["loss"]):
            raise launch.not_finite(
                self.saved, f"the loss became {means['loss']} between steps {self.step - steps} and {self.step}"
            )
        self.display.line(row)
        return stop > 0

    def check_health(self) -> None:
        """Run the monitor on rank 0; the others wait."""
        since = time.perf_counter()
        if self.health_check is not None:
            values, warnings = self.health_check.run(self.method, self.step)
            self.record.add(self.plan.where(self.step) | values | ({"warnings": warnings} if warnings else {}))
        self.accelerator.wait_for_everyone()
        self.clock.pause(since)

    def save(self) -> None:
        """A checkpoint of this step, unless there is one. Every rank raises when rank 0 could not write it."""
        if self.saved is not None and self.saved.name == f"step-{self.step}":
            return
        since = time.perf_counter()
        if self.step:
            self.record.sync()
        launch.everywhere(self.accelerator, self.main, self.write_checkpoint)
        self.saved = self.out / "checkpoints" / f"step-{self.step}"
        self.clock.pause(since)

    def write_checkpoint(self) -> None:
        """On rank 0."""
        if not launch.all_finite(self.method):
            raise launch.not_finite(self.saved, f"weights are not finite after step {self.step}")
        if self.step:
            self.record.sync(metrics=True)
        checkpoint.save(
            self.out, self.step, self.method, self.optimizer, self.state(), self.config,
            keep=self.config.train.keep, keep_every=self.plan.keep_every, keep_at=self.plan.ends,
        )  # fmt: skip

    def state(self) -> dict[str, Any]:
        """What a resumed run needs besides weights and optimiser state."""
        scaler = self.accelerator.scaler
        return self.plan.identity() | {
            "g": self.plan.g(self.step),
            "phase": self.stage.name,
            "total_steps": self.plan.total_steps,
            "device_seconds": self.device_seconds,
            "skipped": self.skipped,
            "window": self.window.state(),
            "guard": self.guard.state(),
            "scaler": scaler.state_dict() if scaler is not None else None,
        }


__all__ = ["Result", "train"]
