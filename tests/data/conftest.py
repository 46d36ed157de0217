"""Small real datasets, built once per session."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
import webdataset
from PIL import Image

from jepa.data import Manifest
from jepa.data.build import build

UNEVEN = (1, 100, 7, 23, 2)  # samples per shard


def picture(seed: int, height: int = 12, width: int = 16) -> Image.Image:
    """A smooth random picture: JPEG keeps it nearly unchanged."""
    coarse = np.random.default_rng(seed).integers(0, 256, (3, 4, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, format: str = "PNG", **options: object) -> bytes:
    """The picture as file bytes."""
    out = io.BytesIO()
    image.save(out, format, **options)
    return out.getvalue()


def write_tars(folder: Path, counts: tuple[int, ...]) -> None:
    """Webdataset tars with `counts` samples each, written by the webdataset library; labels count up over all."""
    folder.mkdir(parents=True, exist_ok=True)
    number = 0
    for shard, count in enumerate(counts):
        with webdataset.TarWriter(str(folder / f"part-{shard:03d}.tar")) as tar:
            for _ in range(count):
                facts = json.dumps({"number": number, "source": number // 2})
                tar.write(
                    {
                        "__key__": f"s{number:05d}",
                        "png": encoded(picture(number)),
                        "cls": str(number),
                        "json": facts.encode(),
                    }
                )
                number += 1


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small build of the embedded default: 120 + 30 + 40 pictures, 50 to a shard."""
    folder = tmp_path_factory.mktemp("digits") / "built"
    samples = "source.samples={train: 120, val: 30, test: 40}"
    build("digits", folder, overrides=[samples, "shards.max_samples=50"], progress=False)
    return folder


@pytest.fixture(scope="session")
def uneven(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tars of 1, 100, 7, 23 and 2 samples, read in place; the label of each sample is its index."""
    folder = tmp_path_factory.mktemp("uneven")
    write_tars(folder / "tars", UNEVEN)
    pattern = f"source.shards={folder}/tars/part-*.tar"
    build("webdataset", folder / "built", overrides=[pattern, "splits.fractions={}"], progress=False)
    assert len(Manifest.open(folder / "built").split("train")) == sum(UNEVEN)
    return folder / "built"
