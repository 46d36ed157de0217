"""The last step of a build: join the shards' arrays and write the manifest, which makes the dataset complete."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import __version__ as pillow_version

from jepa.data import manifest, storage
from jepa.data.arrays import Array, ArrayConfig, Statistics, from_npy
from jepa.data.journal import Entry
from jepa.data.recipe import Recipe
from jepa.data.sources.base import References, Source
from jepa.errors import DataError

_BAD_LISTED = 1000


@dataclass(frozen=True)
class Piece:
    """The samples of one split in one shard."""

    entry: Entry
    arrays: dict[str, npt.NDArray[Any]]

    def take(self, chosen: npt.NDArray[np.bool_]) -> Piece:
        """Some of the samples."""
        arrays = {name: array[chosen] for name, array in self.arrays.items()}
        return Piece(replace(self.entry, samples=int(chosen.sum())), arrays)


def assemble(
    root: Path,
    pieces: dict[str, list[Piece]],
    source: Source | References,
    wanted: Recipe,
    resolved: dict[str, Any],
    bad: list[dict[str, str]],
    schema: Mapping[str, ArrayConfig],
) -> None:
    """Write every split's arrays, then manifest.json.

    Args:
        schema: of the arrays that come with every episode, as they are stored.
    """
    classes = source.classes if source.classes is not None else _numbers(pieces)
    maps = {name: {"first": m.first, "scale": m.scale} for name, m in source.maps.items()}
    described = {name: asdict(c) for name, c in schema.items()}
    said = [classes, source.targets, *([maps] if maps else []), *([described] if described else [])]
    content = hashlib.sha256(json.dumps(said).encode())
    splits, sizes, media = {}, [], _media(pieces)
    kinds = source.kinds if isinstance(source, Source) else {}
    for split, parts in pieces.items():
        joined = {name: np.concatenate([p.arrays[name] for p in parts]) for name in parts[0].arrays}
        write_arrays(root / split, parts, joined, source.targets, media, content, source.maps, kinds, schema)
        sizes.append(joined["sizes"])
        splits[split] = {
            "samples": sum(p.entry.samples for p in parts),
            "targets": source.targets,
            **({"maps": maps} if maps else {}),
            "shards": [_shard(root, p.entry) for p in parts],
        }
    if isinstance(source, Source):
        bad = [{"source": where, "reason": why} for where, why in source.unusable] + bad
    known = np.concatenate(sizes)
    known = known[known.min(1) > 0]
    extremes = {"smallest": known.min(0).tolist(), "largest": known.max(0).tolist()} if len(known) else {}
    values = {
        "format": manifest.FORMAT,
        "version": manifest.VERSION,
        "name": wanted.name,
        "licence": wanted.licence,
        "classes": classes,
        "kinds": kinds,
        "hash": content.hexdigest(),
        "splits": splits,
        "media": media,
        **({"arrays": {n: asdict(a) for n, a in _statistics(root, pieces, schema).items()}} if schema else {}),
        "image": {**extremes, "pillow": pillow_version},
        "notes": source.notes,
        "bad": bad[:_BAD_LISTED],
        "bad_count": len(bad),
        "recipe": resolved,
    }
    storage.write_atomic(root / manifest.FILE, (json.dumps(values, indent=1) + "\n").encode())


def _shard(root: Path, entry: Entry) -> dict[str, Any]:
    found = {"path": entry.path, "size": entry.size, "sha256": entry.sha256, "samples": entry.samples}
    if entry.facts:
        found["facts"] = {"path": entry.facts, "size": (root / entry.facts).stat().st_size}
    return found


def write_arrays(
    folder: Path,
    parts: list[Piece],
    joined: dict[str, npt.NDArray[Any]],
    targets: Sequence[str],
    media: str,
    content: Any,
    maps: Iterable[str] = (),
    kinds: Iterable[str] = (),
    arrays_of: Iterable[str] = (),
) -> None:
    """One .npy file per column of a split; `content` takes in what makes samples equal: bytes, places, labels, keys.

    Args:
        joined: the columns of all parts, one after the other (see `shards.Part.arrays`).
        content: a hash object.
        arrays_of: names of the arrays that come with every episode.
    """
    folder.mkdir(exist_ok=True)
    shard = np.repeat(np.arange(len(parts)), [p.entry.samples for p in parts])
    arrays = {
        "index": np.column_stack([shard, joined["place"]]).astype(np.int64),
        "labels": joined["labels"],
        "originals": joined["originals"],
        "keys": joined["keys"],
        **{f"target-{name}": np.ascontiguousarray(joined["targets"][:, k]) for k, name in enumerate(targets)},
        **{f"map-{name}": np.ascontiguousarray(joined["maps"][:, k]) for k, name in enumerate(maps)},
        **{f"labels-{name}": np.ascontiguousarray(joined["kinds"][:, k]) for k, name in enumerate(kinds)},
        **{f"array-{name}": np.ascontiguousarray(joined["steps"][:, k]) for k, name in enumerate(arrays_of)},
    }
    if media == "video":
        arrays |= {"video": joined["video"], "facts": joined["facts"]}
    for name, array in arrays.items():
        content.update(f"{folder.name}/{name}/{array.dtype}".encode() + hashlib.sha256(array.tobytes()).digest())
        buffer = io.BytesIO()
        np.save(buffer, array, allow_pickle=False)
        storage.write_atomic(folder / f"{name}.npy", buffer.getvalue())
    for part in parts:
        content.update(f"{part.entry.size}/{part.entry.sha256}".encode())


def _statistics(root: Path, pieces: dict[str, list[Piece]], schema: Mapping[str, ArrayConfig]) -> dict[str, Array]:
    """The arrays with the statistics of the training split, read back one episode at a time."""
    found = {name: Statistics(config) for name, config in schema.items()}
    for part in pieces.get("train", []):
        path = root / part.entry.path
        for places in part.arrays["steps"]:
            for (name, statistics), (offset, length, rows) in zip(found.items(), places.tolist(), strict=True):
                data = storage.read(path, part.entry.size, offset, length)
                statistics.add(from_npy(data, name, statistics.config, rows))
    return {name: statistics.result() for name, statistics in found.items()}


def _media(pieces: dict[str, list[Piece]]) -> str:
    """What the samples are.

    Raises:
        DataError: images and videos together.
    """
    kinds = {"video" if e in manifest.VIDEOS else "image" for e in _extensions(pieces)}
    if len(kinds) > 1:
        raise DataError("the source holds images and videos. Build them as two datasets, and train on both with `mix`")
    return kinds.pop() if kinds else "image"


def _extensions(pieces: dict[str, list[Piece]]) -> set[str]:
    numbers = [p.arrays["place"][:, 2] for parts in pieces.values() for p in parts]
    return {manifest.EXTENSIONS[int(n)] for n in np.unique(np.concatenate(numbers))} if numbers else set()


def _numbers(pieces: dict[str, list[Piece]]) -> list[str]:
    """Class names where the source has none: the label numbers themselves."""
    most = max((int(p.arrays["labels"].max(initial=-1)) for parts in pieces.values() for p in parts), default=-1)
    return [str(i) for i in range(most + 1)]
