"""Looking after jobs, on a real SLURM and without one."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml

from jepa import cli
from jepa.slurm import book, jobs, queue
from jepa.slurm.queue import Seen
from tests import tiny
from tests.slurm.conftest import Cluster, wait_for


def line(run: Path, **changes: Any) -> dict[str, Any]:
    """A line of jobs.jsonl."""
    values = {
        "time": datetime.now(UTC).isoformat(timespec="seconds"), "stamp": "s", "root": str(run), "name": run.name,
        "verb": "train", "key": "train", "argv": [], "steps": 10, "logs": str(run / "slurm/logs/s"), "job": "1",
    }  # fmt: skip
    return values | changes


def test_a_job_is_its_id_and_its_mark(tmp_path: Path) -> None:
    """On a new cluster ids begin at 1 again: what has the id now is not this run's job."""
    entry = book.add(tmp_path, line(tmp_path))
    mine = Seen("RUNNING", comment=entry.comment)
    assert entry.seen({"1": mine}) == mine
    for other in (replace(mine, comment=""), replace(mine, comment=queue.comment("t", tmp_path))):
        assert entry.seen({"1": other}) is None
    assert queue.root_of(entry.comment) == tmp_path and queue.root_of("lunch") is None
    assert queue.root_of(queue.comment("s", Path("/a:b"))) == Path("/a:b")


def test_forgotten_jobs_are_judged_by_their_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")  # no sacct
    done, cut = (book.add(tmp_path / name, line(tmp_path / name)) for name in ("done", "cut"))
    for entry, step in ((done, 10), (cut, 7)):
        rows = [{"step": step, "loss": 0.5, "step_seconds": 2.0}, {"step": step, "rank": 3}]
        (entry.run_dir / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 1')
    found = jobs.states([done, cut], {})
    assert found[id(done)].state == "COMPLETED" and found[id(cut)].state == jobs.GONE


def test_lines_that_a_crash_cut_off_are_left_out(tmp_path: Path) -> None:
    book.add(tmp_path, line(tmp_path))
    with (tmp_path / book.FILE).open("a") as stream:
        stream.write('{"job": "2", "ti')
    assert [entry.job for entry in book.read(tmp_path)] == ["1"]


def test_the_rank_that_failed_first_is_shown_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    entry = book.add(tmp_path, line(tmp_path, job="7"))
    log = entry.log(0, errors=True)
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_text("the end of rank 0\n")
    assert jobs.failure(entry) == ""
    folder = tmp_path / "slurm" / "failures"
    folder.mkdir(parents=True)
    start = entry.time.timestamp()
    for rank, after in ((0, 9), (1, 5), (2, 7)):
        file = folder / f"7.0-rank{rank}.txt"
        file.write_text(f"ValueError after 3 steps: of {rank}\n" + "".join(f"line {i}\n" for i in range(50)))
        os.utime(file, (start + after, start + after))
    shown: list[str] = []
    jobs.follow(entry, shown.append)
    text = "".join(shown)
    assert text.startswith("rank 1 failed (and 2 more after it): ValueError after 3 steps: of 1\n... 10 lines above")
    assert text.index("line 49") < text.index("the end of rank 0") and "of 2" not in text
    old = start - 100
    for file in folder.iterdir():
        os.utime(file, (old, old))
    assert jobs.failure(entry) == "", "of an earlier job"


def test_words_of_slurm() -> None:
    said = "sbatch: error: Batch job submission failed: Invalid account\nsbatch: error: no\n"
    assert queue.words(said) == "Batch job submission failed: Invalid account; no"


def test_without_slurm_it_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.chdir(tmp_path)
    assert cli.main(["jobs"]) == 2
    assert "there is no SLURM on this machine" in capsys.readouterr().err
    assert cli.main(["jobs", "logs", "x"]) == 2
    assert "x has no jobs" in capsys.readouterr().err
    entry = book.add(tmp_path / "run", line(tmp_path / "run"))
    entry.log().parent.mkdir(parents=True)
    entry.log().write_text("one\ntwo\n")
    assert cli.main(["jobs", "logs", "run", "-n", "1"]) == 0, "logs are files"
    assert capsys.readouterr().out == "two\n"
    assert cli.main(["jobs", "logs", "run", "--job", "7"]) == 2
    assert "has no job 7. It has: 1" in capsys.readouterr().err
    assert cli.main(["jobs", "logs", "."]) == 2
    assert "holds 1 runs with jobs: give one, such as run" in capsys.readouterr().err


def test_a_life(
    cluster: Cluster,
    tiny_data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Submitted, seen in the table, requeued, cancelled, looked at afterwards; and then its id is somebody else's."""
    for name, value in cluster.env.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    train = tiny.VALUES["train"] | {"duration": {"steps": 100_000}, "checkpoint_every": {"steps": 20}}
    values = tiny.VALUES | {"data": tiny.VALUES["data"] | {"path": str(tiny_data)}, "train": train}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(values))
    assert cli.main(["submit", "train", "tiny.yaml", "--cluster", "local", "--json"]) == 0
    (told,) = json.loads(capsys.readouterr().out)

    def row() -> dict[str, Any]:
        assert cli.main(["jobs", "--json"]) == 0
        (found,) = [row for row in json.loads(capsys.readouterr().out) if row["run"] == "runs/tiny"]
        return dict(found)

    wait_for(lambda: (row()["step"] or 0) > 20, 120, row)
    now = row()
    assert (now["job"], now["run"], now["verb"], now["state"]) == (told["job"], "runs/tiny", "train", "RUNNING")
    assert now["total"] == 100_000 and now["loss"] > 0 and now["eta_seconds"] > 0 and now["node"].startswith("127.")
    assert cli.main(["jobs"]) == 0
    shown = capsys.readouterr().out
    assert "runs/tiny" in shown and "RUNNING" in shown and "/100000" in shown
    assert cli.main(["jobs", "requeue", "runs/tiny"]) == 0
    assert "goes on from its last checkpoint" in capsys.readouterr().out
    wait_for(lambda: row()["state"] == "PENDING", 60, row)
    assert cli.main(["jobs", "requeue", "runs/tiny", "--json"]) == 0, "one that waits starts now"
    (job, sentence), *none = json.loads(capsys.readouterr().out)["requeued"].items()
    assert job == told["job"] and sentence and not none
    wait_for(lambda: row()["restarts"] == 1, 120, row)
    capsys.readouterr()
    assert cli.main(["jobs", "cancel", "runs"]) == 0
    assert told["job"] in capsys.readouterr().out
    assert cli.main(["jobs", "logs", "runs/tiny", "--follow", "--err"]) == 0, "ends with the job"
    assert "CANCELLED" in capsys.readouterr().out
    assert cli.main(["jobs", "cancel", "runs/tiny"]) == 2
    assert f"nothing to cancel in runs/tiny: its last job, {told['job']}, is CANCELLED" in capsys.readouterr().err
    assert cli.main(["jobs", "requeue", "runs/tiny"]) == 0, "SLURM still remembers it"
    capsys.readouterr()
    wait_for(lambda: row()["state"] == "PENDING", 30, row)
    assert cli.main(["jobs", "cancel", "runs/tiny", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"cancelled": [told["job"]]}
    book.add(tmp_path / "other", line(tmp_path / "other", job=told["job"]))  # of an earlier cluster
    (stale,) = jobs.rows([tmp_path / "other"])
    assert stale.state == jobs.GONE
    assert cli.main(["jobs", "cancel", "other"]) == 2 and "GONE" in capsys.readouterr().err
