"""Remote shards are fetched before they are read: at the latest when a batch is handed out, mostly a block earlier.

A batch is handed to the workers only when its shards are in the cache, so a slow network never uses up the time that a
decoder has. Meanwhile a thread fetches the shards of the block that comes next in the order of training (`Order`), for
each lane that this process reads. Who fetches what never changes a sample.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterable, Iterator

import numpy as np
import numpy.typing as npt

from jepa.data import remote
from jepa.data.manifest import SHARD, Split
from jepa.data.order import Order
from jepa.data.remote import RemoteError, Url
from jepa.errors import ConfigError

Int64 = npt.NDArray[np.int64]
_BLOCKS = 2  # the one that is read, and the next one


def check_room(split: Split, order: Order, lanes: int) -> None:
    """See that the cache holds what is read together: samples of a block come from all of its shards.

    Args:
        lanes: that are read on this machine at once.

    Raises:
        ConfigError: it does not.
    """
    sizes = sorted((s.size for s in split.shards if isinstance(s.path, Url)), reverse=True)
    needed = sum(sizes[: lanes * _BLOCKS * order.shuffle_shards])
    if needed > remote.room():
        raise ConfigError(
            f"JEPA_CACHE_GB: the cache has room for {remote.room() / 1e9:.3g} GB. Samples are shuffled inside blocks "
            f"of data.shuffle_shards={order.shuffle_shards} shards, and this block and the next one of {lanes} lane(s) "
            f"may have {needed / 1e9:.3g} GB: they would be fetched again and again. Raise JEPA_CACHE_GB, or lower "
            "data.shuffle_shards"
        )


@contextlib.contextmanager
def fetched(lists: Iterable[Int64], split: Split, order: Order) -> Iterator[Iterable[Int64]]:
    """The same lists of g, each given when its shards are on this machine."""
    if not any(isinstance(shard.path, Url) for shard in split.shards):
        yield lists
        return
    ahead = Ahead(lists, split, order)
    try:
        yield ahead
    finally:
        ahead.close()


class Ahead:
    """Hands out lists of g whose shards are in the cache. Close it when done."""

    def __init__(self, lists: Iterable[Int64], split: Split, order: Order) -> None:
        self._lists, self._split, self._order = lists, split, order
        self._thread: threading.Thread | None = None
        self._news, self._over = threading.Event(), False
        self._wanted: list[int] = []

    def __len__(self) -> int:
        return len(self._lists)  # type: ignore[arg-type]  # a plan has a length

    def __iter__(self) -> Iterator[Int64]:
        for g in self._lists:
            for shard in np.unique(self._split.index[self._order(g), SHARD]).tolist():
                self._fetch(shard)
            wanted = self._order.shards_ahead(g, _BLOCKS)
            if wanted != self._wanted:
                self._wanted = wanted
                self._news.set()
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="fetch-ahead", daemon=True)
                self._thread.start()
            yield g

    def close(self) -> None:
        """Stop fetching ahead; what is being fetched goes on until its end, or that of the process."""
        self._over = True
        self._news.set()

    def _run(self) -> None:
        while not self._over:
            self._news.wait()
            self._news.clear()
            for shard in list(self._wanted):
                if self._over or self._news.is_set():  # they have moved on
                    break
                try:
                    self._fetch(shard)
                except RemoteError:
                    break  # whoever needs it tries again, and says so

    def _fetch(self, shard: int) -> None:
        found = self._split.shards[shard]
        if isinstance(found.path, Url):
            remote.local(found.path, found.size)


__all__ = ["Ahead", "check_room", "fetched"]
