"""``jepa bench masks``: how long drawing a batch's masks takes, exact and reference sampler side by side.

Drawing is pure computation on one thread, so its processor time is counted: the same as the time that passes on a
quiet machine, and not disturbed by a busy one.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count

import numpy as np
import torch

from jepa.bench.result import Result, hardware, interleaved, median
from jepa.masks import MultiBlockConfig, make_sampler


@dataclass(frozen=True)
class MasksSettings:
    """What is measured."""

    batch: int = 256
    grid: tuple[int, int] = (14, 14)
    rounds: int = 50
    reference: bool = True


def bench_masks(settings: MasksSettings | None = None) -> Result:
    """Run the benchmark.

    Returns:
        Figures: exact_ms and reference_ms (median per batch), exact_slowest_ms, speedup.
    """
    wanted = settings or MasksSettings()
    exact = make_sampler(MultiBlockConfig(), wanted.grid, seed=0)
    reference = make_sampler(MultiBlockConfig(mode="reference"), wanted.grid, seed=0)
    steps: Iterator[int] = count()  # every draw is of another step, as in training

    def draw(sampler: object) -> None:
        step = next(steps)
        assert callable(sampler)
        sampler(step, np.arange(step * wanted.batch, (step + 1) * wanted.batch, dtype=np.int64))

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        seconds = interleaved({"exact": lambda: draw(exact)}, wanted.rounds, warmup=3, clock=time.process_time)
        rounds = min(3, wanted.rounds) if wanted.reference else 0
        few = interleaved({"reference": lambda: draw(reference)}, rounds, clock=time.process_time) if rounds else {}
    finally:
        torch.set_num_threads(threads)
    grid = f"{wanted.grid[0]}x{wanted.grid[1]}"
    result = Result("masks", {"batch": wanted.batch, "grid": grid, "rounds": wanted.rounds}, hardware())
    middle, slowest = median(seconds["exact"]), max(seconds["exact"])
    result.add("exact_ms", 1e3 * middle, "ms", "ExactSampler, one batch, one thread; median")
    result.add("exact_slowest_ms", 1e3 * slowest, "ms", "the slowest of the rounds")
    if few:
        slow = median(few["reference"])
        result.add("reference_ms", 1e3 * slow, "ms", f"ReferenceSampler, median of {len(few['reference'])}")
        result.add("speedup", slow / middle, "x", "reference / exact")
    return result
