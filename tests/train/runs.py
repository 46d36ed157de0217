"""Reading run folders in tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

TIMINGS = ("images_per_s", "step_seconds", "data_wait", "device_seconds", "joules", "peak_memory_gib")
STARTS = ("restarts", "lost_steps")  # of a run that was interrupted, beside one that was not


def lines(run: Path, key: str = "loss") -> list[dict[str, Any]]:
    """Lines of metrics.jsonl that have `key`, without what a clock or starts have counted."""
    rows = [json.loads(x) for x in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k not in TIMINGS + STARTS} for row in rows if key in row]


def trace(run: Path) -> list[dict[str, Any]]:
    """Trace rows of all ranks, by g."""
    rows = [json.loads(x) for p in sorted(run.glob("trace-rank*.jsonl")) for x in p.read_text().splitlines()]
    return sorted(rows, key=lambda row: row["g"])


def tensors(run: Path, step: int) -> dict[str, torch.Tensor]:
    """All tensors of a checkpoint, weights and optimiser state."""
    at = run / "checkpoints" / f"step-{step}"
    return load_file(at / "model.safetensors") | load_file(at / "optim.safetensors")


def assert_bit_equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    different = [name for name in a if not torch.equal(a[name], b[name])]
    assert not different, f"{len(different)} of {len(a)} tensors differ, e.g. {different[:3]}"
