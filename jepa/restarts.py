"""Every start of a run, in restarts.jsonl: when, why, from which step, what was lost, where.

    {"attempt": 2, "time": "...", "reason": "time limit", "step": 500, "lost": 0, "nodes": ["n1", "n2"], "world": 16,
     "job": "4711", "restart": 1}

`step` counts the optimiser steps that the start goes on from, `lost` those after them that have to be done again.
"""

from __future__ import annotations

import json
import os
import platform
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jepa import watchdog
from jepa.rundir import Lines

FILE = "restarts.jsonl"
REASON = "JEPA_RESTART_REASON"  # variable: why the run is started again, when whoever starts it knows
FIRST, MANUAL, REQUEUED = "start", "manual", "requeued"


@dataclass(frozen=True)
class Tally:
    """What all starts so far come to."""

    restarts: int = 0  # starts after the first one
    lost_steps: int = 0

    def row(self) -> dict[str, int]:
        """As metrics; nothing for a run that was never started again."""
        return {"restarts": self.restarts, "lost_steps": self.lost_steps} if self.restarts else {}


def read(out: Path) -> list[dict[str, Any]]:
    """All lines; damaged ones are left out."""
    rows = []
    try:
        text = (out / FILE).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    for line in text.splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and isinstance(row.get("attempt"), int):
            rows.append(row)
    return rows


def tally(out: Path) -> Tally:
    """Of a run folder."""
    rows = read(out)
    return Tally(max(0, len(rows) - 1), sum(int(row.get("lost", 0)) for row in rows))


def record(out: Path, step: int, world: int, why: str = "") -> Tally:
    """Write down that the run starts now, after `step` steps, on `world` processes; `why` if the run knows itself.

    Raises:
        TrainingError: disk full or not writable.
    """
    rows = read(out)
    _end_line(out / FILE)
    done = watchdog.steps_done(out) if rows else None
    lines = Lines(out / FILE)
    try:
        lines.add({
            "attempt": len(rows) + 1,
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            "reason": why or _reason(rows),
            "step": step,
            "lost": max(0, done - step) if done is not None else 0,
            "nodes": nodes(),
            "world": world,
            **_job(),
        })  # fmt: skip
        lines.sync()
    finally:
        lines.close()
    return tally(out)


def _end_line(path: Path) -> None:
    """A line that a crash cut off must not swallow the next one."""
    if path.is_file() and path.stat().st_size and not path.read_bytes().endswith(b"\n"):
        with path.open("ab") as stream:
            stream.write(b"\n")


def nodes() -> list[str]:
    """The nodes of this job step, as SLURM names them; this machine's name outside of SLURM."""
    listed = os.environ.get("SLURM_STEP_NODELIST") or os.environ.get("SLURM_JOB_NODELIST")
    return expand(listed) if listed else [platform.node()]


def expand(listed: str) -> list[str]:
    """SLURM's list of nodes in full, as `scontrol show hostnames`: a[01-02],b is a01, a02, b."""
    found: list[str] = []
    for part in re.split(r",(?![^\[]*\])", listed):
        names = [""]
        for plain, ranges in re.findall(r"([^\[\]]+)|\[([^\]]*)\]", part):
            names = [name + end for name in names for end in ([plain] if plain else _numbers(ranges))]
        found += names
    return found


def _numbers(ranges: str) -> list[str]:
    found = []
    for each in ranges.split(","):
        first, _, last = each.partition("-")
        width = len(first)  # leading zeros stay
        found += [f"{n:0{width}d}" for n in range(int(first), int(last or first) + 1)]
    return found


def _reason(rows: list[dict[str, Any]]) -> str:
    if not rows:
        return FIRST
    if told := os.environ.get(REASON):
        return told
    job = _job()
    same = bool(job) and job["job"] == rows[-1].get("job") and job["restart"] != rows[-1].get("restart")
    return REQUEUED if same else MANUAL


def _job() -> dict[str, Any]:
    """Which start of which job this is; empty outside of SLURM."""
    job = os.environ.get("SLURM_JOB_ID")
    return {"job": job, "restart": int(os.environ.get("SLURM_RESTART_COUNT") or 0)} if job else {}
