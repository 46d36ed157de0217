"""A folder that nothing may be written to: a message that names it, at once, and nothing is lost."""

from __future__ import annotations

from pathlib import Path

import pytest

from jepa import checkpoint, cli
from tests import disk
from tests.faults.conftest import VERBS, Material, prepare
from tests.train import runs


@pytest.mark.parametrize("verb", [v for v in VERBS if v not in ("export torch", "train, background")])
def test_a_read_only_folder(verb: str, material: Material, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with disk.read_only(tmp_path / "closed") as closed:
        prepare(verb, material, closed / "out")
        before = sorted(str(p) for p in closed.rglob("*"))
        disk.close(closed)
        code, said = cli.main(VERBS[verb](material, closed / "out")), capsys.readouterr().err
        words = " ".join(said.split())
        assert code == 2 and str(closed) in words, said
        why = ("Read-only file system", "Permission denied", "read-only for this user")
        assert any(reason in words for reason in why) and "Traceback" not in words, said
        assert sorted(str(p) for p in closed.rglob("*")) == before


def test_a_run_whose_folder_was_closed(material: Material, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A resume says so, and the run goes on when it is open again; reading needs no writing."""
    with disk.read_only(tmp_path / "closed") as closed:
        out = closed / "out"
        assert cli.main(["train", str(material.config), "train.duration={steps: 6}", "--out", str(out)]) == 0
        disk.close(closed)
        capsys.readouterr()
        assert cli.main(["train", str(out), "--extend", "steps=9"]) == 2
        said = " ".join(capsys.readouterr().err.split())
        assert f"cannot write {out / '.lock'}" in said and "go on with --resume" in said and "Traceback" not in said
        assert cli.main(["inspect", str(out)]) == 0 and checkpoint.latest(out).name == "step-6"
        assert cli.main(["report", str(out), "--out", str(tmp_path / "page.html")]) == 0
        if closed.is_mount():
            disk.remount(closed, "rw")
        else:
            for path in (closed, *closed.rglob("*")):
                path.chmod(0o755 if path.is_dir() else 0o644)
        assert cli.main(["train", str(out), "--extend", "steps=9"]) == 0
        assert runs.lines(out)[-1]["step"] == 9
