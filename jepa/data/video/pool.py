"""Clips in order, whatever their decoders do: lists of numbers in, micro-batches out.

Every sample is a task of its own with its own deadline. One whose video cannot be used, or whose decoder hangs,
crashes or is killed, is refilled by a substitute at the same place of the same micro-batch, and reported.

The workers write into slots of shared memory that are made once. A slot holds a micro-batch; it is copied out before
it is used again, and a worker that was killed writes no more, so nothing is overwritten too early or too late.

Shapes: B samples, T frames, H W height and width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from jepa.data import storage
from jepa.data.quarantine import Bad
from jepa.data.remote import StorageError
from jepa.data.video.crew import Crew, Job, Lost
from jepa.data.workers import Loaded
from jepa.errors import DataError, JepaError, TrainingError

Int64 = npt.NDArray[np.int64]
DEADLINE = 60.0  # seconds for one sample; a clip of a sound video takes a hundredth of a second


@dataclass(frozen=True)
class Row:
    """What is known of a decoded sample, besides its pixels."""

    label: int = -1  # -1: none
    trace: dict[str, Any] | None = None  # what was drawn for it, for --trace
    steps: dict[str, npt.NDArray[np.float32]] | None = None  # arrays of its window of an episode


class ClipDecoder(ABC):
    """Makes the clips of samples. Picklable: every worker has a copy."""

    size: tuple[int, ...]  # of a sample, less its colours: (T, H, W), or (V, T, H, W) for V clips of one video
    attempts: int = 20  # substitutes tried for one sample; 0: a sample that cannot be read is an error

    def start(self) -> None:
        """Called once in every worker, for what takes long to import."""
        return None

    @abstractmethod
    def clip(self, out: Tensor, number: int, index: int) -> Row:
        """Write the clip of sample `number` (its g), taken from video `index`, to `out` uint8 (3, T, H, W).

        Runs in a worker.

        Raises:
            DataError: this video cannot be used; a substitute takes its place.
            JepaError: nothing can be used any more.
        """

    @abstractmethod
    def index(self, number: int, attempt: int) -> int:
        """The video of sample `number`: attempt 0 its own, then its substitutes. A pure function."""

    @abstractmethod
    def place(self, index: int) -> str:
        """Where video `index` lies, for messages."""


@dataclass
class _Micro:
    """A micro-batch that is being made."""

    slot: int
    numbers: Int64
    index: Int64  # videos really used, as far as known
    attempts: list[int]
    rows: list[Row | None]
    missing: int
    reasons: dict[int, str] = field(default_factory=dict)  # position -> why the first video could not be used
    errors: dict[int, JepaError] = field(default_factory=dict)  # position -> what cannot be helped


def decode_clips_in_order(
    decoder: ClipDecoder,
    lists: Iterable[Int64],
    *,
    most: int,
    workers: int,
    prefetch: int = 2,
    deadline: float = DEADLINE,
    known: Mapping[int, int] | None = None,
) -> Iterator[tuple[Loaded, Tensor]]:
    """Micro-batches of clips for `lists` of numbers, in their order.

    Args:
        decoder: makes one sample.
        lists: one list of numbers per micro-batch, none longer than `most`; read `prefetch` lists ahead.
        workers: decoding processes; 0 decodes in this one, where nothing can be stopped and `deadline` means nothing.
        prefetch: micro-batches that are decoded, by all workers together, while one is being used.
        deadline: seconds for one sample.
        known: substitutes that were decided earlier, number -> index (`Quarantine.known`); taken without a look at
            the sample itself.

    Returns:
        Pairs of columns and clips uint8 (B, 3, T, H, W), stored time-height-width-channel, page-locked where there is
        a GPU. `Loaded.bad` lists the samples that were refilled.

    Raises:
        DataError: a sample cannot be read, and the decoder allows no substitutes.
        TrainingError: nor can any of its substitutes; workers do not start or all die; too little shared memory.
        JepaError: whatever the decoder raised.
    """
    if workers < 0 or prefetch < 1 or deadline <= 0:
        raise TrainingError(f"workers={workers}, prefetch={prefetch}, deadline={deadline:g}: must be 0, 1, above 0")
    pinned = torch.cuda.is_available()
    maker = _Maker(decoder, dict(known or {}))
    if not workers:
        yield from _in_this_process(maker, lists, pinned)
        return
    shape = (prefetch + 1, most, *decoder.size)
    storage.check_shared_memory(
        3 * int(np.prod(shape)), "Use a smaller data.prefetch or train.micro_batch, or fewer frames"
    )
    ring = _shared(shape)
    with Crew(_Fill(decoder, ring), workers, deadline) as crew:
        waiting: deque[_Micro] = deque()
        source, count = iter(lists), 0
        while True:
            while len(waiting) <= prefetch and (numbers := next(source, None)) is not None:
                assert len(numbers) <= most, f"{len(numbers)} numbers in a list, at most {most} were announced"
                waiting.append(maker.begin(np.asarray(numbers, dtype=np.int64), count % len(ring)))
                for position in range(len(numbers)):
                    crew.put(count * most + position, maker.task(waiting[-1], position))
                count += 1
            if not waiting:
                return
            while waiting[0].missing:
                ticket, result = crew.get()
                number, position = divmod(ticket, most)
                micro = waiting[number - (count - len(waiting))]
                if maker.take(micro, position, result):
                    crew.put(ticket, maker.task(micro, position), first=True)
            micro = waiting.popleft()
            loaded = maker.finish(micro)
            clips = _empty((len(micro.numbers), *decoder.size), pinned)
            clips.copy_(ring[micro.slot, : len(micro.numbers)])
            yield loaded, clips


class _Fill(Job):
    """The worker's side: one sample into its place in shared memory."""

    def __init__(self, decoder: ClipDecoder, ring: Tensor) -> None:
        self.decoder, self.ring = decoder, ring

    def start(self) -> None:
        self.decoder.start()

    def run(self, task: tuple[int, int, int, int]) -> Row:
        slot, position, number, index = task
        return self.decoder.clip(self.ring[slot, position], number, index)


