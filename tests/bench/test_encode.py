"""`jepa bench encode` gives figures of everything that was asked for."""

from __future__ import annotations

import pytest

from jepa.bench.encode import EncodeSettings, bench_encode
from jepa.errors import ConfigError


def test_images_against_everyone() -> None:
    settings = EncodeSettings(size="tiny", image_size=32, batch=2, compile=False, rounds=1)
    result = bench_encode(settings, "cpu")
    assert {name.split(".")[0] for name in result.figures} == {"ours", "timm", "transformers", "onnx"}
    assert all(figure.value > 0 for figure in result.figures.values())


def test_clips_have_no_timm() -> None:
    settings = EncodeSettings(
        "vjepa", "tiny", 32, frames=4, batch=1, compile=False, onnx=False, rounds=1, clock="processor"
    )
    result = bench_encode(settings, "cpu")
    assert set(result.figures) == {"ours.clips_per_s", "transformers.clips_per_s", "transformers.ratio"}


def test_nothing_to_measure_is_refused() -> None:
    with pytest.raises(ConfigError, match="at least 1"):
        bench_encode(EncodeSettings(rounds=0), "cpu")
