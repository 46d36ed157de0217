"""slurm/dev-cluster: comes up, runs jobs, loses a node, and leaves nothing."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.slurm.conftest import SCRIPT, Cluster, dev_cluster, needs_slurm, wait_for


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder with a short path for a cluster of its own, ended after the test."""
    needs_slurm("slurmctld", "slurmd", "sinfo", "munged")
    path = Path(tempfile.mkdtemp(prefix="jepa-slurm-", dir="/tmp"))
    path.rmdir()
    yield path
    dev_cluster("down", "--dir", str(path))


def left_of(folder: Path) -> list[str]:
    """Command lines of processes that name a folder, but for this one and those it is under."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                environment = (entry / "environ").read_bytes().decode(errors="replace")
            except OSError:
                continue
            if str(folder) in line or f"SLURM_CONF={folder}" in environment:
                found.append(line)
    return found


def long_job(folder: Path, *options: str) -> str:
    """Start a job that would run for long; returns when it runs."""
    cluster = Cluster(folder)
    job = cluster.sbatch("--output=/dev/null", *options, "--wrap", "srun sleep 600")
    cluster.wait_for_state(job, "RUNNING")
    return job


def test_runs_a_step_on_both_nodes(cluster: Cluster) -> None:
    done = cluster.run(["srun", "-N2", "--ntasks-per-node=1", "--gpus-per-node=1", "printenv", "SLURMD_NODENAME"])
    assert sorted(done.stdout.split()) == ["127.0.0.1", "127.0.0.2"]


def test_refuses_what_it_cannot_run_at_once(cluster: Cluster) -> None:
    for options, words in (
        (["-N5"], "Node count specification invalid"),
        (["-t", "100"], "Requested time limit is invalid"),
        (["--gres=gpu:9"], "Requested node configuration is not available"),
        (["-p", "nowhere"], "invalid partition specified: nowhere"),
    ):
        done = cluster.run(["sbatch", *options, "--wrap", "true"], check=False)
        assert done.returncode != 0 and words in done.stderr, (options, done.stderr)


def test_a_high_priority_job_preempts_and_the_other_comes_back(cluster: Cluster) -> None:
    low = long_job(cluster.dir, "-N2", "--exclusive")
    high = cluster.sbatch("-p", "high", "-N1", "--exclusive", "--output=/dev/null", "--wrap", "sleep 1")
    cluster.wait_for_state(high, "COMPLETED")
    cluster.start_now(low)
    cluster.wait_for_state(low, "RUNNING")
    assert cluster.job(low)["Restarts"] == "1"


def test_down_cancels_jobs_and_leaves_nothing(folder: Path) -> None:
    up = dev_cluster("up", "--dir", str(folder))
    assert up.stdout == f"export SLURM_CONF={folder}/slurm.conf\n"
    long_job(folder)
    again = dev_cluster("up", "--dir", str(folder))
    assert again.stdout == up.stdout and "already" in again.stderr
    other = dev_cluster("up", "--dir", str(folder), "--nodes", "3", check=False)
    assert other.returncode == 1 and "nodes 2 instead of 3" in other.stderr
    status = dev_cluster("status", "--dir", str(folder)).stdout
    assert "127.0.0.2" in status and " R " in status and up.stdout in status
    dev_cluster("down", "--dir", str(folder))
    assert not folder.exists() and left_of(folder) == []
    assert dev_cluster("status", "--dir", str(folder), check=False).returncode == 1


@pytest.mark.parametrize("victim", ["keeper", "guard", "both"])
def test_killed_ones_leave_nothing_either(folder: Path, victim: str) -> None:
    dev_cluster("up", "--dir", str(folder))
    long_job(folder)
    keeper = int(subprocess.check_output(["pgrep", "-f", f"dev-cluster up --dir {folder}", "-n"]))
    guard = int((Path("/proc") / str(keeper) / "stat").read_text().rpartition(")")[2].split()[1])
    for pid in {"keeper": [keeper], "guard": [guard], "both": [guard, keeper]}[victim]:
        os.kill(pid, signal.SIGKILL)
    if victim == "both":
        dev_cluster("down", "--dir", str(folder))
    wait_for(lambda: left_of(folder) == [], 30, lambda: left_of(folder))


def test_ends_with_the_process_it_was_started_for(folder: Path) -> None:
    with subprocess.Popen(["sleep", "600"]) as other:
        dev_cluster("up", "--dir", str(folder), "--until-exit", str(other.pid))
        other.kill()
    wait_for(lambda: left_of(folder) == [] and not folder.exists(), 30, lambda: left_of(folder))


def test_two_at_once(cluster: Cluster, folder: Path) -> None:
    dev_cluster("up", "--dir", str(folder), "--nodes", "1")
    assert Cluster(folder).run(["squeue", "-h"]).stdout == ""
    job = long_job(folder)
    assert job not in cluster.run(["squeue", "-h", "-o", "%A"]).stdout.split()


def listening(folder: Path) -> dict[int, str]:
    """Port -> address, of every port of a cluster."""
    wanted = json.loads((folder / "dev-cluster.json").read_text())["ports"]
    found = {}
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        local, state = line.split()[1], line.split()[3]
        address, port = local.split(":")
        if state == "0A" and int(port, 16) in wanted:
            found[int(port, 16)] = socket.inet_ntoa(bytes.fromhex(address)[::-1])
    assert sorted(found) == sorted(wanted)
    return found


def test_listens_on_the_loopback_device_alone(cluster: Cluster) -> None:
    assert set(listening(cluster.dir).values()) == {"127.0.0.1"}


def test_also_where_the_machines_name_is_of_the_network(folder: Path, tmp_path: Path) -> None:
    hosts = tmp_path / "hosts"
    hosts.write_text("127.0.0.1 localhost\n192.0.2.7 elsewhere\n")
    command = (
        f"hostname elsewhere && mount --bind {hosts} /etc/hosts && {sys.executable} {SCRIPT} up --dir {folder}"
        f" && SLURM_CONF={folder}/slurm.conf srun -N2 --ntasks-per-node=1 sh -c 'hostname; echo $SLURM_CONF'"
    )
    if subprocess.run(["unshare", "--uts", "--mount", "true"], capture_output=True).returncode:
        pytest.skip("unshare is not allowed here, so that this machine keeps its name")
    env = Cluster(folder).env | {"PATH": os.environ["PATH"] + ":/usr/sbin:/sbin"}
    done = subprocess.run(
        ["unshare", "--uts", "--mount", "sh", "-c", command], env=env, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0 and "listens on all" not in done.stderr, done.stderr
    assert done.stdout.split().count("localhost") == 2, done.stdout
    assert done.stdout.split().count(f"{folder}/inner.conf") == 2, done.stdout
    assert set(listening(folder).values()) == {"127.0.0.1"}


def test_tells_what_to_install_and_spares_other_folders(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), "up", "--dir", str(tmp_path)]
    (tmp_path / "mine.txt").write_text("precious")
    if Path("/usr/sbin/slurmctld").exists():
        done = dev_cluster("up", "--dir", str(tmp_path), check=False)
        assert done.returncode == 1 and "holds other things" in done.stderr
        assert (tmp_path / "mine.txt").read_text() == "precious"
    else:
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 1 and "apt-get install" in done.stderr
