"""The run folder: who may write to it, whether a run may go on in it, and its line files.

RUN/config.yaml        resolved configuration; its presence means that there is a run here
RUN/metrics.jsonl      one JSON object per line: {"step": steps done, "g": samples seen, "loss": ...}
RUN/trace-rankR.jsonl  with tracing on: one line per sample
RUN/checkpoints/       see jepa.checkpoint
RUN/environment.json   where it was started, newest start last
RUN/restarts.jsonl     see jepa.restarts; RUN/.step: steps done, see jepa.watchdog
RUN/attempts.jsonl     roll-backs, and RUN/abandoned.jsonl: lines of metrics they left behind, see jepa.attempts
RUN/.lock              held while a process trains
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import math
import os
import platform
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jepa import checkpoint, world
from jepa import config as configuration
from jepa.config import RunConfig
from jepa.data import Batch, storage
from jepa.errors import ConfigError, TrainingError
from jepa.masks import Masks
from jepa.methods import base

if sys.platform != "win32":
    import fcntl

# What may differ between a run and its continuation. None of it changes which samples, crops, masks, rates or
# losses are used. The second group changes how sums are ordered, so the continuation is not bit-equal.
MAY_CHANGE = (
    "name",
    "data.path",  # when the data set there has the same content hash
    "data.workers",
    "data.prefetch",
    "data.decoder",  # as long as the same one is used
    "data.decode_seconds",
    "data.max_bad",
    "train.checkpoint_every",
    "train.keep",
    "train.keep_every",
    "train.keep_best",
    "train.keep_best_mode",
    "train.checkpoint_async",
    "train.log_every",
    "train.trackers",
    "train.step_seconds",
    "train.collective_seconds",
    "monitor.*",
    "health.*",
)
MAY_CHANGE_INEXACT = (
    "train.micro_batch",
    "train.threads",
    "train.compile",
    "train.activation_checkpointing",
    "train.sharding",
)

COMPARED = ("precision", "world", "dataset")  # what else is compared: the state of a run that goes on must say it

# --- one writer ---------------------------------------------------------------------------------------------------


@contextmanager
def lock(run_dir: Path, new: bool = True) -> Iterator[None]:
    """Hold the run folder for this process; it is made for a `new` run only.

    A POSIX record lock: the kernel drops it when the process dies, however it dies, and forked workers that outlive
    it for a moment do not hold it.

    Raises:
        ConfigError: another process trains in this folder, or there is no run to go on with.
        TrainingError: the folder cannot be written to.
    """
    if new:
        with storing(run_dir):
            try:
                run_dir.mkdir(parents=True, exist_ok=True)
            except (FileExistsError, NotADirectoryError):
                raise ConfigError(f"{run_dir} cannot be a run folder: it, or what it would be in, is a file") from None
    elif not has_run(run_dir):
        raise ConfigError(f"there is no run in {run_dir} to go on with. Start it without --resume, or check --out")
    if sys.platform == "win32":  # no such locks there: a second run in one folder is not noticed
        yield
        return
    with storing(run_dir / ".lock"):
        file = (run_dir / ".lock").open("a+", encoding="utf-8")
    with contextlib.closing(file) as stream:
        try:
            fcntl.lockf(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            stream.seek(0)
            holder = stream.read().strip() or "another process"
            raise ConfigError(
                f"{run_dir} is in use: {holder} is training there. Wait for it, stop it, or use another --out"
            ) from None
        except OSError:  # a file system without locks: going on is better than not training at all
            yield
            return
        with contextlib.suppress(OSError):  # a full disk: only who it is stays unsaid
            stream.seek(0)
            stream.truncate()
            stream.write(f"process {os.getpid()} on {platform.node()}")
            stream.flush()
        yield


# --- may it go on -------------------------------------------------------------------------------------------------


def has_run(run_dir: Path) -> bool:
    """Whether a run was started here (a run exists once its first checkpoint does)."""
    return (run_dir / checkpoint.folder.CONFIG).is_file()


def resolved(config: RunConfig) -> RunConfig:
    """The configuration with the method's defaults filled in, as it is saved and compared.

    Raises:
        ConfigError, DataError: see `jepa.world.resolved`.
    """
    config = world.resolved(config)
    config = dataclasses.replace(config, method=checkpoint.frozen.resolve(config.method, config.data))
    _, options = base.resolve(config.method)
    method = {"name": config.method["name"], **configuration.to_dict(options)}
    return dataclasses.replace(config, method=method)


def check_changes(old: RunConfig, new: RunConfig, state: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Compare a run's saved configuration with the one it shall go on with.

    Args:
        old: as saved. new: as given, `resolved`.
        state: the checkpoint's state. now: its counterpart for this start: precision, dataset.

    Returns:
        Sentences about allowed changes that make the continuation differ in rounding.

    Raises:
        ConfigError: a key changed that may not; every one is named with its old and new value.
    """
    before, after = _flat(configuration.to_dict(resolved(old))), _flat(configuration.to_dict(new))
    changed = sorted(k for k in before.keys() | after.keys() if before.get(k) != after.get(k))
    wrong, notes = [], []
    for key in changed:
        if key in MAY_CHANGE_INEXACT:
            notes.append(f"{key} changed from {before.get(key)} to {after.get(key)}: results differ in rounding")
        elif key != "train.precision" and not _allowed(key):
            wrong.append(f"{key} was {before.get(key)!r}, now {after.get(key)!r}")
    if state["precision"] != now["precision"]:
        wrong.append(
            f"train.precision was {state['precision']} (train.precision={old.train.precision} there), now "
            f"{now['precision']}"
        )
    if state["dataset"] != now["dataset"]:
        was, got = state["dataset"], now["dataset"]
        wrong.append(
            f"the data set was {was['name']} ({was['size']} samples, hash {was['hash'][:12]}), now {got['name']} "
            f"({got['size']} samples, hash {got['hash'][:12]})"
        )
    for name in ("mix", "decoders"):
        was, got = state.get(name), now.get(name)
        if was != got:
            wrong.append(_change(name, was, got))
    if wrong:
        raise ConfigError(
            f"this run cannot go on with another configuration: {'; '.join(wrong)}. May change: "
            f"{', '.join(MAY_CHANGE + MAY_CHANGE_INEXACT)}. For a longer schedule use --extend, for other settings "
            "start a new run with --init-from"
        )
    if state["world"] != now["world"]:
        notes.append(
            f"{state['world']} process(es) before, {now['world']} now: same samples, crops and masks, results differ "
            "in rounding"
        )
    return notes


