"""The folder of an extraction while it is written, by one process or by several that know nothing of each other.

    DIR/.extract/plan.json           what is written: whoever comes must want the same
    DIR/.extract/SPLIT-000000.npz    a finished shard: written after its tar, so it says that the tar is whole
    DIR/SPLIT/NAME-SPLIT-000000.tar  the shards, each complete or absent

Processes share nothing but this folder. Each writes its own shards, and whichever finds all of them finished, last,
writes the arrays and the manifest and removes `.extract`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from jepa import config as configuration
from jepa.data import Manifest, manifest, storage
from jepa.data.arrays import Array
from jepa.data.assemble import Piece, write_arrays
from jepa.data.journal import Entry, differences
from jepa.data.shards import Part, Written
from jepa.errors import ConfigError, DataError
from jepa.extract.plan import Job, Plan
from jepa.probe.featureset import CLIP_FRAMES, UNFINISHED, About


class Work:
    """An extraction's folder, taken up or begun.

    Raises:
        DataError: the folder holds something else, or features of other weights, data or settings.
    """

    def __init__(self, root: Path, plan: Plan) -> None:
        self.root, self.plan, self.folder = root, plan, root / UNFINISHED
        self.finished = self._finished()
        if self.finished:
            return
        if root.exists() and not root.is_dir():
            raise DataError(f"{root} is a file. Give a folder for the features")
        if root.is_dir() and not self.folder.is_dir() and any(root.iterdir()):
            raise DataError(f"{root} holds other files. Give an empty or new folder for the features")
        with storage.written_to(root):
            self._begin()

    def path(self, job: Job) -> Path:
        """The tar of a shard."""
        return self.root / job.split / f"{self.plan.data.name}-{job.name}.tar"

    def done(self, job: Job) -> bool:
        """Whether a shard is finished and still there."""
        record, tar = self.folder / f"{job.name}.npz", self.path(job)
        try:
            with np.load(record, allow_pickle=False) as found:
                return tar.stat().st_size == int(found["size"]) and int(found["samples"]) == job.stop - job.start
        except (OSError, ValueError, KeyError, EOFError):
            return False

    def record(self, job: Job, written: Written, made: dict[str, Any]) -> None:
        """Note a finished shard, and by what it was made."""
        buffer = io.BytesIO()
        arrays = written.part.arrays(len(self._targets(job.split)))
        facts: dict[str, Any] = {"size": written.size, "samples": len(written.part.keys), "sha256": written.sha256}
        np.savez(buffer, allow_pickle=False, made=json.dumps(made), **facts, **arrays)
        storage.write_atomic(self.folder / f"{job.name}.npz", buffer.getvalue())

    @contextlib.contextmanager
    def claim(self, job: Job) -> Iterator[None]:
        """Hold a shard while it is written.

        Raises:
            DataError: another process is writing it.
        """
        with _locked(self.folder / f"{job.name}.lock", wait=False) as free:
            if not free:
                raise DataError(
                    f"another process is writing shard {job.name} to {self.root}. Wait for it, or give every process "
                    "a share of its own: --shard-of 0/2, --shard-of 1/2"
                )
            yield

    def end(self) -> bool:
        """Write the manifest if every shard is finished; whether the features are complete."""
        with storage.written_to(self.root), contextlib.ExitStack() as stack:
            try:
                stack.enter_context(_locked(self.folder / "lock"))
            except FileNotFoundError:  # another process was last and has tidied up
                return self._finished()
            if not self._finished():
                if not all(self.done(job) for job in self.plan.jobs()):
                    return False
                self._assemble()
            shutil.rmtree(self.folder, ignore_errors=True)
            return True

    # --- beginning ------------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        file, wanted = self.folder / "plan.json", self.plan.about
        with _locked(self.folder / "lock"):
            if self._finished():  # in this very moment
                self.finished = True
                shutil.rmtree(self.folder, ignore_errors=True)
                return
            if file.is_file():
                self._compare(_about(self._planned(), file), "unfinished features")
            else:
                text = json.dumps(configuration.to_dict(wanted), indent=1)
                storage.write_atomic(file, text.encode())
        for split in wanted.views:
            (self.root / split).mkdir(exist_ok=True)

    def _finished(self) -> bool:
        """Whether the features are there already.

        Raises:
            DataError: other features, or a data set.
        """
        if not (self.root / manifest.FILE).exists():
            return False
        found = Manifest.open(self.root, features=True)
        self._compare(_about(found.features, self.root / manifest.FILE), "features", ignore=("jepa",))
        return True

    def _compare(self, held: About, what: str, ignore: tuple[str, ...] = ()) -> None:
        old, new = ({k: v for k, v in a.identity().items() if k not in ignore} for a in (held, self.plan.about))
        changed = differences(old, new)
        if changed:
            raise DataError(
                f"{self.root} holds {what} of other weights, data or settings: {'; '.join(changed)}. Extract into "
                "another folder, or delete this one"
            )

    # --- ending ---------------------------------------------------------------------------------------------------

    def _targets(self, split: str) -> list[str]:
        return self.plan.data.splits[split].target_names

    def _assemble(self) -> None:
        """The arrays of every split, then manifest.json, which makes the features complete."""
        data, about = self.plan.data, configuration.to_dict(self.plan.about)
        about |= {k: v for k, v in self._planned().items() if k in ("run", "config")}  # those of whoever began
        content = hashlib.sha256(json.dumps([data.classes, self.plan.about.identity()]).encode())
        splits: dict[str, Any] = {}
        arrays = {name: dataclasses.asdict(array) for name, array in self._arrays().items()}
        made: list[str] = []
        for split in self.plan.about.views:
            pieces = []
            for job in (job for job in self.plan.jobs() if job.split == split):
                piece, by = self._piece(job)
                pieces.append(piece)
                made.append(by)
            columns = {name: np.concatenate([p.arrays[name] for p in pieces]) for name in pieces[0].arrays}
            names = list(arrays)
            write_arrays(self.root / split, pieces, columns, self._targets(split), "image", content, arrays_of=names)
            splits[split] = {
                "samples": sum(p.entry.samples for p in pieces),
                "targets": self._targets(split),
                "shards": [
                    {"path": e.path, "size": e.size, "sha256": e.sha256, "samples": e.samples}
                    for e in (p.entry for p in pieces)
                ],
            }
        values = {
            "format": manifest.FORMAT, "version": manifest.VERSION, "name": data.name, "licence": data.licence,
            "classes": data.classes, "hash": content.hexdigest(), "splits": splits, "media": data.media, "image": {},
            "notes": data.notes, "bad": [], "bad_count": 0, "recipe": data.recipe, "features": about,
            "made": [json.loads(text) for text in sorted(set(made))], **({"arrays": arrays} if arrays else {}),
        }  # fmt: skip
        storage.write_atomic(self.root / manifest.FILE, (json.dumps(values, indent=1) + "\n").encode())

    def _arrays(self) -> dict[str, Array]:
        """Of episodes: those of the source with its statistics, and which frames the clips show."""
        clip, found = self.plan.about.clip, self.plan.data.arrays
        if not found or clip is None:
            return {}
        return found | {CLIP_FRAMES: Array(size=clip.frames, dtype="int64")}

    def _planned(self) -> dict[str, Any]:
        file = self.folder / "plan.json"
        try:
            found = json.loads(file.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            raise DataError(
                f"{file} is damaged ({error}). Delete {self.root}, or extract into another folder"
            ) from None
        return found if isinstance(found, dict) else {}

    def _piece(self, job: Job) -> tuple[Piece, str]:
        with np.load(self.folder / f"{job.name}.npz", allow_pickle=False) as found:
            arrays = {name: found[name] for name in Part.empty().arrays(0)}
            path = self.path(job).relative_to(self.root).as_posix()
            size, sha256, samples = int(found["size"]), str(found["sha256"]), int(found["samples"])
            return Piece(Entry(job.split, path, size, sha256, samples, job.stop, "", []), arrays), str(found["made"])


def _about(values: Any, file: Path) -> About:
    try:
        return configuration.build(About, values)
    except ConfigError as error:
        raise DataError(
            f"{file} was written by another version of this program ({error}). Extract into another folder"
        ) from None


@contextlib.contextmanager
def _locked(path: Path, wait: bool = True) -> Iterator[bool]:
    """Hold a lock file; False where it is held by another process and not waited for. The end of a process frees it."""
    try:
        import fcntl
    except ImportError:  # Windows: several processes in one folder are the user's own care there
        yield True
        return
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        yield True
