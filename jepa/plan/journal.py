"""What a planning run has finished so far, so that an interrupted one goes on where it was. One process writes it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from jepa.data import storage
from jepa.errors import ConfigError


class Journal:
    """A header, then a line for each finished episode of each policy, and one for what planning a batch took."""

    def __init__(self, path: Path, header: dict[str, Any]) -> None:
        """Open the journal of the same work, or begin a new one: another header means other work.

        Raises:
            ConfigError: another process is making the same result.
        """
        self.path = path
        self.trials: dict[tuple[str, int], dict[str, Any]] = {}  # (policy, number of the problem)
        self.took: list[dict[str, Any]] = []
        try:
            self._lock = storage.claim(path.with_suffix(".lock"))
        except BlockingIOError:
            raise ConfigError(
                f"another process is planning for the same result ({path.parent}). Wait for it, or write to another "
                "file with --out"
            ) from None
        lines = _lines(path)
        if not lines or lines[0] != json.loads(json.dumps(header)):
            lines = [header]
        # a line cut off by the interruption goes; whole or not at all, for it may be the work of days
        storage.write_atomic(path, "".join(json.dumps(line) + "\n" for line in lines).encode())
        for line in lines[1:]:
            self._take(line)

    def add(self, lines: list[dict[str, Any]]) -> None:
        """Episodes {"policy", "number", ...} and timings {"took": ...} of a batch: all of them or none."""
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps({"batch": lines}, allow_nan=False) + "\n")
            stream.flush()
            os.fsync(stream.fileno())
        self._take({"batch": lines})

    def remove(self) -> None:
        """The result was written."""
        self.path.unlink(missing_ok=True)
        self.path.with_suffix(".lock").unlink(missing_ok=True)

    def close(self) -> None:
        """Let others plan for the same result."""
        self._lock.close()

    def _take(self, line: dict[str, Any]) -> None:
        for entry in line["batch"]:
            if "took" in entry:
                self.took.append(entry["took"])
            else:
                self.trials[entry["policy"], entry["number"]] = entry


def _lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a journal; one that was cut off, and whatever follows, is left out."""
    if not path.is_file():
        return []
    found = []
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            found.append(json.loads(text))
        except ValueError:
            break
    return found