def _change(name: str, was: Any, got: Any) -> str:
    if name == "mix":
        return f"the data sets under mix were {was}, now {got}"
    wanted = ", ".join(f"{source}.decoder={decoder}" for source, decoder in (was or {}).items())
    return f"the videos were decoded by {was}, now {got}: set {wanted}, and install it where it is missing"


def _allowed(key: str) -> bool:
    return any(key == entry or (entry.endswith(".*") and key.startswith(entry[:-1])) for entry in MAY_CHANGE)


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested plain values by dotted name; durations stay whole, so that a change of unit is one change."""
    out: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict) and not set(value) <= {"steps", "epochs", "samples"}:
            out |= _flat(value, f"{prefix}{key}.")
        else:
            out[f"{prefix}{key}"] = value
    return out


# --- files --------------------------------------------------------------------------------------------------------


def write_config(run_dir: Path, config: RunConfig) -> None:
    """Write config.yaml, whole or not at all."""
    _replace(run_dir / checkpoint.folder.CONFIG, configuration.to_yaml(config))


def write_environment(run_dir: Path, facts: dict[str, Any]) -> None:
    """Write environment.json; what earlier starts of the run recorded stays under "earlier"."""
    path = run_dir / "environment.json"
    try:
        last = json.loads(path.read_text(encoding="utf-8"))
        earlier = [*last.pop("earlier", []), last]
    except (OSError, ValueError, AttributeError):  # the first start, or a file that something else damaged
        earlier = []
    _replace(path, json.dumps({**facts, **({"earlier": earlier} if earlier else {})}, indent=1) + "\n")


def _replace(path: Path, text: str) -> None:
    with storing(path):
        storage.write_atomic(path, text.encode())


class Lines:
    """A JSON-lines file that is appended to; nothing stays in a buffer of this process."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with storing(path):
            self._stream = path.open("ab", buffering=0)

    def add(self, *rows: Mapping[str, Any]) -> None:
        """Append one line per mapping; numbers that are not finite become null.

        Raises:
            TrainingError: disk full or not writable.
        """
        left = memoryview("".join(json.dumps(_finite(row), allow_nan=False) + "\n" for row in rows).encode())
        with storing(self._path):
            while left:
                left = left[self._stream.write(left) :]

    def sync(self) -> None:
        """Onto the disk, so that a checkpoint written next never outlives the lines before it."""
        with storing(self._path):
            os.fsync(self._stream.fileno())

    def close(self) -> None:
        self._stream.close()


@contextmanager
def storing(path: Path) -> Iterator[None]:
    """Complaints of the storage as words for the user."""
    try:
        yield
    except OSError as error:
        raise TrainingError(
            f"cannot write {path}: {error.strerror or error}. Make room or mend it, then go on with --resume"
        ) from None


def _finite(row: Mapping[str, Any]) -> dict[str, Any]:
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}


def cut_back(run_dir: Path, step: int) -> None:
    """Drop what was written after checkpoint `step`: metrics past it, trace rows of steps it has not done.

    A damaged line (a write cut off by a crash) is dropped too.
    """
    _keep_lines(run_dir / "metrics.jsonl", step)
    for path in run_dir.glob("trace-rank*.jsonl"):
        _keep_lines(path, step - 1)  # a trace row's step counts from 0: the step that used the sample


def _keep_lines(path: Path, last: int) -> None:
    if not path.is_file():
        return
    temporary = path.with_name(f".{path.name}.tmp")
    with storing(path), path.open("rb") as old, temporary.open("wb") as new:
        for line in old:
            try:
                row = json.loads(line)
                keep = line.endswith(b"\n") and row["step"] <= last
            except (ValueError, TypeError, KeyError):
                keep = False
            if keep:
                new.write(line)
        new.flush()
        os.fsync(new.fileno())
        temporary.replace(path)


def trace_rows(batch: Batch, masks: Masks | None) -> list[dict[str, Any]]:
    """One row per sample: step (0-based), source, g, key, crop ... and a digest of its context and target indices."""
    assert batch.trace is not None, "the loader was not asked for a trace"
    indices = [m.numpy() for m in (*masks.context, *masks.target)] if masks is not None else []
    rows = []
    for i, row in enumerate(batch.trace):
        digest = hashlib.blake2b(digest_size=8)
        for index in indices:
            digest.update(index[i].tobytes() + b"/")
        rows.append(
            {"step": batch.step, "source": batch.source, **row, "mask": digest.hexdigest() if indices else None}
        )
    return rows
