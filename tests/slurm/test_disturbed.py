"""Training on two nodes of a real SLURM, disturbed in every way there is, ends as if nothing had happened."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests import disk
from tests.slurm import held as method
from tests.slurm.conftest import Cluster, needs_slurm, started, wait_for
from tests.slurm.runs import (
    EVERY,
    NODES,
    STEPS,
    Run,
    assert_same_run,
    assert_same_samples,
    settings,
    submit,
    write_config,
)
from tests.train import runs, worker
from tests.train.worker import Job

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def config(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_config(tmp_path_factory.mktemp("config"), tiny_data)


@pytest.fixture
def held(tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A configuration whose runs wait where a test wants to strike."""
    own = tmp_path / "own"
    own.mkdir()
    assert method.__file__ is not None
    shutil.copyfile(method.__file__, own / "held.py")  # alone, for a job takes along what the method's module is in
    monkeypatch.syspath_prepend(str(own))
    return write_config(own, tiny_data, method="held:Held")


@pytest.fixture
def five_nodes() -> Iterator[Cluster]:
    """A cluster of its own: two nodes and a spare one, and two more for another job."""
    needs_slurm("slurmctld", "slurmd", "sinfo", "munged")
    yield from started("--nodes", "5")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 48 MB, or where it may not be mounted a plain folder, which no ballast is put into."""
    with disk.small(tmp_path / "disk", "48m") as folder:
        yield folder


def undisturbed(data: Path, out: Path, ranks: int) -> Path:
    """The same run, left alone, as processes of this machine without SLURM."""
    values = settings(data)
    changes = [f"{part}.{key}={json.dumps(v)}" for part in ("train", "monitor") for key, v in values[part].items()]
    job = Job(data, out, tuple(changes))
    assert worker.run_group(worker.ranks(job, ranks) if ranks > 1 else [job]) == [0] * ranks
    return out


def test_disturbed_runs_end_as_if_nothing_had_happened(
    cluster: Cluster,
    five_nodes: Cluster,
    held: Path,
    tiny_data: Path,
    small_disk: Path,
    tmp_path: Path,
    subtests: pytest.Subtests,
) -> None:
    """Three runs at once, for most of their time is SLURM's waiting."""
    assert cluster.env and five_nodes.env  # read before threads change the environment
    with ThreadPoolExecutor(3) as pool:
        stories = {
            "signals, preemption, a killed rank": pool.submit(told_and_killed, cluster, held, tmp_path / "told"),
            "time limit, scancel, a full disk": pool.submit(stopped, five_nodes, held, small_disk / "stopped"),
            "a dead node, another number of nodes": pool.submit(moved, five_nodes, held, tmp_path / "moved"),
        }
        whole, alone = (undisturbed(tiny_data, tmp_path / f"{ranks}-ranks", ranks) for ranks in (2, 1))
    for name, story in stories.items():
        with subtests.test(name):
            run = story.result()
            assert runs.trace(run.folder) == runs.trace(alone), "other samples, crops or masks than one process alone"
            if name.endswith("nodes"):
                assert_same_samples(run.folder, whole)
                assert_close(runs.lines(run.folder), runs.lines(alone))
                before = 2 * EVERY  # the last checkpoint by two ranks
                runs.assert_bit_equal(runs.tensors(run.folder, before), runs.tensors(whole, before))
            else:
                assert_same_run(run.folder, whole)
    assert_close(runs.lines(whole), runs.lines(alone))
    disk.needed(small_disk)  # all but that has been tried


