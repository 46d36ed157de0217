"""Where the program may have to live: no root, no home, a package that cannot be written, other locales, pipes."""

from __future__ import annotations

import functools
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from jepa import cli, resources
from tests.hostile.verbs import PROBE, Jepa, Lab
from tests.hygiene.tree import ROOT

NOBODY = 65534


@functools.cache
def as_somebody_else() -> list[str] | None:
    """What to put before a command so that another user than root runs it; None where this process cannot."""
    if os.getuid():
        return []
    # what is under /root, the interpreter perhaps, is read by a capability: files that are not its own it cannot write
    plain = [shutil.which("setpriv") or "setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
    reading = ["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]
    for prefix in (plain, [*plain, *reading]):
        try:
            if subprocess.run([*prefix, sys.executable, "-c", ""], capture_output=True, timeout=60).returncode == 0:
                return prefix
        except OSError:
            return None
    return None


@pytest.fixture
def ground() -> Iterator[Path]:
    """A folder that every user can reach; pytest's own are for its user alone."""
    with tempfile.TemporaryDirectory(prefix="jepa-places-") as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)
        for path in Path(folder).rglob("*"):
            if path.is_dir():
                path.chmod(0o755)


def locked(*folders: Path) -> None:
    """Nobody may write there."""
    for folder in folders:
        for path in (folder, *folder.rglob("*")):
            path.chmod(0o555 if path.is_dir() else 0o444)


@pytest.mark.skipif(os.name == "nt", reason="users and modes of POSIX")
def test_another_user_without_a_home_and_a_package_that_is_read_only(lab: Lab, ground: Path) -> None:
    prefix = as_somebody_else()
    if prefix is None:
        pytest.skip("root here may not become another user that can run this interpreter")
    site, work, theirs = ground / "site", ground / "arbeit", ground / "theirs"
    shutil.copytree(ROOT / "jepa", site / "jepa", ignore=shutil.ignore_patterns("__pycache__"))
    for kind in resources.KINDS:  # as the wheel has them
        shutil.copytree(ROOT / kind, site / "jepa" / "_share" / kind)
    shutil.copytree(lab.run, theirs / "run", ignore=shutil.ignore_patterns("probes", "exports", "pictures", "*.html"))
    shutil.copytree(lab.data, theirs / "data")
    shutil.copy(ROOT / "tests" / "hostile" / "unprivileged.py", ground)
    locked(site, theirs)
    work.mkdir()
    if prefix:
        os.chown(work, NOBODY, NOBODY)
    env = {k: v for k, v in os.environ.items() if k in ("PATH", "LD_LIBRARY_PATH", "OMP_NUM_THREADS")}
    env |= {"HOME": str(ground / "no" / "home"), "PYTHONPATH": str(site), "LC_ALL": "C"}
    command = [*prefix, sys.executable, str(ground / "unprivileged.py"), str(work), str(theirs)]
    done = subprocess.run(command, cwd=work, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["package"] == str(site / "jepa" / "__init__.py") and (found["user"] != 0 or not prefix)
    for one in found["done"]:
        words, place = " ".join(one["words"]), str(theirs)
        own = place not in words or one["words"][0] == "inspect" or words.endswith(str(work / "others"))
        assert one["code"] == (0 if own else 2), one
        assert "Traceback" not in one["err"] and (own or place in one["err"]), one  # its data only root may see
        if "probe" in words and not own:
            assert "read-only" in one["err"] and "Copy the run" in one["err"], "told before the work, not after it"
    assert not list(site.rglob("*.pyc"))


def test_a_locale_without_letters(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """As with a code page of Windows: what it has no letter for is escaped. (ASCII click takes for UTF-8.)"""
    for words in (["inspect", str(lab.run)], ["watch", str(lab.root), "--once"], ["data", "show", str(lab.root)]):
        out, err = (io.TextIOWrapper(io.BytesIO(), encoding="cp1252", errors="strict") for _ in range(2))
        monkeypatch.setattr(sys, "stdout", out)
        monkeypatch.setattr(sys, "stderr", err)
        code = cli.main(words)
        out.flush(), err.flush()
        text = (out.buffer.getvalue() + err.buffer.getvalue()).decode("cp1252")  # type: ignore[attr-defined]
        assert code == (2 if words[0] == "data" else 0) and "Traceback" not in text, text
        assert r"Läufe und Daten \u5b9f" in text or words[0] == "watch", text


def test_a_name_that_is_no_utf_8_can_be_printed(lab: Lab, jepa: Jepa, tmp_path: Path) -> None:
    odd = tmp_path / os.fsdecode(b"caf\xe9")
    try:
        shutil.copytree(lab.data, odd)
    except OSError:
        pytest.skip("this file system takes UTF-8 alone")
    done = jepa("data", "show", odd)
    assert done.code == 0 and r"caf\udce9" in done.out, done.said
    assert json.loads(jepa("data", "show", odd, "--json").out)["folder"] == str(odd)
    done = jepa("data", "show", tmp_path / os.fsdecode(b"na\xefve"))
    assert done.code == 2 and r"na\udcefve" in done.err and "Traceback" not in done.err


@pytest.mark.parametrize("columns", ["10", "40"])
def test_narrow_terminals_and_no_colour_in_pipes(
    columns: str, lab: Lab, jepa: Jepa, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    monkeypatch.setenv("NO_COLOR", "1")
    for words in (["probe", lab.run, *PROBE], ["watch", lab.root, "--once"], ["doctor", "--help"], ["train", "nosuch"]):
        done = jepa(*words)
        assert done.code in (0, 2) and "Traceback" not in done.err, done.said
        assert "\x1b" not in done.out + done.err, words
