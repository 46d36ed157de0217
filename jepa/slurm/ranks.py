"""The tasks of a SLURM job step as the ranks of one run: `srun jepa train ...` needs no other launcher.

srun starts every process and tells it who it is; `join` says the same in the words of torch.distributed and
accelerate. The port that ranks meet at follows from job, step and restart, so that all of them know it without asking,
and a restarted job never meets what its last start may have left at the old one.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import zlib

from jepa import environment
from jepa.errors import ConfigError, TrainingError
from jepa.restarts import nodes

_LOW, _HIGH = 12_000, 32_000  # below the ports that systems give to outgoing connections


def several() -> bool:
    """Whether this process is one of several tasks of a job step; not in a batch script or a shell of salloc."""
    step = os.environ.get("SLURM_STEP_ID", os.environ.get("SLURM_STEPID", ""))
    return step.isdigit() and "SLURM_PROCID" in os.environ and _number("SLURM_STEP_NUM_TASKS", 1) > 1


def join() -> bool:
    """Set RANK, LOCAL_RANK, WORLD_SIZE, LOCAL_WORLD_SIZE, MASTER_ADDR and MASTER_PORT from SLURM's variables.

    Does nothing outside of a job step of several tasks, and nothing the second time. GPUs stay as SLURM binds them:
    a process that sees all of its node takes the one of its LOCAL_RANK, a process that sees one takes that.

    Returns:
        Whether this process is one of several.

    Raises:
        ConfigError: torchrun or accelerate launch inside of srun, fewer GPUs than tasks, task 0 not on the first node.
        TrainingError: another program listens on the port.
    """
    if not several():
        return False
    rank, world, step = (_number(f"SLURM_{name}") for name in ("PROCID", "STEP_NUM_TASKS", "STEP_ID"))
    local, here = _number("SLURM_LOCALID"), _number("SLURM_NODEID")
    names = nodes()
    wanted = {
        "RANK": str(rank),
        "LOCAL_RANK": str(local),
        "WORLD_SIZE": str(world),
        "LOCAL_WORLD_SIZE": str(tasks_on(here)),
        "MASTER_ADDR": names[0],
        "MASTER_PORT": str(port(os.environ.get("SLURM_JOB_ID", ""), step, _number("SLURM_RESTART_COUNT", 0))),
    }
    if all(os.environ.get(key) == value for key, value in wanted.items()):
        return True
    _check_launcher(rank, world)
    _check_gpus(tasks_on(here))
    if rank == 0:
        own = os.environ.get("SLURMD_NODENAME", names[0])
        if own != names[0]:
            raise ConfigError(
                f"task 0 runs on {own}, not on {names[0]}, the first node of this step, where the other processes "
                "look for it. Leave out srun's --distribution=arbitrary"
            )
        check_free(int(wanted["MASTER_PORT"]))
    os.environ.update(wanted)
    return True


def port(job: str, step: int, restart: int) -> int:
    """Where the ranks of this start meet."""
    return _LOW + zlib.crc32(f"{job}/{step}/{restart}".encode()) % (_HIGH - _LOW)


def check_free(number: int) -> None:
    """Whether rank 0 can listen there.

    Raises:
        TrainingError: something else does.
    """
    with contextlib.closing(socket.socket()) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the real one; ends of connections do not count
        try:
            probe.bind(("", number))
        except OSError as error:
            raise TrainingError(
                f"port {number}, where the processes of this start would meet, is taken on {socket.gethostname()} "
                f"({error.strerror}). Start the job again (scontrol requeue): another start takes another port"
            ) from None


def tasks_on(node: int) -> int:
    """Tasks of this step on its node of that number, from SLURM's "4(x2),3"."""
    listed = os.environ.get("SLURM_STEP_TASKS_PER_NODE", "")
    counts: list[int] = []
    for count, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", listed):
        counts += [int(count)] * int(times or 1)
    if node >= len(counts):
        raise ConfigError(f"SLURM_STEP_TASKS_PER_NODE={listed!r} does not tell the tasks of node {node} of this step")
    return counts[node]


def _check_launcher(rank: int, world: int) -> None:
    found = [name for name in ("TORCHELASTIC_RUN_ID", "RANK", "WORLD_SIZE", "LOCAL_RANK") if name in os.environ]
    if found:
        raise ConfigError(
            f"{', '.join(f'{name}={os.environ[name]}' for name in found)} is set, as by torchrun or accelerate launch, "
            f"in a job step where srun has started {world} processes itself (this is number {rank}). Use one of them: "
            "srun jepa train ... with --ntasks-per-node set to the number of GPUs; or, to keep torchrun, hide srun "
            "from it: srun env -u SLURM_PROCID torchrun ..."
        )


def _check_gpus(tasks: int) -> None:
    given = os.environ.get("SLURM_GPUS_ON_NODE", "")
    if given.isdigit() and int(given) < tasks and environment.device_type() == "cuda":
        raise ConfigError(
            f"{tasks} tasks on a node where the job has {given} GPU(s): each process needs one of its own. Ask for "
            f"--ntasks-per-node={given} or for more GPUs; ACCELERATE_USE_CPU=1 trains without any"
        )


def _number(name: str, default: int | None = None) -> int:
    text = os.environ.get(name, "" if default is None else str(default)) or str(default)
    if not text.isdigit():
        raise ConfigError(
            f"{name}={text!r} in a job step: not a number. Start with srun, without changing its variables"
        )
    return int(text)


__all__ = ["check_free", "join", "port", "several", "tasks_on"]
