"""Samples that could not be read while training, and what took their places.

Every line of quarantine.jsonl is written and synced before the batch that holds the substitute is used. Resuming
takes the same substitutes from the file, so a sample that was unreadable once stays replaced at that g, even when a
rerun could read it.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jepa.errors import TrainingError

FLOOR = 20  # bad samples that never stop a run, however few were read


@dataclass(frozen=True)
class Bad:
    """One slot of a batch that was refilled."""

    g: int
    index: int  # of the sample that could not be read
    place: str  # its key, shard and byte offset
    reason: str
    attempt: int  # which substitute was the first that could be read, from 1
    substitute: int  # its index


class Quarantine:
    """The quarantine file of one rank, and the count that may stop the run."""

    def __init__(self, run_dir: Path | None, rank: int, identity: dict[str, Any], max_bad: float) -> None:
        """
        Args:
            run_dir: where the file lies; None keeps no file.
            rank: each rank writes a file of its own, all ranks read all of them.
            identity: what the entries belong to (dataset hash, split, seed); others are left alone.
            max_bad: the largest share of bad samples that is tolerated.
        """
        self.identity, self.max_bad = identity, max_bad
        name = "quarantine.jsonl" if rank == 0 else f"quarantine-rank{rank}.jsonl"
        self.path = None if run_dir is None else run_dir / name
        self.known: dict[int, int] = {}  # g -> substitute index, as decided earlier
        for path in sorted(run_dir.glob("quarantine*.jsonl")) if run_dir is not None else []:
            if path.is_file():
                self.known |= self._read(path)
        self.samples = self.bad = 0  # since this process started

    def record(self, found: list[Bad], samples: int) -> None:
        """Count a micro-batch of `samples` and write down its bad ones.

        Raises:
            TrainingError: more samples are bad than the configuration tolerates, or the file cannot be written.
        """
        self.samples += samples
        self.bad += len(found)
        new = [bad for bad in found if self.known.get(bad.g) != bad.substitute]
        if new:
            self._append(new)
            self.known |= {bad.g: bad.substitute for bad in new}
        if self.bad > FLOOR and self.bad > self.max_bad * self.samples:
            where = f"They are listed in {self.path}. " if self.path is not None else ""
            last = f"The last: {found[-1].place}: {found[-1].reason}. " if found else ""
            raise TrainingError(
                f"{self.bad} of {self.samples} samples could not be read, more than data.max_bad={self.max_bad:g} "
                f"allows. {last}{where}Repair the dataset (build it with image.verify=true), or raise data.max_bad"
            )

    def _append(self, new: list[Bad]) -> None:
        if self.path is None:
            return
        lines = "".join(json.dumps(self.identity | bad.__dict__) + "\n" for bad in new)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a+b") as file:
                if file.tell() and not self._ends_with_newline(file):
                    file.write(b"\n")  # a crash cut the last line; it must not swallow the next one
                file.write(lines.encode())
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise TrainingError(
                f"cannot write {self.path}: {error.strerror or error}. Free some space and resume"
            ) from None

    @staticmethod
    def _ends_with_newline(file: Any) -> bool:
        file.seek(-1, os.SEEK_END)
        return bool(file.read(1) == b"\n")

    def _read(self, path: Path) -> dict[int, int]:
        known = {}
        for line in path.read_bytes().splitlines():
            try:
                values = json.loads(line)
                if all(values.get(k) == v for k, v in self.identity.items()):
                    known[int(values["g"])] = int(values["substitute"])
            except (ValueError, KeyError, TypeError, AttributeError):
                continue  # a line cut by a crash: its batch was never used
        return known
