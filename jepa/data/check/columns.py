"""What is known of all samples: some 130 bytes each, so ten million of them take 1.3 GB. Names lie on disk."""

from __future__ import annotations

import tempfile
from typing import IO

import numpy as np

from jepa.data.check.look import PATTERN
from jepa.data.video.scan import STATUSES, Verdict


class Columns:
    """One row for each of n samples, filled in any order."""

    def __init__(self, count: int) -> None:
        self.status = np.zeros(count, dtype=np.uint8)  # position in STATUSES
        self.variable = np.zeros(count, dtype=bool)
        self.label = np.full(count, -1, dtype=np.int32)
        self.height, self.width = np.zeros(count, dtype=np.int32), np.zeros(count, dtype=np.int32)
        self.bytes = np.zeros(count, dtype=np.int64)
        self.frames, self.seconds = np.zeros(count, dtype=np.int32), np.zeros(count, dtype=np.float32)
        self.digest = np.zeros((count, 16), dtype=np.uint8)
        self.pattern = np.zeros((count, PATTERN), dtype=np.uint8)
        self._places = np.zeros((count, 2), dtype=np.int64)  # of the name in the file of names
        self._names: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - it lives as long as this

    def __len__(self) -> int:
        return len(self.status)

    def put(self, number: int, verdict: Verdict) -> None:
        """Keep what a verdict says."""
        self.status[number] = STATUSES.index(verdict.status)
        self.variable[number] = "variable" in verdict.findings
        facts, look = verdict.facts, verdict.look
        self.height[number], self.width[number] = facts.get("height", 0), facts.get("width", 0)
        self.bytes[number] = facts.get("bytes", 0)
        self.frames[number], self.seconds[number] = facts.get("frames", 0), facts.get("seconds", 0.0)
        if look is not None:
            self.label[number] = look.label
            self.digest[number] = np.frombuffer(look.digest or bytes(16), dtype=np.uint8)
            self.pattern[number] = np.frombuffer(look.pattern or bytes(PATTERN), dtype=np.uint8)
        name = (look.name if look is not None else verdict.path).encode("utf-8", "surrogateescape")
        self._places[number] = self._names.seek(0, 2), len(name)
        self._names.write(name)

    def name(self, number: int) -> str:
        """What a sample is called in its source."""
        offset, length = self._places[number].tolist()
        self._names.seek(offset)
        return self._names.read(length).decode("utf-8", "surrogateescape")


__all__ = ["Columns"]
