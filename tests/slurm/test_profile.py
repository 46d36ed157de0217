"""Cluster profiles: strictly read, and said in sbatch's words."""

from __future__ import annotations

from pathlib import Path

import pytest

from jepa import resources
from jepa.errors import ConfigError
from jepa.slurm import profile
from jepa.slurm.profile import Profile


@pytest.mark.parametrize("name", resources.names("slurm"))
def test_every_shipped_profile_is_whole(name: str) -> None:
    found = profile.load(name)
    assert found.tasks == max(1, found.gpus_per_node), "one process for each GPU"
    assert found.parameters("job", "remark")["time"] == found.minutes
    assert profile.load(f"slurm/{name}.yaml") == found
    assert found.device == ("cpu" if name == "local" else "cuda")


@pytest.mark.parametrize(
    ("given", "seconds"),
    [("120", 7200), ("2:00:00", 7200), ("90:30", 5430), ("1-12", 129600), ("1-00:30", 88200), ("7-00:00:01", 604801)],
)
def test_time_as_slurm_reads_it(given: str, seconds: int) -> None:
    """4:00:00 too, which YAML would read as a number to base 60."""
    found = profile.load("gpu", [f"time={given}"])
    assert found.seconds == seconds
    assert found.minutes == -(-seconds // 60), "rounded up: less than what was asked for could be too little"


def test_overrides_and_extended_profiles(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text("extends: h100\npartition: fast\ntime: 4:00:00\nenv: {NCCL_DEBUG: INFO, N: 1}\n")
    found = profile.load(tmp_path / "own.yaml", ["nodes=4", "additional={licenses: fs}"])
    assert (found.partition, found.nodes, found.gpus_per_node, found.processes) == ("fast", 4, 8, 32)
    assert found.seconds == 4 * 3600 and found.env["NCCL_DEBUG"] == "INFO" and found.env["N"] == "1"
    assert found.parameters("job", "")["additional_parameters"]["licenses"] == "fs"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("partion=main", "Did you mean 'partition'?"),
        ("nodes=0", "nodes: got 0, allowed: at least 1"),
        ("nodes=many", "nodes: expected int, got 'many'"),
        ("time=soon", "time: got 'soon', allowed: minutes, H:MM:SS or D-HH:MM:SS"),
        ("time=3", "would be told to stop as soon as it starts. Give at least 4 minutes"),
        ("memory=lots", "memory: got 'lots'"),
        ("gpu_type=h100", "gpu_type=h100 without gpus_per_node"),
        ("additional={mem: 4G}", "additional.mem: jepa sets it"),
        ("additional={partition: x}", "additional.partition: give partition itself"),
        ("additional={gpu-type: x}", "additional.gpu-type: give gpu_type itself"),
        ("container_mounts=[/data]", "container_mounts without container"),
        ("env={1A: x}", "env: '1A' is not the name of a variable"),
        ("step_seconds=0", "step_seconds: got 0, allowed: above 0"),
    ],
)
def test_a_mistake_is_named(change: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        profile.load("gpu", ["gpus_per_node=0", "signal_delay=180", change])
    assert message in str(error.value) and "gpu.yaml" in str(error.value)


def test_an_unknown_profile_names_those_that_are_there() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'h100'"):
        profile.load("h10")


def test_what_sbatch_and_srun_are_given() -> None:
    asked = Profile(
        partition="p", nodes=2, gpus_per_node=4, gpu_type="h100", cpus_per_task=7, memory="64G", reservation="mine",
        nice=5, requeue=False, container="/i.sqsh", container_mounts=("/a:/a", "/b"), srun=("--mpi=none",),
        setup=("module load cuda",), env={"A": "it's $B"}, additional={"switches": 1, "licenses": None},
    )  # fmt: skip
    made = asked.parameters("name", "remark", (Path("/code one"),))
    assert made["gpus_per_node"] == "h100:4" and made["ntasks_per_node"] == 4 and made["mem"] == "64G"
    assert made["additional_parameters"] == {"no-requeue": True, "reservation": "mine", "nice": 5, "switches": 1}
    assert made["srun_args"] == [
        *("--kill-on-bad-exit=1", "--cpus-per-task=7", "--container-image=/i.sqsh"),
        *("--container-mounts=/a:/a,/b", "--mpi=none"),
    ]
    assert made["setup"][:2] == ["module load cuda", """export A='it'"'"'s $B'"""]
    assert made["setup"][2].startswith("export PYTHONPATH='/code one'") and "account" not in made
    alone = asked.alone()
    assert (alone.processes, alone.gpus_per_node, alone.memory) == (1, 1, "64G")
