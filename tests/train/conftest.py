"""Fixtures for tests of training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests import tiny


@pytest.fixture(scope="session")
def movies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """30 training videos of 8 frames of 24 x 24, in uneven shards."""
    return tiny.build_movies(tmp_path_factory.mktemp("data") / "movies", 30, 6, 6)


@pytest.fixture(scope="session")
def walks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """12 episodes of 13 frames of 16 x 16 in which a bright square goes where the action says."""

    def draw(rng: np.random.Generator) -> tiny.Arrays:
        action = rng.uniform(-2, 2, (12, 2)).astype(np.float32)
        place = np.clip(6 + np.concatenate([np.zeros((1, 2)), action.cumsum(0)]), 0, 12).astype(np.float32)
        frames = np.full((13, 16, 16, 3), 40, dtype=np.uint8)
        for frame, (x, y) in zip(frames, place.round().astype(int), strict=True):
            frame[y : y + 4, x : x + 4] = 220
        return {"frames": frames, "action": action, "state": place}

    return tiny.build_walks(tmp_path_factory.mktemp("data") / "walks", 12, 9, draw, "shards.max_samples=5")
