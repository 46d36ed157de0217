"""A real SLURM of two small nodes for the tests of this folder; see slurm/dev-cluster."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "slurm" / "dev-cluster"
OF_SLURM = ("SLURM", "SBATCH_", "SRUN_", "SALLOC_", "SQUEUE_", "SINFO_")
T = TypeVar("T")


def dev_cluster(*words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run slurm/dev-cluster."""
    command = [sys.executable, str(SCRIPT), *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert not check or done.returncode == 0, done.stderr
    return done


@dataclass(frozen=True)
class Cluster:
    """A private SLURM that is up: nodes 127.0.0.1 and 127.0.0.2 with 4 CPUs and a fake GPU each.

    Partitions: main (default), grace (USR2 and 20 s before a preemption), high (preempts both).
    """

    dir: Path
    accounting: bool = False

    @cached_property
    def env(self) -> dict[str, str]:
        """Environment of subprocesses that use this cluster and this checkout; one thread each."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith(OF_SLURM)}
        own = {"SLURM_CONF": str(self.dir / "slurm.conf"), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        return kept | own

    @property
    def profile(self) -> Path:
        """A cluster profile for `jepa submit --cluster`."""
        return ROOT / "slurm" / "local.yaml"

    def run(
        self, command: Sequence[str | Path], *, check: bool = True, cwd: Path | None = None, timeout: float = 60
    ) -> subprocess.CompletedProcess[str]:
        """Run a command with this cluster in its environment; with `check` it must succeed."""
        done = subprocess.run(
            [str(word) for word in command], env=self.env, cwd=cwd, capture_output=True, text=True, timeout=timeout
        )
        assert not check or done.returncode == 0, f"{command}: {done.stdout}\n{done.stderr}"
        return done

    def sbatch(self, *options: str | Path, script: str | None = None) -> str:
        """Submit a job; `script` is the text of the batch script. Returns the job's id."""
        command = [str(word) for word in ("sbatch", "--parsable", *options)]
        done = subprocess.run(command, input=script, env=self.env, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def job(self, job: str) -> dict[str, str]:
        """What `scontrol show job` says of it: JobState, Reason, Restarts, NodeList, ..."""
        text = self.run(["scontrol", "--oneliner", "show", "job", job]).stdout
        return dict(word.split("=", 1) for word in text.split() if "=" in word)

    def state(self, job: str) -> str:
        return self.job(job)["JobState"]

    def wait_for_state(self, job: str, *wanted: str, seconds: float = 60) -> str:
        """Wait until a job is in one of these states; fails naming the one it is in."""
        wait_for(lambda: self.state(job) in wanted, seconds, lambda: f"job {job} is {self.job(job)}")
        return self.state(job)

    def start_now(self, job: str) -> None:
        """Let a requeued job start without the delay that SLURM puts on it."""
        self.run(["scontrol", "update", f"JobId={job}", "StartTime=now"], check=False)

    def node(self, state: str, name: str) -> None:
        """Let a node die (`down`) with every process of its jobs, or come back (`up`)."""
        dev_cluster("node", state, name, "--dir", str(self.dir))

    def clean(self) -> None:
        """Cancel every job and see that every node is idle, for the next test."""
        self.run(["scancel", "--user", str(os.getuid())], check=False)
        wait_for(lambda: not self.run(["squeue", "-h"]).stdout.strip(), 30, lambda: self.run(["squeue"]).stdout)
        for name in ("127.0.0.1", "127.0.0.2"):
            self.node("up", name)


def wait_for(ready: Callable[[], T], seconds: float, tell: Callable[[], object] | None = None) -> T:
    """What `ready` returns as soon as that is true; fails after `seconds` with what `tell` says."""
    until = time.monotonic() + seconds
    while not (value := ready()):
        if time.monotonic() > until:
            pytest.fail(f"not within {seconds:.0f} s: {tell() if tell else ready}")
        time.sleep(0.1)
    return value


def needs_slurm(*programs: str) -> None:
    """Skip a test where SLURM is not installed; fail there when JEPA_REQUIRE_SLURM=1."""
    places = os.environ.get("PATH", "") + ":/usr/local/sbin:/usr/sbin:/sbin"
    missing = [name for name in programs if shutil.which(name, path=places) is None]
    if missing:
        told = f"SLURM is not installed ({', '.join(missing)}); apt-get install slurmctld slurmd slurm-client munge, "
        told += "and for accounting slurmdbd mariadb-server"
        if os.environ.get("JEPA_REQUIRE_SLURM") == "1":
            pytest.fail(told)
        pytest.skip(told)


def started(*options: str) -> Iterator[Cluster]:
    folder = Path(tempfile.mkdtemp(prefix="jepa-slurm-", dir="/tmp"))  # short, for the paths of sockets
    dev_cluster("up", "--dir", str(folder), "--until-exit", str(os.getpid()), *options)
    try:
        yield Cluster(folder, "--accounting" in options)
    finally:
        dev_cluster("down", "--dir", str(folder))


@pytest.fixture(scope="session")
def session_cluster() -> Iterator[Cluster]:
    needs_slurm("slurmctld", "slurmd", "sinfo", "munged")
    yield from started()


@pytest.fixture
def cluster(session_cluster: Cluster) -> Iterator[Cluster]:
    """A cluster of two idle nodes, started once per session; jobs that a test leaves are cancelled after it."""
    yield session_cluster
    session_cluster.clean()


@pytest.fixture(scope="session")
def accounting_cluster() -> Iterator[Cluster]:
    """One with slurmdbd and a database: sacct works, and an account that does not exist is refused."""
    needs_slurm("slurmctld", "slurmd", "sinfo", "munged", "slurmdbd", "mariadbd")
    yield from started("--accounting")
