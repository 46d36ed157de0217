"""Photographs to measure reading with, made from the two that scikit-learn ships.

Decoding time depends on the content (a JPEG of noise takes several times as long as one of a face), so the images are
crops of real photographs, at ImageNet's usual 500x375 pixels.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image
from sklearn.datasets import load_sample_images

from jepa import keyed
from jepa.data.build import build
from jepa.data.manifest import FILE, Manifest

SIZE = (375, 500)  # height, width


def write_jpegs(folder: Path, count: int, quality: int = 90) -> list[Path]:
    """`count` different JPEGs of 500x375 pixels: keyed crops (55 to 100 % of each side) of real photographs."""
    folder.mkdir(parents=True, exist_ok=True)
    photographs = [Image.fromarray(pixels) for pixels in load_sample_images().images]
    numbers = keyed.uniform("bench.photos", 0, np.arange(count), 4)
    paths = []
    for i, (u, v, w, f) in enumerate(numbers.tolist()):
        photograph = photographs[i % len(photographs)]
        share = 0.55 + 0.45 * u
        width, height = photograph.width * share, photograph.height * share
        left, top = v * (photograph.width - width), w * (photograph.height - height)
        part = photograph.resize((SIZE[1], SIZE[0]), Image.Resampling.BICUBIC, (left, top, left + width, top + height))
        if f < 0.5:
            part = part.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        paths.append(folder / f"{i:06d}.jpg")
        part.save(paths[-1], quality=quality)
    return paths


def build_dataset(folder: Path, count: int, shard: int = 1000) -> Manifest:
    """A dataset of `count` such JPEGs, made by `jepa data build` as a user would."""
    write_jpegs(folder / "images", count)
    recipe = {
        "name": "photos",
        "source": {"kind": "folder", "path": str(folder / "images")},
        "splits": {"fractions": {}},
        "shards": {"max_samples": shard},
    }
    (folder / "photos.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return build(folder / "photos.yaml", folder / "data", progress=False)


def repeat_dataset(small: Manifest, folder: Path, samples: int) -> Path:
    """A dataset of at least `samples` samples that are really readable: a small one's shards, listed many times.

    Returns:
        Its folder. Labels, keys and the index are as large as those of a real one of that size.
    """
    values: dict[str, Any] = json.loads((small.root / FILE).read_text(encoding="utf-8"))
    name, split = next(iter(values["splits"].items()))
    times = -(-samples // split["samples"])
    (folder / name).mkdir(parents=True)
    shards = len(split["shards"])
    for path in sorted((small.root / name).glob("*.npy")):
        array = np.load(path, allow_pickle=False)
        repeated = np.concatenate([array] * times)
        if path.name == "index.npy":
            repeated[:, 0] += np.repeat(np.arange(times) * shards, len(array))
        np.save(folder / name / path.name, repeated, allow_pickle=False)
    here = [s | {"path": str((small.root / s["path"]).resolve())} for s in split["shards"]]
    values["splits"] = {name: split | {"samples": times * split["samples"], "shards": here * times}}
    (folder / FILE).write_text(json.dumps(values), encoding="utf-8")
    return folder
