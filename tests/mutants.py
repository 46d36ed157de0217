"""Does the suite notice mistakes? Makes each one of tests/mutations.py in a copy of the package and runs its tests.

    make mutants                 all of them; what is done already is not run again, so it may be stopped at any time
    make mutants ONLY=rope       those whose name, file or tests hold this word
    make mutants FRESH=1         forget what was done

First the tests are run on the package as it is: they must pass. Then a mutant is *killed* when one of its tests fails,
as it should, and *survived* when all pass: a test is missing. A mutant that cannot be made any more (its old text was
changed), does not import, or names tests that are not there is *broken*: mend the list. The last two are failures.

The copy lies in a temporary folder; the working tree is never touched. Where processes can be forked, torch is imported
once for all of them.
"""

from __future__ import annotations

import argparse
import compileall
import hashlib
import importlib
import json
import os
import py_compile
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from tests.mutations import MUTANTS, Mutant  # noqa: E402

COPIED = ("jepa", "tests", "configs", "datasets", "eval", "pyproject.toml", "README.md", "LICENSE")
DONE = ROOT / "build" / "mutants.json"
HEAVY = ("torch", "numpy", "pytest", "hypothesis", "safetensors.torch", "PIL.Image", "av", "yaml", "rich.console")
PYTEST = ["-x", "-q", "--no-header", "-p", "no:cacheprovider", "-p", "no:xdist"]
PASSED, FAILED = 0, 1  # pytest's exit codes
LIMIT = 900  # seconds for one mutant's tests; more is a hang, which is noticed too


def edited(mutant: Mutant, text: str) -> str:
    """The file's text with the mistake in it.

    Raises:
        ValueError: an old text that does not occur exactly once.
    """
    for old, new in mutant.edits:
        if text.count(old) != 1:
            raise ValueError(f"jepa/{mutant.file} holds {text.count(old)} times: {old.strip()[:70]}")
        text = text.replace(old, new)
    return text


@contextmanager
def copy_of_the_tree() -> Iterator[Path]:
    """A temporary copy in which mistakes are made; compiled so that an edited file is noticed by its content."""
    with tempfile.TemporaryDirectory(prefix="mutants-") as name:
        folder = Path(name)
        for entry in COPIED:
            source = ROOT / entry
            if source.is_dir():
                shutil.copytree(source, folder / entry, ignore=shutil.ignore_patterns("__pycache__"))
            elif source.is_file():
                shutil.copy2(source, folder / entry)
        mode = py_compile.PycInvalidationMode.CHECKED_HASH
        compileall.compile_dir(folder / "jepa", quiet=2, invalidation_mode=mode)
        yield folder


def run_tests(folder: Path, tests: Sequence[str], log: Path) -> int | None:
    """pytest's exit code in a process of its own; None when it took too long."""
    arguments = [*PYTEST, *(f"tests/{test}" for test in dict.fromkeys(tests))]
    environment = {"PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    if not hasattr(os, "fork"):
        command = [sys.executable, "-m", "pytest", *arguments]
        try:
            with log.open("w") as out:
                done = subprocess.run(command, cwd=folder, env=os.environ | environment, stdout=out, stderr=out,
                                      timeout=LIMIT, check=False)  # fmt: skip
            return done.returncode
        except subprocess.TimeoutExpired:
            return None
    child = os.fork()
    if not child:
        _in_child(folder, arguments, environment, log)
    until = time.monotonic() + LIMIT
    while time.monotonic() < until:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.05)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


def _in_child(folder: Path, arguments: list[str], environment: dict[str, str], log: Path) -> None:
    """Does not return."""
    code = 70
    try:
        os.setpgid(0, 0)
        with log.open("w") as out:
            os.dup2(out.fileno(), 1)
            os.dup2(out.fileno(), 2)
        os.environ |= environment
        os.chdir(folder)
        sys.dont_write_bytecode = True
        sys.path[:] = [str(folder), *(p for p in sys.path if p and Path(p) != ROOT)]
        for name in [n for n in sys.modules if n == "tests" or n.startswith("tests.")]:
            del sys.modules[name]
        import pytest

        code = int(pytest.main(arguments))
        where = Path(importlib.import_module("jepa").__file__ or "")
        if not where.is_relative_to(folder):
            print(f"jepa was taken from {where}, not from the copy")
            code = 71
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)


def verdict(code: int | None) -> str:
    if code is None or code == FAILED or code < 0:  # a hang or a crash is noticed as well
        return "killed"
    return "survived" if code == PASSED else "broken"


def fingerprint() -> str:
    """Of everything a verdict depends on."""
    digest = hashlib.sha256()
    for entry in ("jepa", "tests"):
        for path in sorted((ROOT / entry).rglob("*.py")):
            digest.update(f"{path.relative_to(ROOT)}\0".encode() + path.read_bytes())
    return digest.hexdigest()


def remembered() -> dict[str, str]:
    """Mutants killed earlier, with the same files."""
    try:
        values = json.loads(DONE.read_text())
    except (OSError, ValueError):
        return {}
    return dict(values.get("killed", {})) if values.get("files") == fingerprint() else {}


def remember(killed: dict[str, str], files: str) -> None:
    DONE.parent.mkdir(exist_ok=True)
    DONE.write_text(json.dumps({"files": files, "killed": killed}, indent=1))


def main(arguments: Sequence[str] | None = None) -> int:
    """0 when every mutant that was asked for is killed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="mutants whose name, file or tests hold this word")
    parser.add_argument("--fresh", action="store_true", help="run those again that were killed before")
    asked = parser.parse_args(arguments)
    word = asked.only.lower()
    chosen = [m for m in MUTANTS if word in " ".join((m.name, m.file, *m.tests)).lower()]
    if not chosen:
        print(f"no mutant's name, file or tests hold {asked.only!r}", file=sys.stderr)
        return 2
    files, killed = fingerprint(), remembered()
    waiting = [m for m in chosen if asked.fresh or m.name not in killed]
    for name in HEAVY if waiting else ():
        importlib.import_module(name)
    failures: list[str] = []
    with copy_of_the_tree() as folder:
        log = folder / "pytest.log"
        if waiting:
            tests = [test for mutant in waiting for test in mutant.tests]
            print(
                f"{len(waiting)} of {len(chosen)} mutants to run; first their tests on the package as it is", flush=True
            )
            if run_tests(folder, tests, log) != PASSED:
                print(log.read_text() + "\nthese tests must pass before they can notice anything", file=sys.stderr)
                return 2
        for number, mutant in enumerate(waiting, 1):
            begin, path = time.monotonic(), folder / "jepa" / mutant.file
            said, before = "", path.read_text(encoding="utf-8") if path.is_file() else ""
            try:
                path.write_text(edited(mutant, before), encoding="utf-8")
                result = verdict(run_tests(folder, mutant.tests, log))
                said = "" if result != "broken" else log.read_text()[-2000:]
            except ValueError as error:
                result, said = "broken", str(error)
            finally:
                if before:
                    path.write_text(before, encoding="utf-8")
            seconds = time.monotonic() - begin
            print(
                f"{number:4d}/{len(waiting)}  {result:9s} {seconds:6.1f} s  {mutant.name}  (jepa/{mutant.file})",
                flush=True,
            )
            if result == "killed":
                killed[mutant.name] = mutant.file
                remember(killed, files)
            else:
                failures.append(
                    f"{result}: {mutant.name} (jepa/{mutant.file}; {', '.join(mutant.tests)})\n{said}".rstrip()
                )
    print(f"\n{len(chosen) - len(failures)} of {len(chosen)} killed")
    for failure in failures:
        print(f"\n{failure}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
