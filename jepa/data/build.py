"""recipe -> shards + manifest. Interrupted builds go on where they were; equal recipes give equal bytes."""

from __future__ import annotations

import contextlib
import hashlib
from pathlib import Path
from typing import Any

from jepa import config, keyed
from jepa.data import episode, manifest, recipe, reference, sources, storage
from jepa.data.assemble import Piece, assemble
from jepa.data.encode import Bad, Schema
from jepa.data.encoders import Encode, encoder
from jepa.data.journal import FOLDER, Entry, Journal, differences
from jepa.data.manifest import Manifest
from jepa.data.progress import Advance, bar
from jepa.data.recipe import Recipe
from jepa.data.shards import ShardWriter
from jepa.data.sources.base import References, Source
from jepa.errors import ConfigError, DataError


def build(
    recipe_path: str | Path,
    out: str | Path,
    *,
    overrides: list[str] | None = None,
    workers: int = 0,
    progress: bool = True,
) -> Manifest:
    """Build a dataset, or finish an interrupted build of the same recipe.

    Args:
        recipe_path: a recipe file, or the name of a shipped one ("digits").
        out: folder of the dataset.
        overrides: ``a.b=value`` changes to the recipe, e.g. ``source.path=/data/imagenet``.
        workers: processes that encode images, or look through tars; 0: this one. The result does not depend on it.
        progress: show a progress bar when standard error is a terminal.

    Raises:
        ConfigError: something is wrong in the recipe.
        DataError: nothing to read, `out` holds something else, no image could be used, or the disk is full.
    """
    wanted = recipe.load(recipe_path, overrides)
    kind, options = sources.configure(wanted.source)
    resolved = config.to_dict(wanted) | {"source": {"kind": kind, **config.to_dict(options)}}
    root = Path(out)
    if (root / manifest.FILE).exists():
        return _already_built(root, resolved)
    if root.exists() and not root.is_dir():
        raise DataError(f"{root} is a file. Give a folder for the dataset")
    if root.is_dir() and not (root / FOLDER).is_dir() and any(root.iterdir()):
        raise DataError(f"{root} holds other files. Give an empty or new folder for the dataset")

    source = sources.open_source(kind, options)
    schema = _schema(source, wanted)
    missing = _missing_splits(source, wanted)
    if isinstance(source, Source):
        _make_splits(source, wanted, missing)
    fingerprint = source.fingerprint()
    if wanted.clean is not None:
        names = recipe.listed(wanted.clean)
        source.notes.append(f"only samples that are among the {len(names)} listed in {wanted.clean} were taken")
        fingerprint = hashlib.sha256("\0".join([fingerprint, *sorted(names)]).encode("utf-8", "replace")).hexdigest()
    with storage.written_to(root):
        return _finish(root, source, wanted, schema, missing, resolved, fingerprint, workers, progress)


def _finish(
    root: Path, source: Source | References, wanted: Recipe, schema: Schema, missing: dict[str, float],
    resolved: dict[str, Any], fingerprint: str, workers: int, progress: bool,
) -> Manifest:  # fmt: skip
    """Write whatever a build has not written yet."""
    journal = Journal(root, {"recipe": resolved, "source": fingerprint})
    try:
        if isinstance(source, Source):
            _write_shards(root, source, wanted, schema, journal, workers, progress)
            pieces = {split: found for split in source.splits if (found := _pieces(journal, split))}
            if not pieces:
                raise DataError(f"clean={wanted.clean} lists none of the source's samples: it was made of another one")
        else:
            reference.index_tars(root, source, wanted, journal, workers, progress)
            pieces = reference.carve({s: _pieces(journal, s) for s in source.tars}, missing, wanted.splits.seed)
        kept = episode.stored(schema, wanted.episode or episode.EpisodeConfig())
        assemble(root, pieces, source, wanted, resolved, [b for e in journal.entries for b in e.bad], kept)
    except BaseException:
        journal.close(finished=False)
        raise
    journal.close(finished=True)
    return Manifest.open(root)


def _pieces(journal: Journal, split: str) -> list[Piece]:
    return [Piece(e, journal.arrays(e)) for e in journal.entries if e.split == split]


def _already_built(root: Path, resolved: dict[str, Any]) -> Manifest:
    found = Manifest.open(root)
    changed = differences(found.recipe, resolved)
    if changed:
        raise DataError(
            f"{root} already holds a dataset built by another recipe. Changed: {'; '.join(changed)}. "
            "Build into another folder, or delete this one"
        )
    return found


def _schema(source: Source | References, wanted: Recipe) -> Schema:
    """The arrays of episodes as the source gives them and the recipe describes them; empty for a source without.

    Raises:
        ConfigError: the recipe speaks of arrays that are not there, or asks for what arrays cannot follow.
    """
    found = source.arrays if isinstance(source, Source) else {}
    if not found:
        if wanted.episode is not None:
            raise ConfigError("episode: this source gives no arrays, only pictures; leave the section out")
        return {}
    for name in ("fps", "clip"):
        if getattr(wanted.video, name) is not None:
            raise ConfigError(
                f"video.{name}={getattr(wanted.video, name):g}: arrays of episodes belong to their frames, which "
                "cannot be taken at other times. Thin them out with episode.frame_skip"
            )
    return episode.schema(found, wanted.episode or episode.EpisodeConfig())


