"""Sample numbers g -> decoded uint8 batches, in order, whatever the workers do.

A map-style DataLoader is driven by explicit lists of g, one list per micro-batch; a worker reads, decodes and crops
the whole micro-batch into one buffer. Nothing here is iterator state: a loader started at step k gives what one
started at step 0 gives from step k on.

Shapes: B samples, H W image height and width.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import DataLoader, Dataset

from jepa.data import augment, decode
from jepa.data.batch import Batch, derive_accumulation
from jepa.data.manifest import Split
from jepa.data.order import Order
from jepa.data.quarantine import Quarantine
from jepa.data.samples import Loaded, TrainData, empty_images, failed
from jepa.errors import DataError, TrainingError

Int64 = npt.NDArray[np.int64]


class _TrainSet(Dataset[Loaded]):
    """Answers a list of g with a loaded micro-batch."""

    def __init__(self, data: TrainData, known: dict[int, int], trace: bool) -> None:
        self.data, self.known, self.trace = data, known, trace

    def __getitems__(self, g: Int64) -> Loaded:
        try:
            return self.data.load(g, self.known, self.trace)
        except TrainingError as error:
            return failed(error)
        except OSError as error:
            name = error.filename or f"a shard of {self.data.manifest.root}"
            return failed(
                TrainingError(
                    f"reading {name} failed and did not recover: {error.strerror or error}. "
                    "Check the storage, then continue with --resume"
                )
            )


class Loader:
    """Micro-batches of one rank, in order. Iterate once per run."""

    def __init__(self, dataset: _TrainSet, plan: _Plan, quarantine: Quarantine, workers: int, prefetch: int) -> None:
        self._plan, self._quarantine = plan, quarantine
        self._loader = _data_loader(dataset, plan, workers, prefetch)

    def __len__(self) -> int:
        return len(self._plan)

    def __iter__(self) -> Iterator[Batch]:
        plan = self._plan
        for number, loaded in enumerate(_guarded(self._loader)):
            batch = loaded.batch()
            self._quarantine.record(loaded.bad, len(batch))  # on disk before the batch is used
            step, micro = divmod(number, plan.accumulation)
            yield replace(batch, step=plan.start + step, micro=micro, last=micro + 1 == plan.accumulation)


@dataclass(frozen=True)
class _Plan:
    """The lists of g of a rank's micro-batches."""

    order: Order
    batch: int
    rank: int
    world: int
    start: int
    stop: int
    micro: int
    accumulation: int

    def __len__(self) -> int:
        return max(0, self.stop - self.start) * self.accumulation

    def __iter__(self) -> Iterator[Int64]:
        for step in range(self.start, self.stop):
            g = self.order.rank_slice(step, self.batch, self.rank, self.world)
            yield from g.reshape(self.accumulation, self.micro)


def make_loader(
    data: TrainData,
    *,
    batch: int,
    micro_batch: int | None = None,
    rank: int = 0,
    world: int = 1,
    start_step: int = 0,
    total_steps: int,
    trace: bool = False,
) -> Loader:
    """The micro-batches of one rank for steps [start_step, total_steps).

    Args:
        data: what to read.
        batch: global batch, over all ranks.
        micro_batch: most samples per rank at once; accumulation is derived from it.
        trace: also report every sample's key and crop.

    Raises:
        ConfigError: the batch cannot be shared equally.
        TrainingError: while iterating, when too many samples are bad or the storage fails.
    """
    _, micro, accumulation = derive_accumulation(batch, micro_batch, world)
    plan = _Plan(data.order, batch, rank, world, start_step, total_steps, micro, accumulation)
    identity = {"dataset": data.manifest.hash[:16], "split": data.split.name, "seed": data.seed}
    quarantine = Quarantine(data.run_dir, rank, identity, data.config.max_bad)
    dataset = _TrainSet(data, dict(quarantine.known), trace)
    return Loader(dataset, plan, quarantine, data.config.workers, data.config.prefetch)


class _EvalSet(Dataset[Loaded]):
    """Answers a list of indices with images cut in the middle."""

    def __init__(self, split: Split, size: tuple[int, int], interpolation: augment.Interpolation) -> None:
        self.split, self.size, self.interpolation = split, size, interpolation

    def __getitems__(self, index: Int64) -> Loaded:
        images = empty_images(len(index), self.size)
        for slot, i in enumerate(index.tolist()):
            try:
                image = decode.decode(self.split.read(i)[0])
            except (DataError, OSError) as error:
                return failed(
                    DataError(
                        f"sample {self.split.place(i)} of split {self.split.name!r} cannot be read: {error}. An "
                        "evaluation never skips samples: build the dataset again with image.verify=true to leave "
                        "broken images out"
                    )
                )
            part = augment.centre_box(image.shape[1], image.shape[2], self.size)
            images[slot].copy_(augment.apply(image, part, self.size, self.interpolation))
        return Loaded(images, np.asarray(self.split.labels[index]), index, index)


def eval_batches(
    split: Split,
    image_size: tuple[int, int],
    batch_size: int,
    indices: Sequence[int] | Int64 | None = None,
    workers: int = 0,
    interpolation: augment.Interpolation = "bilinear",
) -> Iterator[Batch]:
    """Samples of a split in order: the largest centred box of the wanted shape, resized to it. Deterministic.

    Args:
        image_size: (H, W).
        indices: samples to take, in this order; None: all.

    Raises:
        DataError: while iterating, when a sample cannot be read.
    """
    chosen = np.arange(len(split)) if indices is None else np.asarray(indices, dtype=np.int64)
    lists = [chosen[i : i + batch_size] for i in range(0, len(chosen), batch_size)]
    for loaded in _guarded(_data_loader(_EvalSet(split, image_size, interpolation), lists, workers, 2)):
        yield loaded.batch()


def _data_loader(dataset: Dataset[Loaded], lists: Any, workers: int, prefetch: int) -> DataLoader[Loaded]:
    return DataLoader(
        dataset,
        batch_sampler=lists,
        num_workers=workers,
        collate_fn=_unchanged,  # type: ignore[arg-type]  # __getitems__ has made the batch already
        pin_memory=torch.cuda.is_available(),
        prefetch_factor=prefetch if workers else None,
        worker_init_fn=_start_worker,
        generator=torch.Generator(),  # the default would draw the workers' seed from the run's global generator
    )


def _unchanged(loaded: Loaded) -> Loaded:
    return loaded


def _start_worker(_: int) -> None:
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the training process's to handle


def _guarded(loader: DataLoader[Loaded]) -> Iterator[Loaded]:
    """The loader's items; a worker that died becomes a clear error."""
    try:
        yield from loader
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise TrainingError(
            f"a decoding process died ({error}). Mostly that is for want of memory or shared memory (/dev/shm): use "
            "fewer data.workers or a smaller data.prefetch, then continue with --resume"
        ) from None
