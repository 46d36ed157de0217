"""What a build has finished so far, so that an interrupted one goes on where it was."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from jepa.data import remote, storage
from jepa.data.shards import Part
from jepa.errors import DataError

FOLDER = ".build"


@dataclass(frozen=True)
class Entry:
    """One finished shard."""

    split: str
    path: str  # of the tar, relative to the dataset's folder or absolute
    size: int  # bytes of the tar
    sha256: str  # of the tar; empty for one that is only referenced
    samples: int
    end: int  # tasks (or tars) of the split used up, this shard included
    arrays: str  # file in FOLDER
    bad: list[dict[str, str]]
    facts: str = ""  # file with the videos' facts, relative to the dataset's folder; empty: they are in the tar


class Journal:
    """`.build/journal.jsonl`: a header, then one line per finished shard, each synced to disk."""

    def __init__(self, root: Path, header: dict[str, Any]) -> None:
        """Open or start the journal of a build.

        Raises:
            DataError: another build is running here, or the interrupted build here was of another recipe or source.
        """
        self.root, self.folder = root, root / FOLDER
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = _lock(self.folder / "lock")
        self.entries: list[Entry] = []
        path = self.folder / "journal.jsonl"
        lines = _complete_lines(path)
        if not lines:
            storage.write_atomic(path, (json.dumps(header, sort_keys=True) + "\n").encode())
        else:
            try:
                began, entries = dict(json.loads(lines[0])), [Entry(**json.loads(line)) for line in lines[1:]]
            except (ValueError, TypeError, AttributeError) as error:
                raise DataError(
                    f"{path} is damaged, or of another version of this program ({error}). Delete {root}, or build into "
                    "another folder"
                ) from None
            _same(root, began, header)
            self.entries = self._usable(entries)
            kept = lines[: 1 + len(self.entries)]
            storage.write_atomic(path, ("\n".join(kept) + "\n").encode())
        self._file = path.open("a", encoding="utf-8")

    def end(self, split: str) -> int:
        """How many tasks of a split are used up."""
        return max((e.end for e in self.entries if e.split == split), default=0)

    def add(self, entry: Entry, part: Part, targets: int, maps: int) -> None:
        """Record a finished shard, its arrays first."""
        buffer = io.BytesIO()
        np.savez(buffer, allow_pickle=False, **part.arrays(targets, maps))
        storage.write_atomic(self.folder / entry.arrays, buffer.getvalue())
        self._file.write(json.dumps(entry.__dict__, sort_keys=True) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        self.entries.append(entry)

    def arrays(self, entry: Entry) -> dict[str, Any]:
        """The arrays of a finished shard."""
        with np.load(self.folder / entry.arrays, allow_pickle=False) as found:
            return {name: found[name] for name in found.files}

    def close(self, *, finished: bool) -> None:
        """Release the folder; a finished build needs the journal no more."""
        with contextlib.suppress(OSError):  # the half line that a full disk left: dropped when it is read
            self._file.close()
        self._lock.close()
        if finished:
            shutil.rmtree(self.folder)

    def _usable(self, entries: list[Entry]) -> list[Entry]:
        """The entries whose files are still there; what follows a lost one is made again."""
        lost: set[str] = set()
        kept = []
        for entry in entries:
            tar = self.root / entry.path
            there = remote.is_url(entry.path) or (tar.is_file() and tar.stat().st_size == entry.size)
            there &= (self.folder / entry.arrays).is_file()
            there &= not entry.facts or (self.root / entry.facts).is_file()
            if not there:
                lost.add(entry.split)
            if entry.split not in lost:
                kept.append(entry)
        return kept


def _complete_lines(path: Path) -> list[str]:
    """Lines ended by a newline; the last one may have been cut by a crash."""
    if not path.is_file():
        return []
    text = path.read_text(encoding="utf-8", errors="replace")
    return text[: text.rfind("\n") + 1].splitlines()


def _same(root: Path, old: dict[str, Any], new: dict[str, Any]) -> None:
    changed = differences(old.get("recipe", {}), new["recipe"])
    if changed:
        raise DataError(
            f"{root} holds an unfinished build of another recipe. Changed: {'; '.join(changed)}. "
            "Build with the old recipe, into another folder, or delete this one"
        )
    if old.get("source") != new["source"]:
        raise DataError(
            f"{root} holds an unfinished build, and the source has changed since it began (files were added, removed "
            "or renamed). Restore them, build into another folder, or delete this one"
        )


def differences(old: Any, new: Any, where: str = "") -> list[str]:
    """What differs between two nested plain values, as lines `a.b: old -> new`."""
    if isinstance(old, dict) and isinstance(new, dict):
        names = [*old, *(k for k in new if k not in old)]
        return [
            line
            for name in names
            for line in differences(old.get(name), new.get(name), f"{where}.{name}" if where else str(name))
        ]
    return [] if old == new else [f"{where}: {old!r} -> {new!r}"]


def _lock(path: Path) -> IO[bytes]:
    try:
        return storage.claim(path)
    except BlockingIOError:
        raise DataError(
            f"another build is writing to {path.parent.parent}. Wait for it, or choose another folder"
        ) from None
