"""Reads golden fixtures: tensors and facts recorded from the official code."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

FOLDER = Path(os.environ.get("JEPA_GOLDEN", Path(__file__).parent / "golden"))


def facts(name: str) -> dict[str, Any]:
    """The json of a fixture; a missing one fails the test, it never skips."""
    return json.loads((FOLDER / f"{name}.json").read_text())


def tensors(name: str) -> dict[str, torch.Tensor]:
    return load_file(FOLDER / f"{name}.safetensors")


def part(values: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    """The tensors under `prefix.`, without it."""
    return {k[len(prefix) + 1 :]: v for k, v in values.items() if k.startswith(prefix + ".")}


def listed(values: dict[str, torch.Tensor], prefix: str) -> list[torch.Tensor]:
    """prefix.0, prefix.1, ... in order."""
    found = []
    while (key := f"{prefix}.{len(found)}") in values:
        found.append(values[key])
    assert found, f"no {prefix}.0 among {sorted(values)[:5]}..."
    return found
