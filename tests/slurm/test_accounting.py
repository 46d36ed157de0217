"""With slurmdbd: accounts are checked, and jobs are known after they have left the queue."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from jepa import cli
from tests.slurm.conftest import Cluster, wait_for
from tests.slurm.runs import Run, submit, write_config

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def test_accounts_and_jobs_of_the_past(
    accounting_cluster: Cluster,
    tiny_data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    cluster, config = accounting_cluster, write_config(tmp_path, tiny_data, steps=4)
    assert submit(cluster, config, tmp_path / "run", nodes=1, settings=["account=nobody"]) == 2
    assert "Invalid account or account/partition combination specified" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()

    run = Run.submit(cluster, config, tmp_path / "run", nodes=1, settings=["account=lab"])
    run.finish()
    known = ["sacct", "-X", "-n", "-P", "-o", "JobID,Account,State", "-j", run.job]
    wait_for(lambda: "COMPLETED" in cluster.run(known).stdout, 30)
    assert cluster.run(known).stdout.strip() == f"{run.job}|lab|COMPLETED"
    monkeypatch.setenv("SLURM_CONF", cluster.env["SLURM_CONF"])
    capsys.readouterr()
    assert cli.main(["jobs", "--in", str(tmp_path), "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["job"], row["state"]) == (run.job, "COMPLETED")
