"""Small runs of each kind of data, to be interrupted or watched: data set and configuration, in seconds.

`images` is I-JEPA on drawn digits, `clips` V-JEPA on moving ones, `episodes` LeWorldModel on a square that is pushed
around, from files written here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from jepa.data.build import build

Media = Literal["images", "clips", "episodes"]
MEDIA: tuple[Media, ...] = get_args(Media)
_SIDE, _FRAMES, _EPISODES = 32, 24, 48


def build_small(media: Media, folder: Path, samples: int = 512) -> Path:
    """A data set of so many training samples; episodes of which as many windows can be cut."""
    few = f"source.samples={{train: {samples}, val: 32, test: 32}}"
    if media == "images":
        build("digits", folder, overrides=["source.size=32", "source.digit=[14, 24]", few], progress=False)
    elif media == "clips":
        build("moving-digits", folder, overrides=["source.frames=8", few], progress=False)
    else:
        files = folder.with_name(f"{folder.name}-files")
        for episode in range(_EPISODES):
            split = files / ("train" if episode < _EPISODES - 8 else "val" if episode < _EPISODES - 4 else "test")
            split.mkdir(parents=True, exist_ok=True)
            np.savez(split / f"{episode:03d}.npz", **_pushed(np.random.default_rng(episode)))
        build("npz", folder, overrides=[f"source.path={files}"], progress=False)
    return folder


def _pushed(rng: np.random.Generator) -> dict[str, Any]:
    """An episode: a bright square on grey, moved by what the action says."""
    actions = rng.uniform(-3, 3, (_FRAMES - 1, 2)).astype(np.float32)
    place = np.clip(rng.uniform(4, _SIDE - 12, 2) + np.cumsum(np.vstack([[0, 0], actions]), axis=0), 0, _SIDE - 8)
    frames = np.full((_FRAMES, _SIDE, _SIDE, 3), 90, dtype=np.uint8)
    for frame, (row, column) in zip(frames, place.round().astype(int), strict=True):
        frame[row : row + 8, column : column + 8] = 230
    return {"frames": frames, "action": actions}


def values(media: Media, data: Path, *, width: int = 48, depth: int = 2, heads: int = 3) -> dict[str, Any]:
    """Sections `method` and `data` of a configuration, to which the rest is added."""
    encoder: dict[str, Any] = {"width": width, "depth": depth, "heads": heads}
    predictor = {"width": 48, "depth": 2, "heads": 3}
    method: dict[str, Any]
    if media == "images":
        method = {"name": "ijepa", "encoder": encoder | {"patch": 4}, "predictor": predictor}
        return {"method": method, "data": {"path": str(data), "image_size": 32}}
    clip: dict[str, Any] = {"frames": 4, "stride": 1}
    if media == "clips":
        method = {"name": "vjepa", "encoder": encoder | {"patch": 8, "tubelet": 2}, "predictor": predictor}
        return {"method": method, "data": {"path": str(data), "image_size": 24, "clip": clip}}
    method = {
        "name": "lewm", "encoder": encoder | {"patch": 8}, "latent": width, "hidden": 2 * width,
        "predictor": {"depth": 1, "heads": 2}, "sigreg": {"directions": 32},
    }  # fmt: skip
    still = {"image_size": 32, "crop_scale": [1.0, 1.0], "crop_ratio": [1.0, 1.0], "hflip": 0.0}
    return {
        "method": method,
        "data": still | {"path": str(data), "clip": clip | {"short": "skip"}, "steps": {"action": "action"}},
    }


__all__ = ["MEDIA", "Media", "build_small", "values"]
