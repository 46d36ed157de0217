"""All benchmarks in one go, the grid of probes, and what a start costs: small, as real processes."""

from __future__ import annotations

import json

import pytest

from jepa import cli
from jepa.bench.everything import ENTRIES, AllSettings, bench_all
from jepa.bench.probe import ProbeSettings, bench_probe
from jepa.bench.start import StartSettings, bench_start
from jepa.cli_bench import bench_app
from jepa.errors import ConfigError


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
    assert {words[0] for words in ENTRIES.values()} == verbs - {"all", "interrupt", "scaling"}
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
    assert 0 < result["python"] < result["torch"] < result["first_step"]
    assert result["own"] == pytest.approx(result["first_step"] - result["torch"])
