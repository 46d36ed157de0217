"""A decoded micro-batch, and how a global batch is cut into micro-batches.

Shapes: B samples, H W image height and width.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from jepa.errors import ConfigError


@dataclass
class Batch:
    """Images and what is known of them. Images stay uint8 until they are on the device."""

    images: Tensor  # (B, 3, H, W) uint8, RGB
    labels: Tensor  # (B,) int64, -1: no label
    g: Tensor  # (B,) int64, number of the sample in the run; for evaluation the index in the split
    index: Tensor  # (B,) int64, index in the split of the image really read (differs for a substitute)
    trace: list[dict[str, Any]] | None = None  # per sample: g, index, key, crop, flip
    step: int = -1  # optimiser step that trains on it (-1: evaluation)
    micro: int = 0  # place among the step's micro-batches of its source on this rank
    last: bool = True  # the step's last micro-batch on this rank
    source: int = 0  # which of the run's sources: 0 is `data`, then those under `mix` in their order
    # of episodes, float32: action (B, T - 1, A); those of frames, e.g. proprio (B, T, P); other arrays by their names
    steps: dict[str, Tensor] | None = None

    def __len__(self) -> int:
        return len(self.images)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """The same batch with its tensors on `device`."""
        return self._map(lambda t: t.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Batch:
        """The same batch in page-locked memory; the DataLoader calls this."""
        return self._map(lambda t: t.pin_memory())

    def slice(self, start: int, stop: int) -> Batch:
        """Samples [start, stop) as views."""
        part = self._map(lambda t: t[start:stop])
        return replace(part, trace=None if self.trace is None else self.trace[start:stop])

    def _map(self, change: Any) -> Batch:
        tensors = {f.name: getattr(self, f.name) for f in fields(self) if isinstance(getattr(self, f.name), Tensor)}
        steps = None if self.steps is None else {name: change(tensor) for name, tensor in self.steps.items()}
        return replace(self, steps=steps, **{name: change(tensor) for name, tensor in tensors.items()})


def derive_accumulation(batch: int, micro_batch: int | None, world: int) -> tuple[int, int, int]:
    """How every rank cuts its part of the global batch.

    Args:
        batch: global batch, over all ranks.
        micro_batch: most samples per rank at once; None: no limit.
        world: number of ranks.

    Returns:
        (per_rank, micro, accumulation) with per_rank = micro * accumulation and micro <= micro_batch.

    Raises:
        ConfigError: a number below 1, or a world size that does not divide the batch.
    """
    if batch < 1 or world < 1 or (micro_batch is not None and micro_batch < 1):
        raise ConfigError(f"batch={batch}, micro_batch={micro_batch}, processes={world}: all must be at least 1")
    if batch % world:
        fitting = [w for w in range(1, batch + 1) if batch % w == 0]
        shown = ", ".join(map(str, fitting[:40])) + (", ..." if len(fitting) > 40 else "")
        raise ConfigError(
            f"train.batch={batch} cannot be shared equally by {world} processes. "
            f"Use one of {shown} processes, or a batch that is a multiple of {world}"
        )
    per_rank = batch // world
    micro = max(m for m in range(1, min(per_rank, micro_batch or per_rank) + 1) if per_rank % m == 0)
    return per_rank, micro, per_rank // micro
