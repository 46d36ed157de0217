"""The order of samples over a whole run, as a function of the sample number g: nothing is iterated.

With N samples, epoch = g // N and place = g % N; every epoch is a permutation. In each epoch the shards are permuted,
neighbouring ones form blocks of `shuffle_shards`, and samples are shuffled inside a block, so that reading stays
local. The epoch is cut into `lanes` contiguous parts that are visited round-robin: with as many lanes as machines,
each machine reads its own part. Any g is looked up on its own, so resuming is arithmetic.

A run that was rolled back goes on in another order (`attempts`): what is left of the epoch it is in is shuffled anew
inside its blocks, so that the epoch stays a permutation; later epochs are those of another seed.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from jepa import keyed
from jepa.errors import ConfigError, DataError

Int64 = npt.NDArray[np.int64]


class Order:
    """Maps sample numbers g to indices of samples in the split."""

    def __init__(
        self,
        seed: int,
        shard_sizes: Int64,
        shuffle_shards: int = 16,
        lanes: int = 1,
        attempts: Sequence[tuple[int, int]] = (),
    ) -> None:
        """
        Args:
            seed: the run's seed.
            shard_sizes: (S,) samples in each shard; sample indices run through the shards in this order.
            shuffle_shards: shards per block.
            lanes: contiguous parts of the epoch visited round-robin.
            attempts: (number, first g) of roll-backs, rising in both.

        Raises:
            ConfigError: shuffle_shards or lanes below 1.
            DataError: no samples at all.
        """
        if shuffle_shards < 1 or lanes < 1:
            raise ConfigError(f"data.shuffle_shards={shuffle_shards}, data.lanes={lanes}: both must be at least 1")
        self.seed, self.shuffle_shards, self.attempts = seed, shuffle_shards, tuple(attempts)
        self.sizes: Int64 = np.asarray(shard_sizes, dtype=np.int64)
        self.size = int(self.sizes.sum())  # N
        if self.size < 1:
            raise DataError("the split has no samples, so there is nothing to order")
        self.lanes = min(lanes, self.size)
        self._first: Int64 = np.concatenate([[0], np.cumsum(self.sizes)[:-1]])  # first sample of each shard
        lane_sizes = (self.size - np.arange(self.lanes) + self.lanes - 1) // self.lanes
        self._lane_start: Int64 = np.concatenate([[0], np.cumsum(lane_sizes)[:-1]])
        self._epochs: OrderedDict[int, tuple[Int64, Int64]] = OrderedDict()
        self._blocks: OrderedDict[tuple[int, int], Int64] = OrderedDict()
        self._keep_blocks = 2 * self.lanes + 2  # an epoch's end and the next one's start are in use together

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | {"_epochs": OrderedDict(), "_blocks": OrderedDict()}

    def __call__(self, g: npt.ArrayLike) -> Int64:
        """Sample indices (B,) of sample numbers g (B,)."""
        numbers = np.asarray(g, dtype=np.int64)
        assert numbers.ndim == 1 and (numbers >= 0).all(), f"g must be a list of numbers >= 0, got {numbers!r}"
        out = np.empty_like(numbers)
        epochs, places = np.divmod(numbers, self.size)
        places = self._lane_start[places % self.lanes] + places // self.lanes
        for epoch in np.unique(epochs).tolist():
            mine = np.flatnonzero(epochs == epoch)
            _, edges = self._epoch(epoch)
            blocks = np.searchsorted(edges, places[mine], side="right") - 1
            for block in np.unique(blocks).tolist():
                inside = mine[blocks == block]
                out[inside] = self._block(epoch, block)[places[inside] - edges[block]]
        return out

    def lane(self, g: npt.ArrayLike) -> Int64:
        """The lane that each g belongs to."""
        return np.asarray(g, dtype=np.int64) % self.size % self.lanes

    def shards_ahead(self, g: Int64, blocks: int) -> list[int]:
        """The shards of the blocks that numbers g lie in and of those that follow, `blocks` for each lane, in order.

        An epoch's last block is followed by the first one of the next epoch.
        """
        lanes = self.lane(g)
        places = {}
        for lane in np.unique(lanes).tolist():
            epoch, place = divmod(int(g[lanes == lane].max()), self.size)
            places[lane] = (epoch, int(self._lane_start[lane]) + place // self.lanes)
        found: dict[int, None] = {}
        for _ in range(blocks):
            for lane, (epoch, place) in places.items():
                shards, edges = self._epoch(epoch)
                block = int(np.searchsorted(edges, place, side="right")) - 1
                first = block * self.shuffle_shards
                found |= dict.fromkeys(shards[first : first + self.shuffle_shards].tolist())
                end = int(self._lane_start[lane + 1]) if lane + 1 < self.lanes else self.size
                beyond = int(edges[block + 1]) if block + 1 < len(edges) else self.size
                places[lane] = (epoch, beyond) if beyond < end else (epoch + 1, int(self._lane_start[lane]))
        return list(found)

    def rank_slice(self, step: int, batch: int, rank: int, world: int, shift: int = 0) -> Int64:
        """The numbers g (batch / world,) that a rank trains on in a step.

        The step's numbers [step * batch, (step + 1) * batch), plus `shift` where earlier steps had another batch, are
        sorted by lane and cut into equal runs, so the union over ranks never depends on how many there are, and ranks
        prefer lanes.
        """
        if batch % world:
            raise ConfigError(f"batch={batch} cannot be shared equally by {world} processes")
        g = shift + np.arange(step * batch, (step + 1) * batch, dtype=np.int64)
        if self.lanes > 1:
            g = g[np.argsort(self.lane(g), kind="stable")]
        share = batch // world
        return g[rank * share : (rank + 1) * share]

    def _epoch(self, epoch: int) -> tuple[Int64, Int64]:
        """The epoch's permuted shards (S,) and the places where its blocks begin."""
        found = self._epochs.get(epoch)
        if found is None:
            shards = keyed.generator("order.shards", self._seed(epoch), epoch).permutation(len(self.sizes))
            starts = np.concatenate([[0], np.cumsum(self.sizes[shards])[:-1]])
            found = self._epochs[epoch] = (shards, starts[:: self.shuffle_shards])
            if len(self._epochs) > 3:
                self._epochs.popitem(last=False)
        else:
            self._epochs.move_to_end(epoch)
        return found

    def _block(self, epoch: int, block: int) -> Int64:
        """The shuffled sample indices of a block."""
        found = self._blocks.get((epoch, block))
        if found is None:
            shards = self._epoch(epoch)[0][block * self.shuffle_shards : (block + 1) * self.shuffle_shards]
            members = np.concatenate([np.arange(self._first[s], self._first[s] + self.sizes[s]) for s in shards])
            found = keyed.generator("order.block", self._seed(epoch), epoch, block).permutation(members)
            for number, first in self.attempts:
                if epoch * self.size < first < (epoch + 1) * self.size:
                    left = self._left(epoch, block, first - epoch * self.size)
                    drawn = keyed.generator("order.block", keyed.again(self.seed, number), epoch, block)
                    found[left] = drawn.permutation(found[left])
            self._blocks[epoch, block] = found
            if len(self._blocks) > self._keep_blocks:
                self._blocks.popitem(last=False)
        else:
            self._blocks.move_to_end((epoch, block))
        return found

    def _seed(self, epoch: int) -> int:
        """That of the newest attempt that the whole epoch lies in."""
        numbers = [number for number, first in self.attempts if first <= epoch * self.size]
        return keyed.again(self.seed, numbers[-1] if numbers else 0)

    def _left(self, epoch: int, block: int, done: int) -> npt.NDArray[np.bool_]:
        """Which members of a block come after the first `done` samples of the epoch."""
        edges = np.append(self._epoch(epoch)[1], self.size)
        places = np.arange(edges[block], edges[block + 1])
        lane = np.searchsorted(self._lane_start, places, side="right") - 1
        turn = (places - self._lane_start[lane]) * self.lanes + lane  # place in the epoch as it is visited
        return np.asarray(turn >= done)
