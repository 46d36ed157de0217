"""The smallest run that is still a run: 64 pictures of 20 x 20, a ViT of width 32 and depth 1. And small videos."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from jepa import config
from jepa.config import RunConfig
from jepa.data.build import build

Arrays = dict[str, npt.NDArray[Any]]
VALUES: dict[str, Any] = {
    "name": "tiny",
    "seed": 3,
    "method": {
        "name": "ijepa",
        "encoder": {"patch": 4, "width": 32, "depth": 1, "heads": 2},
        "predictor": {"width": 16, "depth": 1, "heads": 2},
    },
    "data": {"image_size": 20, "workers": 0, "crop_scale": [0.6, 1.0]},
    "optim": {"lr": 1e-3, "start_lr": 1e-4, "warmup": {"steps": 3}},
    "train": {
        "batch": 8,
        "duration": {"steps": 12},
        "precision": "fp32",
        "checkpoint_every": {"steps": 5},
        "log_every": 1,
        "trackers": [],
        "threads": 1,
    },
    "monitor": {"every": {"steps": 4}, "samples": 8, "knn_bank": 16, "knn_k": 3},
    "health": {"starvation": {"act": "ignore"}},  # the only alarm that depends on how busy the machine is
}


def build_movies(folder: Path, train: int, val: int, test: int) -> Path:
    """Videos of 8 frames of 24 x 24 with a digit, in shards of 13."""
    sizes = ["source.size=24", "source.digit=[10, 14]", "source.frames=8", "source.clutter=1"]
    counts = [f"source.samples={{train: {train}, val: {val}, test: {test}}}", "shards.max_samples=13"]
    build("moving-digits", folder, overrides=["name=movies", *sizes, *counts], progress=False)
    return folder


def build_walks(
    folder: Path, episodes: int, train: int, draw: Callable[[np.random.Generator], Arrays], *more: str
) -> Path:
    """Episodes with arrays, the first `train` for training and the others for tests; `draw` makes one, "frames" too."""
    files = folder.with_name(f"{folder.name}-files")
    for episode in range(episodes):
        split = files / ("train" if episode < train else "test")
        split.mkdir(parents=True, exist_ok=True)
        np.savez(split / f"{episode:02d}.npz", **draw(np.random.default_rng(episode)))
    build("npz", folder, overrides=["name=walks", f"source.path={files}", *more], progress=False)
    return folder


def run_config(data: Path, *overrides: str, method: str | dict[str, Any] | None = None) -> RunConfig:
    """The tiny run on a dataset, with ``a.b=value`` overrides; `method` (its name or section) replaces I-JEPA."""
    start = VALUES if method is None else VALUES | {"method": {"name": method} if isinstance(method, str) else method}
    values = config.override(start, [f"data.path={data}", *overrides])
    return config.build(RunConfig, values)
