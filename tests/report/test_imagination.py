"""The sections of a world model: charts, figures and pictures of result files, also of broken and hostile ones."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from jepa.report import build_report
from jepa.report.charts import Series, line_chart
from tests.report.conftest import Page, Runs


def curve(*values: float) -> dict[str, list[float]]:
    return {"value": list(values), "low": [v - 0.1 for v in values], "high": [v + 0.1 for v in values]}


ROLLOUT: dict[str, Any] = {
    "suite": "dots", "seen": 3, "horizon": 2, "useful_steps": 1,
    "dataset": {"split": "test", "windows": 12, "episodes": 4},
    "latent": {"l2": {"open_loop": curve(1, 2), "copy": curve(3, 1.5), "shuffled": curve(4, 5)},
               "cosine": {"open_loop": curve(0.1, 0.2)}},
    "ratios": {"copy": curve(0.33, 1.3), "shuffled": curve(4, 2.5)},
    "state": [{"name": "agent <b>", "unit": "px", "curves": {"open_loop": curve(7, 8), "read_off": curve(1, 1)}}],
    "uncertainty": {
        "all": {"value": 0.61, "low": 0.5, "high": 0.7},
        "reliability": [{"uncertainty": u, "error": 2 * u, "count": 4} for u in (0.2, 0.5, 0.9)],
    },
    "pictures": {"by": {"by": "decoder", "steps": 800, "bank": 400},
                 "files": [{"episode": 3, "strip": "dots/episode-3.png", "film": "dots/episode-3.gif"}]},
}  # fmt: skip
PLAN: dict[str, Any] = {
    "suite": "rooms", "protocol": "1", "fingerprint": "f00d", "task": {"budget": 50},
    "rows": [
        {"policy": "planner", "baseline": False, "value": 0.92, "low": 0.81, "high": 0.97, "successes": 46,
         "episodes": 50, "planning": {"seconds_per_step": 0.24, "seconds_per_step_p95": 1.5, "calls_per_plan": 10}},
        {"policy": "random", "baseline": True, "value": 0.1, "low": 0.04, "high": 0.21, "successes": 5, "episodes": 50},
    ],
    "notes": ["starts look different"], "pictures": ["rooms/episode-0.gif", "../../secret.png"],
    "published": [{"model": "LeWM", "value": 0.87, "source": "elsewhere"}],
}  # fmt: skip


@pytest.fixture
def world(runs: Runs, tmp_path: Path) -> Path:
    """A run with results of both kinds."""
    run = tmp_path / "world"
    shutil.copytree(runs.unprobed, run)
    for kind, result in (("rollouts", ROLLOUT), ("plans", PLAN)):
        (run / kind / result["suite"]).mkdir(parents=True)
        (run / kind / f"{result['suite']}.json").write_text(json.dumps(result))
    frames = [Image.new("RGB", (60, 30), (80 * i, 0, 200)) for i in range(3)]
    for path in (run / "rollouts/dots/episode-3", run / "plans/rooms/episode-0"):
        frames[0].save(path.with_suffix(".gif"), save_all=True, append_images=frames[1:], duration=120)
        frames[1].save(path.with_suffix(".png"))
    frames[0].save(tmp_path / "secret.png")
    return run


def section(page: Page, anchor: str) -> str:
    start = page.raw.index(f'<section id="{anchor}"')
    return page.raw[start : page.raw.index("</section>", start)]


def test_imagination_is_drawn_with_its_floors(world: Path) -> None:
    page = Page(build_report([world]).read_text())
    text, part = page.text, section(page, "imagination")
    assert page.unbalanced == []
    assert "12 windows of 4 episodes of split test, 3 frames seen, 2 steps imagined" in text
    assert "beats the last frame in the first 1 of 2 steps" in text
    assert "With another episode's actions the error at the last step is 2.5 times as large" in text
    assert part.count("<svg viewBox") - part.count('viewBox="0 0 24 8"') == 5
    assert 'class="band s0"' in part and "another episode&#x27;s actions" in part
    assert "agent &lt;b&gt;, px" in part and "correlate by 0.61 [0.5, 0.7]" in text
    assert part.count("<img") == 2 and "trained for 800 steps on 400 real frames" in text


def test_planning_is_drawn_beside_the_other_policies(world: Path) -> None:
    page = Page(build_report([world]).read_text())
    part = section(page, "planning")
    for words in ("92 %", "46 of 50", "random", "10 %", "LeWM · published: elsewhere", "240 ms", "1.5 s", "task f00d"):
        assert words in page.text, words
    assert part.count("<img") == 1  # the other one lies outside the run
    assert "starts look different" in page.text


def test_a_run_without_results_has_neither_section(runs: Runs, tmp_path: Path) -> None:
    text = build_report([runs.unprobed], tmp_path / "page.html").read_text()
    assert 'id="imagination"' not in text and 'id="planning"' not in text


def test_what_cannot_be_read_is_told(world: Path) -> None:
    (world / "rollouts" / "half.json").write_text('{"latent": {')
    (world / "plans" / "other.json").write_text('{"a": 1}')
    (world / "rollouts/dots/episode-3.gif").write_text("no picture")
    page = Page(build_report([world]).read_text())
    assert "half.json could not be read" in page.text
    assert "plans/other.json is not a result of jepa" in page.text
    assert section(page, "imagination").count("<img") == 1


def test_a_band_is_drawn_around_its_line_and_inside_the_axes() -> None:
    drawn = line_chart("error", [Series("a", [1, 2], [1.0, 2.0], low=[0.5, 1.0], high=[2.0, 9.0])], axis="horizon")
    (points,) = [p.split('"')[0] for p in drawn.split('<polygon class="band s0" points="')[1:]]
    pairs = [tuple(map(float, p.split(","))) for p in points.split()]
    assert len(pairs) == 4 and pairs[0][0] == pairs[3][0] and pairs[0][1] < pairs[3][1]
    assert min(y for _, y in pairs) >= 8 and ">horizon</text>" in drawn
    assert "band" not in line_chart("error", [Series("a", [1, 2], [1.0, 2.0])])
