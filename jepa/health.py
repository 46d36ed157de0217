"""Alarms: what is noticed while a run goes on, and what it leads to (section `health` of the configuration).

Everything here is worked out from numbers that the host has anyway: lines of metrics.jsonl (`line`) and the monitor's
looks (`look`). An alarm sounds once, after signs in several lines or looks in a row, and can sound again after one
without a sign. `stop` ends the run with exit code 3; `rollback` goes back to the newest checkpoint before the first
sign (jepa.attempts). What is remembered is saved in checkpoints, so that a resumed run sounds the same alarms.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Protocol

from accelerate import Accelerator

from jepa import attempts, launch
from jepa.config import Act, HealthConfig
from jepa.errors import AlarmError, DivergedError
from jepa.monitor import collapse
from jepa.prepare import Plan
from jepa.record import Record
from jepa.saver import Saver

_FEW = 20  # lines before which no median is trusted
LOOKS, LINES = ("collapse", "dead", "drift"), ("divergence", "starvation")  # where signs are looked for
_ADVICE = {
    "collapse": collapse.ADVICE,
    "divergence": "What helps: a lower optim.lr, a longer optim.warmup, optim.clip_norm=1, train.guard={}.",
    "dead": "What helps: a lower optim.lr or weight decay, a slower teacher.",
    "drift": "What helps: a lower optim.lr, or a faster teacher (momentum further below 1).",
    "starvation": "What helps: more data.workers, smaller pictures in the shards, or a faster disk.",
}


@dataclass(frozen=True)
class Alarm:
    """One that sounds."""

    name: str
    act: Act
    text: str  # a sentence
    step: int  # steps done
    healthy: int  # steps after which there was no sign of it

    def row(self) -> dict[str, Any]:
        """What its line of metrics.jsonl says, besides the place."""
        return {"alarm": self.name, "act": self.act, "warnings": [f"step {self.step}: {self.text} {self.advice}"]}

    @property
    def advice(self) -> str:
        return _ADVICE[self.name]


class RollBackError(Exception):
    """The loop is to end, and the run to go on from a checkpoint."""

    def __init__(self, alarm: Alarm) -> None:
        self.alarm = alarm


class Alarms:
    """The alarms of a run. All ranks give them the same lines; looks are rank 0's."""

    def __init__(self, config: HealthConfig, saved: Mapping[str, Any] | None = None) -> None:
        """`saved`: what `state` gave."""
        self.config = config
        saved = saved or {}
        fresh = {"healthy": 0, "row": 0, "on": False}  # steps without a sign, signs in a row, whether it has sounded
        self._seen = {name: fresh | saved.get("seen", {}).get(name, {}) for name in (*LOOKS, *LINES)}
        self._past: dict[str, list[float]] = {k: list(saved.get("past", {}).get(k, [])) for k in ("loss", "grad_norm")}
        self._best: dict[str, float] = dict(saved.get("best", {}))

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return copy.deepcopy({"seen": self._seen, "past": self._past, "best": self._best})

    def forget(self) -> None:
        """Another phase has losses of another size."""
        self._past = {name: [] for name in self._past}

    @property
    def healthy(self) -> int | None:
        """Steps after which no alarm that leads to a roll-back had a sign; None where there is no such alarm."""
        steps = [seen["healthy"] for name, seen in self._seen.items() if self._act(name) == "rollback"]
        return min(steps, default=None)

    # --- looking for signs ------------------------------------------------------------------------------------------

    def line(self, step: int, row: Mapping[str, float], wait: float) -> list[Alarm]:
        """Alarms after a line of metrics; `wait` is the share of the line before spent waiting, over all ranks."""
        signs = []
        for name, past in self._past.items():
            limit = getattr(self.config.divergence, name)
            usual = median(past) if len(past) >= _FEW else None
            if usual is not None and usual > 0 and row[name] > limit * usual:
                words = "the loss" if name == "loss" else "the gradient norm"
                signs.append(f"{words} is {row[name]:.4g}, {row[name] / usual:.1f} times its median ({usual:.4g}).")
        if not signs:
            for name, past in self._past.items():
                past += [row[name]] if math.isfinite(row[name]) else []
                del past[: -self.config.divergence.window]
        hungry = self.config.starvation
        slow = f"{wait:.0%} of the time goes by in waiting for data." if wait > hungry.wait else ""
        return [
            *self._judge("divergence", step, " ".join(signs), self.config.divergence.lines),
            *self._judge("starvation", step, slow, hungry.lines),
        ]

    def look(self, step: int, found: Mapping[str, float]) -> list[Alarm]:
        """Alarms after a look of the monitor that `found` these numbers."""
        name = collapse.judged(found)
        if name is None:
            return []
        settings, best = self.config, {f"{name}/{q}": v for q, v in collapse.highest(name, [found]).items()}
        before = {q.rpartition("/")[2]: self._best.get(q, 0.0) for q in best}
        signs = collapse.signs(name, before, found, settings.collapse) if self._best else {}
        self._best |= {q: max(v, self._best.get(q, 0.0)) for q, v in best.items()}
        dead, distance = found.get(f"health/{name}/dead", 0.0), found.get("health/teacher_distance", 0.0)
        useless = f"{dead:.0%} of the {name} encoder's dimensions are the same for every image."
        far = f"the teacher's weights lie {distance:.2f} of the student's length away from them."
        return [
            *self._judge("collapse", step, " ".join(signs.values()), settings.collapse.looks),
            *self._judge("dead", step, useless if dead > settings.dead.share else "", settings.dead.looks),
            *self._judge("drift", step, far if distance > settings.drift.distance else "", settings.drift.looks),
        ]

    def diverged(self, error: DivergedError, step: int) -> Alarm | None:
        """What a run that cannot go on is rolled back for; None: it ends."""
        if isinstance(error, AlarmError) or self.config.divergence.act != "rollback":
            return None
        what = str(error).partition(";")[0].partition(". ")[0]
        return Alarm("divergence", "rollback", f"{what}.", step, min(self._seen["divergence"]["healthy"], step))

    def _act(self, name: str) -> Act:
        act: Act = getattr(self.config, name).act
        return act

    def _judge(self, name: str, step: int, sign: str, needed: int) -> list[Alarm]:
        seen = self._seen[name]
        if not sign or self._act(name) == "ignore":
            seen |= {"healthy": step, "row": 0, "on": False}
            return []
        seen["row"] += 1
        if seen["row"] < needed or seen["on"]:
            return []
        seen["on"] = True
        return [Alarm(name, self._act(name), sign, step, seen["healthy"])]


