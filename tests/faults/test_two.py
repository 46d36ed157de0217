"""Two processes in one folder: the second is refused, or the last whole file wins; never a mixture."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from contextlib import closing
from pathlib import Path

import pytest

from jepa import cli
from jepa.data import storage
from jepa.errors import CheckpointError, ConfigError
from jepa.export.whole import whole
from jepa.plan.journal import Journal
from tests.faults.conftest import LINE, Material
from tests.faults.test_shards import started
from tests.train import runs, worker


def test_a_second_run_while_the_first_goes_on(
    material: Material, tiny_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    child = started(tiny_data, out)
    for line in (["train", str(material.config), "--out", str(out)], ["train", str(out), "--resume"]):
        assert cli.main(line) == 2
        said = " ".join(capsys.readouterr().err.split())
        assert f"is in use: process {child.pid} on" in said or "There is a run" in said or "holds a run" in said, said
    before = runs.lines(out)[-1]["step"]
    until = time.monotonic() + worker.LIMIT
    while runs.lines(out)[-1]["step"] < before + 10:
        assert child.is_alive() and time.monotonic() < until, "the first one was disturbed"
        time.sleep(0.02)
    child.terminate()
    assert worker.finish(child) == 0
    steps = [row["step"] for row in runs.lines(out)]
    assert steps == list(range(1, steps[-1] + 1)), "one writer's lines, each once"


def test_a_second_plan_for_the_same_result(
    material: Material, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plans = material.model / "plans"
    held = Journal(plans / ".line.journal.jsonl", {"of": "another process"})
    held.add([{"policy": "planner", "number": 0}])
    line = ["plan", str(material.model), "--suite", LINE, "--device", "cpu", "episodes=1", "pictures.landscape=false"]
    assert cli.main(line) == 2
    assert "another process is planning for the same result" in " ".join(capsys.readouterr().err.split())
    held.close()
    again = Journal(plans / ".line.journal.jsonl", {"of": "another process"})
    assert set(again.trials) == {("planner", 0)}, "what the first one had finished is untouched"
    again.close()


def test_a_plan_that_failed_lets_others_in(tmp_path: Path) -> None:
    path = tmp_path / ".x.journal.jsonl"
    with pytest.raises(ConfigError, match="another process"), closing(Journal(path, {})):
        Journal(path, {})
    Journal(path, {}).close()


def test_writers_of_one_file_take_turns(tmp_path: Path) -> None:
    """Results, reports and pages: whatever two processes do, a reader sees one of them whole."""
    path, over, torn = tmp_path / "result.json", threading.Event(), []
    (tmp_path / ".result.json.partial").write_bytes(b"left by a crash")
    storage.write_atomic(path, b"0" * 100_000)
    assert path.read_bytes() == b"0" * 100_000

    def write(letter: bytes) -> None:
        try:
            for _ in range(40):
                storage.write_atomic(path, letter * 100_000)
        except BaseException as error:
            torn.append(error)

    def read() -> None:
        while not over.is_set():
            found = path.read_bytes()
            if len(found) != 100_000 or len(set(found)) != 1:
                torn.append(found[:10])

    reader = threading.Thread(target=read)
    writers = [threading.Thread(target=write, args=(letter,)) for letter in (b"a", b"b", b"c")]
    reader.start()
    for thread in writers:
        thread.start()
    for thread in writers:
        thread.join()
    over.set()
    reader.join()
    assert not torn and not list(tmp_path.glob(".*"))


def test_two_exports_to_one_folder(tmp_path: Path) -> None:
    out = tmp_path / "out"
    meanwhile = pytest.raises(CheckpointError, match="something else was written there meanwhile")
    with meanwhile, whole(out, "the export") as mine:
        (mine / "weights").write_text("mine")
        out.mkdir()
        (out / "weights").write_text("theirs")
    assert (out / "weights").read_text() == "theirs" and [p.name for p in tmp_path.iterdir()] == ["out"]
    with whole(out, "the export", replace=True) as mine:
        (mine / "weights").write_text("mine")
    assert (out / "weights").read_text() == "mine" and [p.name for p in tmp_path.iterdir()] == ["out"]


def test_what_a_killed_export_left_goes_with_the_next(tmp_path: Path) -> None:
    """Only its own: what another process, or another machine, is at stays."""
    out, code = tmp_path / "out[1]", "import sys; from pathlib import Path; from jepa.export.whole import whole\n"
    code += "with whole(Path(sys.argv[1]), 'x') as f: (f / 'w').write_text('w'); print('at it', flush=True); input()"
    writers = [
        subprocess.Popen([sys.executable, "-c", code, str(out)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        for _ in range(2)
    ]
    try:
        for writer in writers:
            assert writer.stdout is not None and writer.stdout.readline() == b"at it\n"
        elsewhere = tmp_path / ".tmp-out[1]-elsewhere-1"
        elsewhere.mkdir()
        writers[0].kill()
        writers[0].wait()
        assert len(list(tmp_path.glob(".tmp-*"))) == 3
        with whole(out, "the export") as mine:
            (mine / "weights").write_text("mine")
            assert len(list(tmp_path.glob(".tmp-*"))) == 3  # the living one's, the other machine's, this one
        left = [path.name for path in tmp_path.glob(".tmp-*")]
        assert len(left) == 2 and elsewhere.name in left and any(name.endswith(f"-{writers[1].pid}") for name in left)
    finally:
        for writer in writers:
            writer.kill()
            writer.communicate()
