"""The run to interrupt as a job of SLURM, which starts it again by itself. Same interface as `disturb.Local`."""

from __future__ import annotations

import contextlib
import re
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path

import numpy as np

from jepa.errors import ConfigError, TrainingError
from jepa.slurm import book, queue

_ASK = 0.2  # seconds between two questions to SLURM
_OVER = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED")


class Slurm:
    """`jepa submit train` with a cluster's profile, one process on each of `processes` nodes.

    kill: SIGKILL to every process. usr2: SIGUSR2, as before a time limit. requeue: `scontrol requeue`. preempt: a job
    in the partition `pusher` takes its nodes. term: `scancel`; this one is submitted again.
    """

    kinds: tuple[str, ...] = ("kill", "term", "usr2", "requeue", "preempt")

    def __init__(self, config: Path, run: Path, processes: int, cluster: str, pusher: str) -> None:
        queue.needed()
        self.config, self.run, self.processes, self.cluster, self.pusher = config, run, processes, cluster, pusher
        self._job, self._restarts = "", 0
        self._asked, self._last = 0.0, {"JobState": "PENDING", "Restarts": "0"}

    def start(self) -> None:
        """Submit the run, or what is left of it; leave it to SLURM when that has it in its queue already."""
        if self._job and self._state(fresh=True)["JobState"] not in _OVER:
            self._restarts = int(self._last["Restarts"])
            return
        begun = (self.run / "config.yaml").is_file()
        what = [str(self.run), "--resume"] if begun else [str(self.config), "--out", str(self.run)]
        nodes = ["--set", f"nodes={self.processes}"]
        done = subprocess.run(
            [sys.executable, "-m", "jepa", "submit", "--cluster", self.cluster, *nodes, "train", *what, "--trace"],
            capture_output=True, text=True,
        )  # fmt: skip
        if done.returncode:
            raise TrainingError(f"the run could not be submitted: {done.stderr.strip()[-1000:]}")
        self.watch(book.read(self.run)[-1].job)

    def watch(self, job: str) -> None:
        """Take a job that has been submitted for the run."""
        self._job, self._restarts, self._asked = job, 0, 0.0

    def interrupt(self, kind: str, generator: np.random.Generator) -> None:
        """See the class."""
        state = self._state(fresh=True)
        self._restarts = int(state["Restarts"])
        if kind == "requeue":
            queue.call("scontrol", "requeue", self._job)
        elif kind == "preempt":
            where = ["-p", self.pusher, f"-N{self.processes}", "-w", state["NodeList"], "--exclusive"]
            queue.call("sbatch", *where, "--output=/dev/null", "--wrap=sleep 1")
        elif kind == "term":
            queue.call("scancel", self._job)
        elif kind == "kill":  # of the step: with SIGKILL for the job scancel means to cancel it
            queue.call("scancel", "--signal=KILL", f"{self._job}.0")
        else:
            queue.call("scancel", "--signal=USR2", self._job)

    def ended(self) -> bool:
        """Whether the processes have ended: the job is over, or has gone back into the queue."""
        state = self._state()
        again = int(state["Restarts"]) > self._restarts
        return state["JobState"] in _OVER or (again and state["JobState"] in ("PENDING", "RUNNING"))

    def failed(self) -> bool:
        """Whether the job is over and nobody wanted that."""
        return self._state()["JobState"] in set(_OVER) - {"COMPLETED", "CANCELLED"}

    def began(self) -> float | None:
        """When SLURM has started the job last, as a time of the clock in whole seconds."""
        found = self._state(fresh=True).get("StartTime", "")
        return datetime.fromisoformat(found).timestamp() if re.match(r"\d{4}-", found) else None

    def end(self) -> None:
        """Cancel the job if it is not over."""
        if self._job and self._state(fresh=True)["JobState"] not in _OVER:
            with contextlib.suppress(ConfigError):
                queue.call("scancel", self._job)

    def log(self) -> str:
        """The end of what process 0 has said."""
        path = book.read(self.run)[-1].log(errors=True)
        return path.read_text(encoding="utf-8", errors="replace")[-1000:] if path.is_file() else "nothing"

    def _state(self, fresh: bool = False) -> dict[str, str]:
        """What `scontrol show job` says."""
        if fresh or time.monotonic() - self._asked > _ASK:
            text = queue.call("scontrol", "--oneliner", "show", "job", self._job)
            self._last = dict(word.split("=", 1) for word in text.split() if "=" in word)
            self._asked = time.monotonic()
        return self._last