# --- acting -----------------------------------------------------------------------------------------------------------


class Watched(Protocol):
    """A run in progress."""

    step: int
    alarms: Alarms
    record: Record
    saver: Saver

    def go(self) -> launch.Result: ...

    def where(self) -> dict[str, Any]: ...


def sound(run: Watched, found: Sequence[Alarm]) -> None:
    """Write alarms down and do what they lead to; all ranks with the same ones.

    Raises:
        AlarmError: one that stops the run.
        RollBackError: one that takes it back.
    """
    for alarm in found:
        row = run.where() | alarm.row()
        if alarm.name == "collapse":
            del row["warnings"]  # the monitor has said it
        if alarm.act == "rollback":
            row["act"] = "warn"  # that it went back is said by a line of its own, when it has (jepa.attempts)
        run.record.add(row)
    for alarm in found:
        if alarm.act == "stop":
            good = run.saver.good
            left = f"the last checkpoint is {good}" if good is not None else "no checkpoint was written"
            raise AlarmError(
                f"health.{alarm.name} stopped the run at step {alarm.step}: {alarm.text} Without a sign of it were the "
                f"first {alarm.healthy} steps; {left}. {alarm.advice} Or let the run go back by itself: "
                f"health.{alarm.name}.act=rollback"
                if alarm.name != "starvation"
                else f"health.starvation stopped the run at step {alarm.step}: {alarm.text} {alarm.advice} Go on with "
                f"--resume; {left}"
            )
        if alarm.act == "rollback":
            raise RollBackError(alarm)


def watched(run: Watched) -> launch.Result | Alarm:
    """How a run ended: by itself, or with the alarm that takes it back."""
    try:
        return run.go()
    except RollBackError as back:
        return back.alarm
    except DivergedError as error:
        alarm = run.alarms.diverged(error, run.step)
        if alarm is None:
            raise
        return alarm


def roll_back(plan: Plan, out: Path, accelerator: Accelerator, alarm: Alarm, spent: dict[str, Any]) -> launch.Start:
    """Take the run back to where `alarm` says that it was healthy, and say where it starts from; the same on all ranks.

    Args:
        spent: by the run so far.

    Raises:
        AlarmError: it cannot go back, or has too often.
    """
    found: list[launch.Start] = []

    def act() -> None:
        attempts.make(
            out, plan.config.health.rollback, alarm=alarm.name, text=alarm.text, at=alarm.step,
            healthy=alarm.healthy, spent=spent,
        )  # fmt: skip
        start = launch.begin(plan, out, True, False, None)
        why = f"roll-back {start.attempts.number}: {alarm.name}"
        found.append(dataclasses.replace(start, why=why, notes=(start.attempts.made[-1].words, *start.notes)))

    accelerator.free_memory()
    launch.everywhere(accelerator, accelerator.is_main_process, act)
    return launch.agree(accelerator, found[0] if found else launch.Start())


__all__ = ["Alarm", "Alarms", "RollBackError", "roll_back", "sound", "watched"]
