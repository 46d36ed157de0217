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
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from jepa import environment, health, launch, optim, restarts, rundir, sharding
from jepa.config import Duration, RunConfig
from jepa.data import Batch, mix
from jepa.energy import Spent
from jepa.guard import Guard, follow
from jepa.interrupt import Agreement, Interrupts
from jepa.launch import HealthCheck, Result
from jepa.methods import base
from jepa.nn.tokens import Normalise
from jepa.prepare import Plan, Stage
from jepa.progress import Clock, Display, Window
from jepa.record import Record
from jepa.saver import Saver
from jepa.watchdog import Watchdog

Options = tuple[Callable[..., HealthCheck] | None, bool, bool]  # monitor, trace, quiet: see `train`


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
        TrainingError: the run cannot go on (loss not finite, disk full, too many bad samples, an alarm).
    """
    out = Path(out)
    plan, resume = launch.planned(config, out, resume, extend, init_from), resume or extend is not None
    lock = rundir.lock(out, new=not resume) if plan.rank == 0 else contextlib.nullcontext()
    with lock, Interrupts() as interrupts:
        start = launch.begin(plan, out, resume, extend is not None, init_from)
        with launch.accelerator(plan, out) as accelerator:
            start = launch.agree(accelerator, start)
            while True:
                run = Run(plan, out, accelerator, start, interrupts, (monitor, trace, quiet))
                with run.display, contextlib.closing(run.record), contextlib.closing(run.saver), run.watchdog:
                    ended, spent = health.watched(run), run.spent.state()
                if isinstance(ended, Result):
                    return ended
                del run  # its weights, before there are others
                start = health.roll_back(plan, out, accelerator, ended, spent)


class Run:
    """A run in progress. `step` counts optimiser steps done; step k (0-based) trains on g in [k B, (k + 1) B)."""

    def __init__(
        self, plan: Plan, out: Path, accelerator: Any, start: launch.Start, interrupts: Interrupts, options: Options
    ) -> None:
        self.plan, self.out, self.accelerator = plan, out, accelerator
        self.monitor, trace, quiet = options
        self.device, self.main = accelerator.device, accelerator.is_main_process
        built = launch.build(plan, accelerator, start)
        self.method, self.wrapped, self.optimizer, state = built.method, built.wrapped, built.optimizer, built.state
        self.normalise = Normalise(plan.config.data.mean, plan.config.data.std).to(self.device, plan.dtype)
        self.step = int(state.get("step", 0))
        self.stopping = Agreement(interrupts, accelerator, self.step)
        self.watchdog = Watchdog(out, plan.rank, plan.config.train.step_seconds, self.step)
        self.attempts, self.skipped = start.attempts, int(state.get("skipped", 0))
        self.spent = Spent(accelerator, self.attempts.spent(state))
        resumed = start.checkpoint if start.resumed else None
        self.saver = Saver(plan, out, accelerator, self.method, self.optimizer, resumed, state.get("best"))
        self.window, self.clock = Window(self.device, state.get("window")), Clock()
        self.guard = Guard(plan.config.train.guard, self.device, state.get("guard"))
        self.alarms = health.Alarms(plan.config.health, state.get("alarms"))
        self.display = Display(plan.total_steps, self.step, shown=self.main and not quiet)
        for note in (*start.notes, *sharding.notes(plan.config, plan.world)):
            self.display.say(note, "yellow")
        self.enter(plan.at(self.step))
        if resumed is None:  # a full disk or a read-only folder shows now, not an epoch later
            self.save()
            self.saver.finish()
        self.tally = plan.announce(out, self.device, self.step, start.why) if self.main else restarts.Tally()
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
        self.saver.finish()
        if self.step < plan.total_steps:
            self.display.stopped(self.step, self.saver.path(self.step), self.out)
        return Result(self.out, self.step, plan.total_steps, self.saver.path(self.step), self.stopping.again)

    def enter(self, stage: Stage) -> None:
        """Put a phase's settings and sizes in force; weights, teacher and optimiser state stay as they are."""
        plan, first = self.plan, self.step == stage.start and self.step > 0
        self.stage, self.config = stage, stage.config
        self.stopping.soon(self.step)
        self.watchdog.expect_slow()
        self.method.enter(base.resolve(stage.config.method)[1], stage.config.data.size)
        self.method.checkpoint_blocks(stage.config.train.activation_checkpointing)
        again = self.attempts.first(plan.first)
        self.sources = mix.streams(stage.config, plan.world, self.out, stage.phase.shifts, again)
        self.samplers = [self.method.sampler(s.seed, s.data.config.size) for s in self.sources]
        self.health_check = None
        if self.monitor is not None and (self.main or sharding.sharded(self.method)):
            given = {"autocast": environment.DTYPES.get(plan.precision), "run_dir": self.out}
            self.health_check = self.monitor(stage.config, plan.data.manifest, self.device, **given)
        if first:
            self.display.say(launch.introduce(stage))
            if stage.config.train.compile:
                torch.compiler.reset()  # traced once more for the new sizes, instead of for any size
            self.guard.forget()
            self.alarms.forget()

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
        self.values = self.attempts.changed(self.stage.values(step, self.method))
        optim.apply(self.optimizer, self.values)
        # full() runs on the device; tensor(..., device=...) would copy from the host and wait for it
        self.schedule = {k: torch.full((), v, dtype=plan.dtype, device=self.device) for k, v in self.values.items()}
        self.masks = [  # for the rank's whole share at once: a sampler that looks at its batch must see all of it
            draw(step, s.numbers(step, plan.rank, plan.world)) if draw is not None else None
            for draw, s in zip(self.samplers, self.sources, strict=True)
        ]
        launch.seed_noise(self.method.seed, step, plan.rank, self.device)

    def micro_step(self, batch: Batch) -> None:
        """Forward and backward; gradients add up to those of the step's whole batch."""
        assert batch.step == self.step, f"the loader is at step {batch.step}, the loop at {self.step}"
        source, drawn = self.sources[batch.source], self.masks[batch.source]
        masks = drawn.slice(batch.micro * len(batch), (batch.micro + 1) * len(batch)) if drawn is not None else None
        self.record.trace(batch, masks)
        images = self.normalise(batch.images.to(self.device, non_blocking=True))
        with sharding.exchange(self.accelerator, self.wrapped, batch.last):
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
        self.watchdog.tick(done)
        stop = self.write_line(norm) if logging and norm is not None else self.stopping.after(done)
        self.saver.check(self.saver.failed and plan.world == 1)  # several processes ask with the next line
        best = plan.due(done, plan.monitor_every) and self.check_health()
        if saving or stop or best:
            self.save()
        return stop

    # --- what happens between steps -----------------------------------------------------------------------------

    def write_line(self, norm: Tensor) -> bool:
        """Read the sums from the device, write a line, and say whether some rank was asked to stop.

        Raises:
            TrainingError: the loss is not finite, or the guard skipped too many steps.
        """
        steps, guarded = self.window.steps, self.guard.figures()
        told = (float(self.saver.failed), *self.spent.given(), *self.stopping.given(self.step))
        vector = self.window.vector(norm, *told, *guarded)
        numbers: list[float] = self.accelerator.reduce(vector, reduction="mean").tolist()
        means, (grad_norm, failed, joules, wait, *asked) = self.window.means(numbers), numbers[-7 - len(guarded) :]
        seconds, rates = self.clock.rates(steps, sum(s.batch for s in self.sources))
        self.spent.add(seconds, rates["data_wait"], joules)
        row = {**self.where(), **means, **self.values}
        row |= {"grad_norm": grad_norm, **rates, "peak_memory_gib": environment.peak_memory_gib(self.device)}
        row |= {**self.spent.row(), **self.plan.flops(self.step), **self.tally.row()}
        counted, warnings = self.guard.report(asked[3:], self.step, self.saver.good)
        row |= counted | ({"warnings": warnings} if warnings else {})
        if self.accelerator.scaler is not None:
            overflows = self.skipped - counted.get("guarded", 0)
            row |= {"loss_scale": self.accelerator.scaler.get_scale(), "skipped": overflows}
        self.record.add(row)
        if not math.isfinite(means["loss"]):
            raise launch.not_finite(
                self.saver.good, f"the loss became {means['loss']} between steps {self.step - steps} and {self.step}"
            )
        self.display.line(row)
        self.saver.check(failed > 0)
        health.sound(self, self.alarms.line(self.step, row, wait))
        return self.stopping.settle(self.step, *asked[:3])

    def check_health(self) -> bool:
        """Run the monitor on rank 0, on all ranks when they share the weights. Returns whether these are the best."""
        with self.watchdog.aside(self.clock):
            values, check, step = None, self.health_check, self.step
            if check is not None:
                values, warnings = sharding.look(self.method, lambda: check.run(self.method, step))
                self.record.add(self.where() | values | ({"warnings": warnings} if warnings else {}))
            self.accelerator.wait_for_everyone()
            health.sound(self, launch.agree(self.accelerator, self.alarms.look(step, values or {})))
            return self.saver.judge(values, step)

    def save(self) -> None:
        """A checkpoint of this step, unless there is one. Every rank raises when rank 0 could not write it."""
        with self.watchdog.aside(self.clock):
            if self.step:
                self.record.sync()
            self.saver.save(self.step, self.state, self.config, self.sync_metrics, self.alarms.healthy)

    def sync_metrics(self) -> None:
        """On rank 0, before a checkpoint is written: it must not outlive its lines."""
        if self.step:
            self.record.sync(metrics=True)

    def where(self) -> dict[str, Any]:
        """How a line of metrics begins."""
        return self.plan.where(self.step) | self.attempts.row()

    def state(self) -> dict[str, Any]:
        """What a resumed run needs besides weights and optimiser state."""
        scaler = self.accelerator.scaler
        return self.plan.identity() | {
            "g": self.plan.g(self.step),
            "phase": self.stage.name,
            "total_steps": self.plan.total_steps,
            **self.attempts.row(),
            **self.spent.state(),
            "skipped": self.skipped,
            "window": self.window.state(),
            "guard": self.guard.state(),
            "alarms": self.alarms.state(),
            "scaler": scaler.state_dict() if scaler is not None else None,
        }


__all__ = ["Result", "train"]
