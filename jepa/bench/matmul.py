"""The machine's matrix-multiplication rate: the yardstick that a training step is held against.

Peak means the fastest product in a stated sweep of sizes, measured in the same run as what is compared. The sweep
holds square products and the tall ones a ViT does (tokens x width x hidden), because a library may reach its best
rate on either.
"""

from __future__ import annotations

import time
from collections.abc import Iterable

import torch

from jepa.bench.result import synchronise

Size = tuple[int, int, int]  # (m, k, n): an (m, k) matrix times a (k, n) one, 2mkn operations
CPU_SIZES: tuple[Size, ...] = ((1024, 1024, 1024), (2048, 2048, 2048), (3136, 384, 1536), (3136, 1536, 384))
CUDA_SIZES: tuple[Size, ...] = ((4096, 4096, 4096), (8192, 8192, 8192), (16384, 16384, 16384), (32768, 1280, 5120))


def default_sizes(device: torch.device) -> tuple[Size, ...]:
    return CUDA_SIZES if device.type == "cuda" else CPU_SIZES


class Sweep:
    """A matmul sweep that can be timed in slices between other things; the rate improves to the best seen."""

    def __init__(self, sizes: Iterable[Size], dtype: torch.dtype, device: torch.device) -> None:
        generator = torch.Generator().manual_seed(0)
        self.device = device
        self.operands = {}
        self.seconds: dict[Size, list[float]] = {}
        for m, k, n in sizes:
            left, right = (torch.randn(shape, generator=generator).to(device, dtype) for shape in ((m, k), (k, n)))
            self.operands[m, k, n] = (left, right, torch.empty(m, n, device=device, dtype=dtype))
            self.seconds[m, k, n] = []

    def run(self, repeats: int = 3) -> None:
        """Multiply every size `repeats` times after one untimed product each, and keep the times."""
        for size, (left, right, out) in self.operands.items():
            torch.mm(left, right, out=out)
            for _ in range(repeats):
                synchronise(self.device)
                start = time.perf_counter()
                torch.mm(left, right, out=out)
                synchronise(self.device)
                self.seconds[size].append(time.perf_counter() - start)

    def rates(self) -> dict[Size, float]:
        """Operations per second of each size, by its fastest product: a busy machine must not lower the yardstick."""
        return {size: 2.0 * size[0] * size[1] * size[2] / min(s) for size, s in self.seconds.items() if s}

    def peak(self) -> float:
        """Operations per second of the best size."""
        return max(self.rates().values())
