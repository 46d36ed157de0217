"""The list of mistakes that the suite must notice is in order, and the command that makes them can tell."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.hygiene.tree import PACKAGE, ROOT
from tests.mutants import edited, main, verdict
from tests.mutations import MUTANTS, one

PARTS = {"data", "masks", "nn", "methods", "probe", "checkpoint", "optim.py", "ema.py", "losses.py", "train.py"}


def test_every_edit_still_applies_and_names_tests_that_are_there() -> None:
    names = [mutant.name for mutant in MUTANTS]
    assert len(set(names)) == len(names) >= 40
    assert {mutant.file.split("/")[0] for mutant in MUTANTS} >= PARTS
    functions: dict[str, set[str]] = {}
    for mutant in MUTANTS:
        before = (PACKAGE / mutant.file).read_text(encoding="utf-8")
        ast.parse(edited(mutant, before))
        assert mutant.tests, mutant.name
        for test in mutant.tests:
            file, _, function = test.partition("::")
            if file not in functions:
                tree = ast.parse((ROOT / "tests" / file).read_text(encoding="utf-8"))
                functions[file] = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
            assert function in functions[file], f"{mutant.name}: no {test}"


def test_an_edit_that_no_longer_applies_is_told() -> None:
    for text in ("", "a = 1\na = 1\n"):
        with pytest.raises(ValueError, match="times: a = 1"):
            edited(one("x", "x.py", "a = 1", "a = 2"), text)


def test_what_an_exit_code_means() -> None:
    codes = {
        0: "survived",
        1: "killed",
        None: "killed",
        -11: "killed",
        2: "broken",
        4: "broken",
        5: "broken",
        71: "broken",
    }
    assert {code: verdict(code) for code in codes} == codes


def test_a_word_that_no_mutant_holds(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--only", "no such thing"]) == 2
    assert "no mutant's name" in capsys.readouterr().err


@pytest.mark.slow
def test_a_mutant_is_killed_and_the_tree_is_left_alone(tmp_path: Path) -> None:
    before = (PACKAGE / "ema.py").read_bytes()
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "tests/mutants.py", "--fresh", "--only", "momentum swapped"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "killed" in done.stdout and "1 of 1 killed" in done.stdout
    assert (PACKAGE / "ema.py").read_bytes() == before
