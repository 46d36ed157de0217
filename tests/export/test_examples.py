"""The examples of docs/examples run as they stand, and give what the model gives."""

from __future__ import annotations

import contextlib
import io
import os
import re
import runpy
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from jepa.data.augment import apply, centre_box
from jepa.export import subject
from jepa.export.subject import Asked
from jepa.export.write import export
from tests.export import runs
from tests.hygiene.tree import ROOT

EXAMPLES = ROOT / "docs" / "examples"


def run(name: str, *arguments: Path | str) -> str:
    """What an example prints, as it stands; it does not import this package."""
    assert not re.search(r"^\s*(import|from) jepa", (EXAMPLES / name).read_text(), re.MULTILINE)
    shown, before = io.StringIO(), sys.argv
    sys.argv = [name, *map(str, arguments)]
    try:
        with contextlib.redirect_stdout(shown), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            runpy.run_path(str(EXAMPLES / name), run_name="__main__")  # a new process would import torch for seconds
    finally:
        sys.argv = before
    return shown.getvalue()


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder, generator = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    files = (folder / "a.png", folder / "b.png")
    for file in files:
        colours = generator.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(colours).resize((64, 64), Image.Resampling.BICUBIC).save(file)
    return files


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return runs.make(tmp_path_factory.mktemp("images") / "run", "ijepa-vit-b16")


def similarity(found: subject.Subject, files: tuple[Path, Path]) -> float:
    """Cosine of the mean tokens of two pictures, as ours see them."""
    size = (found.size[-2], found.size[-1])
    stack = []
    for file in files:
        pixels = torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1)
        stack.append(apply(pixels, centre_box(*pixels.shape[1:], size), size, "bilinear"))
    pooled = torch.nn.functional.normalize(found.tokens(torch.stack(stack)).mean(dim=1), dim=-1)
    return float(pooled[0] @ pooled[1])


@pytest.mark.parametrize("form", ["transformers", "timm", "onnx"])
def test_an_encoder_is_used_without_us(form: str, images: Path, pictures: tuple[Path, Path], tmp_path: Path) -> None:
    export(images, form, tmp_path / "encoder")
    name = "onnxruntime" if form == "onnx" else form
    text = run(f"encode_with_{name}.py", tmp_path / "encoder", *pictures)
    rows = re.findall(r"\[([^\[\]]+)\]", text)
    shown = float(rows[0].split()[1].rstrip(","))
    assert shown == pytest.approx(similarity(subject.load(images, Asked()), pictures), abs=2e-3)


def test_an_encoder_is_a_backbone_in_stable_worldmodel(images: Path, tmp_path: Path) -> None:
    pytest.importorskip("stable_worldmodel")
    pytest.importorskip("pymunk")  # draws Push-T
    export(images, "transformers", tmp_path / "encoder")
    text = run("plan_in_stable_worldmodel.py", tmp_path / "encoder", "12")
    first, last = (float(number) for number in re.findall(r"loss (\S+)", text))
    assert last < 0.7 * first and re.search(r"success rate: \d+ %", text)


RECORD = """
import sys
import numpy as np
from lerobot.datasets.lerobot_dataset import LeRobotDataset
features = {
    "observation.images.top": {"dtype": "image", "shape": (48, 64, 3), "names": ["height", "width", "channel"]},
    "observation.state": {"dtype": "float32", "shape": (3,), "names": ["a", "b", "c"]},
    "action": {"dtype": "float32", "shape": (2,), "names": ["x", "y"]},
}
data, draw = LeRobotDataset.create("local/data", 10, features, sys.argv[1], use_videos=False), np.random.default_rng(0)
for _ in range(12):
    image, state = draw.integers(0, 256, (48, 64, 3), dtype=np.uint8), draw.normal(size=3).astype("f4")
    data.add_frame({"observation.images.top": image, "observation.state": state, "action": state[:2], "task": "go"})
data.save_episode()
data.finalize()
"""


@pytest.mark.skipif(
    not os.environ.get("JEPA_LEROBOT_PYTHON"), reason="JEPA_LEROBOT_PYTHON names no python with lerobot"
)
def test_an_encoder_is_a_backbone_in_lerobot(images: Path, tmp_path: Path) -> None:
    """By an interpreter of its own: lerobot holds torch to versions before ours."""
    export(images, "transformers", tmp_path / "encoder")
    python = os.environ["JEPA_LEROBOT_PYTHON"]
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"HF_HUB_OFFLINE": "1"}
    calls = (
        ["-c", RECORD, tmp_path / "data"],
        [EXAMPLES / "act_in_lerobot.py", tmp_path / "encoder", tmp_path / "data", "20"],
    )
    for call in calls:
        done = subprocess.run([python, *map(str, call)], cwd=tmp_path, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    first, last = (float(number) for number in re.findall(r"loss (\S+)", done.stdout))
    assert last < 0.7 * first and re.search(r"action: \[\S+, \S+\]", done.stdout)


def test_a_plan_is_made_without_us(pictures: tuple[Path, Path], tmp_path: Path) -> None:
    world = runs.make(tmp_path / "run", "lewm")
    export(world, "onnx", tmp_path / "world")
    text = run("plan_with_onnxruntime.py", tmp_path / "world", *pictures)
    lowest = [float(cost) for cost in re.findall(r"lowest cost (\S+),", text)]
    assert len(lowest) == 5 and lowest[-1] <= lowest[0], "the search goes down"
    action = text.split("first action: [")[1].split("]")[0].split(",")
    assert len(action) == 4 and all(-1 <= float(number) <= 1 for number in action)
