"""Episodes of a square that walks over a floor, and a run of the world model that knows it."""

from __future__ import annotations

from pathlib import Path

import pytest

from jepa import config
from jepa.config import RunConfig
from jepa.data.build import build
from jepa.train import train

WALK = """
name: walk
source:
  kind: rollouts
  env: tests/Walk-v0
  modules: [tests.data.envs.worlds]
  arrays: {place: info.place.xy}
  episodes: {train: 24, val: 6, test: 8}
  steps: 30
  deadline: null
splits: {fractions: {}}
video: {crf: 0, full_colour: true}
"""


@pytest.fixture(scope="session")
def walks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """38 episodes of 20 to 31 frames of 32 x 32, with the place of the square; actions of two numbers, in pixels."""
    folder = tmp_path_factory.mktemp("walks")
    (folder / "walk.yaml").write_text(WALK)
    build(folder / "walk.yaml", folder / "data", progress=False)
    return folder / "data"


def run_config(data: Path, *overrides: str, method: str = "tests.rollout.worlds:PointMass") -> RunConfig:
    """A few steps of a world model on windows of 4 frames."""
    values = {
        "name": "dot", "seed": 3,
        "method": {"name": method},
        "data": {
            "path": str(data), "image_size": 32, "clip": {"frames": 4, "stride": 1, "short": "pad"},
            "steps": {"also": ["place"]}, "mean": [0.0, 0.0, 0.0], "std": [1.0, 1.0, 1.0], "workers": 0,
            "crop_scale": [1.0, 1.0], "crop_ratio": [1.0, 1.0],
        },
        "optim": {"lr": 1e-4, "start_lr": 1e-4, "warmup": {"steps": 0}},
        "train": {
            "batch": 4, "duration": {"steps": 2}, "precision": "fp32", "checkpoint_every": {"steps": 2}, "log_every": 1,
            "trackers": [], "threads": 1,
        },
        "monitor": {"every": {"steps": 2}, "samples": 4, "knn_bank": 0},
    }  # fmt: skip
    return config.build(RunConfig, config.override(values, list(overrides)))


@pytest.fixture(scope="session")
def dot_run(walks: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose model believes in three quarters of each action."""
    out = tmp_path_factory.mktemp("runs") / "dot"
    train(run_config(walks, "method.gain=0.75", "method.unsure=true"), out, quiet=True)
    return out
