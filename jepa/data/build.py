"""recipe -> shards + manifest. Interrupted builds go on where they were; equal recipes give equal bytes."""

from __future__ import annotations

import contextlib
import hashlib
import json
import multiprocessing
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import numpy as np
from PIL import __version__ as pillow_version

from jepa import config, keyed
from jepa.data import encode, manifest, recipe, sources, storage
from jepa.data.encode import Bad, Encoded
from jepa.data.journal import FOLDER, Entry, Journal, differences
from jepa.data.manifest import Manifest
from jepa.data.recipe import Recipe
from jepa.data.shards import ShardWriter
from jepa.data.sources.base import Source, share
from jepa.errors import DataError

_CHUNK = 32  # tasks sent to a worker at once
Advance = Callable[[int], None]


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
        workers: processes that encode images; 0: this one. The result does not depend on it.
        progress: show a progress bar when standard error is a terminal.

    Raises:
        ConfigError: something is wrong in the recipe.
        DataError: nothing to read, `out` holds something else, or no image could be used.
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
    _make_splits(source, wanted)
    journal = Journal(root, {"recipe": resolved, "source": source.fingerprint()})
    try:
        with _bar(source, journal, progress) as advance, _encoder(source, wanted, workers) as encoded:
            for split in source.splits:
                _write_split(root, split, source, wanted, journal, encoded, advance)
        _finish(root, source, wanted, resolved, journal)
    except BaseException:
        journal.close(finished=False)
        raise
    journal.close(finished=True)
    return Manifest.open(root)


def _already_built(root: Path, resolved: dict[str, Any]) -> Manifest:
    found = Manifest.open(root)
    changed = differences(found.recipe, resolved)
    if changed:
        raise DataError(
            f"{root} already holds a dataset built by another recipe. Changed: {'; '.join(changed)}. "
            "Build into another folder, or delete this one"
        )
    return found


def _make_splits(source: Source, wanted: Recipe) -> None:
    """Take the splits that the source does not give out of its train split (or out of everything), by a keyed hash."""
    given = source.splits
    pool = given.pop("") if "" in given else given.get("train", [])
    missing = {name: part for name, part in wanted.splits.fractions.items() if name not in given}
    if missing and pool:
        edges, chosen = np.cumsum(list(missing.values())), {name: [] for name in ("train", *missing)}  # type: ignore[var-annotated]
        for task in pool:
            place = int(np.searchsorted(edges, share("split", wanted.splits.seed, task), side="right"))
            chosen[([*missing, "train"])[place]].append(task)
        shares = ", ".join(f"{name} {part:.3g}" for name, part in missing.items())
        source.notes.append(
            f"the source gives no {' and no '.join(missing)} split: made from its training images by a keyed hash "
            f"of their names (splits.seed={wanted.splits.seed}), shares {shares}"
        )
        given |= chosen
    elif pool:
        given["train"] = pool
    for name in [name for name, tasks in given.items() if not tasks]:
        source.notes.append(f"split {name!r} would be empty and was left out")
        del given[name]
    if not given:
        raise DataError("the source holds no images")
    for name, tasks in given.items():
        recipe.check_name(name, "split")
        if wanted.shards.shuffle:
            mixed = keyed.generator(f"shards.{name}", wanted.splits.seed).permutation(len(tasks))
            given[name] = [tasks[i] for i in mixed]


