"""``jepa bench interrupt``: a small run is interrupted again and again at random moments; what does it cost?

One run goes undisturbed, another is interrupted: `kill` is SIGKILL to one rank, `term` SIGTERM to all (a cancelled
job), `usr2` SIGUSR2 to all (a time limit comes near). After each it goes on from its newest checkpoint. In the end
both must have the same weights and optimiser state, bit for bit, and have trained on each sample number once. With
`cluster` the interrupted run is a job of SLURM on `processes` nodes, and there are `requeue` and `preempt` too.

Steps lost are steps that were done and have to be done again. The time to a safe checkpoint runs from the signal to
the moment when a checkpoint of everything done is complete on disk; the time to the first step from starting the
processes (Python, torch and all) to the first step that was not done before the restart. On SLURM it runs from when the
job is back in the queue; part of it is SLURM's own delay before it starts the job, given too.
"""

from __future__ import annotations

import contextlib
import itertools
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from safetensors.torch import load_file

from jepa.bench import small
from jepa.bench.disturb import Local, Watched, wait_for
from jepa.bench.jobs import Slurm
from jepa.bench.result import Result, hardware, median
from jepa.checkpoint import folder as checkpoints
from jepa.errors import ConfigError, TrainingError

_BATCH = 16
_SINCE = ("from being back in the queue", "from submitting it again, jepa submit and all,")


@dataclass(frozen=True)
class InterruptSettings:
    """What is done."""

    interruptions: int = 24
    kinds: tuple[str, ...] = ()  # in turn, in a random order; default: all there are: kill, term, usr2
    media: small.Media = "images"  # what it trains on: images, clips, episodes
    workers: int = 0  # decoding processes of each rank
    processes: int = 1
    cluster: str | None = None  # a cluster's profile: as a job of SLURM, with the kinds requeue and preempt too
    pusher: str = "high"  # partition whose jobs preempt those of the profile's, for the kind preempt
    checkpoint_every: int = 20  # steps
    steps: int | None = None  # of the run; default: 25 for each interruption
    width: int = 96  # of the encoder: a wider one makes longer steps and larger checkpoints
    depth: int = 4
    seed: int = 0
    out: str | None = None  # keep data and runs in this folder; default: a temporary one


@dataclass(frozen=True)
class Interruption:
    """One of them, in steps and seconds."""

    kind: str
    at: int  # steps done when it struck
    saved: int  # step of the checkpoint that the run went on from
    done: int  # steps done when the processes had ended
    safe: float | None  # from the signal to the checkpoint made for it; None where none is made
    first_step: float  # from the restart to the first step
    queued: float | None = None  # of it, until SLURM has started the job

    @property
    def lost(self) -> int:
        return self.done - self.saved


def bench_interrupt(settings: InterruptSettings | None = None) -> Result:
    """Run the benchmark.

    Returns:
        Figures per kind K: K.count, K.steps_lost_mean, K.steps_lost_max, and K.safe_ms, K.safe_ms_max where a
        checkpoint is made for the signal; on SLURM K.first_step_s and queued_s; first_step_s,
        first_step_s_max; different_tensors, samples_repeated, samples_lost, trace_differs, all 0 if nothing is wrong
        (see `flawless`).

    Raises:
        ConfigError: impossible settings.
        TrainingError: a run failed, or did not go on.
    """
    wanted = settings or InterruptSettings()
    known = Local.kinds if wanted.cluster is None else Slurm.kinds
    kinds = wanted.kinds or known
    steps = wanted.steps if wanted.steps is not None else 25 * wanted.interruptions
    _check(wanted, kinds, known, steps)
    result = Result("interrupt", _shown(wanted, steps), hardware(torch.device("cpu")))
    with _folder(None if wanted.out is None else Path(wanted.out)) as folder:
        config = _prepare(folder, wanted, steps)
        whole, disturbed = folder / "undisturbed", folder / "interrupted"
        seconds = _undisturbed(Local(config, whole, wanted.processes), steps)
        found = _soak(_job(config, disturbed, wanted), wanted, kinds, steps)
        _report(result, found, kinds)
        result.add("undisturbed_step_ms", 1e3 * seconds, "ms", "a step, checkpoints counted in")
        _compare(result, Watched(whole), Watched(disturbed), steps)
    return result


def flawless(result: Result) -> bool:
    """Whether the interrupted run ended as the undisturbed one did."""
    names = ("different_tensors", "samples_repeated", "samples_lost", "trace_differs")
    return all(result[name] == 0 for name in names)


