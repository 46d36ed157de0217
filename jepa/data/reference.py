"""Tars that stay where they are: index them, and cut splits out of the index."""

from __future__ import annotations

import contextlib
import functools
import multiprocessing
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from jepa.data import recipe, remote, storage
from jepa.data.assemble import Piece
from jepa.data.journal import Entry, Journal
from jepa.data.progress import bar
from jepa.data.recipe import Recipe
from jepa.data.remote import Place, Url
from jepa.data.shards import Part
from jepa.data.sources.base import References, TarIndexer, TarSample, share
from jepa.errors import ConfigError, DataError

FACTS = "facts"  # folder of the dataset that holds what is known of videos elsewhere


def choose(name: str, missing: dict[str, float], seed: int) -> str:
    """The split of a sample by a keyed hash of its name: one of `missing` with its share, else train."""
    place = share("split", seed, name)
    for split, part in missing.items():
        if place < part:
            return split
        place -= part
    return "train"


def index_tars(root: Path, source: References, wanted: Recipe, journal: Journal, workers: int, progress: bool) -> None:
    """Index the tars that the journal does not have yet.

    Raises:
        ConfigError: the recipe asks for changed images or videos.
        DataError: a tar is compressed, unreadable or none.
    """
    _check_unchanged(wanted)
    total = sum(len(paths) for paths in source.tars.values())
    done, least = sum(journal.end(split) for split in source.tars), wanted.video.min_frames
    with bar("tars", total, done, progress) as advance, _mapper(min(workers, total - done)) as each:
        for split, paths in source.tars.items():
            start = journal.end(split)
            indexed = each(functools.partial(_index, source.index, least, wanted.clean), paths[start:])
            for number, (part, bad, facts, size) in enumerate(indexed, start):
                name = f"{split or 'pool'}-{number:06d}"
                kept = f"{FACTS}/{name}.jsonl" if facts else ""
                if kept:
                    (root / FACTS).mkdir(exist_ok=True)
                    storage.write_atomic(root / kept, facts)
                where = _stored_path(root, paths[number])
                entry = Entry(split, where, size, "", len(part.keys), number + 1, f"{name}.npz", bad, kept)
                journal.add(entry, part, len(source.targets), len(source.maps))
                advance(1)


def _check_unchanged(wanted: Recipe) -> None:
    changes = [f"video.{name}" for name in ("resize", "fps", "clip", "gop") if getattr(wanted.video, name) is not None]
    changes += ["image.resize"] if wanted.image.resize is not None else []
    if changes:
        raise ConfigError(
            f"{', '.join(changes)}: tars that are read in place stay as they are. Add source.copy=true to repack them, "
            "or leave it out"
        )


@contextlib.contextmanager
def _mapper(workers: int) -> Iterator[Callable[..., Iterator[Any]]]:
    """`map`, here or in worker processes."""
    if workers < 1:
        yield map
        return
    # torch may hold threads, which a fork would not survive
    pool = ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))
    try:
        yield pool.map
    finally:
        pool.shutdown(cancel_futures=True)


def _index(
    index: TarIndexer, min_frames: int, clean: str | None, tar: Place
) -> tuple[Part, list[dict[str, str]], bytes, int]:
    """A tar's samples, what cannot be used, the facts of its videos, one line each, and its size in bytes."""
    part, bad, facts = Part.empty(), [], bytearray()
    path = remote.local(tar)
    names = recipe.listed(clean) if clean is not None else None
    for found in _named(index, path, tar):
        if names is not None and isinstance(found, TarSample) and found.name not in names:
            continue
        if isinstance(found, TarSample) and found.facts and found.video[0] < min_frames:
            reason = f"it has {found.video[0]:.0f} frame(s), the recipe asks for video.min_frames={min_frames}"
            bad.append({"source": found.name, "reason": reason})
        elif isinstance(found, TarSample):
            part.keys.append(found.key)
            part.offsets.append(found.offset)
            part.lengths.append(found.length)
            part.extensions.append(found.extension)
            part.labels.append(found.label)
            part.originals.append(found.original)
            part.targets.append(found.targets)
            part.sizes.append(found.size)
            part.videos.append(found.video)
            part.facts.append((len(facts), len(found.facts)))
            part.maps.append(found.maps)
            facts += found.facts + b"\n" if found.facts else b""
            part.kinds.append(())
            part.steps.append(())
        else:
            bad.append({"source": found[0], "reason": found[1]})
    return part, bad, bytes(facts), path.stat().st_size


def _named(index: TarIndexer, path: Path, tar: Place) -> Iterator[TarSample | tuple[str, str]]:
    """What an indexer finds; what it says of a copy in the cache is said of the tar itself."""
    try:
        yield from index(path)
    except DataError as error:
        raise DataError(str(error).replace(str(path), str(tar))) from None


def _stored_path(root: Path, tar: Place) -> str:
    """A URL as it is; a path absolute where the recipe says so, else relative to the dataset: so both can move."""
    if isinstance(tar, Url):
        return tar.text
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
