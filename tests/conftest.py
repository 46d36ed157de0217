"""Fixtures for the whole suite."""

from __future__ import annotations

from pathlib import Path

import pytest

from jepa.data.build import build


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real built dataset: 64 train, 16 val and 16 test pictures of 20 x 20 with a digit, in shards of 16."""
    folder = tmp_path_factory.mktemp("data") / "tiny"
    build(
        "digits",
        folder,
        overrides=[
            "name=tiny",
            "source.size=20",
            "source.digit=[10, 14]",
            "source.clutter=1",
            "source.samples={train: 64, val: 16, test: 16}",
            "shards.max_samples=16",
        ],
        progress=False,
    )
    return folder