def _job(config: Path, run: Path, wanted: InterruptSettings) -> Local | Slurm:
    if wanted.cluster is None:
        return Local(config, run, wanted.processes)
    return Slurm(config, run, wanted.processes, wanted.cluster, wanted.pusher)


def _check(wanted: InterruptSettings, kinds: tuple[str, ...], known: tuple[str, ...], steps: int) -> None:
    unknown = [kind for kind in kinds if kind not in known]
    if unknown:
        more = "; requeue and preempt need cluster=PROFILE" if known == Local.kinds else ""
        raise ConfigError(f"kinds: {', '.join(unknown)} is none of {', '.join(known)}{more}")
    if wanted.workers < 0 or wanted.width % 6:
        raise ConfigError(f"workers={wanted.workers}, width={wanted.width}: workers from 0, a width that 6 divides")
    if min(wanted.interruptions, wanted.processes, wanted.checkpoint_every, wanted.width, wanted.depth) < 1:
        raise ConfigError("interruptions, processes, checkpoint_every, width and depth: give 1 or more")
    if _BATCH % wanted.processes:
        raise ConfigError(f"processes={wanted.processes} does not divide the batch of {_BATCH}; give 1, 2, 4, 8 or 16")
    if steps <= wanted.interruptions + wanted.checkpoint_every:
        raise ConfigError(
            f"steps={steps} is too short for {wanted.interruptions} interruptions and a checkpoint every "
            f"{wanted.checkpoint_every} steps; leave it out, or give at least "
            f"{wanted.interruptions + wanted.checkpoint_every + 1}"
        )


def _shown(wanted: InterruptSettings, steps: int) -> dict[str, Any]:
    return {
        "media": wanted.media,
        "steps": steps,
        "batch": _BATCH,
        "encoder": f"{wanted.depth}x{wanted.width}",
        "processes": wanted.processes,
        "workers": wanted.workers,
        **({} if wanted.cluster is None else {"cluster": wanted.cluster}),
        "checkpoint every": wanted.checkpoint_every,
        "seed": wanted.seed,
    }


@contextlib.contextmanager
def _folder(given: Path | None) -> Iterator[Path]:
    if given is None:
        with tempfile.TemporaryDirectory(prefix="jepa-interrupt-") as name:
            yield Path(name)
        return
    if given.exists() and any(given.iterdir()):
        raise ConfigError(f"out={given} is not empty; give a folder that does not exist")
    given.mkdir(parents=True, exist_ok=True)
    yield given.resolve()


def _prepare(folder: Path, wanted: InterruptSettings, steps: int) -> Path:
    """A data set, and the configuration of both runs."""
    data = small.build_small(wanted.media, folder / "data")
    start = small.values(wanted.media, data, width=wanted.width, depth=wanted.depth)
    values = start | {
        "name": "interrupt",
        "seed": wanted.seed,
        "data": start["data"] | {"workers": wanted.workers},
        "health": {"starvation": {"act": "ignore"}},  # depends on how busy the machine is
        "optim": {"lr": 1e-3, "warmup": {"steps": 10}},
        "train": {
            "batch": _BATCH,
            "duration": {"steps": steps},
            "precision": "fp32",
            "checkpoint_every": {"steps": wanted.checkpoint_every},
            "log_every": 1,  # a line for each step: how far it got
            "trackers": [],
            "threads": 1,
        },
        "monitor": {"every": {"steps": steps}, "samples": 16, "knn_bank": 32},
    }
    path = folder / "interrupt.yaml"
    path.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
    return path


def _undisturbed(job: Local, steps: int) -> float:
    """Train to the end; seconds of a step."""
    job.start()
    try:
        run = Watched(job.run)
        wait_for(lambda: run.steps_done() or job.failed(), "the first step", job.log)
        first, since = run.steps_done(), time.perf_counter()
        wait_for(job.ended, "the end of the undisturbed run", job.log)
        if job.failed() or run.saved()[0] != steps:
            raise TrainingError(f"the undisturbed run failed: {job.log()}")
        return (time.perf_counter() - since) / max(steps - first, 1)
    finally:
        job.end()


