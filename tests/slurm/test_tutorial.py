"""The tutorials about SLURM work, on a cluster that is up: see tests/tutorials.py."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.slurm.conftest import Cluster
from tests.tutorials import Reader


@pytest.mark.slow
def test_a_slurm_on_your_own_machine(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in cluster.env.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    Reader("slurm-dev-cluster").follow()
    shown = capsys.readouterr().out
    assert "runs/demo-debug" in shown and "is at step 2" in shown, "the job's log was followed to its end"
    (line,) = Path("runs/demo-debug/slurm/jobs.jsonl").read_text().splitlines()
    assert json.loads(line)["verb"] == "train"
    assert Path("runs/demo-debug/report.html").stat().st_size > 10_000


def test_a_cluster_with_slurm(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Checked and written, not sent: GPUs of other clusters are not here. What is sent is the page before."""
    monkeypatch.chdir(tmp_path)
    trained = {"runs/ijepa-vit-b16 --suite imagenet": "runs/ijepa-vit-b16-debug --suite digits"}
    Reader("slurm", {"/data/imagenet": str(tiny_data), "data/digits": str(tiny_data)} | trained).follow()
    shown = capsys.readouterr().out
    assert "--nodes=8" in shown and "--array=0-9%4" in shown and "--partition=learn" in shown
    assert "afterok:1234" in shown
