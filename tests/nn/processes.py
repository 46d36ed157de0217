"""A function in a group of real processes (gloo)."""

from __future__ import annotations

import importlib
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def _one(rank: int, world: int, folder: str, module: str, name: str, root: str) -> None:
    sys.path.insert(0, root)
    function = getattr(importlib.import_module(module), name)
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/group", rank=rank, world_size=world)
    torch.save(function(rank, world), Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


def in_processes(function: Callable[[int, int], Any], world: int) -> list[Any]:
    """What `function(rank, world)` returns on each rank; it must be importable."""
    with tempfile.TemporaryDirectory() as folder:
        # the package under test, wherever else there is one; not imported above, where a child would do so too early
        root = str(Path(str(sys.modules["jepa"].__file__)).parents[1])
        mp.spawn(_one, (world, folder, function.__module__, function.__name__, root), nprocs=world)  # type: ignore[no-untyped-call]
        return [torch.load(Path(folder) / f"{rank}.pt", weights_only=True) for rank in range(world)]