def _write_split(
    root: Path,
    split: str,
    source: Source,
    wanted: Recipe,
    journal: Journal,
    encoded: Callable[[Sequence[Any]], Iterator[Encoded | Bad]],
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
                if writer is None:
                    writer = ShardWriter(root / split / f"{wanted.name}-{split}-{number:06d}.tar", source.targets)
                writer.add(f"{place:09d}", result)
            full = writer is not None and (
                len(writer.part.keys) >= wanted.shards.max_samples or writer.bytes >= wanted.shards.max_bytes
            )
            if writer is not None and (full or place + 1 == len(tasks)):
                done, path = writer.close(), f"{split}/{writer.path.name}"
                entry = Entry(split, path, done.size, done.sha256, len(done.part.keys), place + 1, f"{path.replace('/', '-')}.npz", bad)
                journal.add(entry, done.part, len(source.targets))
                writer, bad, number = None, [], number + 1
    except BaseException:
        if writer is not None:
            writer.abandon()
        raise
    if bad:  # the split ended with bad images only; an entry without a tar keeps them
        _fail_if_none(split, bad, journal)
        last = max((e for e in journal.entries if e.split == split), key=lambda e: e.end)
        last.bad.extend(bad)


def _fail_if_none(split: str, bad: list[dict[str, str]], journal: Journal) -> None:
    if not any(e.split == split for e in journal.entries):
        raise DataError(
            f"none of the {len(bad)} images of split {split!r} could be used. "
            f"The first: {bad[0]['source']}: {bad[0]['reason']}"
        )


@contextlib.contextmanager
def _encoder(
    source: Source, wanted: Recipe, workers: int
) -> Iterator[Callable[[Sequence[Any]], Iterator[Encoded | Bad]]]:
    """A function that encodes tasks, in order, here or in worker processes."""
    if workers < 1:
        yield lambda tasks: (encode.encode(source.maker, task, wanted.image) for task in tasks)
        return
    pool = ProcessPoolExecutor(
        workers,
        mp_context=multiprocessing.get_context("spawn"),  # torch may hold threads, which a fork would not survive
        initializer=encode.start_worker,
        initargs=(source.maker, wanted.image),
    )
    try:
        yield lambda tasks: _in_workers(pool, tasks, 4 * workers)
    finally:
        pool.shutdown(cancel_futures=True)


def _in_workers(pool: ProcessPoolExecutor, tasks: Sequence[Any], ahead: int) -> Iterator[Encoded | Bad]:
    waiting: deque[Future[list[Encoded | Bad]]] = deque()
    try:
        for start in range(0, len(tasks), _CHUNK):
            waiting.append(pool.submit(encode.encode_many, list(tasks[start : start + _CHUNK])))
            if len(waiting) > ahead:
                yield from waiting.popleft().result()
        while waiting:
            yield from waiting.popleft().result()
    except BrokenProcessPool:
        raise DataError(
            "an encoding process was killed, most likely for want of memory. Run the same command again with fewer "
            "workers; finished shards are kept"
        ) from None


def _finish(root: Path, source: Source, wanted: Recipe, resolved: dict[str, Any], journal: Journal) -> None:
    """Join the shards' arrays, then write the manifest: it comes last and makes the dataset complete."""
    content = hashlib.sha256(json.dumps([source.classes, source.targets]).encode())
    splits: dict[str, Any] = {}
    sizes: list[Any] = []
    for split in source.splits:
        entries = [e for e in journal.entries if e.split == split]
        parts = [journal.arrays(e) for e in entries]
        shard = np.repeat(np.arange(len(parts)), [e.samples for e in entries])
        joined = {name: np.concatenate([p[name] for p in parts]) for name in parts[0]}
        arrays = {
            "index": np.column_stack([shard, joined["place"]]).astype(np.int64),
            "labels": joined["labels"],
            "originals": joined["originals"],
            "keys": joined["keys"],
            **{f"target-{t}": np.ascontiguousarray(joined["targets"][:, k]) for k, t in enumerate(source.targets)},
        }
        for name, array in arrays.items():
            content.update(f"{split}/{name}/{array.dtype}".encode() + hashlib.sha256(array.tobytes()).digest())
            _save(root / split / f"{name}.npy", array)
        for entry in entries:
            content.update(f"{entry.size}{entry.sha256}".encode())
        sizes.append(joined["sizes"])
        splits[split] = {
            "samples": int(sum(e.samples for e in entries)),
            "targets": source.targets,
            "shards": [{"path": e.path, "size": e.size, "sha256": e.sha256, "samples": e.samples} for e in entries],
        }
    bad = [b for e in journal.entries for b in e.bad]
    both = np.concatenate(sizes)
    values = {
        "format": manifest.FORMAT,
        "version": manifest.VERSION,
        "name": wanted.name,
        "licence": wanted.licence,
        "classes": source.classes,
        "hash": content.hexdigest(),
        "splits": splits,
        "image": {"smallest": both.min(0).tolist(), "largest": both.max(0).tolist(), "pillow": pillow_version},
        "notes": source.notes,
        "bad": bad[:1000],
        "bad_count": len(bad),
        "recipe": resolved,
    }
    storage.write_atomic(root / manifest.FILE, (json.dumps(values, indent=1) + "\n").encode())


def _save(path: Path, array: np.ndarray[Any, Any]) -> None:
    import io

    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    storage.write_atomic(path, buffer.getvalue())


@contextlib.contextmanager
def _bar(source: Source, journal: Journal, show: bool) -> Iterator[Advance]:
    if not show or not sys.stderr.isatty():
        yield lambda n: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("building"), BarColumn(), MofNCompleteColumn(), TextColumn("images"), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        total = sum(len(tasks) for tasks in source.splits.values())
        line = bar.add_task("", total=total, completed=sum(journal.end(s) for s in source.splits))
        yield lambda n: bar.advance(line, n)