class _Maker:
    """The bookkeeping of micro-batches, the same with and without workers."""

    def __init__(self, decoder: ClipDecoder, known: dict[int, int]) -> None:
        self.decoder, self.known = decoder, known

    def begin(self, numbers: Int64, slot: int) -> _Micro:
        """A micro-batch of which nothing is made yet."""
        count = len(numbers)
        own = [self.known[n] if n in self.known else self.decoder.index(n, 0) for n in numbers.tolist()]
        return _Micro(slot, numbers, np.array(own, dtype=np.int64), [0] * count, [None] * count, count)

    def task(self, micro: _Micro, position: int) -> tuple[int, int, int, int]:
        """Slot, position, number and index: what a worker is told."""
        return micro.slot, position, int(micro.numbers[position]), int(micro.index[position])

    def take(self, micro: _Micro, position: int, result: Row | JepaError | Lost) -> bool:
        """Note a result; True when the sample has to be tried again, with another video."""
        if isinstance(result, Row):
            micro.rows[position] = result
            micro.missing -= 1
            return False
        number, decoder = int(micro.numbers[position]), self.decoder
        why = result.reason if isinstance(result, Lost) else str(result)
        if isinstance(result, StorageError) or (isinstance(result, JepaError) and not isinstance(result, DataError)):
            return self._fail(micro, position, result)
        where = decoder.place(decoder.index(number, 0))
        micro.reasons.setdefault(position, why)
        if not decoder.attempts:
            return self._fail(micro, position, DataError(
                f"{where} cannot be read: {why}. An evaluation never skips samples: `jepa data check` lists the videos "
                "that can be read, build the dataset from those"
            ))  # fmt: skip
        if micro.attempts[position] == decoder.attempts:
            return self._fail(micro, position, TrainingError(
                f"{where} cannot be read ({micro.reasons[position]}), and neither could {decoder.attempts} others "
                "chosen in its place. The dataset is damaged: `jepa data check` lists the videos that can be read"
            ))  # fmt: skip
        micro.attempts[position] += 1
        micro.index[position] = decoder.index(number, micro.attempts[position])
        return True

    def _fail(self, micro: _Micro, position: int, error: JepaError) -> bool:
        """The micro-batch cannot be made; that is raised when its turn comes."""
        micro.errors[position] = error
        micro.missing -= 1
        return False

    def finish(self, micro: _Micro) -> Loaded:
        """The columns of a micro-batch of which nothing is missing.

        Raises:
            JepaError: it could not be made.
        """
        if micro.errors:
            raise micro.errors[min(micro.errors)]
        rows = [row for row in micro.rows if row is not None]
        bad = [self._bad(micro, position) for position in range(len(rows)) if self._refilled(micro, position)]
        traces = [row.trace for row in rows if row.trace is not None]
        labels = np.array([row.label for row in rows], dtype=np.int64)
        return Loaded(
            labels, micro.numbers, micro.index, bad, traces if len(traces) == len(rows) else None, _stacked(rows)
        )

    def _refilled(self, micro: _Micro, position: int) -> bool:
        return micro.attempts[position] > 0 or int(micro.numbers[position]) in self.known

    def _bad(self, micro: _Micro, position: int) -> Bad:
        number = int(micro.numbers[position])
        own = self.decoder.index(number, 0)
        why = micro.reasons.get(position, "unreadable earlier in this run")
        return Bad(number, own, self.decoder.place(own), why, micro.attempts[position], int(micro.index[position]))


def _stacked(rows: list[Row]) -> dict[str, npt.NDArray[np.float32]] | None:
    """The arrays of a micro-batch's windows by name, (B, ...); None without episodes."""
    found = [row.steps for row in rows if row.steps is not None]
    if not found or len(found) < len(rows):
        return None
    return {name: np.stack([steps[name] for steps in found]) for name in found[0]}


def _in_this_process(maker: _Maker, lists: Iterable[Int64], pinned: bool) -> Iterator[tuple[Loaded, Tensor]]:
    maker.decoder.start()
    for numbers in lists:
        micro = maker.begin(np.asarray(numbers, dtype=np.int64), 0)
        clips = _empty((len(numbers), *maker.decoder.size), pinned)
        for position in range(len(numbers)):
            again = True
            while again:
                _, _, number, index = maker.task(micro, position)
                result: Row | JepaError
                try:
                    result = maker.decoder.clip(clips[position], number, index)
                except JepaError as error:
                    result = error
                again = maker.take(micro, position, result)
        yield maker.finish(micro), clips


def _empty(size: tuple[int, ...], pinned: bool) -> Tensor:
    """Uninitialised uint8 (B, 3, T, H, W), stored time-height-width-channel as the resize writes it."""
    return torch.empty((*size, 3), dtype=torch.uint8, pin_memory=pinned).movedim(-1, -4)


def _shared(size: tuple[int, ...]) -> Tensor:
    """Shared memory (slots, most, 3, T, H, W); its pages are taken only when they are written."""
    shape = (*size, 3)
    storage = torch.UntypedStorage._new_shared(int(np.prod(shape)), device="cpu")  # type: ignore[no-untyped-call]
    return torch.empty(0, dtype=torch.uint8).set_(storage).view(shape).movedim(-1, -4)
