"""What runs in a job: how it ends, what follows from that, and that a job which starts again loses nothing."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
from dataclasses import dataclass
from datetime import datetime
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import yaml

from jepa import checkpoint, restarts
from jepa.errors import AGAIN, HUNG
from jepa.slurm import ends
from jepa.slurm.task import SETUP, Task, teardown
from tests import tiny
from tests.slurm.conftest import wait_for
from tests.train import runs, worker


def starts(run: Path, *keys: str) -> list[tuple[object, ...]]:
    return [tuple(row[key] for key in keys) for row in restarts.read(run)]


@dataclass(frozen=True)
class Started:
    """A start of a job as a process of its own."""

    process: BaseProcess
    folder: Path

    def code(self) -> int:
        return worker.finish(self.process)

    @property
    def run(self) -> Path:
        return self.folder / "run"


def start(work: Task, folder: Path, restart: int = 0, **variables: str) -> Started:
    """Call a task as submitit does, in a job with the number 7."""
    own = {"SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": str(restart), "SUBMITIT_FOLDER": str(folder / "logs")}
    child = worker._SERVER.Process(target=_call, args=(work, own | variables))
    child.start()
    return Started(child, folder)


def _call(work: Task, variables: dict[str, str]) -> None:
    os.environ |= variables | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "1"}
    signal.signal(signal.SIGTERM, lambda *_: None)  # as submitit leaves it
    assert work() == 0
    os._exit(0)  # as after submitit has written its result


def failing(folder: Path, data: Path, *more: str, **changes: object) -> Task:
    train = tiny.VALUES["train"] | {"duration": {"steps": 30}} | changes
    values = tiny.VALUES | {"method": {"name": "tests.slurm.failing:Failing"}, "train": train}
    file = folder / "tiny.yaml"
    file.write_text(yaml.safe_dump(values | {"data": tiny.VALUES["data"] | {"path": str(data)}}))
    return Task(("train", str(file), "--out", str(folder / "run"), *more), str(folder / "run"))


def attempt(folder: Path, restart: int) -> ends.Attempt:
    return ends.Attempt(folder / "run", "7", restart, folder / "logs")


def final(folder: Path, restart: int) -> bool:
    """Whether the batch script is told not to requeue after this start."""
    path = attempt(folder, restart).final
    return path is not None and path.exists()


def test_a_finished_job_that_is_requeued_ends_at_once(tiny_data: Path, tmp_path: Path) -> None:
    work = failing(tmp_path, tiny_data)
    assert start(work, tmp_path).code() == 0
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    assert start(work, tmp_path, 1).code() == 0
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before
    assert starts(tmp_path / "run", "reason") == [("start",)]
    assert list((tmp_path / "run" / "slurm" / "failures").iterdir()) == []


def test_an_error_is_tried_again_once_at_the_same_step(tiny_data: Path, tmp_path: Path) -> None:
    work = failing(tmp_path, tiny_data)
    for restart, told in ((0, False), (1, True)):
        assert start(work, tmp_path, restart, FAIL="8:error:0").code() == 1
        (path,) = ends.failures(tmp_path / "run")
        text = path.read_text()
        assert path.name == f"7.{restart}-rank0.txt" and text.startswith("RuntimeError after 8 steps: on purpose")
        assert "failing.py" in text and final(tmp_path, restart) is told
    assert start(work, tmp_path, 2).code() == 0  # somebody has put it right and requeued by hand
    assert starts(tmp_path / "run", "reason", "step", "lost") == [
        ("start", 0, 0), ("failed rank", 5, 3), ("manual", 5, 3),
    ]  # fmt: skip
    last = runs.lines(tmp_path / "run")[-1]
    assert last["step"] == 30 and '"restarts": 2, "lost_steps": 6' in (tmp_path / "run" / "metrics.jsonl").read_text()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"batch": 100_000, "micro_batch": 0}, "ConfigError before the first step"),
        ({"precision": "fp32", "nan": True}, "DivergedError after"),
    ],
)
def test_an_error_that_would_come_again_ends_the_job(
    changes: dict[str, object], words: str, tiny_data: Path, tmp_path: Path
) -> None:
    nan = changes.pop("nan", False)
    work = failing(tmp_path, tiny_data, *(["method.nan_loss_at=3"] if nan else []), **changes)
    assert start(work, tmp_path).code() == 2
    assert final(tmp_path, 0) and ends.failures(tmp_path / "run")[0].read_text().startswith(words)


def test_killed_ones_are_counted(tiny_data: Path, tmp_path: Path) -> None:
    work = dataclasses.replace(failing(tmp_path, tiny_data), max_restarts=1)
    assert start(work, tmp_path, 0, FAIL="7:kill:0").code() == -signal.SIGKILL
    assert start(work, tmp_path, 1, FAIL="13:kill:0").code() == -signal.SIGKILL
    assert starts(tmp_path / "run", "reason", "step", "lost")[1] == ("node failure or killed", 5, 2)
    assert not final(tmp_path, 1)
    assert start(work, tmp_path, 2).code() == 2
    told = ends.failures(tmp_path / "run")[0].read_text()
    assert final(tmp_path, 2) and "2 starts of job 7 have failed, allowed: 1" in told
    assert len(restarts.read(tmp_path / "run")) == 2


def test_why_a_start_follows_is_slurms_word_or_the_batch_scripts(tmp_path: Path) -> None:
    first, second = attempt(tmp_path, 0), attempt(tmp_path, 1)
    log, now = tmp_path / "logs" / "7_0_log.err", datetime.now().isoformat(timespec="seconds")
    log.parent.mkdir()
    ends.begin(first)
    assert ends.reason(second) == "node failure or killed"
    log.write_text(f"slurmstepd-n1: error: *** JOB 7 ON n1 CANCELLED AT {now} DUE TO JOB REQUEUE ***\n")
    assert ends.reason(second) == "requeued"
    (tmp_path / "logs" / "ended-7.0").write_text("137\n")
    assert ends.reason(second) == "node failure or killed", "it was the batch script that has requeued"
    ends.finish(first, "again")
    assert ends.reason(second) == "time limit"
    log.write_text(f"srun\nerror: *** STEP 7.0 ON n1 CANCELLED AT {now} DUE TO PREEMPTION ***\n" + log.read_text())
    assert ends.reason(second) == "preempted"


def test_a_step_that_hangs_ends_with_the_stacks_of_all_threads(tiny_data: Path, tmp_path: Path) -> None:
    work = dataclasses.replace(failing(tmp_path, tiny_data), step_seconds=2.0)
    assert start(work, tmp_path, FAIL="6:hang:0").code() == HUNG
    text = ends.failures(tmp_path / "run")[0].read_text()
    assert text.startswith("HungError after 6 steps: no further one within 2 s") and "failing.py" in text
    assert not final(tmp_path, 0)
    assert start(work, tmp_path, 1).code() == 0
    assert starts(tmp_path / "run", "reason")[1] == ("failed rank",)


@pytest.mark.parametrize(
    ("number", "code", "how"), [(signal.SIGUSR2, AGAIN, "again"), (signal.SIGTERM, 130, "stopped")]
)
def test_a_signal_saves_and_says_what_is_wanted(
    number: int, code: int, how: str, tiny_data: Path, tmp_path: Path
) -> None:
    work = failing(tmp_path, tiny_data, duration={"steps": 4000}, checkpoint_every={"steps": 1000})
    child = start(work, tmp_path)
    file = tmp_path / "run" / "metrics.jsonl"
    wait_for(lambda: file.exists() and len(runs.lines(tmp_path / "run")) > 3, worker.LIMIT)
    assert child.process.pid is not None
    os.kill(child.process.pid, number)
    assert child.code() == code
    end = ends.read(attempt(tmp_path, 0))
    assert end is not None and end.how == how and not final(tmp_path, 0)
    step = checkpoint.steps(tmp_path / "run")[-1]
    assert step == runs.lines(tmp_path / "run")[-1]["step"] < 4000
    assert ends.reason(attempt(tmp_path, 1)) == ("time limit" if number == signal.SIGUSR2 else "requeued")


def test_an_extension_goes_on_as_one(tiny_data: Path, tmp_path: Path) -> None:
    first = failing(tmp_path, tiny_data)
    assert start(first, tmp_path, SLURM_JOB_ID="6").code() == 0
    longer = dataclasses.replace(first, argv=(*first.argv, "--extend", "steps=40"))
    assert start(longer, tmp_path, 0, FAIL="36:kill:0").code() == -signal.SIGKILL
    assert start(longer, tmp_path, 1).code() == 0
    assert checkpoint.steps(tmp_path / "run")[-1] == 40


def test_the_batch_script_requeues_unless_told(tmp_path: Path) -> None:
    """Its lines, with a program in place of scontrol that says what it was asked, and in what state the job is."""
    (tmp_path / "scontrol").write_text(
        "#!/bin/sh\n[ $1 = requeue ] && echo $* || echo JobId=7 JobState=$STATE Reason=None\n"
    )
    (tmp_path / "scontrol").chmod(0o755)
    variables = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "3"}
    variables |= {"SLURM_NTASKS_PER_NODE": "4", "SLURM_NTASKS": "8", "STATE": "RUNNING"}

    def script(work: str, **more: str) -> tuple[int, str]:
        text = "\n".join([*SETUP, work, *teardown(tmp_path / "a b")])
        done = subprocess.run(["bash", "-c", text], env=variables | more, capture_output=True, text=True)
        return done.returncode, done.stdout + done.stderr

    (tmp_path / "a b").mkdir()
    assert script("echo $SLURM_NTASKS $SLURM_NPROCS; (exit 0)") == (0, "12 12\n")
    assert script("(exit 137)") == (137, "requeue 7\n")
    assert (tmp_path / "a b" / "ended-7.0").read_text() == "137\n"
    (tmp_path / "a b" / "final-7.2").touch()
    assert script("(exit 75)", SLURM_RESTART_COUNT="1") == (75, "requeue 7\n")
    assert script("(exit 2)", SLURM_RESTART_COUNT="2") == (2, "")
    told = "sh -c 'kill -TERM $PPID; exit 130'"  # to the batch script too
    assert script(told) == (130, "requeue 7\n"), "meant for an earlier start"
    for state in ("CANCELLED", "COMPLETING", "PENDING", "TIMEOUT"):
        assert script(told, STATE=state) == script("(exit 130)", STATE=state) == (130, ""), "SLURM has ended it"
    assert script(told.replace("130", "0")) == (0, "")
