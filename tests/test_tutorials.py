"""The tutorials work: each page's commands and Python are run in order, in a folder, as a reader would."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import jepa
from jepa.data.video.write import Coding, write
from tests import tutorials
from tests.hygiene.tree import ROOT
from tests.tutorials import Reader


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder that is the current one, on Python's path."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return tmp_path


def draw(kind: int, number: int) -> np.ndarray:
    """A disc or a bar somewhere on a coloured background, uint8 (48, 64, 3)."""
    chance = np.random.default_rng([kind, number])
    picture = np.tile(chance.integers(0, 120, 3, dtype=np.uint8), (48, 64, 1))
    y, x = np.mgrid[:48, :64]
    cy, cx = chance.integers(14, 34), chance.integers(14, 50)
    picture[(np.hypot(y - cy, x - cx) < 11) if kind else (abs(y - cy) < 5)] = chance.integers(130, 255, 3)
    return picture


def losses(run: str) -> list[float]:
    lines = (Path(run) / "metrics.jsonl").read_text().splitlines()
    return [entry["loss"] for line in lines if "loss" in (entry := json.loads(line))]


def test_own_images(desk: Path) -> None:
    for kind, name in enumerate(("bars", "discs")):
        (desk / "pictures" / name).mkdir(parents=True)
        for number in range(40):
            Image.fromarray(draw(kind, number)).save(desk / "pictures" / name / f"{number}.png")
    files = sorted((desk / "pictures").rglob("*.png"))[:3]
    reader = Reader("train-on-your-own-images", {"/path/to/images": str(desk / "pictures")}, {"files": files})
    reader.follow()
    assert reader.names["features"].shape[0] == 3
    assert json.loads(Path("runs/own-images/probes/own-images.json").read_text())
    assert Path("runs/own-images/report.html").stat().st_size > 10_000


def test_own_videos(desk: Path) -> None:
    for kind, name in enumerate(("bars", "discs")):
        (desk / "films" / name).mkdir(parents=True)
        for number in range(15):
            still = draw(kind, number)
            frames = np.stack([np.roll(still, 2 * t, axis=1) for t in range(16)])
            (desk / "films" / name / f"{number}.mp4").write_bytes(write(frames, 8, Coding(gop=4)))
    Reader("train-on-your-own-videos", {"/path/to/videos": str(desk / "films")}).follow()
    assert len(losses("runs/own-mix-debug")) > 0
    assert Path("runs/own-videos/report.html").stat().st_size > 10_000


def test_a_new_method(desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "summary_jepa", raising=False)
    Reader("add-a-method").follow()
    found = losses("runs/summary")
    assert len(found) == 4 and found[-1] < found[0] * 2
    assert Path("runs/summary/report.html").stat().st_size > 10_000
    encoder = jepa.load_encoder("runs/summary")
    assert (encoder.width, encoder.which, encoder.step) == (192, "target", 4)


def test_every_tutorial_is_followed_and_what_is_skipped_says_why() -> None:
    """By a test that names the page, here or beside what the page needs (tests/slurm)."""
    texts = [path.read_text(encoding="utf-8") for path in sorted((ROOT / "tests").rglob("test_tutorial*.py"))]
    followed = {page for text in texts for page in re.findall(r'Reader\(\s*"([^"]+)"', text)}
    named = tutorials.nav("Tutorials")
    assert len(named) >= 6 and set(named) <= followed
    for page in followed:
        for fence in tutorials.fences(page):
            assert fence.skipped is None or len(fence.skipped.split()) > 3, f"{page}: why is it skipped?"
            assert fence.language, f"docs/{page}.md: a fence without a language is not run:\n{fence.text}"
