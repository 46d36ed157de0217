"""Real training processes for tests: started from a server that has torch loaded, and killed at named points.

A child is a fresh process (forked from a clean server, never from pytest), so killing it is as real as it gets.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from jepa import launch, optim, rundir  # noqa: F401 - loaded once in the server
from jepa import train as loop
from jepa.checkpoint import folder, io
from jepa.config import Duration
from jepa.errors import JepaError
from tests import tiny

_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(["tests.train.worker"])
LIMIT = 120.0  # seconds any child may take on a busy machine


@dataclass(frozen=True)
class Job:
    """One process of a run."""

    data: Path
    out: Path
    overrides: tuple[str, ...] = ()
    method: str | dict[str, Any] | None = None  # instead of I-JEPA, as in `tiny.run_config`
    resume: bool = False
    extend_steps: int | None = None
    trace: bool = True
    kill: tuple[str, int] | None = None  # (named point, step)
    rank: int = 0
    world: int = 1
    port: int = 0
    file_limit: int | None = None  # largest file the process may write, in bytes
    options: dict[str, Any] = field(default_factory=dict)


def run(job: Job) -> int:
    """Run a job in a process of its own; its exit code (-9: killed, 2: a clear error)."""
    child = start(job)
    child.join(LIMIT)
    return finish(child)


def run_group(jobs: list[Job]) -> list[int]:
    """Run the ranks of one job together. When one of them dies, the others are killed, as a launcher would."""
    children = [start(job) for job in jobs]
    left = list(children)
    while left:
        multiprocessing.connection.wait([c.sentinel for c in left], LIMIT)
        ended = [c for c in left if not c.is_alive()]
        left = [c for c in left if c.is_alive()]
        if not ended or any(c.exitcode for c in ended):
            for child in left:
                child.kill()
                child.join(LIMIT)
            left = []
    return [finish(c) for c in children]


def ranks(job: Job, world: int) -> list[Job]:
    """A job as `world` ranks on a free port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return [Job(**{**job.__dict__, "rank": r, "world": world, "port": port}) for r in range(world)]


def start(job: Job) -> BaseProcess:
    child = _SERVER.Process(target=_main, args=(job,))
    child.start()
    return child


def finish(child: BaseProcess) -> int:
    child.join(LIMIT)
    if child.exitcode is None:
        child.kill()
        child.join()
        raise AssertionError(f"a training process took more than {LIMIT} s")
    return child.exitcode


def _main(job: Job) -> None:
    """The child: `jepa train` with the job's arguments, and a trap where it is to be killed."""
    # as in a process started from a shell; otherwise decoding processes would come from a server of their own
    multiprocessing.set_start_method("fork" if sys.platform == "linux" else "spawn", force=True)
    if job.world > 1:
        os.environ |= {
            "RANK": str(job.rank), "LOCAL_RANK": str(job.rank), "WORLD_SIZE": str(job.world),
            "LOCAL_WORLD_SIZE": str(job.world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(job.port),
            "OMP_NUM_THREADS": "1",
        }  # fmt: skip
    if job.file_limit is not None:
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (job.file_limit, job.file_limit))
    if job.kill is not None:
        POINTS[job.kill[0]](job.kill[1])
    extend = None if job.extend_steps is None else Duration(steps=job.extend_steps)
    try:
        loop.train(
            tiny.run_config(job.data, *job.overrides, method=job.method), job.out, resume=job.resume, extend=extend,
            trace=job.trace, quiet=True, **job.options,
        )  # fmt: skip
    except JepaError as error:
        (job.out.parent / f"{job.out.name}.error").write_text(f"{type(error).__name__}: {error}")
        sys.exit(2)
    except BaseException:
        traceback.print_exc()
        sys.exit(1)


# --- named points: each arms one SIGKILL of this process ------------------------------------------------------------


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _around(owner: Any, name: str, when: Callable[..., bool], *, after: bool) -> None:
    whole = getattr(owner, name)

    def trapped(*args: Any, **kwargs: Any) -> Any:
        hit = when(*args, **kwargs)
        if hit and not after:
            _die()
        result = whole(*args, **kwargs)
        if hit:
            _die()
        return result

    setattr(owner, name, trapped)


def _mid_accumulation(step: int) -> None:
    """Between two micro-batches of a step: gradients are half there."""
    _around(loop.Run, "micro_step", lambda run, batch: batch.step == step and not batch.last, after=True)


def _before_optimizer(step: int) -> None:
    """All gradients are there, no weight has moved."""
    _around(loop.Run, "finish_step", lambda run: run.step == step, after=False)


def _mid_step(step: int) -> None:
    """The student's weights have moved, the teacher's have not."""
    at: list[int] = []
    _around(loop.Run, "finish_step", lambda run: bool(at.append(run.step)), after=False)
    _around(optim, "take_step", lambda *a: at[-1] == step, after=True)


def _before_step(step: int) -> None:
    """At a step's beginning; with g = step * batch a multiple of the data set's size this is an epoch's edge."""
    _around(loop.Run, "begin_step", lambda run: run.step == step, after=False)


def _in_weights(step: int) -> None:
    """Inside a checkpoint write: the weights are in the temporary folder, nothing else is."""
    _around(io, "save_file", lambda tensors, path: f"step-{step}/model" in str(path), after=True)


def _before_complete(step: int) -> None:
    """Inside a checkpoint write: every file is there, COMPLETE is not."""
    _around(folder, "_seal", lambda path, manifest: path.name.endswith(f"step-{step}"), after=False)


def _before_rename(step: int) -> None:
    """Inside a checkpoint write: complete, but under its temporary name."""
    _around(folder, "_seal", lambda path, manifest: path.name.endswith(f"step-{step}"), after=True)


def _before_prune(step: int) -> None:
    """The new checkpoint stands, old ones are not thinned out yet."""
    _around(folder, "prune", lambda run_dir, *a: folder.steps(run_dir)[-1] == step, after=False)


def _after_line(step: int) -> None:
    """A line of metrics is written, the checkpoint due after it is not."""
    _around(loop.Run, "write_line", lambda run, norm: run.step == step, after=True)


POINTS: dict[str, Callable[[int], None]] = {
    "mid-accumulation": _mid_accumulation,
    "before-optimizer": _before_optimizer,
    "mid-step": _mid_step,
    "before-step": _before_step,
    "in-weights": _in_weights,
    "before-complete": _before_complete,
    "before-rename": _before_rename,
    "before-prune": _before_prune,
    "after-line": _after_line,
}
