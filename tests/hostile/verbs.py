"""The verbs of the command line as they are found in it, a small world for them to work in, and a way to run one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import pytest
import typer
import yaml

from jepa import cli
from tests import tiny
from tests.hygiene.tree import ROOT

SMALL = (
    *("name=tiny", "source.size=20", "source.digit=[10, 14]", "source.clutter=1", "shards.max_samples=16"),
    "source.samples={train: 64, val: 16, test: 16}",
)
PROBE = ("--suite", "digits", "probes.linear.steps=2", "bootstrap.resamples=100", "--device", "cpu")
ROLLOUT = ("windows={seen: 2, horizon: 3, per_episode: 2, batch: 4}", "bootstrap.resamples=100", "--device", "cpu")
LINE = ROOT / "tests" / "plan" / "line.yaml"


def found() -> dict[str, Any]:
    """Every verb by its words, with its click command; of a group that does something itself too."""

    def walk(command: Any, words: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
        inner = getattr(command, "commands", None)
        if not inner or (words and command.invoke_without_command):
            yield " ".join(words), command
        for name, one in (inner or {}).items():
            yield from walk(one, (*words, name))

    return dict(walk(typer.main.get_command(cli.app), ()))


@dataclass(frozen=True)
class Done:
    """What a verb left on the terminal."""

    code: int
    out: str
    err: str

    @property
    def said(self) -> str:
        return f"{self.code}: {self.err or self.out}"


Jepa = Callable[..., Done]


def runner(capsys: pytest.CaptureFixture[str]) -> Jepa:
    """Runs a verb in this process, as the command line does."""

    def run(*words: str | Path) -> Done:
        capsys.readouterr()
        code = cli.main([str(word) for word in words])
        return Done(code, *capsys.readouterr())

    return run


@dataclass(frozen=True)
class Lab:
    """A folder with a letter of every alphabet in its name, and what verbs work on in it."""

    root: Path

    data = property(lambda self: self.root / "Daten 実験")
    run = property(lambda self: self.root / "Läufe" / "mein Lauf")
    features = property(lambda self: self.root / "Merkmale ñ")
    config = property(lambda self: self.root / "kleine Übung.yaml")
    walks = property(lambda self: self.root / "Wege")
    world = property(lambda self: self.root / "Welt")
    planner = property(lambda self: self.root / "Planer ☂")
    suite = property(lambda self: self.root / "línea.yaml")

    def write_config(self) -> None:
        self.config.write_text(yaml.safe_dump(tiny.VALUES | {"name": "übung"}), encoding="utf-8")


def junk(folder: Path) -> Path:
    """Random bytes under every name that a verb looks for."""
    draw = Random(7)
    inner = folder / "checkpoints" / "step-3"
    for name in (
        *("config.yaml", "manifest.json", "checkpoint.json", "metrics.jsonl", "export.json", "model.safetensors"),
        *("COMPLETE", "environment.json", "restarts.jsonl", "attempts.jsonl", "config.json", "slurm/jobs.jsonl"),
        *(f"checkpoints/step-3/{n}" for n in ("checkpoint.json", "COMPLETE", "model.safetensors", "config.yaml")),
    ):
        inner.mkdir(parents=True, exist_ok=True)
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(draw.randbytes(300))
    return folder


def files(*folders: Path) -> Mapping[str, tuple[int, int]]:
    """Size and time of every file, to see that nothing was written; locks of run folders come and go."""
    seen = {}
    for path in (p for folder in folders for p in folder.rglob("*") if p.name != ".lock"):
        about = path.stat()
        seen[str(path)] = (0, 0) if path.is_dir() else (about.st_size, about.st_mtime_ns)
    return seen
