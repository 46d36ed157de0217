"""Sample numbers g -> decoded uint8 batches, in order, whatever the workers do.

A map-style DataLoader is driven by explicit lists of g, one list per micro-batch; a worker reads, decodes and crops
the whole micro-batch into one buffer. Nothing here is iterator state: a loader started at step k gives what one
started at step 0 gives from step k on.

Shapes: B samples, H W image height and width.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from jepa import keyed
from jepa.config import DataConfig
from jepa.data import augment, decode
from jepa.data.batch import Batch, derive_accumulation
from jepa.data.manifest import Manifest, Split
from jepa.data.order import Order
from jepa.data.quarantine import Bad, Quarantine
from jepa.errors import ConfigError, DataError, TrainingError

Int64 = npt.NDArray[np.int64]
ATTEMPTS = 20  # substitutes tried for one slot before the dataset is taken for unreadable


class TrainData:
    """A split, and how its samples are ordered and cropped for training."""

    def __init__(self, data: DataConfig, seed: int, *, run_dir: Path | None = None) -> None:
        """
        Args:
            data: the run's data section.
            seed: the run's seed.
            run_dir: where quarantine.jsonl is kept; None keeps none.

        Raises:
            ConfigError: a value that cannot be used.
            DataError: no dataset at data.path, no such split, or shards missing, truncated or replaced.
        """
        _validate(data)
        self.config, self.seed, self.run_dir = data, seed, run_dir
        self.manifest = Manifest.open(data.path)
        self.split = self.manifest.split(data.split)
        self.split.check()
        self.order = Order(seed, self.split.shard_sizes, data.shuffle_shards, data.lanes)
        self.law = augment.CropLaw(data.crop_scale, data.crop_ratio, data.hflip)

    @property
    def size(self) -> int:
        """N, samples in an epoch."""
        return len(self.split)

    def load(self, g: Int64, known: dict[int, int] | None = None, trace: bool = False) -> Loaded:
        """Read, decode and crop the samples g (B,); `known` substitutes (g -> index) are taken as they are."""
        size, law = self.config.image_size, self.law
        index = self.order(g)
        numbers = augment.draw(self.seed, g)
        images = empty_images(len(g), size)
        bad: list[Bad] = []
        boxes: list[augment.Box] = []
        for slot, number in enumerate(g.tolist()):
            image, index[slot] = self._sample(number, int(index[slot]), known or {}, bad)
            part = augment.box(law, numbers[slot], image.shape[1], image.shape[2])
            images[slot].copy_(augment.apply(image, part, size, self.config.interpolation))
            if trace:
                boxes.append(part)
        rows = [self._trace(*row) for row in zip(g.tolist(), index.tolist(), boxes, strict=True)] if trace else None
        return Loaded(images, np.asarray(self.split.labels[index]), g, index, bad, rows)

    def _sample(self, g: int, index: int, known: dict[int, int], bad: list[Bad]) -> tuple[Tensor, int]:
        """The decoded image of a slot and its index: the sample itself, or the first substitute that can be read."""
        reason, first = "unreadable earlier in this run", known.get(g)
        if first is None:
            try:
                return self._decode(index), index
            except DataError as error:
                reason = str(error)
        else:
            try:
                image = self._decode(first)
                bad.append(Bad(g, index, self.split.place(index), reason, 0, first))
                return image, first
            except DataError:
                pass
        for attempt in range(1, ATTEMPTS + 1):
            other = int(keyed.uniform("substitute", self.seed, g, 1, sub=attempt)[0] * self.size)
            try:
                image = self._decode(other)
            except DataError:
                continue
            bad.append(Bad(g, index, self.split.place(index), reason, attempt, other))
            return image, other
        raise TrainingError(
            f"sample {self.split.place(index)} cannot be read ({reason}), and neither could {ATTEMPTS} others chosen "
            f"in its place. The dataset {self.manifest.root} is damaged: build it again with image.verify=true"
        )

    def _decode(self, index: int) -> Tensor:
        return decode.decode(self.split.read(index)[0])

    def _trace(self, g: int, index: int, part: augment.Box) -> dict[str, Any]:
        crop = [part.top, part.left, part.height, part.width]
        return {"g": g, "index": index, "key": self.split.key(index), "crop": crop, "flip": part.flip}


def _validate(data: DataConfig) -> None:
    if not data.path:
        raise ConfigError("data.path is empty: give the folder made by `jepa data build`, e.g. data.path=data/digits")
    if min(data.image_size) < 1:
        raise ConfigError(f"data.image_size: both sides must be at least 1, got {data.image_size}")
    if not 0 < data.crop_scale[0] <= data.crop_scale[1] <= 1:
        raise ConfigError(f"data.crop_scale: need 0 < smallest <= largest <= 1, got {data.crop_scale}")
    if not 0 < data.crop_ratio[0] <= data.crop_ratio[1]:
        raise ConfigError(f"data.crop_ratio: need 0 < smallest <= largest, got {data.crop_ratio}")
    for name in ("hflip", "max_bad"):
        if not 0 <= getattr(data, name) <= 1:
            raise ConfigError(f"data.{name}: allowed are 0 to 1, got {getattr(data, name)}")
    if data.workers < 0 or data.prefetch < 1:
        raise ConfigError(f"data.workers={data.workers} must be at least 0 and data.prefetch={data.prefetch} at least 1")


def empty_images(count: int, size: tuple[int, int]) -> Tensor:
    """An uninitialised uint8 buffer (count, 3, H, W), stored height-width-channel as the resize writes it.

    In a worker it lies in shared memory, so that handing it to the training process copies nothing.
    """
    shape, strides = (count, 3, *size), (3 * size[0] * size[1], 1, 3 * size[1], 3)
    if get_worker_info() is None:
        return torch.empty_strided(shape, strides, dtype=torch.uint8)
    storage = torch.UntypedStorage._new_shared(max(1, count * 3 * size[0] * size[1]), device="cpu")
    return torch.empty(0, dtype=torch.uint8).set_(storage, 0, shape, strides)  # type: ignore[call-overload, no-any-return]


@dataclass
class Loaded:
    """What a worker hands over for one micro-batch; small columns stay numpy, which crosses processes cheaply."""

    images: Tensor  # (B, 3, H, W) uint8
    labels: Int64
    g: Int64
    index: Int64
    bad: list[Bad] = field(default_factory=list)
    trace: list[dict[str, Any]] | None = None
    error: Exception | None = None  # travels as a value: the DataLoader would bury its message in a traceback

    def pin_memory(self) -> Loaded:
        """The same with the images in page-locked memory; the DataLoader calls this."""
        return replace(self, images=self.images.pin_memory())

    def batch(self) -> Batch:
        """As a Batch, or the worker's error raised here."""
        if self.error is not None:
            raise self.error
        columns = (torch.from_numpy(np.ascontiguousarray(c)) for c in (self.labels, self.g, self.index))
        return Batch(self.images, *columns, trace=self.trace)


def _failed(error: Exception) -> Loaded:
    nothing = np.empty(0, dtype=np.int64)
    return Loaded(torch.empty(0, dtype=torch.uint8), nothing, nothing, nothing, error=error)


class _TrainSet(Dataset[Loaded]):
    """Answers a list of g with a loaded micro-batch."""

    def __init__(self, data: TrainData, known: dict[int, int], trace: bool) -> None:
        self.data, self.known, self.trace = data, known, trace

    def __getitems__(self, g: Int64) -> Loaded:
        try:
            return self.data.load(g, self.known, self.trace)
        except TrainingError as error:
            return _failed(error)
        except OSError as error:
            name = error.filename or f"a shard of {self.data.manifest.root}"
            return _failed(
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
                return _failed(
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
        collate_fn=_unchanged,
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
