"""The sources of a run: `data`, and those under `mix`, each with a fixed count in every step.

Every source has its own sample numbers g and its own keys, so what one source gives never depends on the others. A
step takes its sources one after the other, each cut into equal micro-batches, the same ones on every rank; so all
parameters are used on all ranks in every step, whatever the sources hold.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from jepa import keyed
from jepa.config import RunConfig
from jepa.data.batch import Batch, derive_accumulation
from jepa.data.loader import make_loader
from jepa.data.samples import TrainData
from jepa.errors import ConfigError, JepaError
from jepa.phases import MAIN


@dataclass(frozen=True)
class Stream:
    """One source."""

    name: str  # MAIN, or its name under `mix`
    data: TrainData
    batch: int  # samples in every step, over all ranks
    weight: float  # its mean loss's part of the step's loss; all parts sum to 1
    accumulation: int  # micro-batches per step and rank
    shift: int = 0  # added to ``step * batch``, the first g of a step, where earlier steps had another batch

    @property
    def seed(self) -> int:
        """Of everything random in this source: order, crops, masks."""
        return self.data.seed

    @property
    def share(self) -> float:
        """A micro-batch's part of the step's loss."""
        return self.weight / self.accumulation

    def numbers(self, step: int, rank: int, world: int) -> npt.NDArray[np.int64]:
        """The g (batch / world,) that a rank trains on in a step."""
        return self.data.order.rank_slice(step, self.batch, rank, world, self.shift)


def streams(
    config: RunConfig,
    world: int = 1,
    run_dir: Path | None = None,
    shifts: Mapping[str, int] | None = None,
    attempts: Mapping[str, Sequence[tuple[int, int]]] | None = None,
) -> list[Stream]:
    """The sources of a run or of one of its phases, the main one first.

    Args:
        shifts: see `Stream.shift`, by name.
        attempts: of a run that was rolled back, by name: see `TrainData`.

    Raises:
        ConfigError: a batch that the processes cannot share, a weight below 0, or values that cannot be used.
        DataError: a dataset is missing or damaged.
    """
    if MAIN in config.mix:
        raise ConfigError(f"mix.{MAIN}: this name is the main source's; choose another")
    batches = {MAIN: config.train.batch} | {name: source.batch for name, source in config.mix.items()}
    total = sum(batches.values())
    weights = {n: s.weight if s.weight is not None else s.batch / total for n, s in config.mix.items()}
    weights = {MAIN: 1.0 - sum(weights.values()), **weights}
    if min(weights.values()) <= 0:
        raise ConfigError(
            "mix: weights are parts of the step's loss, so each must be above 0 and their sum below 1, which leaves "
            f"the rest to `data`; got {', '.join(f'{name} {weight:g}' for name, weight in weights.items())}"
        )
    found = [
        _stream(config, name, batches[name], weights[name], world, run_dir, (attempts or {}).get(name, ()))
        for name in batches
    ]
    return [replace(stream, shift=shifts[stream.name]) for stream in found] if shifts else found


def _stream(
    config: RunConfig,
    name: str,
    batch: int,
    weight: float,
    world: int,
    run_dir: Path | None,
    attempts: Sequence[tuple[int, int]],
) -> Stream:
    section, seed = config.data, config.seed
    try:
        _, _, accumulation = derive_accumulation(batch, config.train.micro_batch, world)
        if name != MAIN:
            section, seed = config.mix[name], int(keyed.words(f"mix.{name}", config.seed, 0, 1)[0, 0])
        return Stream(name, TrainData(section, seed, run_dir=run_dir, attempts=attempts), batch, weight, accumulation)
    except JepaError as error:
        if name == MAIN:
            raise
        raise type(error)(f"mix.{name}: {error}") from None


def mixed_batches(
    sources: list[Stream],
    *,
    micro_batch: int | None,
    rank: int,
    world: int,
    start_step: int,
    total_steps: int,
    trace: bool = False,
) -> Iterator[Batch]:
    """One rank's micro-batches of steps [start_step, total_steps): in every step source by source.

    `micro` counts inside a source, `last` is set on the step's last micro-batch of its last source.

    Raises:
        TrainingError: while iterating; see `make_loader`.
    """
    loaders = [
        iter(
            make_loader(
                stream.data, batch=stream.batch, micro_batch=micro_batch, rank=rank, world=world,
                start_step=start_step, total_steps=total_steps, shift=stream.shift, trace=trace,
            )
        )
        for stream in sources
    ]  # fmt: skip
    for _ in range(start_step, total_steps):
        for source, (stream, loader) in enumerate(zip(sources, loaders, strict=True)):
            for _ in range(stream.accumulation):
                batch = next(loader)
                yield replace(batch, source=source, last=batch.last and source == len(sources) - 1)
