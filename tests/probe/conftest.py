"""A trained tiny run and data sets to probe it on."""

from __future__ import annotations

from pathlib import Path

import pytest

from jepa.data.build import build
from jepa.train import train
from tests.tiny import run_config


@pytest.fixture(scope="session")
def probe_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """200 train, 60 val, 90 test pictures: every class in every split, several pictures of one original."""
    folder = tmp_path_factory.mktemp("data") / "digits"
    build(
        "digits",
        folder,
        overrides=[
            "name=small",
            "source.size=20",
            "source.digit=[14, 16]",
            "source.clutter=0",
            "source.originals={train: 0.05, val: 0.02, test: 0.02}",
            "source.samples={train: 200, val: 60, test: 90}",
            "shards.max_samples=64",
        ],
        progress=False,
    )
    return folder


@pytest.fixture(scope="session")
def run(probe_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with checkpoints at steps 0, 3 and 6."""
    out = tmp_path_factory.mktemp("runs") / "tiny"
    config = run_config(probe_data, "train.duration={steps: 6}", "train.checkpoint_every={steps: 3}", "train.keep=0")
    train(config, out, quiet=True)
    return out
