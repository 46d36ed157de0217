"""The report served on this machine, several runs compared, alarms in the page, and what is said of energy."""

from __future__ import annotations

import json
import shutil
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from jepa.cli import main
from jepa.errors import ConfigError
from jepa.monitor import Monitor
from jepa.report import build_report, summary
from jepa.report.live import LiveReport, Server
from jepa.report.markup import energy
from jepa.train import train
from tests.report.conftest import Page, Runs
from tests.tiny import run_config


@pytest.fixture(scope="module")
def back(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was rolled back once."""
    out = tmp_path_factory.mktemp("back") / "run"
    collapse = ("optim.lr=3e-2", "optim.start_lr=3e-2", "method.ema=[0.5, 0.5]", "train.checkpoint_every={steps: 4}")
    more = ("train.duration={steps: 20}", "health.collapse.act=rollback", "name=back")
    train(run_config(tiny_data, *collapse, *more), out, monitor=Monitor, quiet=True)
    return out


def get(address: str, **headers: str) -> str:
    with urllib.request.urlopen(urllib.request.Request(address, headers=headers), timeout=20) as answer:
        text: str = answer.read().decode()
        return text


def test_served_and_made_anew_when_a_run_changes(back: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(back, tmp_path / "live")
    with Server([folder], every=0.05) as server:
        assert server.address.startswith("http://127.0.0.1:")
        assert '<iframe src="report"' in get(server.address)
        before, version = get(server.address + "report"), get(server.address + "version")
        assert "JEPA report" in before
        with (folder / "metrics.jsonl").open("a") as stream:
            stream.write(json.dumps({"step": 21, "loss": 0.5, "warnings": ["something new"]}) + "\n")
        end = time.monotonic() + 30
        while get(server.address + "version") == version and time.monotonic() < end:
            time.sleep(0.05)
        assert "something new" in get(server.address + "report") and "something new" not in before
        for path, host in (("report", "evil.example:80"), ("../../etc/passwd", None), ("metrics.jsonl", None)):
            with pytest.raises(urllib.error.HTTPError) as refused:
                get(server.address + path, **({"Host": host} if host else {}))
            assert refused.value.code == (403 if host else 404)
        with pytest.raises(ConfigError, match=r"cannot listen on 127\.0\.0\.1:\d+: Address already in use"):
            Server([folder], port=int(server.address.rstrip("/").rpartition(":")[2]))
    with pytest.raises(urllib.error.URLError):
        get(server.address)


def test_pictures_are_drawn_once_for_a_checkpoint(back: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(back, tmp_path / "live")
    report = LiveReport([folder])
    drawn = report._pictures
    assert not report.refresh()
    with (folder / "metrics.jsonl").open("a") as stream:
        stream.write('{"step": 21, "loss": 0.5}\n')
    assert report.refresh() and report._pictures is drawn
    shutil.rmtree(folder / "checkpoints" / "step-20")
    assert report.refresh() and report._pictures is not drawn


def test_live_and_a_file_are_two_things(back: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(back), "--live", "--out", str(tmp_path / "r.html")]) == 2
    assert "give one of them" in capsys.readouterr().err
    assert main(["report", str(tmp_path / "none"), "--live"]) == 2


def test_a_roll_back_is_marked_in_the_curves(back: Path, tmp_path: Path) -> None:
    page = Page(build_report([back], tmp_path / "r.html").read_text(encoding="utf-8"))
    assert not page.unbalanced and not page.open
    assert page.text.count("↶ collapse") > 6 and "attempt 0, abandoned" in page.text
    assert "rolled back to step 4 (collapse)" in page.text and "roll-back 1: collapse" in page.text
    found = summary(back)
    assert found["alarms"] == [{"step": 4.0, "alarm": "collapse", "act": "rollback"}]
    assert found["cost"]["lost_steps"] == 8 and found["cost"]["joules"] > 0 and found["energy_source"]


def test_differences_and_outcomes_side_by_side(runs: Runs, back: Path, tmp_path: Path) -> None:
    page = Page(build_report([runs.first, runs.second, back], tmp_path / "r.html").read_text(encoding="utf-8"))
    assert not page.unbalanced and not page.open
    text = page.text
    assert "Side by side" in text and "What differs" in text and "What came of it" in text
    table = page.raw[page.raw.index("What differs") : page.raw.index("What came of it")]
    assert "<mark>0.03</mark>" in table and "<td>0.001</td>" in table, "what most runs have is not marked"
    assert "optim.lr" in table and "train.batch" not in table
    assert '<b class="best">' in page.raw[page.raw.index("What came of it") :]
    assert "<mark>name: back</mark>" in page.raw
    alone = Page(build_report([back], tmp_path / "one.html").read_text(encoding="utf-8"))
    assert "Side by side" not in alone.text and "<mark>" not in alone.raw


def test_what_probes_cost_is_told(runs: Runs) -> None:
    (cost,) = summary(runs.first)["probe_cost"].values()
    assert cost["device_seconds"] > 0 and cost["joules"] > 0 and cost["energy_source"] in ("rapl", "estimated")
    assert cost["flops_per_sample"] > 1e4


def test_units_of_energy() -> None:
    shown = [energy(j).replace("\u00a0", " ") for j in (12.0, 3600.0, 7.2e6, 7.2e9)]
    assert shown == ["12 J", "1 Wh", "2 kWh", "2 MWh"]
