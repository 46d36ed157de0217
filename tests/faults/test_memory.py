"""A limit on memory that is hit: a message that says what to lower, and a run that goes on."""

from __future__ import annotations

import os
import resource
import sys
from pathlib import Path

import pytest

from jepa import cli
from tests.faults.conftest import Material
from tests.train import worker


def _limited(arguments: list[str], spare: int, said: Path) -> None:
    """The child: the command line, with so many more bytes of addresses than it has."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * os.sysconf("SC_PAGE_SIZE") + spare
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    with said.open("w") as sys.stderr:
        code = cli.main(arguments)
    os._exit(code)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux")
def test_a_limit_on_memory(material: Material, tmp_path: Path) -> None:
    """A model of 1.2 GB in 600 MB: torch's allocator says no, which is no bug of ours."""
    said, out = tmp_path / "said", tmp_path / "run"
    wide = ["method.encoder.width=2048", "method.encoder.depth=6", "method.encoder.heads=8"]
    line = ["train", str(material.config), *wide, "--out", str(out)]
    child = worker._SERVER.Process(target=_limited, args=(line, 600_000_000, said))
    child.start()
    assert worker.finish(child) == 2, said.read_text()
    words = " ".join(said.read_text().split())
    assert "out of memory" in words and "Lower train.micro_batch" in words and "Traceback" not in words, words
    assert not (out / "config.yaml").exists(), "there is no run yet, and none is said to be"


def test_python_has_no_memory_left(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """numpy's and Python's own word for it."""
    from jepa import doctor

    def hungry() -> None:
        bytearray(1 << 62)

    monkeypatch.setattr(doctor, "examine", hungry)
    assert cli.main(["doctor"]) == 2
    said = capsys.readouterr().err
    assert "out of memory: an allocation failed" in said and "Traceback" not in said
