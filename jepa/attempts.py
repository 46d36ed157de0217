"""Roll-backs of a run: back to a healthy checkpoint, then on with other random numbers and smaller steps.

    {"number": 1, "alarm": "divergence", "text": "...", "at": 50, "to": 20, "lr": 0.5, "teacher": 0.5,
     "spent": {"device_seconds": 12.5}, "time": "..."}

A line of attempts.jsonl is on the disk before anything of the run is changed, and `settle` can be repeated: whatever
a roll-back was killed in, the next start finishes it. From step `to` on the run is in its attempt `number`; that
number goes into the seed of everything random, and `lr` and `teacher` (factors on the learning rate and on
1 - momentum, those of earlier roll-backs included) hold to the end. So what a step does follows from this file and
the configuration, and a run that is killed after a roll-back resumes exactly.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jepa import checkpoint, jsonl, keyed
from jepa.config import RollbackConfig
from jepa.data import storage
from jepa.errors import AlarmError
from jepa.rundir import Lines, storing

FILE, ABANDONED = "attempts.jsonl", "abandoned.jsonl"


@dataclass(frozen=True)
class Attempt:
    """A line of the file."""

    number: int  # from 1
    alarm: str  # its name
    text: str  # what it said
    at: int  # steps done when it sounded
    to: int  # steps of the checkpoint that the run went back to
    lr: float  # factor on the learning rate
    teacher: float  # factor on 1 - momentum
    spent: dict[str, Any]  # by the run so far, what was in vain included: `energy.Spent.state`
    time: str

    @property
    def words(self) -> str:
        """What happened, for the user."""
        return (
            f"rolled back from step {self.at} to {self.to} ({self.text.rstrip('.')}); attempt {self.number} goes on "
            f"with other random numbers, the learning rate times {self.lr:g} and 1 - momentum times {self.teacher:g}"
        )

    def row(self, g: int) -> dict[str, Any]:
        """As a line of metrics.jsonl, the first one after the roll-back."""
        where = {"step": self.to, "g": g, "attempt": self.number}
        return where | {"alarm": self.alarm, "act": "rollback", "from": self.at, "warnings": [self.words]}


@dataclass(frozen=True)
class Attempts:
    """The roll-backs that count for what comes next, the oldest first; none for a run that never had one."""

    made: tuple[Attempt, ...] = ()

    @property
    def number(self) -> int:
        """Which attempt the run is in; 0 before any roll-back."""
        return self.made[-1].number if self.made else 0

    def row(self) -> dict[str, int]:
        """What every line of metrics says of it."""
        return {"attempt": self.number} if self.made else {}

    def seed(self, seed: int) -> int:
        """The run's seed in this attempt."""
        return keyed.again(seed, self.number)

    def changed(self, values: Mapping[str, float]) -> dict[str, float]:
        """A step's scheduled values as this attempt has them."""
        out = dict(values)
        if self.made:
            out["lr"] *= self.made[-1].lr
            if "momentum" in out:
                out["momentum"] = 1.0 - (1.0 - out["momentum"]) * self.made[-1].teacher
        return out

    def first(self, of: Callable[[int], Mapping[str, int]]) -> dict[str, list[tuple[int, int]]]:
        """By source, the number of each attempt and its first g; `of` gives every source's first g of a step."""
        found: dict[str, list[tuple[int, int]]] = {}
        for attempt in self.made:
            for source, g in of(attempt.to).items():
                found.setdefault(source, []).append((attempt.number, g))
        return found

    def spent(self, state: Mapping[str, Any]) -> Mapping[str, Any]:
        """What the run had spent when it goes on from a checkpoint with this state."""
        if self.made and self.number > int(state.get("attempt", 0)):
            return self.made[-1].spent
        return state


def read(out: Path) -> list[Attempt]:
    """All roll-backs, as they were made; a line that a crash cut off is left out: nothing was changed after it."""
    names, found = {field.name for field in dataclasses.fields(Attempt)}, []
    for row in jsonl.read(out / FILE):
        if names <= row.keys():
            found.append(Attempt(**{name: row[name] for name in names}))
    return found


def in_force(every: Iterable[Attempt]) -> Attempts:
    """Those that count: one that goes back behind an earlier one takes its place."""
    kept: list[Attempt] = []
    for attempt in every:
        kept = [*(k for k in kept if k.to < attempt.to), attempt]
    return Attempts(tuple(kept))


