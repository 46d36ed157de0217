"""No file makes a reader run code, hang, crash, or raise what is no clear error; each one is counted."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.hostile.corpus import CANARY, COUNTS, files
from tests.hygiene.tree import ROOT

DEADLINE = 60.0  # seconds for one file on a busy machine


@pytest.fixture(scope="module")
def place(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The corpus, as KIND/NAME."""
    folder = tmp_path_factory.mktemp("hostile")
    for kind in COUNTS:
        (folder / "files" / kind).mkdir(parents=True)
        for name, content in files(kind, tiny_data):
            (folder / "files" / kind / name).write_bytes(content)
    return folder


@pytest.fixture(scope="module")
def outcomes(place: Path, tiny_data: Path) -> dict[str, str]:
    """What came of each file, by a reader in a process of its own; it is ended when a file takes too long."""
    command = [sys.executable, "-m", "tests.hostile.reader", str(place / "files"), str(tiny_data)]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, cwd=place, env=env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert process.stdout
    said, until = b"", time.monotonic() + 2 * DEADLINE  # the first file waits for imports
    while True:
        if select.select([process.stdout], [], [], max(0.0, until - time.monotonic()))[0]:
            more = os.read(process.stdout.fileno(), 1 << 16)
            if not more:
                break
            said, until = said + more, time.monotonic() + DEADLINE
        elif time.monotonic() > until:
            process.kill()
            said += b" hangs"
            break
    code = process.wait()
    lines = said.decode("utf-8", "replace").splitlines()
    found = {line.split(" ")[0]: line.partition(" ")[2] for line in lines}
    if code and "hangs" not in lines[-1]:
        found[lines[-1].split(" ")[0]] = f"ended the process: exit code {code}"
    return found


@pytest.mark.parametrize("kind", sorted(COUNTS))
def test_every_damaged_file_is_read_or_refused(kind: str, outcomes: dict[str, str]) -> None:
    mine = {name: what for name, what in outcomes.items() if name.startswith(f"{kind}/")}
    wrong = {name: what for name, what in mine.items() if what.split(" ")[0] not in ("read", "refused")}
    assert wrong == {}
    assert len(mine) == COUNTS[kind], "each is counted"
    counts = Counter(what.split(" ")[0] for what in mine.values())
    assert counts["refused"] > 0.3 * COUNTS[kind], counts
    assert all(len(what) > len("refused ") + 10 for what in mine.values() if what.startswith("refused")), (
        "with a reason"
    )


def test_nothing_was_run_or_written(place: Path, outcomes: dict[str, str]) -> None:
    assert outcomes
    assert not list(place.rglob(f"*{CANARY}*")) and [p.name for p in place.iterdir()] == ["files"]


def test_the_corpus_is_large_and_the_same_every_time(tiny_data: Path) -> None:
    assert sum(COUNTS.values()) >= 1000
    assert list(files("yaml", tiny_data)) == list(files("yaml", tiny_data))
