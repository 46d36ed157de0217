"""The tutorials work: each page's commands and Python are run in order, in a folder, as a reader would."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from PIL import Image

import jepa
from jepa.data.build import build
from jepa.data.video.write import Coding, write
from tests import tutorials
from tests.data.test_lerobot import write_v30
from tests.export import runs
from tests.hygiene.tree import ROOT
from tests.tiny import build_walks
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


def paint(folder: Path, count: int) -> None:
    for kind, name in enumerate(("bars", "discs")):
        (folder / name).mkdir(parents=True)
        for number in range(count):
            Image.fromarray(draw(kind, number)).save(folder / name / f"{number}.png")


def losses(run: str) -> list[float]:
    lines = (Path(run) / "metrics.jsonl").read_text().splitlines()
    return [entry["loss"] for line in lines if "loss" in (entry := json.loads(line))]


def test_own_images(desk: Path) -> None:
    paint(desk / "pictures", 40)
    files = sorted((desk / "pictures").rglob("*.png"))[:3]
    reader = Reader("train-on-your-own-images", {"/path/to/images": str(desk / "pictures")}, {"files": files})
    reader.follow()
    assert reader.names["features"].shape[0] == 3
    assert json.loads(Path("runs/own-images/probes/own-images.json").read_text())
    assert Path("runs/own-images/report.html").stat().st_size > 10_000


def test_own_videos(desk: Path) -> None:
    for kind, name in enumerate(("bars", "discs")):
        (desk / "films" / name).mkdir(parents=True)
        for number in range(12):
            still = draw(kind, number)
            frames = np.stack([np.roll(still, (2 * t, t), axis=(1, 0)) for t in range(16)])
            (desk / "films" / name / f"{number}.mp4").write_bytes(write(frames, 8, Coding(gop=4)))
    paint(desk / "pictures", 12)
    build("folder", desk / "data/own", overrides=[f"source.path={desk / 'pictures'}"], progress=False)
    Reader("train-on-your-own-videos", {"/path/to/videos": str(desk / "films")}).follow()
    assert len(losses("runs/own-mix-debug")) > 0
    assert Path("runs/own-videos/report.html").stat().st_size > 10_000


def walk(chance: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A white square pushed about: frames uint8 (24, 32, 32, 3), actions (23, 2) in pixels, its place (24, 2)."""
    place = np.clip(16 + np.cumsum(chance.integers(-2, 3, (24, 2)), axis=0), 3, 28)
    frames = np.zeros((24, 32, 32, 3), dtype=np.uint8)
    for frame, (x, y) in zip(frames, place, strict=True):
        frame[y - 2 : y + 3, x - 2 : x + 3] = 255
    return frames, np.diff(place, axis=0).astype(np.float32), place.astype(np.float32)


def test_own_robot(desk: Path) -> None:
    with h5py.File("demos.hdf5", "w") as file:
        for number in range(3):
            frames, action, state = walk(np.random.default_rng(number))
            demo = file.create_group(f"data/demo_{number}")
            demo["actions"] = np.concatenate([action, action[-1:]])
            demo["obs/agentview_image"], demo["obs/robot0_eef_pos"] = frames, state
    write_v30(desk / "lerobot")
    places = {"/my/lerobot": str(desk / "lerobot"), "/my/demos.hdf5": str(desk / "demos.hdf5")}
    names: dict[str, Any] = {"recordings": lambda: [walk(np.random.default_rng(number)) for number in range(30)]}
    reader = Reader("train-on-your-own-robot", places, names)
    reader.follow()
    found = json.loads(Path("runs/robot/rollouts/robot-rollout.json").read_text())
    assert found["ratios"]["copy"]["value"] and "gripper" in json.dumps(found)
    assert reader.names["agent"].stats.summary()["calls_per_step"] > 0


def test_export(desk: Path) -> None:
    runs.make(desk / "runs/demo", "demo")
    runs.make(desk / "runs/demo-world", "demo-world")
    reader = Reader("export")
    reader.follow()
    made = [Path(folder) for folder in ("runs/demo/exports/transformers", "encoder-timm", "encoder-onnx", "world")]
    assert all((folder / "export.json").is_file() for folder in made)
    assert len(reader.names["ours"]) > 10


def test_features(desk: Path, tiny_data: Path) -> None:
    """No tutorial of the site, but its examples are as easily wrong."""
    runs.make(desk / "runs/digits", "demo")
    runs.make(desk / "runs/lewm", "lewm")
    names = ("frames", "action", "state")
    build_walks(desk / "data/tworoom", 6, 4, lambda chance: dict(zip(names, walk(chance), strict=True)))
    reader = Reader("extract-features", {"data/digits": str(tiny_data)})
    reader.follow()
    assert reader.names["labels"] and reader.names["state"].shape == (4, 16, 2) == (*reader.names["z"].shape[:2], 2)
    assert reader.names["x"].shape == (64, 24)


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


@pytest.mark.parametrize(
    ("fence", "said"),
    [
        ("```sh\njepa data shwo x\n```", "exit code 2"),
        ("```sh\njepa train demo optim.lrr=1\n```", "exit code 2"),
        ("```sh\nls no-such-file  # a comment\n```", "no-such-file"),
        ("```sh\npip install '.[vidoe]'\n```", "vidoe"),
        ("<!-- test: train a.b=1 -->\n```sh\njepa --version\n```", "'train'.* not there"),
        ("<!-- test: skip: takes an hour or two -->\n```sh\njepa demo\n```", "nothing was run"),
        ("```python\nassert 1 + 1 == 3, 'wrong sum'\n```", "wrong sum"),
    ],
)
def test_a_page_that_is_wrong_is_noticed(
    fence: str, said: str, desk: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (desk / "docs").mkdir()
    (desk / "docs/page.md").write_text(f"# A page\n\n{fence}\n")
    (desk / "pyproject.toml").write_bytes((ROOT / "pyproject.toml").read_bytes())
    monkeypatch.setattr(tutorials, "ROOT", desk)
    with pytest.raises(AssertionError, match=said):
        Reader(page="page").follow()
