"""Plain weights: model.safetensors under our own names, and what they belong to in export.json.

`read` builds the model from these two files alone; see `jepa.export.write` for what export.json says.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from jepa.errors import CheckpointError
from jepa.export.graphs import DTYPES
from jepa.export.subject import Subject
from jepa.methods import base

RECORD = "export.json"
WEIGHTS = "model.safetensors"


def write(subject: Subject, folder: Path) -> list[Path]:
    """The encoder's weights, or all of a world model's."""
    module: nn.Module = subject.world or subject.encoder
    dtype = DTYPES[subject.asked.dtype]
    tensors = {n: (t.to(dtype) if t.is_floating_point() else t).clone() for n, t in module.state_dict().items()}
    save_file(tensors, folder / WEIGHTS, {"format": "pt"})
    return [folder / WEIGHTS]


def is_export(folder: Path) -> bool:
    """Whether `jepa export` made this folder."""
    return (folder / RECORD).is_file()


def record(folder: Path) -> dict[str, Any]:
    """export.json of a folder that `jepa export` made.

    Raises:
        CheckpointError: there is none, or it is not ours, or not whole.
    """
    try:
        values = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{folder} is no folder made by `jepa export`: cannot read {RECORD} ({error})") from None
    if not isinstance(values, dict) or values.get("made_by") != "jepa export":
        raise CheckpointError(f"{folder / RECORD} was not written by `jepa export`")
    if missing := [name for name in ("format", "name", "model", "preprocessing") if name not in values]:
        raise CheckpointError(f"{folder / RECORD} is not whole (no {missing[0]!r}): export the run again")
    return values


def read(folder: Path | str) -> nn.Module:
    """The module of a safetensors export in float32, frozen: an encoder, or a world model (`jepa.methods.world`).

    Raises:
        CheckpointError: not such a folder, or weights that do not fit.
    """
    path = Path(folder)
    values = record(path)
    if values["format"] != "safetensors":
        raise CheckpointError(f"{path} holds an export for {values['format']}; this reads --format safetensors")
    model = values["model"]
    with torch.random.fork_rng(devices=[]):
        method = base.create(model["method"], tuple(model["size"]))
    module = method if model["part"] == "world" else method.encoders()[model["which"]]
    try:
        module.load_state_dict({name: t.float() if t.is_floating_point() else t
                                for name, t in load_file(path / WEIGHTS).items()})  # fmt: skip
    except (SafetensorError, OSError, RuntimeError) as error:
        raise CheckpointError(f"{path / WEIGHTS} cannot be used: {error}") from None
    return module.eval().requires_grad_(False)


__all__ = ["RECORD", "WEIGHTS", "is_export", "read", "record", "write"]
