"""Saving and strictly loading a method, its optimiser and the loop's state."""

from __future__ import annotations

import json
import platform
from collections.abc import Collection, Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from jepa import config as configuration
from jepa.checkpoint import folder
from jepa.config import RunConfig
from jepa.errors import CheckpointError, ConfigError
from jepa.methods.base import Method

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
    tensors = model_tensors(method)

    def fill(path: Path) -> None:
        save_file(tensors, path / folder.MODEL)
        if optimizer is not None:
            save_file(optim_tensors(method, optimizer), path / folder.OPTIM)
        text = json.dumps({"step": step, **state}, indent=1, allow_nan=False)
        (path / folder.STATE).write_text(text + "\n", encoding="utf-8")
        (path / folder.CONFIG).write_text(configuration.to_yaml(config), encoding="utf-8")

    about = {
        "method": config.method.get("name"),
        "image_size": list(method.size),
        "normalisation": {"mean": list(config.data.mean), "std": list(config.data.std)},
        "encoders": sorted(method.encoders()),
        "exported": method.exported(),
        "parameters": _counts(tensors),
        "dtypes": sorted({str(t.dtype).removeprefix("torch.") for t in tensors.values()}),
        "versions": versions(),
    }
    path = folder.write(run_dir, step, fill, about)
    folder.prune(run_dir, keep, keep_every, keep_at)
    return path


def model_tensors(method: nn.Module) -> dict[str, Tensor]:
    """Every parameter and saved buffer by its own name, on the CPU; wrappers' name parts are dropped."""
    out: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, value in method.state_dict().items():
        tensor = value.detach().cpu().contiguous()
        if tensor.data_ptr() in seen:  # tied weights: safetensors refuses memory that is shared
            tensor = tensor.clone()
        seen.add(tensor.data_ptr())
        out[plain(name)] = tensor
    return out


def plain(name: str) -> str:
    """A parameter's name without what DistributedDataParallel and torch.compile add."""
    return ".".join(part for part in name.split(".") if part not in ("module", "_orig_mod"))


def optim_tensors(method: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Optimiser state by parameter name: ``exp_avg.encoder.norm.weight`` and so on."""
    names = {id(p): plain(n) for n, p in method.named_parameters()}
    return {
        f"{kind}.{names[id(p)]}": value.detach().cpu().contiguous()
        for p, values in optimizer.state.items()
        for kind, value in values.items()
    }


def versions() -> dict[str, str]:
    """Versions of what the numbers depend on."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # run from a checkout that is not installed
            continue
    return found


def _counts(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    out: dict[str, int] = {}
    for name, tensor in tensors.items():
        part = name.split(".")[0]
        out[part] = out.get(part, 0) + tensor.numel()
    return out


# --- loading ------------------------------------------------------------------------------------------------------


def load_model(path: Path, method: nn.Module) -> None:
    """Put a checkpoint's weights in place, strictly.

    Raises:
        CheckpointError: names missing, left over or of another shape (a checkpoint of another architecture); all
            three are listed and nothing is loaded.
    """
    wanted = {plain(name): value for name, value in method.state_dict().items()}
    found = _tensors(path / folder.MODEL)
    _compare(path, "model", {n: t.shape for n, t in found.items()}, {n: t.shape for n, t in wanted.items()})
    with torch.no_grad():
        for name, value in wanted.items():
            value.copy_(found[name])


def load_optim(path: Path, method: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Optimiser state only, matched by parameter name; hyper-parameters stay those of `optimizer`."""
    if not (path / folder.OPTIM).is_file():
        raise CheckpointError(
            f"{path} has no optimiser state (it was imported): use it with --init-from, it cannot be resumed"
        )
    names = {id(p): plain(n) for n, p in method.named_parameters()}
    ordered = [names[id(p)] for group in optimizer.param_groups for p in group["params"]]
    states: dict[str, dict[str, Tensor]] = {}
    for key, tensor in _tensors(path / folder.OPTIM).items():
        kind, _, name = key.partition(".")
        states.setdefault(name, {})[kind] = tensor
    if states:  # none before the first step
        _compare(path, "optimiser", dict.fromkeys(states, ()), dict.fromkeys(ordered, ()))
    plain_state = optimizer.state_dict()
    plain_state["state"] = {i: states[name] for i, name in enumerate(ordered) if name in states}
    optimizer.load_state_dict(plain_state)


def read_state(path: Path) -> dict[str, Any]:
    """The loop's state saved with a checkpoint."""
    try:
        values = json.loads((path / folder.STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot read {path / folder.STATE}: {error}") from None
    assert isinstance(values, dict), f"{path / folder.STATE} holds {type(values).__name__}, expected a mapping"
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


def _tensors(file: Path) -> dict[str, Tensor]:
    try:
        return load_file(file)
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
    with safe_open(str(found / folder.MODEL), framework="pt") as opened:
        count = len(list(opened.keys()))
    return {
        "path": str(found),
        **{k: v for k, v in values.items() if k not in ("format", "files")},
        "tensors": count,
        "bytes": sum(f["bytes"] for f in values["files"].values()),
        "optimiser": folder.OPTIM in values["files"],
        "state": read_state(found),
        "config": configuration.to_dict(read_config(found)),
    }
