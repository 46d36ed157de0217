"""What the report shows of probes on windows with blank frames."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from jepa.report.blanks import charts
from jepa.report.read import open_runs
from tests.report.conftest import Runs


def row(since: int, value: Any, encoder: str = "latents", role: str = "run") -> dict[str, Any]:
    about = {"encoder": encoder, "role": role, "probe": "ridge:agent", "unit": "px", "since": since, "n_test": 9}
    return about | {"value": value, "low": 1.0, "high": 60.0}


def test_errors_while_frames_are_missing_are_a_line_for_every_run_and_baseline(runs: Runs, tmp_path: Path) -> None:
    folders = []
    for name in ("one", "two"):
        folders.append(tmp_path / name)
        shutil.copytree(runs.unprobed, folders[-1])
        assert charts(open_runs(folders[-1:])) == "", "nothing where no suite blanked frames"
        missing = [row(0, 5.0), row(1, 7.0), row(0, 40.0, "random <init>", "random"), row(2, "broken"), "no row"]
        result = {"suite": "blanked", "rows": [], "missing": missing}
        (folders[-1] / "probes").mkdir(exist_ok=True)
        (folders[-1] / "probes" / "blanked.json").write_text(json.dumps(result))
    alone, both = (str(charts(open_runs(some))) for some in (folders[:1], folders))
    assert alone.count("<polyline") == 2 and both.count("<polyline") == 4
    assert alone.count("<figure") == both.count("<figure") == 1 and "ridge:agent in px, blanked" in alone
    assert "random &lt;init&gt;" in alone and "<init>" not in alone and "broken" not in alone
    assert "frames since the last one seen" in alone and "latents · two" in both
