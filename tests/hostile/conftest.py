"""What the tests of verbs share."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from jepa import cli
from jepa.data.build import build
from jepa.train import train
from tests.hostile.verbs import LINE, SMALL, Jepa, Lab, runner
from tests.plan.rooms import run_folder
from tests.rollout.conftest import WALK, run_config


@pytest.fixture
def jepa(capsys: pytest.CaptureFixture[str]) -> Jepa:
    return runner(capsys)


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    """A data set, a run with a probe, features, a world model and a planner, all under odd names."""
    made = Lab(tmp_path_factory.mktemp("hostile") / "Läufe und Daten 実験")
    made.root.mkdir()
    made.write_config()
    for words in (
        ["data", "build", "digits", "--out", str(made.data), *SMALL],
        ["train", str(made.config), "--out", str(made.run), f"data.path={made.data}", "train.duration.steps=4"],
        ["extract", str(made.run), str(made.data), "--out", str(made.features), "--device", "cpu"],
        ["export", str(made.run), "--format", "timm"],
    ):
        assert cli.main(words) == 0, words
    recipe = made.root / "walk.yaml"
    recipe.write_text(WALK)
    build(recipe, made.walks, overrides=["source.episodes={train: 4, val: 2, test: 3}"], progress=False)
    train(run_config(made.walks, "method.gain=0.75"), made.world, quiet=True)
    run_folder(made.planner, "method.speed=14", "method.walls=false", stride=2)
    shutil.copy(LINE, made.suite)
    return made


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, which is the current one."""
    monkeypatch.chdir(tmp_path)
    return tmp_path
