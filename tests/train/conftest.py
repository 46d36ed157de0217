"""Fixtures for tests of training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from jepa.data.build import build


@pytest.fixture(scope="session")
def movies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """30 training videos of 8 frames of 24 x 24, in uneven shards."""
    folder = tmp_path_factory.mktemp("data") / "movies"
    sizes = ["source.size=24", "source.digit=[10, 14]", "source.frames=8", "source.clutter=1"]
    counts = ["source.samples={train: 30, val: 6, test: 6}", "shards.max_samples=13"]
    build("moving-digits", folder, overrides=["name=movies", *sizes, *counts], progress=False)
    return folder


@pytest.fixture(scope="session")
def walks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """12 episodes of 13 frames of 16 x 16 in which a bright square goes where the action says."""
    files, out = tmp_path_factory.mktemp("walks"), tmp_path_factory.mktemp("data") / "walks"
    for episode in range(12):
        rng = np.random.default_rng(episode)
        action = rng.uniform(-2, 2, (12, 2)).astype(np.float32)
        place = np.clip(6 + np.concatenate([np.zeros((1, 2)), action.cumsum(0)]), 0, 12).astype(np.float32)
        frames = np.full((13, 16, 16, 3), 40, dtype=np.uint8)
        for frame, (x, y) in zip(frames, place.round().astype(int), strict=True):
            frame[y : y + 4, x : x + 4] = 220
        folder = files / ("train" if episode < 9 else "test")
        folder.mkdir(exist_ok=True)
        np.savez(folder / f"{episode:02d}.npz", frames=frames, action=action, state=place)
    build("npz", out, overrides=["name=walks", f"source.path={files}", "shards.max_samples=5"], progress=False)
    return out
