"""`jepa bench decode` on a small film: every figure is there and they fit together."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from jepa.bench.decode import DecodeSettings, bench_decode
from jepa.bench.films import write_film
from jepa.data.video.probe import probe
from jepa.errors import ConfigError

SMALL = {"frames": 4, "seconds": 1.0, "size": (48, 64), "gop": 10, "clips": 2, "rounds": 2, "image_size": 32}


def test_libraries_and_pool() -> None:
    result = bench_decode(DecodeSettings(**SMALL, batch=2, workers=1))  # type: ignore[arg-type]
    assert "h264 64x48, 30 frames, 30 fps, 3 key frames" in result.settings["video"] and result["probe_ms"] > 0
    for name in ("torchcodec", "decord", "pyav"):
        assert result[f"{name}.difference"] <= 2
        assert result[f"{name}.clips_per_s"] == pytest.approx(1e3 / result[f"{name}.clip_ms"])
        for figure in (f"{name}.bare_ms", f"{name}.share", f"pool.{name}.clips_per_s", f"pool.{name}.share"):
            assert result[figure] > 0, figure
    assert json.loads(json.dumps(result.to_dict()))["bench"] == "decode"


def test_a_file_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "film.mp4"
    write_film(path, 1.0, (48, 64), 30, 0)
    assert probe(path).keys.tolist() == [0] and probe(path).timeline.fps == 30
    result = bench_decode(DecodeSettings(file=str(path), decoders=("pyav",), rounds=1, clips=1, pool=False))
    names = {f"pyav.{figure}" for figure in ("bare_ms", "clip_ms", "clips_per_s", "share", "difference")}
    assert set(result.figures) == names | {"probe_ms"}
    with pytest.raises(ConfigError, match="allowed are auto"):
        bench_decode(DecodeSettings(decoders=("opencv",)))
    with pytest.raises(ConfigError, match="at least 1"):
        bench_decode(DecodeSettings(rounds=0))
