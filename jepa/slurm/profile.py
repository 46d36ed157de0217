"""What a cluster wants to be asked: one YAML file under slurm/, strictly read.

    jepa submit train CONFIG --cluster h100 --set nodes=4 --set time=2:00:00

`Profile.parameters` says it in submitit's words; what submitit has none for goes to sbatch as it is.
"""

from __future__ import annotations

import dataclasses
import math
import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from jepa import config, resources
from jepa.errors import ConfigError

Device = Literal["cuda", "cpu"]
# SLURM's own forms: minutes, minutes:seconds, hours:minutes:seconds, days-hours, days-hours:minutes[:seconds]
_CLOCK = re.compile(r"(?:(?P<days>\d+)-)?(?P<parts>\d+(?::\d+){0,2})")
_MEMORY = re.compile(r"\d+(\.\d+)?[KMGT]?", re.IGNORECASE)
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_MARGIN = 30  # seconds: SLURM looks at time limits about twice a minute, and sends the signal that much early
# Set by fields of their own, or by submitit; a second value would contradict the first in silence.
_TAKEN = {
    "array", "comment", "error", "gpus-per-node", "job-name", "mem", "no-requeue", "ntasks-per-node", "open-mode",
    "output", "signal",
}  # fmt: skip


@dataclass(frozen=True)
class Profile:
    """A cluster, and what one job asks of it."""

    partition: str | None = None  # null: the cluster's default, as for every null below
    account: str | None = None  # that pays for the job
    qos: str | None = None  # quality of service
    reservation: str | None = None  # nodes that were set aside
    nodes: int = 1  # of one job
    gpus_per_node: int = 0  # 0: trains on CPUs
    gpu_type: str | None = None  # where a partition has several, as `scontrol show node` names them (Gres)
    tasks_per_node: int | None = None  # processes; null: one for each GPU, else one
    cpus_per_task: int = 1  # cores of a process: itself and its data workers
    memory: str | int | None = None  # of a node: 64G, or a number in MB; 0: all of it
    time: str | int = "1:00:00"  # limit of one start: minutes, H:MM:SS or D-HH:MM:SS; training goes on after it
    constraint: str | None = None  # features that nodes must have
    nodelist: str | None = None  # only these nodes
    exclude: str | None = None  # not these nodes
    exclusive: bool = False  # nobody else's jobs on the nodes
    dependency: str | None = None  # other jobs to wait for, e.g. afterok:1234
    begin: str | None = None  # not before, e.g. now+2hours, 18:00
    nice: int | None = None  # above 0: let others pass
    mail_user: str | None = None  # who gets mail
    mail_type: str | None = None  # about what, e.g. END,FAIL
    requeue: bool = True  # the cluster may start the job again after preemption or a node's failure
    signal_delay: int = 120  # seconds before the time limit at which training is told to save and requeue
    array_parallelism: int | None = None  # runs of a sweep at the same time; null: all
    setup: tuple[str, ...] = ()  # shell lines before the start: modules, an environment
    env: dict[str, str] = field(default_factory=dict)  # variables of every process, as they are
    python: str | None = None  # the interpreter on the nodes; null: the one that submits
    container: str | None = None  # image to run in (pyxis: srun --container-image)
    container_mounts: tuple[str, ...] = ()  # FROM:TO[:ro]; the run folder and the data must be among them
    srun: tuple[str, ...] = ()  # further arguments of srun
    additional: dict[str, Any] = field(
        default_factory=dict
    )  # any other option of sbatch, e.g. {licenses: fs, switches: 1}
    max_restarts: int = 100  # times a job is requeued after a failure; those by signal or the scheduler do not count
    step_seconds: float | None = None  # a step that takes longer counts as hung, and the job starts again; null: never

    def __post_init__(self) -> None:
        least = {
            "nodes": 1, "gpus_per_node": 0, "tasks_per_node": 1, "cpus_per_task": 1, "signal_delay": 1,
            "array_parallelism": 1, "max_restarts": 0,
        }  # fmt: skip
        for name, low in least.items():
            value = getattr(self, name)
            if value is not None and value < low:
                raise ConfigError(f"{name}: got {value}, allowed: at least {low}")
        if self.step_seconds is not None and not self.step_seconds > 0:
            raise ConfigError(f"step_seconds: got {self.step_seconds:g}, allowed: above 0, or null for never")
        if self.memory is not None and not _MEMORY.fullmatch(str(self.memory)):
            raise ConfigError(f"memory: got {self.memory!r}, allowed: a number with K, M, G or T, e.g. 64G; 0 is all")
        if self.gpu_type and not self.gpus_per_node:
            raise ConfigError(f"gpu_type={self.gpu_type} without gpus_per_node: give how many on each node")
        if self.container_mounts and not self.container:
            raise ConfigError("container_mounts without container: give the image")
        self._check_time()
        for name in self.env:
            if not _VARIABLE.fullmatch(name):
                raise ConfigError(f"env: {name!r} is not the name of a variable")
        self._check_additional()

    def _check_time(self) -> None:
        if self.seconds <= self.signal_delay + _MARGIN:
            raise ConfigError(
                f"time={self.time} with signal_delay={self.signal_delay}: SLURM sends the signal up to {_MARGIN} s "
                "earlier than asked, so that training would be told to stop as soon as it starts. Give at least "
                f"{(self.signal_delay + _MARGIN) // 60 + 1} minutes, or a shorter signal_delay"
            )

    def _check_additional(self) -> None:
        fields = {f.name for f in dataclasses.fields(self)}
        for name in self.additional:
            plain = name.replace("_", "-")
            own = plain.replace("-", "_")
            if own in fields or plain in _TAKEN:
                where = f"give {own} itself" if own in fields else "jepa sets it"
                raise ConfigError(f"additional.{name}: {where}")

    @property
    def seconds(self) -> int:
        """The time limit of one start.

        Raises:
            ConfigError: not a time that SLURM reads.
        """
        found = _CLOCK.fullmatch(str(self.time).strip())
        if found is None:
            raise ConfigError(f"time: got {self.time!r}, allowed: minutes, H:MM:SS or D-HH:MM:SS, e.g. 4:00:00")
        days, parts = found["days"], [int(part) for part in found["parts"].split(":")]
        # with days the first number is hours, alone it is minutes, before one colon minutes too
        units = (3600, 60, 1) if days is not None or len(parts) == 3 else (60, 1)
        return int(days or 0) * 86400 + sum(n * unit for n, unit in zip(parts, units, strict=False))

    @property
    def minutes(self) -> int:
        """The same for SLURM, which counts whole minutes."""
        return math.ceil(self.seconds / 60)

    @property
    def tasks(self) -> int:
        """Processes on each node."""
        return self.tasks_per_node or max(1, self.gpus_per_node)

    @property
    def processes(self) -> int:
        """Processes of the whole job."""
        return self.nodes * self.tasks

    @property
    def device(self) -> Device:
        """Where processes of the job will train."""
        on_cpu = self.env.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes")
        return "cuda" if self.gpus_per_node and not on_cpu else "cpu"

    def alone(self) -> Profile:
        """The same for a verb that runs in one process: one node, one task, at most one GPU, the memory as it is."""
        return dataclasses.replace(self, nodes=1, tasks_per_node=1, gpus_per_node=min(1, self.gpus_per_node))

    def summary(self) -> str:
        """For people."""
        nodes = f"{self.nodes} node{'s' if self.nodes > 1 else ''} × {self.tasks} task{'s' if self.tasks > 1 else ''}"
        gpus = f", {self.gpus_per_node} GPU{'s' if self.gpus_per_node > 1 else ''} each" if self.gpus_per_node else ""
        hours, rest = divmod(self.minutes, 60)
        return f"{nodes}{gpus}, {hours}:{rest:02d} h{f' on {self.partition}' if self.partition else ''}"

    def parameters(self, name: str, comment: str, paths: tuple[Path, ...] = ()) -> dict[str, Any]:
        """Arguments for `submitit.SlurmExecutor.update_parameters`.

        Args:
            name, comment: of the job.
            paths: folders that Python looks into first.
        """
        gpus = f"{self.gpu_type}:{self.gpus_per_node}" if self.gpu_type else self.gpus_per_node
        given = {
            "job_name": name,
            "comment": comment,
            "partition": self.partition,
            "account": self.account,
            "qos": self.qos,
            "time": self.minutes,
            "nodes": self.nodes,
            "ntasks_per_node": self.tasks,
            "cpus_per_task": self.cpus_per_task,
            "gpus_per_node": gpus if self.gpus_per_node else None,
            "mem": None if self.memory is None else str(self.memory),
            "constraint": self.constraint,
            "nodelist": self.nodelist,
            "exclude": self.exclude,
            "exclusive": self.exclusive or None,
            "dependency": self.dependency,
            "mail_user": self.mail_user,
            "mail_type": self.mail_type,
            "signal_delay_s": self.signal_delay,
            "array_parallelism": self.array_parallelism,
            "setup": self._setup(paths),
            "srun_args": self._srun(),
            "additional_parameters": self._additional(),
        }
        # submitit sends its own name as wckey, which clusters that keep accounts by it refuse
        return {key: value for key, value in given.items() if value is not None} | {"wckey": None}

    def _setup(self, paths: tuple[Path, ...]) -> list[str]:
        lines = [*self.setup, *(f"export {key}={shlex.quote(value)}" for key, value in self.env.items())]
        if paths:
            # Safe path: `python -m` would look into the current folder first, and there may be a checkout there.
            shown = ":".join(shlex.quote(str(path)) for path in paths)
            lines += [f'export PYTHONPATH={shown}"${{PYTHONPATH:+:$PYTHONPATH}}"', "export PYTHONSAFEPATH=1"]
        return lines

    def _srun(self) -> list[str]:
        # Since SLURM 22.05 srun does not take --cpus-per-task over from sbatch: each process would get one core.
        arguments = ["--kill-on-bad-exit=1", f"--cpus-per-task={self.cpus_per_task}"]
        if self.container:
            arguments.append(f"--container-image={self.container}")
        if self.container_mounts:
            arguments.append(f"--container-mounts={','.join(self.container_mounts)}")
        return [*arguments, *self.srun]

    def _additional(self) -> dict[str, Any]:
        given: dict[str, Any] = {"requeue" if self.requeue else "no-requeue": True}
        given |= {k: v for k in ("reservation", "begin", "nice") if (v := getattr(self, k)) is not None}
        for name, value in self.additional.items():
            if value is None or value is False:  # an option that an extended profile takes back
                continue
            given[name.replace("_", "-")] = value
        return given


def load(name: str | Path, overrides: list[str] | None = None) -> Profile:
    """A profile from a file or a shipped name ("gpu", "slurm/h100.yaml"), with ``key=value`` overrides.

    Raises:
        ConfigError: no such profile, an unknown key (the nearest one is named), a wrong value.
    """
    path = resources.find("slurm", name)
    values = config.override(config.read(path, kind="slurm"), overrides or [])
    values["env"] = {str(k): str(v) for k, v in (values.get("env") or {}).items()}  # numbers are text there
    try:
        return config.build(Profile, values)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


__all__ = ["Profile", "load"]
