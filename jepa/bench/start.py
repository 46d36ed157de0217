"""``jepa bench start``: how long a command takes before it does anything, in processes of their own.

What imports cost, and how long it takes from the start of `jepa train` to the end of a first step. The floor is Python
with torch and torchvision, which every training program imports.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from jepa.bench.result import Result, hardware, interleaved, median
from jepa.data.build import build
from jepa.errors import ConfigError


@dataclass(frozen=True)
class StartSettings:
    """What is measured."""

    rounds: int = 3


def bench_start(settings: StartSettings | None = None) -> Result:
    """Run the benchmark.

    Returns:
        Figures in seconds: python, torch (with torchvision), help (`jepa --help`), training (importing what `jepa
        train` imports), first_step (`jepa train` of one step on the embedded digits, from process start to its end);
        own = first_step - torch.
    """
    wanted = settings or StartSettings()
    with tempfile.TemporaryDirectory(prefix="jepa-bench-") as place:
        folder = Path(place)
        build("digits", folder / "digits", overrides=["source.samples={train: 64, val: 16, test: 16}"], workers=0)
        (folder / "runs").mkdir()
        number = iter(range(1_000_000))

        def first_step() -> None:
            out = folder / "runs" / str(next(number))
            words = (
                "train.duration.steps=1",
                "monitor.every={steps: 1000}",
                "data.workers=0",
                f"data.path={folder}/digits",
            )
            _run("-m", "jepa", "--quiet", "train", "demo", "--debug", "--out", str(out), *words)

        seconds = interleaved(
            {
                "python": lambda: _run("-c", "pass"),
                "torch": lambda: _run("-c", "import torch, torchvision"),
                "help": lambda: _run("-m", "jepa", "--help"),
                "training": lambda: _run("-c", "import jepa.train, jepa.monitor"),
                "first_step": first_step,
            },
            wanted.rounds,
            warmup=min(1, wanted.rounds - 1),
        )
    result = Result("start", {"rounds": wanted.rounds}, hardware())
    notes = {
        "python": "an empty program",
        "torch": "torch and torchvision imported",
        "help": "jepa --help",
        "training": "what `jepa train` imports, imported",
        "first_step": "jepa train demo --debug, one step, checkpoint and all",
    }
    for name, note in notes.items():
        result.add(name, median(seconds[name]), "s", note)
    result.add("own", result["first_step"] - result["torch"], "s", "first_step less torch")
    return result


def _run(*words: str) -> None:
    root = str(Path(__file__).resolve().parents[2])
    known = os.environ.get("PYTHONPATH")
    env = os.environ | {"PYTHONPATH": os.pathsep.join([root, known] if known else [root])}
    done = subprocess.run([sys.executable, *words], env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ConfigError(f"{' '.join(words)} failed: {done.stderr.strip()[-500:]}")


__all__ = ["StartSettings", "bench_start"]
