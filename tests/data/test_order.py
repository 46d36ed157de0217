"""The order is a permutation in every epoch, the same for any number of ranks, and found without history."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jepa.data import Order
from jepa.errors import ConfigError, DataError

sizes = st.lists(st.sampled_from([0, 1, 1, 2, 3, 7, 30, 1000]), min_size=1, max_size=9).filter(lambda s: sum(s) > 0)
seeds = st.integers(0, 2**40)


@settings(deadline=None, max_examples=60)
@given(sizes=sizes, seed=seeds, block=st.integers(1, 12), lanes=st.integers(1, 40), epoch=st.integers(0, 10**6))
def test_every_epoch_is_a_permutation(sizes: list[int], seed: int, block: int, lanes: int, epoch: int) -> None:
    order = Order(seed, np.array(sizes), block, lanes)
    n = sum(sizes)
    found = order(np.arange(epoch * n, (epoch + 1) * n))
    assert np.array_equal(np.sort(found), np.arange(n))


@settings(deadline=None, max_examples=40)
@given(sizes=sizes, seed=seeds, lanes=st.integers(1, 5), data=st.data())
def test_a_number_is_found_without_history(sizes: list[int], seed: int, lanes: int, data: st.DataObject) -> None:
    n = sum(sizes)
    g = np.array(data.draw(st.lists(st.integers(0, 5 * n), min_size=1, max_size=30)))
    whole = Order(seed, np.array(sizes), 2, lanes)(np.arange(5 * n + 1))
    assert np.array_equal(Order(seed, np.array(sizes), 2, lanes)(g), whole[g])


@settings(deadline=None, max_examples=60)
@given(
    sizes=sizes, seed=seeds, lanes=st.integers(1, 7), share=st.integers(1, 9), world=st.sampled_from([1, 2, 3, 4, 6])
)
def test_ranks_share_a_step_equally_and_completely(
    sizes: list[int], seed: int, lanes: int, share: int, world: int
) -> None:
    order, batch = Order(seed, np.array(sizes), 2, lanes), share * world
    for step in (0, 1, 17):
        parts = [order.rank_slice(step, batch, rank, world) for rank in range(world)]
        assert {len(p) for p in parts} == {share}
        assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(step * batch, (step + 1) * batch))


def test_epochs_and_seeds_differ() -> None:
    order, n = Order(3, np.array([50, 50, 50]), 2), 150
    first, second = order(np.arange(n)), order(np.arange(n, 2 * n))
    assert not np.array_equal(first, second)
    assert not np.array_equal(first, Order(4, np.array([50, 50, 50]), 2)(np.arange(n)))
    one_block, one_each = Order(3, np.array([50]), 1), Order(3, np.ones(50, dtype=np.int64), 1)
    for whole in (one_block(np.arange(100)), one_each(np.arange(100))):  # shuffled in a block, and by shards alone
        assert not np.array_equal(whole[:50], whole[50:])


def test_samples_are_shuffled_inside_blocks_of_neighbouring_shards() -> None:
    shards, per_shard, block = 12, 20, 3
    order = Order(0, np.full(shards, per_shard), block)
    found = order(np.arange(shards * per_shard)) // per_shard  # the shard of each sample
    for start in range(0, len(found), block * per_shard):
        window = found[start : start + block * per_shard]
        assert len(np.unique(window)) == block
        assert len(np.unique(window[:per_shard])) > 1, "samples of one block come shard by shard, not mixed"


def test_a_rank_prefers_its_lane() -> None:
    """With as many lanes as ranks, a rank reads about 1/world of the shards of an epoch."""
    world, shards, per_shard = 4, 40, 25
    order = Order(0, np.full(shards, per_shard), 2, lanes=world)
    n = shards * per_shard
    batch = 20
    for rank in range(world):
        g = np.concatenate([order.rank_slice(step, batch, rank, world) for step in range(n // batch)])
        assert len(np.unique(order(g) // per_shard)) <= shards // world + 2


def test_one_shard_of_one_sample() -> None:
    assert Order(0, np.array([1]), 16, 8)(np.arange(5)).tolist() == [0] * 5


def test_a_million_samples_are_looked_up_anywhere() -> None:
    """Only the blocks that are asked for are made, so a far position costs no more than a near one."""
    order = Order(0, np.full(1000, 1000), 16)
    g = np.array([0, 10**6 - 1, 123 * 10**6 + 456_789, 10**12])
    found = order(g)
    assert ((found >= 0) & (found < 10**6)).all()
    assert len(order._blocks) <= order._keep_blocks
    assert np.array_equal(found[2:3], Order(0, np.full(1000, 1000), 16)(g[2:3]))


def test_bad_arguments() -> None:
    with pytest.raises(ConfigError, match="lanes=0"):
        Order(0, np.array([3]), 1, 0)
    with pytest.raises(ConfigError, match="shuffle_shards=0"):
        Order(0, np.array([3]), 0)
    with pytest.raises(DataError, match="no samples"):
        Order(0, np.array([0, 0]))
    with pytest.raises(ConfigError, match="3 processes"):
        Order(0, np.array([9])).rank_slice(0, 4, 0, 3)