def _soak(job: Local | Slurm, wanted: InterruptSettings, kinds: tuple[str, ...], steps: int) -> list[Interruption]:
    """Interrupt at random steps, and there at random moments, then let the run end."""
    generator, run = np.random.default_rng(wanted.seed), Watched(job.run)
    order = list(itertools.islice(itertools.cycle(kinds), wanted.interruptions))
    generator.shuffle(order)
    at = np.sort(generator.choice(np.arange(1, steps - wanted.checkpoint_every), wanted.interruptions, replace=False))
    found: list[Interruption] = []
    before: tuple[str, int, int, int, float | None] | None = None
    try:
        for kind, step in zip([*order, None], [*at.tolist(), steps], strict=True):
            saved, since, clock = run.saved()[0], time.time(), time.perf_counter()
            job.start()
            wait_for(lambda: run.steps_done(since) > saved or job.ended(), "the first step after a restart", job.log)  # noqa: B023
            if before is not None:
                first_step, began = time.perf_counter() - clock, job.began()
                queued = max(0.0, began - since) if began is not None else None
                found.append(Interruption(*before, first_step=first_step, queued=queued))
            if kind is None:
                break
            wait_for(lambda: run.steps_done(since) >= step or job.ended(), f"step {step}", job.log)  # noqa: B023
            if job.ended():
                raise TrainingError(f"the run ended by itself before step {step}: {job.log()}")
            time.sleep(float(generator.uniform(0, 0.05)))  # anywhere in a step, or in the writing of a checkpoint
            before = _strike(job, run, kind, generator)
        wait_for(job.ended, "the end of the interrupted run", job.log)
        if job.failed() or run.saved()[0] != steps:
            raise TrainingError(f"the interrupted run failed: {job.log()}")
    finally:
        job.end()
    return found


def _strike(
    job: Local | Slurm, run: Watched, kind: str, generator: np.random.Generator
) -> tuple[str, int, int, int, float | None]:
    """Interrupt once and wait until the processes have ended. Returns the first fields of an Interruption."""
    at, struck = run.steps_done(), time.time()
    job.interrupt(kind, generator)
    wait_for(job.ended, f"the end after {kind} at step {at}", job.log)
    done, (saved, complete) = run.steps_done(), run.saved()
    made = kind != "kill" and saved == done
    return kind, at, saved, done, max(0.0, complete - struck) if made else None


def _report(result: Result, found: list[Interruption], kinds: tuple[str, ...]) -> None:
    for kind in dict.fromkeys(kinds):
        mine = [each for each in found if each.kind == kind]
        if not mine:
            continue
        lost, safe = [each.lost for each in mine], [1e3 * each.safe for each in mine if each.safe is not None]
        result.add(f"{kind}.count", len(mine), "", "interruptions of this kind")
        result.add(f"{kind}.steps_lost_mean", sum(lost) / len(lost), "steps", "done, and to be done again")
        result.add(f"{kind}.steps_lost_max", max(lost), "steps", "of them the most")
        if safe:
            result.add(f"{kind}.safe_ms", median(safe), "ms", "from the signal to a complete checkpoint, median")
            result.add(f"{kind}.safe_ms_max", max(safe), "ms", "the longest")
        if any(each.queued is not None for each in mine):
            first = [each.first_step for each in mine]
            result.add(
                f"{kind}.first_step_s", median(first), "s", f"{_SINCE[kind == 'term']} to the first step, median"
            )
    queued = [each.queued for each in found if each.queued is not None]
    if queued:
        result.add("queued_s", median(queued), "s", "of the next: until SLURM has started the job, median")
    restarts = [each.first_step for each in found]
    result.add(
        "first_step_s",
        median(restarts),
        "s",
        "from starting the processes, or back in the queue, to the first step, median",
    )
    result.add("first_step_s_max", max(restarts), "s", "the longest")


def _compare(result: Result, whole: Watched, disturbed: Watched, steps: int) -> None:
    """Weights, optimiser state and trace of both runs."""
    different = total = 0
    for name in (checkpoints.MODEL, checkpoints.OPTIM):
        a, b = (load_file(run.run / checkpoints.FOLDER / f"step-{steps}" / name) for run in (whole, disturbed))
        different += len(a.keys() ^ b.keys()) + sum(not torch.equal(a[k], b[k]) for k in a.keys() & b.keys())
        total += len(a)
    trace = disturbed.trace()
    numbers = [int(row["g"]) for row in trace]
    result.add("different_tensors", different, "", f"of {total} in the last checkpoint, against the undisturbed run")
    result.add(
        "samples_repeated", len(numbers) - len(set(numbers)), "", "sample numbers trained on twice, by the trace"
    )
    result.add("samples_lost", len(set(range(steps * _BATCH)) - set(numbers)), "", "and not at all")
    differs = sum(a != b for a, b in itertools.zip_longest(trace, whole.trace()))
    result.add("trace_differs", differs, "", f"of {len(trace)} samples with another crop or mask than undisturbed")