def _missing_splits(source: Source | References, wanted: Recipe) -> dict[str, float]:
    """The splits that have to be made, with their shares; says so in the notes."""
    given = source.splits if isinstance(source, Source) else source.tars
    for name in given:
        recipe.check_name(name or "train", "split")
    missing = {name: part for name, part in wanted.splits.fractions.items() if name not in given}
    if not missing or not ({"", "train"} & set(given)):
        return {}
    shares = ", ".join(f"{name} {part:.3g}" for name, part in missing.items())
    source.notes.append(
        f"the source gives no {' and no '.join(missing)} split: made from its training images by a keyed hash "
        f"of their names (splits.seed={wanted.splits.seed}), shares {shares}"
    )
    return missing


def _make_splits(source: Source, wanted: Recipe, missing: dict[str, float]) -> None:
    """Cut the missing splits out of train (or out of everything), and mix each split's tasks."""
    given = source.splits
    pool = given.pop("") if "" in given else given.pop("train", [])
    chosen: dict[str, list[Any]] = {name: [] for name in ("train", *missing)}
    for task in pool:
        chosen[reference.choose(source.identity(task), missing, wanted.splits.seed)].append(task)
    source.splits = {name: tasks for name, tasks in {**chosen, **given}.items() if tasks}
    source.notes += [f"split {name!r} would be empty and was left out" for name in missing if not chosen[name]]
    if not source.splits:
        raise DataError("the source holds no images")
    if wanted.shards.shuffle and source.sequential:
        source.notes.append(
            "samples are in the source's order, as it is streamed: mix its rows before, if they are sorted"
        )
    elif wanted.shards.shuffle and not source.together:
        for name, tasks in source.splits.items():
            mixed = keyed.generator(f"shards.{name}", wanted.splits.seed).permutation(len(tasks))
            source.splits[name] = [tasks[i] for i in mixed]


def _write_shards(
    root: Path, source: Source, wanted: Recipe, schema: Schema, journal: Journal, workers: int, progress: bool
) -> None:
    total = sum(len(tasks) for tasks in source.splits.values())
    done = sum(journal.end(split) for split in source.splits)
    with (
        bar("episodes" if schema else "images", total, done, progress) as advance,
        encoder(source, wanted, schema, workers) as encoded,
    ):
        for split in source.splits:
            _write_split(root, split, source, wanted, journal, encoded, advance)


def _write_split(
    root: Path,
    split: str,
    source: Source,
    wanted: Recipe,
    journal: Journal,
    encoded: Encode,
    advance: Advance,
) -> None:
    """Write the shards of a split that are not finished yet."""
    tasks, start = source.splits[split], journal.end(split)
    (root / split).mkdir(exist_ok=True)
    number = sum(e.split == split for e in journal.entries)
    writer: ShardWriter | None = None
    bad: list[dict[str, str]] = []
    try:
        for place, result in enumerate(encoded(tasks[start:]), start):
            advance(1)
            if isinstance(result, Bad):
                bad.append({"source": result.source, "reason": result.reason})
            else:
                if writer is None and result:
                    writer = ShardWriter(root / split / f"{wanted.name}-{split}-{number:06d}.tar", source.targets)
                for number_in_it, piece in enumerate(result):
                    assert writer is not None
                    writer.add(f"{place:09d}" if len(result) == 1 else f"{place:09d}-{number_in_it:04d}", piece)
            full = writer is not None and (
                len(writer.part.keys) >= wanted.shards.max_samples or writer.written >= wanted.shards.max_bytes
            )
            if writer is not None and (full or place + 1 == len(tasks)):
                done, path = writer.close(), f"{split}/{writer.path.name}"
                arrays = f"{split}-{number:06d}.npz"
                entry = Entry(split, path, done.size, done.sha256, len(done.part.keys), place + 1, arrays, bad)
                journal.add(entry, done.part, len(source.targets), len(source.maps))
                writer, bad, number = None, [], number + 1
    except BaseException:
        if writer is not None:
            with contextlib.suppress(OSError):  # the disk is full already
                writer.abandon()
        raise
    if bad:  # the split ended with bad images only; an entry without a tar keeps them
        _fail_if_none(split, bad, journal)
        last = max((e for e in journal.entries if e.split == split), key=lambda e: e.end)
        last.bad.extend(bad)


def _fail_if_none(split: str, bad: list[dict[str, str]], journal: Journal) -> None:
    if not any(e.split == split for e in journal.entries):
        raise DataError(
            f"none of the {len(bad)} images or videos of split {split!r} could be used. "
            f"The first: {bad[0]['source']}: {bad[0]['reason']}"
        )
