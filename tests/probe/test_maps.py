"""The shipped recipes and suites for segmentation and depth, end to end on digits with their own ink as label map."""

from __future__ import annotations

import io
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jepa.data import Manifest
from jepa.data.build import build
from jepa.data.checkup import check_built
from jepa.data.sources import digits
from jepa.errors import ConfigError
from jepa.probe.run import probe

SMALL = ["features.batch=32", "features.workers=0", "features.precision=fp32", "features.tokens.disk_gib=1",
         "bootstrap.resamples=200"]  # fmt: skip


def png(values: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(values).save(out, "PNG")
    return out.getvalue()


def inked(number: int) -> tuple[np.ndarray, np.ndarray]:
    """A cluttered picture with a real digit (20, 20, 3), and how much ink the digit has at each pixel (20, 20)."""
    plain = digits.Config(size=20, digit=(14, 16), clutter=0)
    maker = digits.Maker(plain)
    scene = maker.scene("train", number)
    coverage = np.zeros((20, 20, 3))
    digits._blend(coverage, digits._enlarge(scene.ink, scene.side, scene.side), scene.top, scene.left, np.ones(3))
    return np.asarray(maker(("train", number)).image), coverage[..., 0]


@pytest.fixture(scope="module")
def pictures() -> list[tuple[np.ndarray, np.ndarray]]:
    return [inked(i) for i in range(160)]


def put(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


@pytest.fixture(scope="module")
def ade(pictures: list[tuple[np.ndarray, np.ndarray]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ADE20K's layout and numbers: 1 and 2 are classes, 0 is nothing (here where there is a little ink)."""
    root = tmp_path_factory.mktemp("ade")
    for i, (image, ink) in enumerate(pictures):
        split = "training" if i < 120 else "validation"
        numbers = np.where(ink > 0.5, 2, np.where(ink > 0.05, 0, 1)).astype(np.uint8)
        put(root / f"in/images/{split}/{i:03d}.png", png(image))
        put(root / f"in/annotations/{split}/{i:03d}.png", png(numbers))
    build(
        "ade20k", root / "data", progress=False, overrides=[f"source.path={root / 'in'}", "splits.fractions.val=0.25"]
    )
    return root / "data"


@pytest.fixture(scope="module")
def nyu(pictures: list[tuple[np.ndarray, np.ndarray]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The usual layout of NYUv2: millimetres of 16 bits beside the images; ink is near, and a corner is not known."""
    root = tmp_path_factory.mktemp("nyu")
    for i, (image, ink) in enumerate(pictures):
        folder = root / "in" / ("train" if i < 120 else "test") / f"room{i % 3}"
        depth = (4000 - 2500 * ink).astype(np.uint16)
        depth[:3, :3] = 0
        put(folder / f"rgb_{i:05d}.png", png(image))
        put(folder / f"sync_depth_{i:05d}.png", png(depth))
    build("nyuv2", root / "data", progress=False, overrides=[f"source.path={root / 'in'}", "splits.fractions.val=0.25"])
    return root / "data"


def test_segmentation(run: Path, ade: Path, tmp_path: Path) -> None:
    found = Manifest.open(ade)
    sizes = {name: len(split) for name, split in found.splits.items()}
    assert sizes["test"] == 40 and sizes["train"] + sizes["val"] == 120 and sizes["val"] > 10
    assert check_built(ade).counts()["ok"] == 160
    truth = np.stack([found.split("test").read_map(i, "class") for i in range(40)])
    assert set(np.unique(truth)) == {0, 1, 255}
    quick = ["probes.segmentation.duration={epochs: 8}", "probes.segmentation.lr=[0.01, 0.03]"]
    result = probe(run, "ade20k", [f"dataset={ade}", *SMALL, *quick], out=tmp_path / "r.json", progress=False)
    rows = {row["encoder"]: row for row in result["rows"]}
    assert len(rows) == 2 and {row["metric"] for row in rows.values()} == {"miou"}
    commonest = (truth == 0).sum() / (truth != 255).sum() / 2  # always saying background: its share, and 0 for ink
    assert all(commonest + 0.1 < row["value"] <= 1 for row in rows.values()), rows
    assert all(row["low"] < row["value"] < row["high"] for row in rows.values())
    assert len(result["published"]) >= 4


def test_depth(run: Path, nyu: Path, tmp_path: Path) -> None:
    found = Manifest.open(nyu)
    assert len(found.split("test")) == 40 and found.bad_count == 0
    truth = np.stack([found.split("test").read_map(i, "depth") for i in range(40)])
    assert truth.dtype == np.float32 and truth.max() == 4.0 and (truth[:, :3, :3] == 0).all()
    result = probe(run, "nyuv2", [f"dataset={nyu}", *SMALL], out=tmp_path / "r.json", progress=False)
    rows = {row["encoder"]: row for row in result["rows"]}
    known = truth > 0
    constant = np.mean([np.sqrt(((t - truth[known].mean())[k] ** 2).mean()) for t, k in zip(truth, known, strict=True)])
    assert {row["metric"] for row in rows.values()} == {"rmse"}
    assert all(0 < row["value"] < 0.85 * constant for row in rows.values()), (rows, constant)


def test_a_suite_that_asks_for_the_other_map(run: Path, nyu: Path) -> None:
    with pytest.raises(ConfigError, match=re.escape("map=class: unknown key 'class'")):
        probe(run, "ade20k", [f"dataset={nyu}", *SMALL], progress=False)
