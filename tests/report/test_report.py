"""Reports of real runs: complete, unfinished, several, and of what is no run."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from jepa.errors import ConfigError
from jepa.report import build_report, summaries, summary
from tests.report.conftest import Page, Runs

SECTIONS = [
    *("probes", "curves", "health", "masks", "features", "attention", "neighbours", "data"),
    *("speed", "cost", "warnings", "hardware", "config", "reproduce"),
]


@pytest.fixture(scope="module")
def page(runs: Runs, tmp_path_factory: pytest.TempPathFactory) -> Page:
    return Page(build_report([runs.first], tmp_path_factory.mktemp("out") / "page.html").read_text(encoding="utf-8"))


def test_a_probed_run_has_every_section_and_nothing_missing(page: Page) -> None:
    assert [s["id"] for s in page.all("section")] == SECTIONS
    assert {a["href"] for a in page.all("a")} == {f"#{s}" for s in SECTIONS}
    assert page.unbalanced == [] and page.open == []
    assert not [a for _, a in page.tags if a.get("class") == "missing"], page.text


def test_the_page_shows_the_probe_figures(page: Page, runs: Runs) -> None:
    rows = json.loads((runs.first / "probes/small.json").read_text())["rows"]
    assert {r["probe"] for r in rows} == {"knn", "linear", "ridge:x", "ridge:y", "ridge:x+y"}
    for row in rows:
        if row["metric"] == "top1":
            want = f"{100 * row['value']:.1f} % [{100 * row['low']:.1f}, {100 * row['high']:.1f}]"
        else:
            want = "{value:.3f} [{low:.3f}, {high:.3f}]".format(**row).replace("-", "−")
        assert want in page.text
        assert row["encoder"] in page.text
    assert "a paper, table 1" in page.text


def test_intervals_are_drawn_to_scale(page: Page, runs: Runs) -> None:
    rows = json.loads((runs.first / "probes/small.json").read_text())["rows"]
    linear = [r for r in rows if r["probe"] == "linear"]
    table = next(t for t in page.raw.split('<figure class="intervals">') if "Linear probe, top-1" in t[:200])
    place = [float(x) for x in re.findall(r'class="dot" style="left:([\d.]+)%"', table)]
    value = sorted(r["value"] for r in linear)
    bars = re.findall(r'class="bar" style="left:([\d.]+)%;width:([\d.]+)%"', table)
    assert len(place) == len(bars) == len(linear) == 3
    drawn = sorted(place)
    if value[-1] > value[0]:  # equal steps in value are equal steps on the page
        scale = (drawn[-1] - drawn[0]) / (value[-1] - value[0])
        assert [drawn[0] + scale * (v - value[0]) for v in value] == pytest.approx(drawn, abs=0.05)
        own = linear[0]
        assert float(bars[0][1]) == pytest.approx(scale * (own["high"] - own["low"]), abs=0.1)


def test_nothing_on_the_page_can_reach_the_network(page: Page) -> None:
    for tag, attributes in page.tags:
        for name in ("src", "href", "srcset", "poster", "action", "xlink:href"):
            value = attributes.get(name, "#")
            assert value.startswith(("#", "data:image/")), f"<{tag} {name}={value[:80]!r}>"
        assert not any(name.startswith("on") for name in attributes), f"<{tag}> has a handler"
    assert not re.search(r"url\(|@import|https?://(?!www\.w3\.org/2000/svg)", page.raw)
    policy = next(m["content"] for m in page.all("meta") if m.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'")
    assert not {"link", "iframe", "object", "embed", "base", "form"} & {tag for tag, _ in page.tags}
    assert len(page.all("script")) == 1


def test_every_picture_says_what_it_is_and_the_file_is_small(page: Page) -> None:
    images = page.all("img")
    assert len(images) > 50
    assert all(len(image["alt"]) > 5 for image in images)
    charts = [svg for svg in page.all("svg") if "data-chart" in svg]
    assert len(charts) >= 10
    assert all(svg["role"] == "img" and svg["aria-label"] for svg in charts)
    assert len(page.raw) < 3_000_000


def test_curves_hold_the_numbers_of_the_run(page: Page, runs: Runs) -> None:
    lines = [json.loads(x) for x in (runs.first / "metrics.jsonl").read_text().splitlines()]
    charts = [json.loads(svg["data-chart"]) for svg in page.all("svg") if "data-chart" in svg]
    loss = next(s for c in charts for s in c["s"] if s["n"] == "loss")
    want = [(x["step"], x["loss"]) for x in lines if "loss" in x]
    assert loss["x"] == [step for step, _ in want]
    assert loss["y"] == pytest.approx([value for _, value in want], rel=1e-4)
    ranks = next(c for c, svg in zip(charts, (s for s in page.all("svg") if "data-chart" in s), strict=True)
                 if svg["aria-label"].startswith("Effective rank of what differs"))  # fmt: skip
    assert {s["n"] for s in ranks["s"]} == {"target", "context"}
    assert ranks["s"][0]["x"] == [0, 4, 8, 12]


def test_settings_hardware_and_commands_are_told(page: Page, runs: Runs) -> None:
    environment = json.loads((runs.first / "environment.json").read_text())
    assert environment["versions"]["torch"] in page.text
    assert environment["hardware"]["cpu"] in page.text
    assert " ".join((runs.first / "config.yaml").read_text().split()) in page.text
    assert f"jepa train {runs.first}/config.yaml" in page.text
    assert "digits from UCI" in page.text  # the licence on the data card


def test_a_run_without_probes_says_what_to_run(runs: Runs) -> None:
    path = build_report([runs.unprobed])
    assert path == runs.unprobed / "report.html"
    page = Page(path.read_text(encoding="utf-8"))
    assert f"No probe has been run yet. Run jepa probe {runs.unprobed} --suite" in page.text
    assert [s["id"] for s in page.all("section")] == SECTIONS
    assert "training crop number" in page.raw and "query:" in page.text  # pictures need no probe


def test_a_run_that_has_only_just_started(runs: Runs, tmp_path: Path) -> None:
    young = tmp_path / "young"
    young.mkdir()
    shutil.copy(runs.first / "config.yaml", young)
    page = Page(build_report([young]).read_text(encoding="utf-8"))
    assert [s["id"] for s in page.all("section")] == SECTIONS
    for sentence in (
        "No training step has been logged yet",
        "No health numbers were recorded",
        "No throughput has been logged yet",
        f"The run has no complete checkpoint yet. Run jepa train {young} --resume",
        "No environment.json",
    ):
        assert sentence in page.text
    assert "training crop number" in page.raw  # masks need the seed and the data only


def test_a_run_whose_data_set_is_gone_keeps_its_numbers(runs: Runs, tmp_path: Path) -> None:
    moved = shutil.copytree(runs.first, tmp_path / "moved")
    text = (moved / "config.yaml").read_text()
    (moved / "config.yaml").write_text(re.sub(r"path: \S+", "path: gone/data", text, count=1))
    page = Page(build_report([moved]).read_text(encoding="utf-8"))
    assert page.text.count("gone/data (in ") == 5  # masks, features, attention, neighbours, data card
    assert "Linear probe, top-1" in page.text


def test_starts_are_told_once_a_run_was_started_again(runs: Runs, tmp_path: Path) -> None:
    """Writes what an interrupted run has in restarts.jsonl."""
    path = Path(shutil.copytree(runs.unprobed, tmp_path / "run", ignore=shutil.ignore_patterns("checkpoints")))
    assert "Every start" not in build_report([path]).read_text()
    rows = [
        {"attempt": 1, "time": "2026-01-02T03:04:05+00:00", "reason": "start", "step": 0, "lost": 0, "nodes": ["n1"]},
        {
            "attempt": 2,
            "time": "2026-01-02T04:04:05+00:00",
            "reason": "<failed>",
            "step": 5,
            "lost": 3,
            "nodes": ["n2"],
        },
    ]
    (path / "restarts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = build_report([path]).read_text()
    assert "<th>started again</th><td>1</td>" in text and "<td>3</td>" in text
    assert "&lt;failed&gt;" in text and "<td>2026-01-02 04:04:05</td>" in text


def test_half_written_files_are_told_and_not_fatal(runs: Runs, tmp_path: Path) -> None:
    run = shutil.copytree(runs.first, tmp_path / "run", ignore=shutil.ignore_patterns("checkpoints"))
    lines = (run / "metrics.jsonl").read_text().splitlines()
    lines[2] = "{broken"
    (run / "metrics.jsonl").write_text("\n".join(lines) + '\n{"step": 99, "lo')
    (run / "probes/other.json").write_text("[1, 2]")
    (run / "environment.json").write_text("nonsense")
    (run / "quarantine.jsonl").write_text('{"g": 7, "reason": "truncated"}\n{"g": 9, "reason": "truncated"}\n')
    page = Page(build_report([run]).read_text(encoding="utf-8"))
    assert "metrics.jsonl: 1 damaged line(s) were left out" in page.text
    assert "probes/other.json is not a result of jepa" in page.text
    assert "environment.json could not be read" in page.text
    assert "2 samples could not be read" in page.text and "truncated 2" in page.text
    assert summary(run)["quarantined"] == 2


def test_a_collapse_warning_reaches_the_top(runs: Runs, tmp_path: Path) -> None:
    run = shutil.copytree(runs.first, tmp_path / "run", ignore=shutil.ignore_patterns("checkpoints", "probes"))
    assert summary(run)["health"]["state"] == "ok"
    lines = [json.loads(x) for x in (run / "metrics.jsonl").read_text().splitlines()]
    looks = [x for x in lines if any(k.startswith("health/") for k in x)]
    looks[-2]["warnings"] = ["the rank is falling"]
    (run / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert summary(run)["health"]["state"] == "warned"
    looks[-1]["warnings"] = ["the rank is gone"]
    (run / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert summary(run)["health"]["state"] == "collapsing"
    page = Page(build_report([run]).read_text(encoding="utf-8"))
    assert "step 12: the rank is gone" in page.text and "step 8: the rank is falling" in page.text
    header = page.text.partition("What the features know")[0]
    assert "collapsing" in header and "healthy" not in header


def test_several_runs_are_overlaid_compared_and_averaged(runs: Runs, tmp_path: Path) -> None:
    out = build_report([runs.first, runs.second, runs.unprobed], tmp_path / "sub" / "all.html")
    page = Page(out.read_text(encoding="utf-8"))
    assert page.unbalanced == [] and page.open == []
    assert "3 runs side by side" in page.text
    charts = [json.loads(svg["data-chart"]) for svg in page.all("svg") if "data-chart" in svg]
    names = {s["n"] for s in charts[0]["s"]}
    assert len(charts[0]["s"]) == 3 and len(names) == 3
    assert "seed 3 4 3" in page.text  # the table of differences
    assert "unprobed has no probe result" in page.text


def test_the_mean_over_seeds_is_that_of_the_runs(runs: Runs) -> None:
    both = summaries([runs.first, runs.second])
    [group] = both["over_seeds"]
    assert group["seeds"] == [3, 4]
    rows = [json.loads((run / "probes/small.json").read_text())["rows"] for run in (runs.first, runs.second)]
    a, b = (next(r["value"] for r in t if r["probe"] == "ridge:x" and not r["baseline"]) for t in rows)
    mean = next(r for r in group["rows"] if r["probe"] == "ridge:x" and not r["baseline"])
    assert mean["mean"] == pytest.approx((a + b) / 2)
    assert mean["sd"] == pytest.approx(abs(a - b) / 2**0.5)
    assert (mean["low"], mean["high"]) == (min(a, b), max(a, b))
    pixels = next(r for r in group["rows"] if r["encoder"].startswith("pixels") and r["probe"] == "knn")
    assert pixels["sd"] == 0  # the same pixels whatever the seed


def test_the_summary_is_json_with_the_headline_figures(runs: Runs) -> None:
    found = json.loads(json.dumps(summary(runs.first), allow_nan=False))
    assert (found["steps"], found["samples"], found["checkpoint"], found["seed"]) == (12, 96, 12, 3)
    assert found["dataset"] == "tiny" and found["method"] == "ijepa"
    lines = [json.loads(x) for x in (runs.first / "metrics.jsonl").read_text().splitlines()]
    losses = [x["loss"] for x in lines if "loss" in x]
    assert (found["curves"]["loss"]["first"], found["curves"]["loss"]["last"]) == (losses[0], losses[-1])
    assert found["cost"]["seconds"] == pytest.approx(lines[-2]["device_seconds"])
    assert found["cost"]["samples_per_s"] == pytest.approx(96 / found["cost"]["seconds"])
    linear = next(p for p in found["probes"] if p["probe"] == "linear")
    assert len(linear["encoder"]) == 1
    assert [b["encoder"].split()[0] for b in linear["baselines"]] == ["random", "pixels"]


def outcome(folder: Path, own: tuple[float, float, float], *baselines: tuple[float, float, float]) -> str:
    rows = [
        {"encoder": f"e{i}", "baseline": i > 0, "probe": "linear", "metric": "top1", "value": v, "low": a, "high": b}
        for i, (v, a, b) in enumerate([own, *baselines])
    ]
    (folder / "probes").mkdir(exist_ok=True)
    (folder / "probes/x.json").write_text(json.dumps({"rows": rows}))
    return str(summary(folder)["probes"][0]["against_baselines"])


def test_above_means_that_no_interval_touches(runs: Runs, tmp_path: Path) -> None:
    shutil.copy(runs.first / "config.yaml", tmp_path)
    assert outcome(tmp_path, (0.5, 0.4, 0.6), (0.3, 0.2, 0.39), (0.1, 0.0, 0.2)) == "above"
    assert outcome(tmp_path, (0.5, 0.4, 0.6), (0.3, 0.2, 0.41), (0.1, 0.0, 0.2)) == "touching"
    assert outcome(tmp_path, (0.3, 0.2, 0.4), (0.1, 0.0, 0.2), (0.35, 0.3, 0.5)) == "not above"
    assert outcome(tmp_path, (0.3, 0.2, 0.4)) == "alone"


def test_what_is_no_run_is_a_clear_error(runs: Runs, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is not a run folder"):
        build_report([tmp_path])
    with pytest.raises(ConfigError, match="is not a folder"):
        build_report([tmp_path / "nowhere"])
    with pytest.raises(ConfigError, match="no run given"):
        build_report([])
    with pytest.raises(ConfigError, match="given twice"):
        build_report([runs.first, runs.first])
    with pytest.raises(ConfigError, match="'abacus' cannot be used.*auto, cpu, cuda or mps"):
        build_report([runs.first], device="abacus")
    (tmp_path / "config.yaml").write_text("nme: x\n")
    with pytest.raises(ConfigError, match="nme"):
        build_report([tmp_path])


def test_a_place_that_cannot_be_written_is_a_clear_error_and_leaves_nothing(runs: Runs, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot write the report"):
        build_report([runs.first], tmp_path / "file" / "report.html")
    (tmp_path / "taken").mkdir()
    with pytest.raises(ConfigError, match="cannot write the report"):
        build_report([runs.first], tmp_path / "taken")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "taken"]
