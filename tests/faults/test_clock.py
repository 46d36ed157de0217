"""A clock that jumps: what is measured, waited for, or ordered must not notice."""

from __future__ import annotations

import ast
import itertools
import json
import os
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from jepa import checkpoint
from jepa.slurm import book, ends, jobs
from jepa.train import train
from jepa.watch.read import RunFolder
from tests.hygiene.tree import PACKAGE, modules
from tests.tiny import run_config
from tests.train import runs

# who may ask for the time of day, and for what: all of it is shown to people or names things, nothing waits for it
ASK = {
    "attempts.py": "when a roll-back happened",
    "bench/everything.py": "the date of a table",
    "bench/interrupt.py": "a benchmark on one machine, against times of files",
    "environment.py": "when a run was started",
    "report/build.py": "the date of a page",
    "report/datacheck.py": "the date of a page",
    "restarts.py": "when a run was started",
    "slurm/ends.py": "when a start began, against SLURM's own times in whole seconds",
    "slurm/submit.py": "names of submissions",
    "watch/read.py": "how long a run has been quiet",
}


def test_who_asks_for_the_time_of_day() -> None:
    """Durations, deadlines and cadences come from clocks that cannot be set (time.monotonic, time.perf_counter)."""
    found = set()
    for name, source in modules(PACKAGE):
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                if (node.value.id, node.attr) in {("time", "time"), ("time", "time_ns"), ("time", "strftime")}:
                    found.add(name)
                if node.value.id == "datetime" and node.attr in ("now", "today", "utcnow"):
                    found.add(name)
    assert found == set(ASK), f"new: {found - set(ASK)}; gone: {set(ASK) - found}"


def test_a_run_whose_clock_jumps_at_every_look(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a day forwards and two backwards, with a watchdog, a checkpoint in the background and rates in every line."""
    settings = ("train.step_seconds=100", "train.checkpoint_async=true", "train.keep=0")
    train(run_config(tiny_data, *settings), tmp_path / "steady", quiet=True)
    real, jumps = time.time, itertools.cycle((86_400.0, -172_800.0, 0.0))
    monkeypatch.setattr(time, "time", lambda: real() + next(jumps))
    began = time.monotonic()
    assert train(run_config(tiny_data, *settings), tmp_path / "jumping", quiet=True).step == 12
    seconds = time.monotonic() - began
    runs.assert_bit_equal(runs.tensors(tmp_path / "jumping", 12), runs.tensors(tmp_path / "steady", 12))
    rows = [json.loads(line) for line in (tmp_path / "jumping/metrics.jsonl").read_text().splitlines()]
    rows = [row for row in rows if "loss" in row]
    assert len(rows) == 12
    assert all(row["images_per_s"] > 8 / seconds and 0 <= row["data_wait"] <= 1 for row in rows)
    assert 0 < rows[-1]["device_seconds"] < seconds


def test_checkpoints_are_ordered_by_step_not_by_time(tiny_data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    train(run_config(tiny_data, "train.keep=0"), out, quiet=True)
    for step, when in ((0, 4e9), (5, 2e9), (10, 1e9), (12, 1e6)):  # the newest one is of 1970, the oldest of 2096
        for path in (out / "checkpoints" / f"step-{step}").iterdir():
            os.utime(path, (when, when))
        os.utime(out / "checkpoints" / f"step-{step}", (when, when))
    assert checkpoint.latest(out).name == "step-12"
    assert train(run_config(tiny_data, "train.keep=2"), out, resume=True, quiet=True).step == 12
    assert checkpoint.folder.prune(out, keep=2) == [0, 5]


def test_a_clock_put_back_leaves_no_run_alive_for_ever(tiny_data: Path, tmp_path: Path) -> None:
    """Files of tomorrow: their run has written nothing since the clock was put back."""
    out = tmp_path / "run"
    train(run_config(tiny_data), out, quiet=True)
    tomorrow = time.time() + 86_400
    for name in ("metrics.jsonl", ".step", "config.yaml"):
        os.utime(out / name, (tomorrow, tomorrow))
    run = RunFolder(out)
    run.refresh()
    assert run.idle > 80_000 and run.state == "finished"
    os.utime(out / "metrics.jsonl")
    assert run.idle < 60, "one that writes is alive, whatever its older files say"


def test_a_clock_put_back_while_a_job_of_slurm_ran(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its word for the end is then of before the start: the start counts as killed, and the job goes on."""
    run, logs = tmp_path / "run", tmp_path / "logs"
    logs.mkdir()
    first, second = (ends.Attempt(run, "7", restart, logs) for restart in (0, 1))
    real, now = time.time, datetime.now().isoformat(timespec="seconds")
    (logs / "7_0_log.err").write_text(f"error: *** JOB 7 ON n1 CANCELLED AT {now} DUE TO PREEMPTION ***\n")
    ends.begin(first)
    assert ends.reason(second) == ends.PREEMPTED
    monkeypatch.setattr(time, "time", lambda: real() + 3600)
    ends.begin(first)
    monkeypatch.undo()
    assert ends.reason(second) == ends.KILLED and ends.count(second) == 1
    ends.check(second, most=1)  # no GivenUpError


def test_logs_of_a_job_submitted_before_the_clock_was_put_back(tmp_path: Path) -> None:
    """Its failure looks older than the job and is not told apart; its log is shown, the newest line for the table."""
    later = datetime.now(UTC) + timedelta(hours=1)
    values = {"time": later.isoformat(), "stamp": "s", "root": str(tmp_path), "key": "train", "job": "7"}
    entry = book.add(tmp_path, values | {"logs": str(tmp_path / "logs")})
    for path, text in ((entry.log(), "step 4\n"), (entry.log(errors=True), "the end\n")):
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    (tmp_path / "slurm" / "failures").mkdir()
    (tmp_path / "slurm" / "failures" / "7.0-rank0.txt").write_text("ValueError after 4 steps: no\n")
    shown: list[str] = []
    jobs.follow(entry, shown.append)
    text = "".join(shown)
    assert "rank 0 failed" not in text and "step 4" in text
    assert jobs.last_line(entry) == "the end"
