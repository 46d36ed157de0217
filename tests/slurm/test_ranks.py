"""A job step's tasks as ranks, from SLURM's variables."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import pytest

from jepa import restarts
from jepa.errors import ConfigError, TrainingError
from jepa.slurm import ranks
from tests.slurm.conftest import Cluster

STEP = {
    "SLURM_JOB_ID": "41", "SLURM_STEP_ID": "0", "SLURM_PROCID": "3", "SLURM_LOCALID": "1", "SLURM_NODEID": "1",
    "SLURM_STEP_NUM_TASKS": "5", "SLURM_STEP_TASKS_PER_NODE": "2(x2),1", "SLURM_STEP_NODELIST": "gpu[08-10]",
}  # fmt: skip
NAMES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID")


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What `join` sets is gone after each test."""
    for name in (*NAMES, *(n for n in os.environ if n.startswith("SLURM"))):
        monkeypatch.delenv(name, raising=False)
    yield
    for name in NAMES:
        os.environ.pop(name, None)


def give(monkeypatch: pytest.MonkeyPatch, **changes: str) -> None:
    for name, value in (STEP | changes).items():
        monkeypatch.setenv(name, value)


def test_takes_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    give(monkeypatch)
    assert ranks.join()
    found = {name: os.environ.get(name) for name in NAMES[:5]}
    assert found == {
        "RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "5", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "gpu08",
    }  # fmt: skip
    assert ranks.join()  # once more, as the verb does after the task
    assert [ranks.tasks_on(node) for node in range(3)] == [2, 2, 1]


def test_every_start_has_a_port_of_its_own() -> None:
    found = {ranks.port(str(job), step, restart) for job in range(10) for step in range(2) for restart in range(20)}
    assert len(found) > 390 and all(12_000 <= port < 32_000 for port in found)
    assert ranks.port("41", 0, 1) == ranks.port("41", 0, 1) != ranks.port("41", 0, 2)


@pytest.mark.parametrize("missing", ["SLURM_STEP_ID", "SLURM_PROCID"])
def test_leaves_other_processes_alone(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Batch scripts and shells of salloc know the number of tasks, and are none."""
    give(monkeypatch)
    monkeypatch.delenv(missing)
    assert not ranks.join() and "RANK" not in os.environ


def test_one_task_is_no_group(monkeypatch: pytest.MonkeyPatch) -> None:
    give(monkeypatch, SLURM_STEP_NUM_TASKS="1", SLURM_PROCID="0")
    assert not ranks.join() and "RANK" not in os.environ


@pytest.mark.parametrize("name", ["TORCHELASTIC_RUN_ID", "WORLD_SIZE", "RANK"])
def test_refuses_another_launcher_inside(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    give(monkeypatch)
    monkeypatch.setenv(name, "8")
    with pytest.raises(ConfigError, match=rf"{name}=8 is set, as by torchrun .* srun has started 5 processes itself"):
        ranks.join()


def test_refuses_a_first_task_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    give(monkeypatch, SLURM_PROCID="0", SLURM_NODEID="0", SLURMD_NODENAME="gpu09")
    with pytest.raises(ConfigError, match="task 0 runs on gpu09, not on gpu08"):
        ranks.join()


def test_a_taken_port_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    give(monkeypatch, SLURM_PROCID="0", SLURM_NODEID="0")
    with socket.socket() as other:
        other.bind(("", ranks.port("41", 0, 0)))
        other.listen()
        with pytest.raises(TrainingError, match=r"port \d+, .* is taken"):
            ranks.join()
    assert ranks.join()


def test_a_damaged_variable_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    give(monkeypatch, SLURM_LOCALID="x")
    with pytest.raises(ConfigError, match="SLURM_LOCALID='x'"):
        ranks.join()


LISTS = ("n1", "n1,n2", "gpu[08-11],login", "rack[1-2]node[1,3-4]", "127.0.0.[1-2]", "a[001,010-012]b", "x[9-11]")


def test_lists_of_nodes() -> None:
    assert restarts.expand("gpu[08-11],login") == ["gpu08", "gpu09", "gpu10", "gpu11", "login"]
    assert restarts.expand("127.0.0.[1-2]") == ["127.0.0.1", "127.0.0.2"]


def test_lists_of_nodes_as_scontrol(cluster: Cluster) -> None:
    for listed in LISTS:
        assert restarts.expand(listed) == cluster.run(["scontrol", "show", "hostnames", listed]).stdout.split()
