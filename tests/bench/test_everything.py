"""All benchmarks in one go, the grid of probes, and what a start costs: small, as real processes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from jepa import cli, config
from jepa.bench.everything import ENTRIES, AllSettings, bench_all
from jepa.bench.grow import MemorySettings, bench_memory
from jepa.bench.probe import ProbeSettings, bench_probe
from jepa.bench.small import MEDIA, Media, build_small, values
from jepa.bench.start import StartSettings, bench_start
from jepa.cli_bench import bench_app
from jepa.config import RunConfig
from jepa.errors import ConfigError
from jepa.train import train


def test_one_that_cannot_run_is_told_and_the_others_go_on(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["only=[masks,probe]", "masks.rounds=2", "masks.reference=false", "probe.classes=1"]
    assert cli.main(["bench", "all", "--json", *words]) == 0
    out, said = capsys.readouterr()
    found = json.loads(out)
    assert said.splitlines() == ["measuring masks", "measuring probe"]
    assert set(found["results"]) == {"masks"} and found["results"]["masks"]["settings"]["rounds"] == 2
    assert found["missing"]["probe"].startswith("samples=10000, batch=16, classes=1: allowed")
    assert set(found["seconds"]) == {"masks", "probe"} and found["date"]
    assert cli.main(["bench", "all", "only=[masks]", "masks.rounds=1", "masks.reference=false"]) == 0
    assert "exact_ms" in capsys.readouterr().out


def test_every_entry_is_a_benchmark_there_is() -> None:
    verbs = {command.name for command in bench_app.registered_commands}
    assert {words[0] for words in ENTRIES.values()} == verbs - {"all", "interrupt", "memory", "scaling"}
    with pytest.raises(ConfigError, match="no benchmark 'speed' here; there are: step, "):
        bench_all(AllSettings(only=("speed",)))
    with pytest.raises(ConfigError, match="no benchmark 'stp'"):
        bench_all(AllSettings(), ["stp.batch=3"])


def test_a_grid_of_probes_against_one() -> None:
    result = bench_probe(ProbeSettings(size="tiny", image_size=32, samples=300, classes=5, batch=2, rounds=1))
    assert result["heads"] == 24 and result["fit_ratio"] == pytest.approx(result["fit_grid_s"] / result["fit_one_s"])
    assert result["encode_s"] == pytest.approx(420 / result["encoder"])
    whole, alone = (result["encode_s"] + result[f"fit_{name}_s"] for name in ("grid", "one"))
    assert result["ratio"] == pytest.approx(whole / alone)


@pytest.mark.slow
def test_a_start() -> None:
    result = bench_start(StartSettings(rounds=1))
    assert all(result[name] > 0 for name in ("python", "torch", "first_step"))
    assert result["own"] == pytest.approx(result["first_step"] - result["torch"])


@pytest.mark.slow
def test_memory_of_a_run() -> None:
    result = bench_memory(MemorySettings(decoders=("images",), steps=60, batch=2, workers=0))
    assert result["images.early_mib"] > 100
    growth = 100 * (result["images.late_mib"] / result["images.early_mib"] - 1)
    assert result["images.growth_percent"] == pytest.approx(growth) and growth < 10
    with pytest.raises(ConfigError, match="decoders images, "):
        bench_memory(MemorySettings(decoders=("gif",)))


@pytest.mark.parametrize("media", MEDIA)
def test_small_runs_are_whole_configurations(media: Media, tmp_path: Path) -> None:
    data = build_small(media, tmp_path / media, 16)
    given = values(media, data)
    more = {"train": {"batch": 4, "duration": {"steps": 1}, "precision": "fp32"}, "optim": {"warmup": {"steps": 0}}}
    settings = config.build(RunConfig, given | more)
    assert train(settings, tmp_path / "run", quiet=True).step == 1
