"""Tars that stay where they are: index them, and cut splits out of the index."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from jepa.data.assemble import Piece
from jepa.data.journal import Entry, Journal
from jepa.data.progress import bar
from jepa.data.shards import Part
from jepa.data.sources.base import References, TarSample, share
from jepa.errors import DataError


def choose(name: str, missing: dict[str, float], seed: int) -> str:
    """The split of a sample by a keyed hash of its name: one of `missing` with its share, else train."""
    place = share("split", seed, name)
    for split, part in missing.items():
        if place < part:
            return split
        place -= part
    return "train"


def index_tars(root: Path, source: References, journal: Journal, progress: bool) -> None:
    """Index the tars that the journal does not have yet.

    Raises:
        DataError: a tar is compressed, unreadable or none.
    """
    total = sum(len(paths) for paths in source.tars.values())
    with bar("tars", total, sum(journal.end(split) for split in source.tars), progress) as advance:
        for split, paths in source.tars.items():
            for number in range(journal.end(split), len(paths)):
                part, bad = _index(source, paths[number])
                size = paths[number].stat().st_size
                arrays = f"{split or 'pool'}-{number:06d}.npz"
                where = _stored_path(root, paths[number])
                journal.add(
                    Entry(split, where, size, "", len(part.keys), number + 1, arrays, bad), part, len(source.targets)
                )
                advance(1)


def _index(source: References, path: Path) -> tuple[Part, list[dict[str, str]]]:
    part, bad = Part.empty(), []
    for found in source.index(path):
        if isinstance(found, TarSample):
            part.keys.append(found.key)
            part.offsets.append(found.offset)
            part.lengths.append(found.length)
            part.extensions.append(found.extension)
            part.labels.append(found.label)
            part.originals.append(found.original)
            part.targets.append(found.targets)
            part.sizes.append(found.size)
            part.videos.append((0.0, 0.0, 0.0))
            part.facts.append((0, 0))
        else:
            bad.append({"source": found[0], "reason": found[1]})
    return part, bad


def _stored_path(root: Path, tar: Path) -> str:
    """Absolute where the recipe says so, else relative to the dataset, so that both can move together."""
    if tar.is_absolute():
        return str(tar)
    return Path(os.path.relpath(tar.absolute(), root.absolute())).as_posix()


def carve(given: dict[str, list[Piece]], missing: dict[str, float], seed: int) -> dict[str, list[Piece]]:
    """Cut the missing splits out of train (or out of everything); the shards are shared, the samples are not."""
    pool = given.pop("") if "" in given else given.pop("train", [])
    chosen: dict[str, list[Piece]] = {name: [] for name in ("train", *missing)}
    for piece in pool:
        # by original, not by sample: two cuts of one picture must not end up on both sides
        names = np.array([choose(str(n), missing, seed) for n in piece.arrays["originals"].tolist()], dtype=object)
        for split in chosen:
            chosen[split].append(piece.take(names == split))
    splits = {**chosen, **given}
    kept = {split: [p for p in pieces if p.entry.samples] for split, pieces in splits.items()}
    if not any(kept.values()):
        bad = [b for pieces in splits.values() for p in pieces for b in p.entry.bad]
        first = f" The first problem: {bad[0]['source']}: {bad[0]['reason']}" if bad else ""
        raise DataError(f"none of the tars holds a sample that can be used.{first}")
    return {split: pieces for split, pieces in kept.items() if pieces}
