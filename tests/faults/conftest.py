"""A trained tiny run, its data, a model to plan with, and the verbs that write, as command lines."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from jepa import config
from jepa.export.write import export
from tests.plan.rooms import run_folder
from tests.probe.conftest import probe_data, run
from tests.rollout.conftest import dot_run, walks
from tests.tiny import VALUES

DIGITS = ("source.size=20", "source.digit=[10, 14]", "source.samples={train: 70, val: 10, test: 10}")
SUITE = "name: small\nprobes: {knn: {k: [1, 3]}, ridge: {targets: [x]}}\nbaselines: {}\nbootstrap: {resamples: 100}\n"


@dataclass(frozen=True)
class Material:
    """What the verbs work on."""

    data: Path
    run: Path
    model: Path  # the run of a world model
    dot: Path  # another, with episodes to roll out on
    official: Path  # a folder of transformers
    config: Path
    suite: Path


@pytest.fixture(scope="session")
def material(probe_data: Path, run: Path, dot_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Material:
    folder = tmp_path_factory.mktemp("material")
    settings = config.override(VALUES, [f"data.path={probe_data}", "monitor.every={steps: 0}", "train.keep=0"])
    (folder / "tiny.yaml").write_text(yaml.safe_dump(settings))
    (folder / "small.yaml").write_text(SUITE)
    (folder / "walk.yaml").write_text(WALK)
    model = run_folder(folder / "model", "method.speed=14", "method.walls=false", stride=2)
    official = export(run, "transformers", folder / "official").folder
    return Material(probe_data, run, model, dot_run, official, folder / "tiny.yaml", folder / "small.yaml")


def _train(*more: str) -> Callable[[Material, Path], list[str]]:
    def line(given: Material, out: Path) -> list[str]:
        if (out / "config.yaml").exists():
            return ["train", str(out), "--resume", "--trace"]
        return ["train", str(given.config), *more, "--out", str(out), "--trace"]

    return line


WALK = """
name: line
licence: none
source: {kind: rollouts, env: tests/Line-v0, modules: [tests.plan.stages], steps: 10, until: steps,
  deadline: null, arrays: {state: info.state}, episodes: {train: 6, val: 1, test: 1}}
shards: {max_samples: 2}
"""
LINE = str(Path(__file__).parents[1] / "plan" / "line.yaml")
ROLLOUT = (
    "windows={seen: 2, horizon: 5, per_episode: 1}",
    "bootstrap.resamples=100",
    "pictures={episodes: 1, bank: 50}",
)
EXTRACT = ("--tokens", "--batch", "10", "--shard-samples", "50", "--device", "cpu")


def prepare(verb: str, given: Material, out: Path) -> None:
    """What a verb wants to find where it writes."""
    runs = {"probe": given.run, "plan": given.model, "rollout": given.dot}
    if verb in runs:
        shutil.copytree(runs[verb], out)


# a verb that writes -> its command line, the same each time it is run again
VERBS: dict[str, Callable[[Material, Path], list[str]]] = {
    "train": _train(),
    "train, background": _train("train.checkpoint_async=true"),
    "data build": lambda _, out: ["data", "build", "digits", "--out", str(out), "shards.max_samples=15", *DIGITS],
    "collection": lambda m, out: ["data", "build", str(m.config.with_name("walk.yaml")), "--out", str(out)],
    "data check": lambda m, out: ["data", "check", str(m.data), "--out", str(out), "--clean", f"{out}.txt"],
    "import": lambda m, out: ["import", str(m.official), "--from", "transformers", "--to", str(out)],
    "export safetensors": lambda m, out: ["export", str(m.run), "--format", "safetensors", "--out", str(out)],
    "export torch": lambda m, out: ["export", str(m.run), "--format", "torch", "--out", str(out)],
    "extract": lambda m, out: ["extract", str(m.run), str(m.data), "--out", str(out), *EXTRACT],
    "probe": lambda m, out: ["probe", str(out), "--suite", str(m.suite), "--device", "cpu"],
    "plan": lambda _, out: ["plan", str(out), "--suite", LINE, "--device", "cpu"],
    "rollout": lambda _, out: ["rollout", str(out), *ROLLOUT, "--device", "cpu"],
    "report": lambda m, out: ["report", str(m.run), "--out", f"{out}.html"],
}

__all__ = ["VERBS", "Material", "dot_run", "material", "prepare", "probe_data", "run", "walks"]
