"""Fixtures for tests of training."""

from __future__ import annotations

from pathlib import Path

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
