"""Names, settings, labels and files are untrusted: whatever they hold, it is text on the page and nothing else."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from jepa import config
from jepa.data.build import build
from jepa.report import build_report
from jepa.report.markup import Html, html
from jepa.report.page import Section, render
from jepa.train import train
from tests.report.conftest import Page, Runs
from tests.tiny import run_config

EVIL = """</title></style></code></script><script>alert(1)</script><img src="http://evil/x" onerror='alert(2)'>"&'"""


def hostile(value: Any) -> Any:
    """Every text in a JSON value made hostile, keys too; numbers stay."""
    if isinstance(value, dict):
        return {k if k in KEPT else f"{k}{EVIL}": v if k in KEPT_VALUES else hostile(v) for k, v in value.items()}
    if isinstance(value, list):
        return [hostile(v) for v in value]
    return f"{value}{EVIL}" if isinstance(value, str) else value


KEPT = {
    *("rows", "suite", "protocol", "checkpoint", "published", "encoder", "probe", "metric", "value", "low", "high"),
    *("chosen", "n_test", "n_clusters", "baseline", "source", "note", "gap", "chance", "command", "hardware", "cpu"),
}
KEPT_VALUES = {"metric"}


def is_harmless(page: Page) -> None:
    assert page.unbalanced == [] and page.open == []
    assert len(page.all("script")) == len(page.all("style")) == len(page.all("title")) == 1
    for tag, attributes in page.tags:
        assert not [name for name in attributes if name.startswith("on")], tag
        assert attributes.get("src", "data:").startswith("data:") and "evil" not in attributes.get("href", "")


def test_a_hostile_run_is_only_text(runs: Runs, tmp_path: Path) -> None:
    run = shutil.copytree(runs.first, tmp_path / "run<script>alert(3)<")
    values = config.read_yaml(run / "config.yaml")
    values["name"] = EVIL
    values["data"]["split"] = "train"
    values["train"]["trackers"] = [EVIL]
    (run / "config.yaml").write_text(config.to_yaml(values))
    for name in ("environment.json", "probes/small.json"):
        (run / name).write_text(json.dumps(hostile(json.loads((run / name).read_text()))))
    lines = [json.loads(x) for x in (run / "metrics.jsonl").read_text().splitlines()]
    lines[-1] |= {"warnings": [EVIL], f"health/{EVIL}": 1.0, f"health/target/{EVIL}": 2.0}
    (run / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (run / "quarantine.jsonl").write_text(json.dumps({"g": 1, "reason": EVIL}) + "\n")
    for paths in ([run], [run, runs.second]):
        page = Page(build_report(paths, tmp_path / "page.html").read_text(encoding="utf-8"))
        is_harmless(page)
        assert page.text.count("<script>alert(1)</script>") > 15  # it is all there, as text
        assert "<script>alert(1)" not in page.raw and '<img src="http' not in page.raw


def test_hostile_class_names_and_licence_are_only_text(tmp_path: Path) -> None:
    for label, shade in (("<b onclick=x>a", 40), ('"><script>b', 200)):
        folder = tmp_path / "images" / label
        folder.mkdir(parents=True)
        for i in range(8):
            pixels = np.full((20, 20, 3), shade + i, dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{i}.png")
    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        f"name: data\nlicence: '<script>licence'\nsource: {{kind: folder, path: '{tmp_path / 'images'}'}}\n"
    )
    build(recipe, tmp_path / "data", progress=False)
    train(run_config(tmp_path / "data", "train.duration={steps: 4}", "train.batch=4"),
          tmp_path / "run", quiet=True)  # fmt: skip
    page = Page(build_report([tmp_path / "run"]).read_text(encoding="utf-8"))
    is_harmless(page)
    assert "<b onclick=x>a" in page.text and '"><script>b' in page.text and "<script>licence" in page.text


def test_markup_escapes_all_but_markup() -> None:
    assert html("<p title='{a}'>{b}{c}</p>", a="'\"", b="<&", c=Html("<br>")) == (
        "<p title='&#x27;&quot;'>&lt;&amp;<br></p>"
    )
    assert html("{a}", a="{b}") == "{b}"  # a value is never filled in again
    section = Section("x", "<t>", "<l>", Html("<hr>")).render()
    assert "&lt;t&gt;" in section and "&lt;l&gt;" in section and "<hr>" in section
    assert "<title>&lt;/title&gt;</title>" in render("</title>", Html(""), [], Html(""))
