"""What a run folder says, read without judgement: configuration, curves, probes, environment, checkpoints.

A run may be unfinished, without probes, or cut off in the middle of a line. Whatever is missing is empty here and
becomes a sentence in the report; only a folder that is no run at all is an error.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from jepa import attempts, checkpoint, restarts
from jepa import config as configuration
from jepa.config import RunConfig
from jepa.data import Manifest
from jepa.errors import ConfigError, DataError
from jepa.probe.suite import PROTOCOL

Line = dict[str, Any]
_COST = ("device_seconds", "joules", "model_steps", "flops", "flops_per_sample")
_NUMBERS = ("n_test", "n_clusters", "chance", "seconds", "failed")  # or null


@dataclass
class Run:
    """One run folder. Lists are in file order; `notes` are things that could not be read, as sentences."""

    path: Path
    name: str
    config: RunConfig
    config_text: str
    dataset: str  # its name where it can be opened, else its path
    lines: list[Line] = field(default_factory=list)  # all of metrics.jsonl
    environment: dict[str, Any] = field(default_factory=dict)
    quarantine: list[Line] = field(default_factory=list)
    starts: list[Line] = field(default_factory=list)  # of restarts.jsonl
    attempts: list[attempts.Attempt] = field(default_factory=list)  # roll-backs
    abandoned: list[Line] = field(default_factory=list)  # lines of metrics that roll-backs left behind
    probes: list[dict[str, Any]] = field(default_factory=list)  # one per suite
    rollouts: list[dict[str, Any]] = field(default_factory=list)  # of a world model, one per suite
    plans: list[dict[str, Any]] = field(default_factory=list)  # likewise
    checkpoints: list[int] = field(default_factory=list)  # steps of complete checkpoints, rising
    notes: list[str] = field(default_factory=list)

    def curve(self, key: str) -> tuple[list[float], list[float]]:
        """Steps and values of one metric, finite numbers only."""
        pairs = [(float(x["step"]), float(x[key])) for x in self.lines if is_number(x.get(key))]
        return [p[0] for p in pairs], [p[1] for p in pairs]

    def metrics(self) -> list[str]:
        """Every metric that occurs, in order of first appearance."""
        return list(dict.fromkeys(k for line in self.lines for k in line))

    def first(self, key: str) -> float | None:
        values = self.curve(key)[1]
        return values[0] if values else None

    def last(self, key: str) -> float | None:
        values = self.curve(key)[1]
        return values[-1] if values else None

    def warnings(self) -> list[tuple[int, str]]:
        """Warnings of the monitor and the loop: (step, text)."""
        found = []
        for line in self.lines:
            given = line.get("warnings", line.get("warning", []))
            for text in [given] if isinstance(given, str) else given if isinstance(given, list) else []:
                found.append((int(line["step"]), str(text)))
        return found

    def alarms(self) -> list[tuple[float, str, str]]:
        """(step, name, act) of every alarm; of a roll-back the step gone back to."""
        lines = [x for x in self.lines if isinstance(x.get("alarm"), str) and x.get("act") != "rollback"]
        found = [(float(line["step"]), line["alarm"], str(line.get("act", "warn"))) for line in lines]
        return sorted([*found, *((float(a.to), a.alarm, "rollback") for a in self.attempts)])

    def left_behind(self, key: str) -> list[tuple[int, list[float], list[float]]]:
        """A metric's curve in every abandoned attempt: number, steps and values."""
        rows = sorted((line for line in self.abandoned if is_number(line.get(key))), key=lambda line: line["step"])
        numbers = sorted({int(line.get("attempt", 0)) for line in rows})
        mine = [(n, [line for line in rows if int(line.get("attempt", 0)) == n]) for n in numbers]
        return [(n, [float(x["step"]) for x in part], [float(x[key]) for x in part]) for n, part in mine]

    @property
    def newest(self) -> RunConfig:
        """In force at the newest checkpoint, whose encoder is shown: in another phase sizes may differ."""
        if not self.config.phases or not self.checkpoints:
            return self.config
        return checkpoint.read_config(self.path / checkpoint.folder.FOLDER / f"step-{self.checkpoints[-1]}")

    def phases(self) -> list[tuple[float, str]]:
        """(step, name) of every change of phase: where the one before ended."""
        lines = [line for line in self.lines if is_number(line.get("loss")) and isinstance(line.get("phase"), str)]
        return [(float(a["step"]), b["phase"]) for a, b in pairwise(lines) if a["phase"] != b["phase"]]

    @property
    def steps_done(self) -> int:
        """Optimiser steps that are known to be over: by the newest line or checkpoint, whichever is later."""
        logged = [int(line["step"]) for line in self.lines if is_number(line.get("loss"))]
        return max([*logged[-1:], *self.checkpoints[-1:], 0])

    @property
    def samples_done(self) -> int:
        """Of the main source. Lines say how many, because phases may differ in their batch."""
        seen = max(
            (line for line in self.lines if is_number(line.get("g"))), key=lambda line: line["step"], default=None
        )
        done, seen_g = (int(seen["step"]), int(seen["g"])) if seen is not None else (0, 0)
        return seen_g + max(0, self.steps_done - done) * self.config.train.batch


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def open_run(path: Path | str) -> Run:
    """Read a run folder.

    Raises:
        ConfigError: the path is not a run folder, or its configuration cannot be read.
    """
    path = Path(path)
    file = path / "config.yaml"
    if not path.is_dir():
        raise ConfigError(f"{str(path)!r} is not a folder; give the folder of a run, made by `jepa train CONFIG`")
    if not file.is_file():
        raise ConfigError(
            f"{str(path)!r} is not a run folder: it has no config.yaml. Give the folder that `jepa train` wrote "
            "(it holds config.yaml, metrics.jsonl and checkpoints/)"
        )
    try:
        config = configuration.build(RunConfig, configuration.read_yaml(file))
    except ConfigError as error:
        raise ConfigError(f"{file}: {error}") from None
    run = Run(path, config.name or path.name, config, file.read_text(encoding="utf-8"), _dataset(config))
    run.lines = [x for x in _json_lines(path / "metrics.jsonl", run.notes) if is_number(x.get("step"))]
    for file in sorted(path.glob("quarantine*.jsonl")):  # one file for each process
        run.quarantine += _json_lines(file, run.notes)
    run.starts = restarts.read(path)
    run.attempts = attempts.read(path)
    left = _json_lines(path / attempts.ABANDONED, run.notes)
    run.abandoned = [x for x in left if is_number(x.get("step"))]
    environment = _json(path / "environment.json", run.notes)
    run.environment = environment if isinstance(environment, dict) else {}
    for result in _results(path / "probes", "rows", run.notes):
        run.probes.append(result | {"rows": [r for r in result["rows"] if _is_row(r)]})
    run.rollouts = _results(path / "rollouts", "latent", run.notes)
    run.plans = _results(path / "plans", "rows", run.notes)
    run.checkpoints = checkpoint.steps(path)
    return run


