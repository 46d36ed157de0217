"""What is in a built data set, as plain values: what `jepa data build --json` and `jepa data show --json` print."""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import Any

import numpy as np

from jepa.data.manifest import EXTENSION, EXTENSIONS, LENGTH, Manifest, Split


def facts(found: Manifest) -> dict[str, Any]:
    """Of a data set: folder, name, licence, hash, media, smallest and largest (H, W), splits, arrays, notes, left out.

    Raises:
        DataError: an index is missing or damaged.
    """
    return {
        "folder": str(found.root), "name": found.name, "licence": found.licence, "hash": found.hash,
        "media": found.media, "smallest": found.image.get("smallest"), "largest": found.image.get("largest"),
        "splits": {name: of_split(split, found) for name, split in found.splits.items()},
        "arrays": {name: dataclasses.asdict(array) for name, array in found.arrays.items()},
        "notes": found.notes, "left_out": found.bad_count, "left_out_first": found.bad,
    }  # fmt: skip


def of_split(split: Split, found: Manifest) -> dict[str, Any]:
    """Of a split: samples, shards, bytes stored, files by extension, originals, label maps, samples by class; videos.

    Raises:
        DataError: an index is missing or damaged.
    """
    files = Counter(EXTENSIONS[e] for e in np.asarray(split.index[:, EXTENSION]).tolist())
    values = {
        "samples": len(split), "shards": len(split.shards), "bytes": int(np.asarray(split.index[:, LENGTH]).sum()),
        "files": dict(files), "originals": len(np.unique(split.originals)), "maps": split.map_names,
        "classes": _classes(split, found.classes),
    }  # fmt: skip
    return values | ({"videos": _videos(split)} if found.media == "video" and len(split) else {})


def _classes(split: Split, names: list[str]) -> dict[str, int]:
    numbers, counts = np.unique(np.asarray(split.labels), return_counts=True)
    return {
        ("no label" if n < 0 else names[n] if n < len(names) else str(n)): c
        for n, c in zip(numbers.tolist(), counts.tolist(), strict=True)
    }


def _videos(split: Split) -> dict[str, Any] | None:
    """Least and most frames, frames a second and seconds, and all hours; None: not known, as they are read in place."""
    video = np.asarray(split.video)
    known = video[video[:, 0] > 0]
    if not len(known):
        return None
    low, high = known.min(0).tolist(), known.max(0).tolist()
    frames, fps, seconds = ([a, b] for a, b in zip(low, high, strict=True))
    return {"frames": frames, "fps": fps, "seconds": seconds, "hours": float(known[:, 2].sum()) / 3600}


__all__ = ["facts", "of_split"]
