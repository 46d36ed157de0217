"""Saving and strictly loading a method, its optimiser and the loop's state."""

from __future__ import annotations

import json
import platform
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from jepa import config as configuration
from jepa.checkpoint import folder
from jepa.checkpoint.snapshot import Snapshot, plain, take
from jepa.config import RunConfig
from jepa.errors import CheckpointError, ConfigError
from jepa.methods.base import Method
from jepa.nn.sharded import placed

_SHOWN = 8  # names listed in an error before it only counts
_PACKAGES = ("jepa", "torch", "torchvision", "accelerate", "safetensors", "numpy")

# --- saving -------------------------------------------------------------------------------------------------------


def save(
    run_dir: Path,
    step: int,
    method: Method,
    optimizer: torch.optim.Optimizer | None,
    state: Mapping[str, Any],
    config: RunConfig,
    *,
    keep: int = 0,
    keep_every: int | None = None,
    keep_at: Collection[int] = (),
) -> Path:
    """Write ``run_dir/checkpoints/step-N`` atomically, then thin out older ones.

    Args:
        step: optimiser steps done.
        optimizer: None for weights that come without one (imported).
        state: plain JSON values the loop needs to go on.
        keep: newest checkpoints kept (0: all); keep_every: multiples of this many steps are kept for good, and
            so are the steps `keep_at`.

    Raises:
        TrainingError: disk full or not writable; see `folder.write`.
    """
    snapshot = take(step, method, optimizer, state, config)
    return write(run_dir, snapshot, keep=keep, keep_every=keep_every, keep_at=keep_at)


def write(
    run_dir: Path, snapshot: Snapshot, *, keep: int = 0, keep_every: int | None = None, keep_at: Collection[int] = ()
) -> Path:
    """`save` for what was taken before; from any thread."""

    def fill(path: Path) -> None:
        save_file(snapshot.model, path / folder.MODEL)
        if snapshot.optim is not None:
            save_file(snapshot.optim, path / folder.OPTIM)
        text = json.dumps({"step": snapshot.step, **snapshot.state}, indent=1, allow_nan=False)
        (path / folder.STATE).write_text(text + "\n", encoding="utf-8")
        (path / folder.CONFIG).write_text(configuration.to_yaml(snapshot.config), encoding="utf-8")

    snapshot.settled()
    path = folder.write(run_dir, snapshot.step, fill, {**snapshot.about, "versions": versions()})
    folder.prune(run_dir, keep, keep_every, keep_at)
    return path


def versions() -> dict[str, str]:
    """Versions of what the numbers depend on."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # run from a checkout that is not installed
            continue
    return found


# --- loading ------------------------------------------------------------------------------------------------------


def load_model(path: Path, method: nn.Module) -> None:
    """Put a checkpoint's weights in place, strictly.

    Raises:
        CheckpointError: names missing, left over or of another shape (a checkpoint of another architecture); all
            three are listed and nothing is loaded.
    """
    wanted = {plain(name): value for name, value in method.state_dict().items()}
    with _opened(path / folder.MODEL) as found:
        _compare(path, "model", found.shapes, {n: t.shape for n, t in wanted.items()})
        with torch.no_grad():
            for name, value in wanted.items():
                value.copy_(placed(found[name], value))


def load_optim(path: Path, method: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Optimiser state only, matched by parameter name; hyper-parameters stay those of `optimizer`."""
    if not (path / folder.OPTIM).is_file():
        raise CheckpointError(
            f"{path} has no optimiser state (it was imported): use it with --init-from, it cannot be resumed"
        )
    parameters = {plain(n): p for n, p in method.named_parameters()}
    names = {id(p): n for n, p in parameters.items()}
    ordered = [names[id(p)] for group in optimizer.param_groups for p in group["params"]]
    states: dict[str, dict[str, Tensor]] = {}
    with _opened(path / folder.OPTIM) as found:
        keys = [(key, *key.partition(".")[::2]) for key in found.shapes]
        if keys:  # none before the first step
            _compare(path, "optimiser", {name: () for _, _, name in keys}, dict.fromkeys(ordered, ()))
        for key, kind, name in keys:
            tensor, like = found[key], parameters[name]
            states.setdefault(name, {})[kind] = placed(tensor, like) if tensor.shape == like.shape else tensor
    plain_state = optimizer.state_dict()
    plain_state["state"] = {i: states[name] for i, name in enumerate(ordered) if name in states}
    optimizer.load_state_dict(plain_state)