def _results(folder: Path, needed: str, notes: list[str]) -> list[dict[str, Any]]:
    """Result files of a folder that hold what is `needed`, by a protocol that this program knows."""
    found = []
    for file in sorted(folder.glob("*.json")):
        result = _json(file, notes)
        name = f"{folder.name}/{file.name}"
        if isinstance(result, dict) and result.get("protocol", PROTOCOL) != PROTOCOL:
            notes.append(
                f"{name} was measured by protocol {result['protocol']!r}, this program knows {PROTOCOL!r}: it was left "
                "out. Use the program version that made it, or measure again."
            )
        elif isinstance(result, dict) and isinstance(result.get(needed), dict | list) and _sound(result):
            found.append({"suite": file.stem, **result})
        elif result is not None:
            notes.append(f"{name} is not a result of jepa that this version reads, and was left out.")
    return found


def _sound(result: dict[str, Any]) -> bool:
    """Whether what is drawn of a result has the types that it is written with."""
    lists = [result.get(name) or [] for name in ("rows", "notes", "published")]
    cost = result.get("cost") or {}
    if not all(isinstance(found, list) for found in lists) or not isinstance(cost, dict):
        return False
    rows = [row for row in lists[0] if isinstance(row, dict)]
    numbers = [v for row in (result, *rows) for k, v in row.items() if k in _NUMBERS and v is not None]
    return all(map(is_number, [*numbers, *(v for k, v in cost.items() if k in _COST)]))


def open_runs(paths: Iterable[Path | str]) -> list[Run]:
    """Several runs, with names made distinct (two seeds of one config share a name)."""
    runs = [open_run(p) for p in paths]
    if not runs:
        raise ConfigError("no run given; give one or more folders made by `jepa train`")
    if len({r.path.resolve() for r in runs}) != len(runs):
        raise ConfigError("the same run is given twice: " + ", ".join(str(r.path) for r in runs))
    for label in (lambda r: f"{r.name} (seed {r.config.seed})", lambda r: r.path.name, lambda r: str(r.path)):
        if len({r.name for r in runs}) == len(runs):
            break
        names = [label(r) for r in runs]
        for run, name in zip(runs, names, strict=True):
            run.name = name
    return runs


def _dataset(config: RunConfig) -> str:
    try:
        return Manifest.open(config.data.path).name if config.data.path else "an unnamed data set"
    except DataError:
        return config.data.path


def _is_row(row: Any) -> bool:
    return isinstance(row, dict) and is_number(row.get("value")) and "encoder" in row and "probe" in row


def _json(path: Path, notes: list[str]) -> Any:
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        notes.append(f"{path.name} could not be read ({error}).")
        return None


def _json_lines(path: Path, notes: list[str]) -> list[Line]:
    """Every line that is a JSON object. The last one may be half written: the run may be going on right now."""
    if not path.is_file():
        return []
    lines, bad = [], 0
    texts = path.read_text(encoding="utf-8", errors="replace").splitlines()
    for i, text in enumerate(texts):
        try:
            value = json.loads(text)
        except ValueError:
            bad += i + 1 < len(texts) and bool(text.strip())
            continue
        if isinstance(value, dict):
            lines.append(value)
    if bad:
        notes.append(f"{path.name}: {bad} damaged line(s) were left out.")
    return lines