def make(
    out: Path, settings: RollbackConfig, *, alarm: str, text: str, at: int, healthy: int, spent: dict[str, Any]
) -> Attempt:
    """Decide where to go back to, and write it down.

    Args:
        alarm, text: what sounded.
        at: steps done.
        healthy: steps after which all was well, as far as that is known.
        spent: by the run so far.

    Raises:
        AlarmError: there were too many roll-backs, or there is no checkpoint to go back to.
        TrainingError: disk full or not writable.
    """
    earlier = read(out)
    number = max((attempt.number for attempt in earlier), default=0) + 1
    if number > settings.most:
        what = f"{settings.most} roll-backs did not help" if settings.most else "health.rollback.most=0 allows none"
        raise AlarmError(
            f"{text} {what}, the run stops at step {at}. See what they changed in {out / FILE}, and begin a new run "
            "with a lower optim.lr, a longer optim.warmup or a slower teacher"
        )
    folder = out / checkpoint.folder.FOLDER
    tried = {attempt.to for attempt in earlier}
    steps = sorted(
        (n for n in checkpoint.steps(out) if n <= healthy), key=lambda n: (n in tried, n if n in tried else -n)
    )
    # one that did not help may have been written too late: then the one before it, as far as that was kept
    to = next((n for n in steps if checkpoint.problem(folder / f"step-{n}") is None), None)
    if to is None:
        raise AlarmError(
            f"{text} There is no usable checkpoint of step {healthy} or before, where the run was last healthy. "
            "Make them more often (train.checkpoint_every) and begin a new run"
        )
    before = earlier[-1] if earlier else None
    attempt = Attempt(
        number, alarm, text, at, to, settings.lr * (before.lr if before else 1.0),
        settings.teacher * (before.teacher if before else 1.0), spent,
        datetime.now(UTC).isoformat(timespec="seconds"),
    )  # fmt: skip
    _write(out, attempt)
    return attempt


def settle(out: Path, g: Callable[[int], int]) -> None:
    """Make the run folder say what attempts.jsonl says. Nothing is done where it does already.

    Checkpoints that a roll-back left behind go, their lines of metrics go to abandoned.jsonl, and the roll-back gets
    a line of its own. `g` gives the samples seen after so many steps.

    Raises:
        TrainingError: disk full or not writable.
    """
    every = read(out)
    if not every:
        return

    def left(step: int, number: int) -> bool:
        return any(attempt.number > number and step > attempt.to for attempt in every)

    for step in checkpoint.steps(out):
        path = out / checkpoint.folder.FOLDER / f"step-{step}"
        if left(step, int(checkpoint.read_state(path).get("attempt", 0))):
            checkpoint.folder.remove(path)
    gone: list[dict[str, Any]] = []
    kept: list[dict[str, Any]] = []
    for row in jsonl.read(out / "metrics.jsonl"):
        (gone if left(int(row.get("step", 0)), int(row.get("attempt", 0))) else kept).append(row)
    told = {row.get("attempt") for row in kept if row.get("act") == "rollback"}
    new = [attempt.row(g(attempt.to)) for attempt in in_force(every).made if attempt.number not in told]
    if gone:
        known = jsonl.read(out / ABANDONED)
        there = {json.dumps(row) for row in known}
        _replace(out / ABANDONED, [*known, *(row for row in gone if json.dumps(row) not in there)])
    if gone or new:
        _replace(out / "metrics.jsonl", [*kept, *new])


def resumed(out: Path, step: int) -> Attempts:
    """What counts for a start from the checkpoint of `step`.

    Where that lies before the step gone back to (whose checkpoint was damaged since), the attempt begins there.
    """
    every = read(out)
    if every and every[-1].to > step:
        _write(out, dataclasses.replace(every[-1], to=step))
        every = read(out)
    return in_force(every)


def _write(out: Path, attempt: Attempt) -> None:
    path = out / FILE
    if path.is_file() and path.stat().st_size and not path.read_bytes().endswith(b"\n"):
        _replace(path, jsonl.read(path))  # a line that a crash cut off must not swallow this one
    lines = Lines(path)
    try:
        lines.add(dataclasses.asdict(attempt))
        lines.sync()
    finally:
        lines.close()


def _replace(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    with storing(path):
        storage.write_atomic(path, "".join(json.dumps(row) + "\n" for row in rows).encode())


__all__ = ["Attempt", "Attempts", "in_force", "make", "read", "resumed", "settle"]
