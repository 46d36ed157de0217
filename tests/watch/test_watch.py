"""Watching runs: what is shown of a run that goes on, has ended, was rolled back, or is one of many."""

from __future__ import annotations

import io
import json
import os
import pty
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

from jepa.cli import main
from jepa.errors import ConfigError
from jepa.monitor import Monitor
from jepa.train import train
from jepa.watch import RunFolder, find, frame, watch
from jepa.watch.view import draw, spark
from tests import tiny
from tests.train import worker
from tests.train.worker import Job


@pytest.fixture(scope="module")
def run(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with looks of the monitor and a roll-back."""
    out = tmp_path_factory.mktemp("runs") / "nested" / "back"
    collapse = ("optim.lr=3e-2", "optim.start_lr=3e-2", "method.ema=[0.5, 0.5]", "train.checkpoint_every={steps: 4}")
    more = ("train.duration={steps: 20}", "health.collapse.act=rollback")
    train(tiny.run_config(tiny_data, *collapse, *more), out, monitor=Monitor, quiet=True)
    return out


def shown(*runs: Path, width: int = 110) -> str:
    out = io.StringIO()
    Console(file=out, width=width).print(frame([RunFolder(run) for run in runs], width))
    return out.getvalue()


def copied(run: Path, to: Path, lines: int) -> Path:
    """The run as it was after so many lines, with the next one half written."""
    shutil.copytree(run, to)
    rows = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (to / "metrics.jsonl").write_text("".join(rows[:lines]) + rows[lines][:20])
    (to / ".step").unlink()
    return to


def test_a_finished_run(run: Path) -> None:
    text = shown(run)
    last = [json.loads(x) for x in (run / "metrics.jsonl").read_text().splitlines() if '"loss":' in x][-1]
    assert "back  finished" in text and "20/20 100% · attempt 1" in text and f"loss  {last['loss']:.4f}" in text
    assert "effective rank, centred" in text and "online kNN" in text and "waiting for data" in text
    assert "↶ 12: rolled back to step 4: the target" in text and "≈" in text
    assert max(map(len, text.splitlines())) <= 110


def test_a_run_that_is_being_written(run: Path, tmp_path: Path) -> None:
    """Half a line is not read; what is added later is, and no line twice."""
    folder = copied(run, tmp_path / "now", 9)
    seen = RunFolder(folder)
    before = len(seen.lines) + len(seen.looks) + len(seen.events)
    assert seen.state == "running" and seen.total == 20 and seen.step < 20 and seen.eta is not None
    seen.refresh()
    assert len(seen.lines) + len(seen.looks) + len(seen.events) == before
    whole = (run / "metrics.jsonl").read_bytes()
    with (folder / "metrics.jsonl").open("ab") as stream:
        stream.write(whole[stream.tell() :])
    seen.refresh()
    fresh = RunFolder(run)
    assert (seen.lines, seen.looks, seen.events) == (fresh.lines, fresh.looks, fresh.events)
    assert seen.state == "finished" and seen.eta is None


def test_a_file_that_was_cut_back_is_read_anew(run: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(run, tmp_path / "cut")
    seen = RunFolder(folder)
    assert seen.lines[-1]["step"] == 20
    rows = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    (folder / "new").write_text("".join(rows[:6]))
    (folder / "new").replace(folder / "metrics.jsonl")
    seen.refresh()
    assert len(seen.lines) + len(seen.looks) <= 6 and seen.lines[-1]["step"] < 20


def test_following_a_real_process(tiny_data: Path, tmp_path: Path) -> None:
    out = tmp_path / "live"
    child = worker.start(Job(tiny_data, out, ("train.duration={steps: 60}",), trace=False))
    end = time.monotonic() + 60
    while not (out / "config.yaml").is_file() and time.monotonic() < end:
        time.sleep(0.02)
    seen, steps = RunFolder(out), []
    while seen.state != "finished" and time.monotonic() < end:
        seen.refresh()
        steps.append(len(seen.lines))
    assert worker.finish(child) == 0
    assert steps == sorted(steps) and steps[-1] == 60 and len(set(steps)) > 3, "seen while it went on"
    assert [row["step"] for row in seen.lines] == list(range(1, 61))


def test_a_run_without_a_sign_of_life(run: Path, tmp_path: Path) -> None:
    folder = copied(run, tmp_path / "dead", 9)
    old = time.time() - 3600
    for name in ("metrics.jsonl", "config.yaml"):
        os.utime(folder / name, (old, old))
    assert RunFolder(folder).state == "quiet" and "quiet for 1:00:0" in shown(folder)


def test_several_runs_side_by_side_and_many_in_a_table(run: Path, tmp_path: Path) -> None:
    others = [shutil.copytree(run, tmp_path / f"run-{i}") for i in range(5)]
    beside = shown(*others[:2], width=110)
    assert any("run-0" in line and "run-1" in line for line in beside.splitlines())
    many = shown(*others, width=110)
    assert "ETA" in many and len(many.splitlines()) == 6
    assert sorted(find([tmp_path])) == others and find([run.parent.parent]) == [run]


def test_the_command_in_a_pipe_has_no_colour(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["watch", str(run)]) == 0
    text = capsys.readouterr().out
    assert "\x1b" not in text and "back  finished" in text
    assert main(["watch", str(run), "--json"]) == 0
    (now,) = json.loads(capsys.readouterr().out)
    assert (now["step"], now["total_steps"], now["state"]) == (20, 20, "finished")
    assert [event["kind"] for event in now["events"]] == ["rollback"] and now["health"]


def test_a_terminal_until_all_runs_are_over(run: Path) -> None:
    out = io.StringIO()
    watch([run], out=Console(file=out, force_terminal=True, width=100, height=60))
    assert "\x1b[" in out.getvalue() and "finished" in out.getvalue()


def test_it_is_light_and_ctrl_c_ends_it(run: Path, tmp_path: Path) -> None:
    """In a real terminal, in a process that never loads torch."""
    folder = copied(run, tmp_path / "going", 9)
    code = (  # a suite started in the background (nohup, CI) hands down an ignored SIGINT
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); from jepa.cli import main; "
        "c = main(sys.argv[1:]); print('torch' in sys.modules); sys.exit(c)"
    )
    master, slave = pty.openpty()
    child = subprocess.Popen(
        [sys.executable, "-c", code, "watch", str(folder), "--every", "0.1"], stdin=slave, stdout=slave, stderr=slave,
        start_new_session=True,
    )  # fmt: skip
    os.close(slave)
    text = b""
    while b"going" not in text:
        text += os.read(master, 4096)
    child.send_signal(signal.SIGINT)
    try:
        while part := os.read(master, 4096):
            text += part
    except OSError:  # the other end is closed
        pass
    os.close(master)
    assert child.wait(20) == 0
    assert b"Traceback" not in text and b"False" in text and b"\x1b[?25h" in text, "the cursor is back"


@pytest.mark.parametrize("name", ["nowhere", "empty"])
def test_no_run_there(name: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="no such folder" if name == "nowhere" else "there is no run in"):
        watch([tmp_path / name], once=True)


def test_curves_of_blocks() -> None:
    def at(*values: float) -> list[tuple[int, float]]:
        return list(enumerate(values, 1))

    assert spark(at(0, 1, 2, 3, 4, 5, 6, 7), 8) == "▁▂▃▄▅▆▇█"
    assert draw(at(0.0, 1.0), 2, 2) == [" █", "▁█"]
    assert draw(at(0.0, 1.0), 8, 1) == ["   ▁▁▁▁█"], "by steps: held until the next one"
    assert draw(at(3.0, 3.0), 4, 1, last=4) == ["▄▄▄▄"]
    assert len(spark(at(*range(1000)), 50)) == 50 and spark(at(*range(1000)), 50)[-1] == "█"
    assert spark([], 5) == ""