def read_state(path: Path, *needed: str) -> dict[str, Any]:
    """The loop's state saved with a checkpoint: "step", and what is `needed`.

    Raises:
        CheckpointError: not readable, or without one of these.
    """
    file = path / folder.STATE
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"cannot read {file}: {error}") from None
    if not isinstance(values, dict) or not isinstance(values.get("step"), int):
        raise CheckpointError(
            f"{file} does not say at which step it was saved. It was changed; give another checkpoint"
        )
    if missing := [name for name in needed if name not in values]:
        raise CheckpointError(
            f"{file} has no {missing[0]!r}: another version of this program wrote it, and the run cannot go on here. "
            "Start a new one from its weights: --init-from"
        )
    return values


def read_config(path: Path) -> RunConfig:
    """The run configuration in a checkpoint or run folder.

    Raises:
        CheckpointError: missing or not valid for this version of the program.
    """
    try:
        return configuration.build(RunConfig, configuration.read_yaml(path / folder.CONFIG))
    except ConfigError as error:
        raise CheckpointError(f"the configuration saved in {path} cannot be used: {error}") from None


class _Stored(Mapping[str, Tensor]):
    """Tensors of a file, each read when it is asked for: a whole model is never held twice."""

    def __init__(self, opened: Any) -> None:
        self._opened = opened
        self.shapes = {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118

    def __getitem__(self, name: str) -> Tensor:
        found: Tensor = self._opened.get_tensor(name)
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)


@contextmanager
def _opened(file: Path) -> Iterator[_Stored]:
    try:
        with safe_open(str(file), framework="pt") as opened:
            yield _Stored(opened)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"cannot read {file}: {error}") from None


def _compare(path: Path, what: str, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    parts = []
    for label, names in (
        ("missing", sorted(wanted.keys() - found.keys())),
        ("unexpected", sorted(found.keys() - wanted.keys())),
        ("of another shape", [
            f"{n} {tuple(found[n])} instead of {tuple(wanted[n])}"
            for n in sorted(wanted.keys() & found.keys()) if tuple(found[n]) != tuple(wanted[n])
        ]),
    ):  # fmt: skip
        if names:
            parts.append(f"{len(names)} {label}: {_listing(names)}")
    if parts:
        raise CheckpointError(
            f"{path} is of another architecture ({what}). {'; '.join(parts)}. Nothing was loaded; use the "
            "configuration that it was trained with (config.yaml beside it)"
        )


def _listing(names: Iterable[str]) -> str:
    all_names = list(names)
    shown = ", ".join(all_names[:_SHOWN])
    return shown if len(all_names) <= _SHOWN else f"{shown}, and {len(all_names) - _SHOWN} more"


# --- saying what it is --------------------------------------------------------------------------------------------


def describe(path: Path | str) -> dict[str, Any]:
    """What a run's newest checkpoint, or a given checkpoint, is; reads headers only, never a tensor.

    Returns:
        Plain values: path, step, method, image_size, normalisation, encoders, exported, parameters (count by part),
        tensors (count), dtypes, bytes, optimiser (bool), state, versions, config (resolved).

    Raises:
        CheckpointError: nothing usable there (see `folder.resolve`).
    """
    found = folder.resolve(path, files=())
    values = folder.manifest(found)
    with _opened(found / folder.MODEL) as stored:
        count = len(stored)
    return {
        "path": str(found),
        **{k: v for k, v in values.items() if k not in ("format", "files")},
        "tensors": count,
        "bytes": sum(f["bytes"] for f in values["files"].values()),
        "optimiser": folder.OPTIM in values["files"],
        "state": read_state(found),
        "config": configuration.to_dict(read_config(found)),
    }
