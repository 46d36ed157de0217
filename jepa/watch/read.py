"""What a run folder says now: lines of metrics.jsonl as they are added, and how far the run is."""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import time
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from statistics import median
from typing import Any, Literal

from jepa import jsonl
from jepa.errors import ConfigError

State = Literal["running", "finished", "quiet"]
Curve = list[tuple[int, float]]  # step, value
_QUIET = 60.0  # seconds without a sign of life, or ten steps where they take longer
_DEEP = 4  # folders below a given one that runs are looked for in
_RECENT = 20  # lines that speed is taken from
_CHECKPOINT = re.compile(r"step-(\d+)")


class RunFolder:
    """One run, read again and again; `refresh` reads only what is new."""

    def __init__(self, path: Path) -> None:
        self.path, self.name = path, path.name
        self.lines: list[dict[str, Any]] = []  # with a loss
        self.looks: list[dict[str, Any]] = []  # of the monitor
        self.events: list[tuple[int, str, str]] = []  # step, kind (warning, stop, rollback, start), words
        self.total: int | None = None  # optimiser steps of the whole run
        self._file: tuple[int, int] = (0, 0)  # inode and bytes read of metrics.jsonl
        self._checkpoints = ""
        self._starts: list[tuple[int, str, str]] = []
        self.refresh()

    def refresh(self) -> None:
        """Read what was added. A file that was cut back, on a resume or a roll-back, is read from its start."""
        self._read_metrics()
        self._read_total()
        self._starts = [*_starts(self.path / "restarts.jsonl"), *_roll_backs(self.path / "attempts.jsonl")]

    @property
    def step(self) -> int:
        """Optimiser steps done, by the heartbeat where there is one."""
        logged = int(self.lines[-1]["step"]) if self.lines else 0
        try:
            return max(logged, int((self.path / ".step").read_text(encoding="utf-8")))
        except (OSError, ValueError):
            return logged

    @property
    def state(self) -> State:
        """finished: at its last step. quiet: no sign of life for a while, so stopped, stuck or killed."""
        if self.total is not None and self.lines and int(self.lines[-1]["step"]) >= self.total:
            return "finished"
        return "running" if self.idle < max(_QUIET, 10 * (self.step_seconds or 0.0)) else "quiet"

    @property
    def idle(self) -> float:
        """Seconds since something was written.

        A time ahead of the clock is from before the clock was put back: as old as it is far away.
        """
        now = time.time()
        ages = [now]
        for name in ("metrics.jsonl", ".step", "config.yaml"):
            try:
                ages.append(abs(now - (self.path / name).stat().st_mtime))
            except OSError:
                continue
        return min(ages)

    @property
    def step_seconds(self) -> float | None:
        """Of a step, the median of recent lines."""
        found = [x["step_seconds"] for x in self.lines[-_RECENT:] if is_number(x.get("step_seconds"))]
        return float(median(found)) if found else None

    @property
    def eta(self) -> float | None:
        """Seconds to the end at the present speed."""
        if self.total is None or self.step_seconds is None or self.state != "running":
            return None
        return max(0.0, (self.total - self.step) * self.step_seconds)

    @property
    def happened(self) -> list[tuple[int, str, str]]:
        """Events, starts and roll-backs, in the order of their steps."""
        return sorted([*self.events, *self._starts], key=lambda event: event[0])

    def curve(self, key: str) -> Curve:
        """Finite values of a metric, in order, each with its step."""
        rows = self.looks if key.startswith("health/") else self.lines
        return [(int(row["step"]), float(row[key])) for row in rows if is_number(row.get(key))]

    def health(self, quantity: str) -> Curve:
        """A quantity of the monitor, of the teacher or the only encoder."""
        keys = {k for row in self.looks for k in row if k.startswith("health/") and k.rpartition("/")[2] == quantity}
        best = min(keys, key=lambda k: ("/target/" not in k, k), default=None)
        return self.curve(best) if best else []

    def now(self) -> dict[str, Any]:
        """The figures of this moment as plain JSON values."""
        last, look = (self.lines[-1] if self.lines else {}), (self.looks[-1] if self.looks else {})
        names = ("loss", "lr", "grad_norm", "images_per_s", "data_wait", "device_seconds", "joules", "attempt", "phase")
        return {
            "run": str(self.path), "state": self.state, "step": self.step, "total_steps": self.total,
            "eta_seconds": self.eta, **{k: last[k] for k in names if k in last},
            "health": {k: v for k, v in look.items() if k.startswith("health/")},
            "events": [{"step": s, "kind": kind, "text": text} for s, kind, text in self.happened],
        }  # fmt: skip

    def _read_metrics(self) -> None:
        try:
            with (self.path / "metrics.jsonl").open("rb") as stream:
                about = os.fstat(stream.fileno())
                inode, place = self._file
                if inode != about.st_ino or about.st_size < place:
                    place, self.lines, self.looks, self.events = 0, [], [], []
                stream.seek(place)
                found = stream.read()
        except OSError:
            return
        whole = found[: found.rfind(b"\n") + 1]  # the last line may be half written
        self._file = (about.st_ino, place + len(whole))
        for line in whole.splitlines():
            try:
                row = json.loads(line)
            except ValueError:
                continue
            if isinstance(row, dict) and is_number(row.get("step")):
                self._take(row)

    def _take(self, row: dict[str, Any]) -> None:
        if is_number(row.get("loss")):
            self.lines.append(row)
        if any(k.startswith("health/") for k in row):
            self.looks.append(row)
        words = row.get("warnings")
        kind = str(row.get("act", "warn"))
        for text in words if isinstance(words, list) and kind != "rollback" else []:  # that is in attempts.jsonl
            self.events.append((int(row["step"]), kind, re.sub(r"^step \d+: ", "", str(text))))

    def _read_total(self) -> None:
        """From the newest checkpoint; there is one of step 0 before the first step."""
        steps = [
            (int(m[1]), m.string) for name in _names(self.path / "checkpoints") if (m := _CHECKPOINT.fullmatch(name))
        ]
        newest = max(steps, default=(0, ""))[1]
        if not newest or newest == self._checkpoints:
            return
        try:
            state = json.loads((self.path / "checkpoints" / newest / "state.json").read_text(encoding="utf-8"))
            self.total, self._checkpoints = int(state["total_steps"]), newest
        except (OSError, ValueError, KeyError, TypeError):  # just pruned, or of another program: the next one tells
            return