def assert_close(ours: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> None:
    """Losses by one and by two processes: sums in another order."""
    assert [line["step"] for line in ours] == [line["step"] for line in theirs]
    assert ours[0]["loss"] == pytest.approx(theirs[0]["loss"], rel=1e-5)
    assert [line["loss"] for line in ours] == pytest.approx([line["loss"] for line in theirs], abs=2e-3)


def told_and_killed(cluster: Cluster, config: Path, folder: Path) -> Run:
    """SIGUSR2, a requeue, a preemption, and a rank that is killed."""
    run = Run.submit(cluster, config, folder, held=(4, 12, 18, 26))
    run.reach(4)
    cluster.run(["scancel", "--signal=USR2", run.job])
    run.requeued(1)
    run.reach(12)
    cluster.run(["scontrol", "requeue", run.job])
    run.requeued(2)
    run.reach(18)
    high = cluster.sbatch("-p", "high", "-N2", "--exclusive", "--output=/dev/null", "--wrap", "sleep 1")
    cluster.wait_for_state(high, "COMPLETED", seconds=90)
    run.requeued(3)
    run.reach(26)
    run.kill_rank(1)
    run.requeued(4)
    run.release(26)
    run.finish()

    starts = run.starts()
    assert sorted(path.name for path in folder.glob("trace-rank*")) == ["trace-rank0.jsonl", "trace-rank1.jsonl"]
    assert [(line["attempt"], line["world"], line["nodes"]) for line in starts] == [
        (n, 2, list(NODES)) for n in range(1, 6)
    ], starts
    assert [(line["step"], line["lost"]) for line in starts] == [(0, 0), (5, 0), (13, 0), (19, 0), (20, 6)], starts
    reasons = [line["reason"] for line in starts]
    assert reasons[:4] == ["start", "time limit", "requeued", "preempted"], starts
    assert reasons[4] in ("failed rank", "node failure or killed"), starts  # what rank 0 has noticed until it is killed
    assert f"{folder} is at step {STEPS}" in run.log()
    return run


def stopped(cluster: Cluster, config: Path, folder: Path) -> Run:
    """A time limit; a job that is cancelled, stays so, and goes on as another; a disk that is full at a checkpoint."""
    where = ["nodelist=127.0.0.[4-5]", "max_restarts=0"]
    run = Run.submit(cluster, config, folder, settings=where, held=(6, 13, 19))
    run.reach(6)
    cluster.run(["scontrol", "update", f"JobId={run.job}", "TimeLimit=1"])
    run.requeued(1, "TimeLimit=30")
    run.reach(13)
    cluster.run(["scancel", run.job])
    wait_for(run.ended, 30, run.tell)
    assert cluster.state(run.job) == "CANCELLED"
    assert run.saved() == run.step() == 14  # after the step in which it was told

    run = Run.submit(cluster, config, folder, "--resume", settings=where)
    run.reach(19)
    ballast = folder.parent / "ballast"
    if folder.parent.is_mount():
        with suppress(OSError), ballast.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
        os.truncate(ballast, ballast.stat().st_size - 2**16)  # room for lines, not for a checkpoint
        run.release(19)
        wait_for(run.ended, 120, run.tell)
        assert cluster.state(run.job) == "FAILED", run.tell()
        assert "No space left on device" in run.tell() and "--resume" in run.tell()
        assert run.saved() == 14
        ballast.unlink()
        run = Run.submit(cluster, config, folder, "--resume", settings=where)
    else:
        run.release(19)
    run.finish()
    starts = run.starts()
    assert [line["reason"] for line in starts[:3]] == ["start", "time limit", "manual"], starts
    assert [line["lost"] for line in starts[:3]] == [0, 0, 0], starts
    return run


def moved(cluster: Cluster, config: Path, folder: Path) -> Run:
    """A node that dies: the job takes a spare one. Then SIGTERM by nobody's wish, and one node instead of two."""
    run = Run.submit(cluster, config, folder, held=(14, 23), settings=["exclude=127.0.0.[4-5]"])
    run.reach(14)
    cluster.node("down", NODES[1])
    run.requeued(1)
    run.release(14)
    run.reach(23)
    cluster.run(["scancel", "--signal=TERM", run.job])  # SLURM calls it running all the same
    run.requeued(2, "NumNodes=1", "NumTasks=1")
    cluster.node("up", NODES[1])
    run.finish()
    starts = run.starts()
    assert [(line["world"], line["nodes"]) for line in starts] == [
        (2, list(NODES)), (2, [NODES[0], "127.0.0.3"]), (1, [NODES[0]]),
    ], starts  # fmt: skip
    assert [(line["step"], line["lost"]) for line in starts] == [(0, 0), (10, 4), (24, 0)], starts
    assert starts[2]["reason"] == "requeued", starts
    return run


def test_one_run_folder_takes_one_job(
    cluster: Cluster, config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Run.submit(cluster, config, tmp_path / "run", settings=["begin=now+1hour"])
    assert submit(cluster, config, run.folder) == 2
    assert run.job in capsys.readouterr().err
    assert cluster.run(["squeue", "-h", "-o", "%A"]).stdout.split() == [run.job]


def test_four_settings_are_one_array(cluster: Cluster, config: Path, tmp_path: Path) -> None:
    words = ("optim.lr=1e-3,5e-4", "seed=0,1", "train.duration={steps: 4}")
    assert submit(cluster, config, tmp_path / "sweep", *words, nodes=1) == 0
    folders = sorted(path.parent for path in (tmp_path / "sweep").glob("*/slurm"))
    runs_of = [Run.of(cluster, folder) for folder in folders if folder.name != "slurm"]
    assert len(runs_of) == 4
    assert len({run.job.partition("_")[0] for run in runs_of}) == 1  # one array
    for run in runs_of:
        run.finish()
        assert run.saved() == 4
    found = {(c["optim"]["lr"], c["seed"]) for c in (yaml.safe_load((f / "config.yaml").read_text()) for f in folders)}
    assert found == {(1e-3, 0), (1e-3, 1), (5e-4, 0), (5e-4, 1)}


def test_what_cannot_run_is_refused_at_once_in_slurms_words(
    cluster: Cluster, config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for profile, words in (
        (["nodes=4"], "Node count specification invalid"),
        (["time=5:00:00"], "Requested time limit is invalid"),
        (["partition=nowhere"], "invalid partition specified: nowhere"),
        (["memory=900G"], "Requested node configuration is not available"),
    ):
        assert submit(cluster, config, tmp_path / "run", settings=profile) == 2
        told = capsys.readouterr().err
        assert words in told and "Traceback" not in told, (profile, told)
    assert cluster.run(["squeue", "-h"]).stdout == "" and not (tmp_path / "run").exists()
