"""Decoding processes: lists of numbers in, micro-batches out, in order, through buffers that are made once.

Every worker owns a ring of slots in shared memory. It decodes into the next slot and sends only the slot's number;
the training process copies the images out before it asks for more. A fresh piece of shared memory for every batch,
as the DataLoader makes it, costs several times that copy in page faults.

Why a slot is never overwritten too early: a worker has at most `prefetch` tasks at a time, and gets its task t only
when its task t - prefetch has been taken out of the DataLoader, by when t - prefetch - 1 has long been copied. So
prefetch + 2 slots leave one to spare.

Shapes: B samples, H W image height and width.
"""

from __future__ import annotations

import signal
from abc import abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from jepa.data import storage
from jepa.data.batch import Batch
from jepa.data.quarantine import Bad
from jepa.errors import JepaError, TrainingError

Int64 = npt.NDArray[np.int64]


@dataclass
class Loaded:
    """One micro-batch, less its images; small columns stay numpy, which crosses processes cheaply."""

    labels: Int64
    g: Int64
    index: Int64
    bad: list[Bad] = field(default_factory=list)
    trace: list[dict[str, Any]] | None = None
    steps: dict[str, npt.NDArray[np.float32]] | None = None  # arrays of episodes, (B, ...) each

    def batch(self, images: Tensor) -> Batch:
        """With its images (B, 3, H, W)."""
        labels, g, index = (torch.from_numpy(np.ascontiguousarray(c)) for c in (self.labels, self.g, self.index))
        steps = None if self.steps is None else {name: torch.from_numpy(rows) for name, rows in self.steps.items()}
        return Batch(images, labels, g, index, trace=self.trace, steps=steps)


@dataclass(frozen=True)
class _Delivery:
    """What a worker sends. An error travels as a value: the DataLoader would bury its message in a traceback."""

    result: Loaded | JepaError
    where: tuple[int, int] | Tensor  # worker and slot, or the images themselves without workers


class Decoder:
    """Fills a buffer with the images of a list of numbers. Picklable."""

    size: tuple[int, int]  # (H, W)

    @abstractmethod
    def fill(self, images: Tensor, numbers: Int64) -> Loaded:
        """Write the images of `numbers` (B,) to `images` (B, 3, H, W), uint8.

        Raises:
            JepaError: the micro-batch cannot be made.
        """


class _Decodings(Dataset[_Delivery]):
    """Answers a list of numbers with a whole micro-batch."""

    def __init__(self, decoder: Decoder, most: int, workers: int, slots: int) -> None:
        self.decoder = decoder
        self.ring = _shared((workers, slots, most), decoder.size) if workers else None
        self._turn = 0

    def __getitems__(self, numbers: Int64) -> _Delivery:
        worker = get_worker_info()
        where: tuple[int, int] | Tensor
        if worker is None or self.ring is None:
            where = images = empty_images(len(numbers), self.decoder.size)
        else:
            where = (worker.id, self._turn % self.ring.shape[1])
            images = self.ring[where][: len(numbers)]
            self._turn += 1
        try:
            return _Delivery(self.decoder.fill(images, numbers), where)
        except JepaError as error:
            return _Delivery(error, where)


def empty_images(count: int, size: tuple[int, int], pinned: bool = False) -> Tensor:
    """Uninitialised uint8 (count, 3, H, W), stored height-width-channel as the resize writes it."""
    pixels = torch.empty((count, *size, 3), dtype=torch.uint8, pin_memory=pinned)
    return pixels.permute(0, 3, 1, 2)


def _shared(lead: tuple[int, ...], size: tuple[int, int]) -> Tensor:
    """Shared memory (*lead, 3, H, W); its pages are taken only when they are written."""
    shape = (*lead, *size, 3)
    storage = torch.UntypedStorage._new_shared(int(np.prod(shape)), device="cpu")  # type: ignore[no-untyped-call]
    return torch.empty(0, dtype=torch.uint8).set_(storage).view(shape).movedim(-1, -3)


def decode_in_order(
    decoder: Decoder, lists: Iterable[Int64], *, most: int, workers: int, prefetch: int = 2
) -> Iterator[tuple[Loaded, Tensor]]:
    """Micro-batches for `lists` of numbers, in their order.

    Args:
        decoder: makes one micro-batch.
        lists: one list of numbers per micro-batch, none longer than `most`.
        workers: decoding processes; 0 decodes in this one.
        prefetch: micro-batches that every worker keeps ready.

    Returns:
        Pairs of columns and images (B, 3, H, W) uint8, page-locked where there is a GPU.

    Raises:
        TrainingError: a worker died, or there is too little shared memory.
        JepaError: whatever the decoder raised.
    """
    pinned = torch.cuda.is_available()
    if workers:
        needed = workers * (prefetch + 2) * most * 3 * decoder.size[0] * decoder.size[1]
        storage.check_shared_memory(needed, "Use fewer data.workers, a smaller data.prefetch or train.micro_batch")
    dataset = _Decodings(decoder, most, workers, prefetch + 2)
    loader = DataLoader(
        dataset,
        batch_sampler=lists,  # type: ignore[arg-type]  # any iterable of lists does
        num_workers=workers,
        collate_fn=_unchanged,
        prefetch_factor=prefetch if workers else None,
        worker_init_fn=_start_worker,
        generator=torch.Generator(),  # the default would draw the workers' seed from the run's global generator
    )
    for delivery in _guarded(loader):
        if isinstance(delivery.result, JepaError):
            raise delivery.result
        if isinstance(delivery.where, Tensor):
            yield delivery.result, delivery.where.pin_memory() if pinned else delivery.where
        else:
            assert dataset.ring is not None
            slot = dataset.ring[delivery.where][: len(delivery.result.g)]
            images = empty_images(len(slot), decoder.size, pinned)
            images.copy_(slot)  # before the next one is asked for: see the top of the file
            yield delivery.result, images


def _unchanged(delivery: Any) -> Any:
    return delivery


def _start_worker(_: int) -> None:
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the training process's to handle
    # A job scheduler signals these processes too, while the training process still needs batches for the step it is
    # in. So the first SIGTERM is let pass and a second one obeyed; the end of their queue is what stops them normally.
    signal.signal(signal.SIGTERM, lambda *_: signal.signal(signal.SIGTERM, signal.SIG_DFL))


def _guarded(loader: DataLoader[_Delivery]) -> Iterator[_Delivery]:
    """The loader's items; a worker that died becomes a clear error."""
    try:
        yield from loader
    except RuntimeError as error:
        if "DataLoader worker" not in str(error) or "DefaultCPUAllocator" in str(error):  # it lives, without memory
            raise
        raise TrainingError(
            f"a decoding process died ({error}). Mostly that is for want of memory or shared memory (/dev/shm): use "
            "fewer data.workers or a smaller data.prefetch, then continue with --resume"
        ) from None