def find(paths: Iterable[Path]) -> list[Path]:
    """Run folders among some folders and below them, the ones written to last first.

    Raises:
        ConfigError: a folder does not exist, or there is no run in any.
    """
    found: list[Path] = []
    given = list(paths)
    for path in given:
        if not path.is_dir():
            raise ConfigError(f"no such folder: {path}. Give run folders made by `jepa train`, or a folder of them")
        found += [path] if (path / "config.yaml").is_file() else _below(path, 0)
    if not found:
        where = ", ".join(map(str, given))
        raise ConfigError(
            f"there is no run in {where} (a run has a config.yaml; its first appears when it has started)"
        )
    return list(dict.fromkeys(found))


def _below(folder: Path, depth: int) -> list[Path]:
    if depth >= _DEEP:
        return []
    inner = [folder / name for name in _names(folder) if not name.startswith(".") and (folder / name).is_dir()]
    runs = [p for p in inner if (p / "config.yaml").is_file() and (p / "checkpoints").is_dir()]
    runs.sort(key=_written, reverse=True)
    return [*runs, *(p for other in inner if other not in runs for p in _below(other, depth + 1))]


def _written(run: Path) -> float:
    try:
        return (run / "metrics.jsonl").stat().st_mtime
    except OSError:
        return 0.0


def _names(folder: Path) -> list[str]:
    try:
        return sorted(entry.name for entry in os.scandir(folder))
    except OSError:
        return []


def _starts(path: Path) -> Iterable[tuple[int, str, str]]:
    """Every start after the first, but those by a roll-back."""
    for row in jsonl.read(path)[1:]:
        reason = str(row.get("reason"))
        if not reason.startswith("roll-back") and is_number(row.get("step")):
            with contextlib.suppress(ValueError):
                when = datetime.fromisoformat(str(row.get("time"))).astimezone().strftime("%d %b %H:%M")
                yield int(row["step"]), "start", f"started again ({reason}, {when})"


def _roll_backs(path: Path) -> Iterable[tuple[int, str, str]]:
    """Every roll-back, those too that a later one went behind."""
    for row in jsonl.read(path):
        if is_number(row.get("at")):
            yield int(row["at"]), "rollback", f"rolled back to step {row.get('to')}: {row.get('text')}"


def is_number(value: Any) -> bool:
    """A finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
