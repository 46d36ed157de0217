"""Training on two nodes of a real SLURM, disturbed in every way there is, ends as if nothing had happened."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import yaml

from tests.slurm.conftest import ROOT, Cluster, needs_slurm, started, wait_for
from tests.slurm.runs import EVERY, NODES, STEPS, Run, assert_same_run, submit_words, write_config
from tests.train import runs

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def config(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_config(tmp_path_factory.mktemp("config"), tiny_data)


@pytest.fixture(scope="module")
def undisturbed(session_cluster: Cluster, config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run on two nodes, left alone."""
    run = Run.submit(session_cluster, config, tmp_path_factory.mktemp("undisturbed") / "run")
    run.finish()
    assert run.step() == run.saved() == STEPS
    return run.folder


@pytest.fixture
def three_nodes() -> Iterator[Cluster]:
    """A cluster of its own with a spare node."""
    needs_slurm("slurmctld", "slurmd", "sinfo", "munged")
    yield from started("--nodes", "3")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 48 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=48m", "tmpfs", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"mounting a small disk is not allowed here: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_two_nodes_use_what_one_process_uses(undisturbed: Path, config: Path, tmp_path: Path) -> None:
    alone = tmp_path / "alone"
    command = [sys.executable, "-m", "jepa", "train", str(config), "--out", str(alone), "--trace"]
    subprocess.run(command, check=True, cwd=ROOT, capture_output=True, timeout=300)
    assert sorted(p.name for p in undisturbed.glob("trace-rank*")) == ["trace-rank0.jsonl", "trace-rank1.jsonl"]
    assert runs.trace(undisturbed) == runs.trace(alone)  # samples, crops and masks
    for ours, theirs in zip(runs.lines(undisturbed), runs.lines(alone), strict=True):
        assert ours["step"] == theirs["step"]
        assert ours["loss"] == pytest.approx(theirs["loss"], abs=2e-3)
    first, other = runs.lines(undisturbed)[0], runs.lines(alone)[0]
    assert first["loss"] == pytest.approx(other["loss"], rel=1e-5)


def test_requeued_preempted_and_a_rank_killed(
    cluster: Cluster, undisturbed: Path, config: Path, tmp_path: Path
) -> None:
    run = Run.submit(cluster, config, tmp_path / "run")

    run.reach(EVERY + 2)
    cluster.run(["scontrol", "requeue", run.job])
    run.requeued(1)
    first = run.saved()

    run.reach(max(first, 2 * EVERY) + 3)
    high = cluster.sbatch("-p", "high", "-N2", "--exclusive", "--output=/dev/null", "--wrap", "sleep 1")
    cluster.wait_for_state(high, "COMPLETED", seconds=90)
    run.requeued(2)
    second = run.saved()

    run.reach(max(second, 3 * EVERY) + 4)
    run.kill_rank(1)
    run.requeued(3)
    run.finish()
    starts = run.starts()
    assert [line["attempt"] for line in starts] == list(range(1, len(starts) + 1))
    assert [line["lost"] for line in starts[1:3]] == [0, 0], starts  # both were told before
    assert 0 < starts[3]["lost"] <= EVERY, starts
    reasons = [line["reason"] for line in starts]
    assert reasons[:2] == ["start", "requeued"], starts
    assert reasons[3] in ("failed rank", "node failure or killed", "requeued"), starts  # who is told first
    assert reasons[2] in ("preempted", "told to, by SIGUSR2"), starts
    assert_same_run(run.folder, undisturbed)


def test_a_node_that_dies(three_nodes: Cluster, undisturbed: Path, config: Path, tmp_path: Path) -> None:
    """The job goes on with the third node; the dead one stays dead."""
    run = Run.submit(three_nodes, config, tmp_path / "run")
    run.reach(EVERY + 5)
    three_nodes.node("down", NODES[1])
    run.requeued(1)
    run.finish()
    starts = run.starts()
    assert [line["nodes"] for line in starts] == [list(NODES), [NODES[0], "127.0.0.3"]], starts
    assert 0 < starts[1]["lost"] <= EVERY, starts
    assert_same_run(run.folder, undisturbed)


