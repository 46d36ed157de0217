"""Who encodes the tasks of a build: this process, others, or others that may be killed. Results come in order."""

from __future__ import annotations

import contextlib
import multiprocessing
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from jepa.data import encode
from jepa.data.encode import Bad, Result, Schema
from jepa.data.recipe import Recipe
from jepa.data.sources.base import Maker, Source
from jepa.data.video.crew import Crew, Job, Lost
from jepa.errors import DataError, JepaError, TrainingError

Encode = Callable[[Sequence[Any]], Iterator[Result]]


@contextlib.contextmanager
def encoder(source: Source, wanted: Recipe, schema: Schema, workers: int) -> Iterator[Encode]:
    """A function that encodes tasks, in order, here or in worker processes.

    A source with a deadline always gets processes, at least one: nothing else can be stopped.
    """
    if source.deadline is not None:
        with Crew(_Job(source.maker, wanted, schema), max(1, workers), source.deadline) as crew:
            yield lambda tasks: _in_order(crew, tasks, 4 * max(1, workers), source.deadline)
        return
    if workers < 1:
        yield lambda tasks: (encode.encode(source.maker, task, wanted, schema) for task in tasks)
        return
    pool = ProcessPoolExecutor(
        workers,
        mp_context=multiprocessing.get_context("spawn"),  # torch may hold threads, which a fork would not survive
        initializer=encode.start_worker,
        initargs=(source.maker, wanted, schema),
    )
    try:
        yield lambda tasks: _in_workers(pool, tasks, source.at_once, 4 * workers)
    finally:
        pool.shutdown(cancel_futures=True)


def _in_workers(pool: ProcessPoolExecutor, tasks: Sequence[Any], at_once: int, ahead: int) -> Iterator[Result]:
    waiting: deque[Future[list[Result]]] = deque()
    try:
        for start in range(0, len(tasks), at_once):
            waiting.append(pool.submit(encode.encode_many, list(tasks[start : start + at_once])))
            if len(waiting) > ahead:
                yield from waiting.popleft().result()
        while waiting:
            yield from waiting.popleft().result()
    except BrokenProcessPool:
        raise DataError(
            "an encoding process died, most likely for want of memory. Run the same command again with fewer workers; "
            "finished shards are kept. In a script of your own, call build() below `if __name__ == '__main__':`"
        ) from None


class _Job(Job):
    """The worker's side of a source with a deadline."""

    def __init__(self, maker: Maker, wanted: Recipe, schema: Schema) -> None:
        self.maker, self.wanted, self.schema = maker, wanted, schema

    def start(self) -> None:
        begin = getattr(self.maker, "start", None)
        if begin is not None:
            begin()

    def run(self, task: Any) -> Result:
        return encode.encode(self.maker, task, self.wanted, self.schema)


def _in_order(crew: Crew, tasks: Sequence[Any], ahead: int, deadline: float | None) -> Iterator[Result]:
    done: dict[int, Result] = {}
    handed = 0
    for place in range(len(tasks)):
        while handed < min(len(tasks), place + ahead):
            crew.put(handed, tasks[handed])
            handed += 1
        while place not in done:
            try:
                ticket, found = crew.get()
            except TrainingError as error:
                raise DataError(
                    f"the processes that make samples do not start, or die one after the other ({error}). In a script "
                    "of your own, call build() below `if __name__ == '__main__':`; finished shards are kept"
                ) from None
            if isinstance(found, JepaError):
                raise found
            done[ticket] = _bad(tasks[ticket], found, deadline) if isinstance(found, Lost) else found
        yield done.pop(place)


def _bad(task: Any, lost: Lost, deadline: float | None) -> Bad:
    if lost.kind == "slow":
        return Bad(
            str(task), f"it took longer than source.deadline={deadline:g} s and was stopped: it hangs, or is slow"
        )
    return Bad(str(task), f"it took its process with it: {lost.reason}")


__all__ = ["encoder"]
