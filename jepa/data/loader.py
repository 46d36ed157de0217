"""Sample numbers g -> decoded uint8 batches, in order, whatever the workers do.

A loader is driven by explicit lists of g, one list per micro-batch. Nothing here is iterator state: a loader started
at step k gives what one started at step 0 gives from step k on.

Shapes: B samples, H W image height and width.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from torch import Tensor

from jepa.config import DataConfig
from jepa.data import augment, decode
from jepa.data.ahead import check_room, fetched
from jepa.data.batch import Batch, derive_accumulation
from jepa.data.clipdata import TrainClips, eval_clips
from jepa.data.manifest import Split
from jepa.data.order import Order
from jepa.data.quarantine import Quarantine
from jepa.data.remote import StorageError
from jepa.data.samples import TrainData
from jepa.data.video.pool import decode_clips_in_order
from jepa.data.windows import eval_windows, middle_windows
from jepa.data.workers import Decoder, Loaded, decode_in_order
from jepa.errors import DataError, TrainingError

Int64 = npt.NDArray[np.int64]


class Loader:
    """Micro-batches of one rank, in order."""

    def __init__(self, decoder: _TrainDecoder | TrainClips, plan: _Plan, quarantine: Quarantine) -> None:
        self._decoder, self._plan, self._quarantine = decoder, plan, quarantine

    def __len__(self) -> int:
        return len(self._plan)

    def __iter__(self) -> Iterator[Batch]:
        plan, config, decoder = self._plan, self._decoder.data.config, self._decoder
        options = {"most": plan.micro, "workers": config.workers, "prefetch": config.prefetch}
        with fetched(plan, decoder.data.split, plan.order) as lists:
            if isinstance(decoder, TrainClips):
                known, deadline = self._quarantine.known, config.decode_seconds
                decoded = decode_clips_in_order(decoder, lists, known=known, deadline=deadline, **options)
            else:
                decoded = decode_in_order(decoder, lists, **options)
            for number, (loaded, images) in enumerate(decoded):
                self._quarantine.record(loaded.bad, len(images))  # on disk before the batch is used
                step, micro = divmod(number, plan.accumulation)
                batch = loaded.batch(images)
                yield replace(batch, step=plan.start + step, micro=micro, last=micro + 1 == plan.accumulation)


class _TrainDecoder(Decoder):
    """Micro-batches of random crops."""

    def __init__(self, data: TrainData, known: dict[int, int], trace: bool) -> None:
        self.data, self.known, self.trace, self.size = data, known, trace, data.config.image_size

    def fill(self, images: Tensor, numbers: Int64) -> Loaded:
        try:
            return self.data.load(images, numbers, self.known, self.trace)
        except OSError as error:
            name = error.filename or f"a shard of {self.data.manifest.root}"
            raise TrainingError(
                f"reading {name} failed and did not recover: {error.strerror or error}. "
                "Check the storage, then continue with --resume"
            ) from None


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
    shift: int

    def __len__(self) -> int:
        return max(0, self.stop - self.start) * self.accumulation

    def __iter__(self) -> Iterator[Int64]:
        for step in range(self.start, self.stop):
            g = self.order.rank_slice(step, self.batch, self.rank, self.world, self.shift)
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
    shift: int = 0,
    trace: bool = False,
) -> Loader:
    """The micro-batches of one rank for steps [start_step, total_steps).

    Args:
        data: what to read.
        batch: global batch, over all ranks.
        micro_batch: most samples per rank at once; accumulation is derived from it.
        shift: added to ``step * batch``, the first g of a step, where earlier steps had another batch.
        trace: also report every sample's key and crop.

    Raises:
        ConfigError: the batch cannot be shared equally, or the cache of remote shards is too small.
        TrainingError: while iterating, when too many samples are bad, the storage fails or a worker dies.
    """
    _, micro, accumulation = derive_accumulation(batch, micro_batch, world)
    check_room(data.split, data.order, -(-data.order.lanes * int(os.environ.get("LOCAL_WORLD_SIZE", "1")) // world))
    plan = _Plan(data.order, batch, rank, world, start_step, total_steps, micro, accumulation, shift)
    identity = {"dataset": data.manifest.hash[:16], "split": data.split.name, "seed": data.seed}
    quarantine = Quarantine(data.run_dir, rank, identity, data.config.max_bad)
    if data.decoder is not None:
        return Loader(TrainClips(data, data.decoder, trace), plan, quarantine)
    return Loader(_TrainDecoder(data, dict(quarantine.known), trace), plan, quarantine)


class _EvalDecoder(Decoder):
    """Micro-batches of images cut in the middle."""

    def __init__(self, split: Split, size: tuple[int, int], interpolation: augment.Interpolation) -> None:
        self.split, self.size, self.interpolation = split, size, interpolation

    def fill(self, images: Tensor, numbers: Int64) -> Loaded:
        for slot, i in enumerate(numbers.tolist()):
            try:
                image = decode.decode(self.split.read(i)[0])
            except StorageError:
                raise
            except (DataError, OSError) as error:
                raise DataError(
                    f"sample {self.split.place(i)} of split {self.split.name!r} cannot be read: {error}. An "
                    "evaluation never skips samples: build the dataset again with image.verify=true (for tars read "
                    "in place, source.verify=true) to leave broken images out"
                ) from None
            part = augment.centre_box(image.shape[1], image.shape[2], self.size)
            images[slot].copy_(augment.apply(image, part, self.size, self.interpolation))
        return Loaded(np.asarray(self.split.labels[numbers]), numbers, numbers)


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
    decoder = _EvalDecoder(split, image_size, interpolation)
    for loaded, images in decode_in_order(decoder, lists, most=batch_size, workers=workers):
        yield loaded.batch(images)


def centre_batches(
    split: Split, data: DataConfig, batch_size: int, indices: Sequence[int] | Int64 | None = None, workers: int = 0
) -> Iterator[Batch]:
    """Samples as the run's data section sees them, without chance: images cut in the middle, or the middle clip.

    Returns:
        Batches with images (B, 3, H, W) or clips (B, 3, T, H, W); with data.steps the arrays of each clip too.

    Raises:
        DataError: while iterating, when a sample cannot be read.
    """
    if data.clip is None:
        yield from eval_batches(split, data.image_size, batch_size, indices, workers, data.interpolation)
        return
    if data.steps is not None:
        starts = middle_windows(split, data.clip, indices)
        for batch in eval_windows(
            split, data.clip, data.steps, data.image_size, batch_size, starts, workers=workers,
            decoder=data.decoder, interpolation=data.interpolation, deadline=data.decode_seconds,
        ):  # fmt: skip
            yield replace(batch, g=batch.index)
        return
    for batch in eval_clips(
        split, replace(data.clip, clips=1), data.image_size, batch_size, indices, workers=workers,
        decoder=data.decoder, interpolation=data.interpolation, deadline=data.decode_seconds,
    ):  # fmt: skip
        yield replace(batch, images=batch.images[:, 0, 0])
