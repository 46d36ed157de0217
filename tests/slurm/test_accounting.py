"""With slurmdbd: accounts are checked, and jobs are known after they have left the queue."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.slurm.conftest import Cluster, wait_for
from tests.slurm.runs import Run, submit_words, write_config

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def test_accounts_and_jobs_of_the_past(accounting_cluster: Cluster, tiny_data: Path, tmp_path: Path) -> None:
    cluster, config = accounting_cluster, write_config(tmp_path, tiny_data, steps=4)
    refused = cluster.run(
        submit_words(cluster, config, tmp_path / "run", nodes=1, settings=["account=nobody"]), check=False
    )
    assert refused.returncode == 2 and "Invalid account or account/partition combination specified" in refused.stderr
    assert not (tmp_path / "run").exists()

    run = Run.submit(cluster, config, tmp_path / "run", nodes=1, settings=["account=lab"])
    run.finish()
    known = ["sacct", "-X", "-n", "-P", "-o", "JobID,Account,State", "-j", run.job]
    wait_for(lambda: "COMPLETED" in cluster.run(known).stdout, 30)
    assert cluster.run(known).stdout.strip() == f"{run.job}|lab|COMPLETED"
    jobs = [sys.executable, "-m", "jepa", "jobs", "--in", tmp_path, "--json"]
    row = json.loads(cluster.run(jobs).stdout)
    assert "COMPLETED" in json.dumps(row)