def test_a_time_limit(cluster: Cluster, undisturbed: Path, config: Path, tmp_path: Path) -> None:
    # the health check after every step makes the run longer and changes nothing else
    run = Run.submit(cluster, config, tmp_path / "run", "monitor.every={steps: 1}")
    run.reach(3)
    cluster.run(["scontrol", "update", f"JobId={run.job}", "TimeLimit=1"])
    run.requeued(1)
    cluster.run(["scontrol", "update", f"JobId={run.job}", "TimeLimit=30"])
    run.finish()
    assert run.starts()[1]["lost"] == 0
    assert_same_run(run.folder, undisturbed)


def test_a_cancelled_job_stays_cancelled_and_can_go_on(
    cluster: Cluster, undisturbed: Path, config: Path, tmp_path: Path
) -> None:
    run = Run.submit(cluster, config, tmp_path / "run")
    run.reach(EVERY + 5)
    cluster.run(["scancel", run.job])
    wait_for(run.ended, 30, run.tell)
    assert cluster.state(run.job) == "CANCELLED"
    assert run.saved() == run.step() > EVERY  # saved at the step where it was told
    again = Run.submit(cluster, config, run.folder, "--resume")
    again.finish()
    assert_same_run(run.folder, undisturbed)


def test_one_run_folder_takes_one_job(cluster: Cluster, config: Path, tmp_path: Path) -> None:
    run = Run.submit(cluster, config, tmp_path / "run", settings=["begin=now+1hour"])
    second = cluster.run(submit_words(cluster, config, run.folder), check=False)
    assert second.returncode == 2 and run.job in second.stderr, second.stderr
    assert cluster.run(["squeue", "-h", "-o", "%A"]).stdout.split() == [run.job]


def test_four_settings_are_one_array(cluster: Cluster, config: Path, tmp_path: Path) -> None:
    words = submit_words(
        cluster, config, tmp_path / "sweep", "optim.lr=1e-3,5e-4", "seed=0,1", "train.duration={steps: 4}", nodes=1
    )
    told = cluster.run(words).stdout
    folders = sorted(path.parent for path in (tmp_path / "sweep").glob("*/slurm"))
    runs_of = [Run.of(cluster, folder) for folder in folders if folder.name != "slurm"]
    assert len(runs_of) == 4, told
    assert len({run.job.partition("_")[0] for run in runs_of}) == 1, told  # one array
    for run in runs_of:
        run.finish()
        assert run.saved() == 4
    settings = {
        (c["optim"]["lr"], c["seed"]) for c in (yaml.safe_load((f / "config.yaml").read_text()) for f in folders)
    }
    assert settings == {(1e-3, 0), (1e-3, 1), (5e-4, 0), (5e-4, 1)}


def test_what_cannot_run_is_refused_at_once_in_slurms_words(cluster: Cluster, config: Path, tmp_path: Path) -> None:
    for settings, words in (
        (["nodes=4"], "Node count specification invalid"),
        (["time=5:00:00"], "Requested time limit is invalid"),
        (["partition=nowhere"], "invalid partition specified: nowhere"),
        (["memory=900G"], "Requested node configuration is not available"),
    ):
        refused = cluster.run(submit_words(cluster, config, tmp_path / "run", settings=settings), check=False)
        assert refused.returncode == 2 and words in refused.stderr, (settings, refused.stderr)
        assert "Traceback" not in refused.stderr
    assert cluster.run(["squeue", "-h"]).stdout == "" and not (tmp_path / "run").exists()


def test_a_full_disk_during_a_checkpoint(cluster: Cluster, undisturbed: Path, config: Path, small_disk: Path) -> None:
    run = Run.submit(cluster, config, small_disk / "run", settings=["max_restarts=0"])
    run.reach(EVERY + 2)
    ballast = small_disk / "ballast"
    with suppress(OSError), ballast.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    wait_for(run.ended, 120, run.tell)
    assert cluster.state(run.job) == "FAILED", run.tell()
    assert "No space left on device" in run.tell() and "--resume" in run.tell()
    assert run.saved() >= EVERY

    ballast.unlink()
    again = Run.submit(cluster, config, run.folder, "--resume")
    again.finish()
    assert_same_run(run.folder, undisturbed)
