"""How a global batch is cut up, and what a Batch does."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from jepa.data import Batch, derive_accumulation
from jepa.errors import ConfigError


@given(share=st.integers(1, 300), world=st.integers(1, 40), most=st.one_of(st.none(), st.integers(1, 400)))
def test_accumulation_multiplies_back(share: int, world: int, most: int | None) -> None:
    per_rank, micro, accumulation = derive_accumulation(share * world, most, world)
    assert per_rank == share == micro * accumulation
    assert micro <= (most or share)
    larger = [m for m in range(micro + 1, min(share, most or share) + 1) if share % m == 0]
    assert not larger, f"micro-batch {larger[-1]} fits too"


def test_a_world_size_that_does_not_divide_is_told_which_do() -> None:
    with pytest.raises(ConfigError, match=r"12 cannot be shared equally by 5 processes. Use one of 1, 2, 3, 4, 6, 12"):
        derive_accumulation(12, None, 5)
    with pytest.raises(ConfigError, match="at least 1"):
        derive_accumulation(12, 0, 1)


def test_batch_slices_and_moves_all_columns() -> None:
    numbers = torch.arange(6)
    batch = Batch(
        numbers.to(torch.uint8).reshape(6, 1, 1, 1).expand(6, 3, 2, 2), numbers, numbers + 10, numbers + 20,
        trace=[{"g": i} for i in range(6)], step=4, micro=1, last=False,
    )  # fmt: skip
    part = batch.slice(2, 4)
    assert len(part) == 2 and part.labels.tolist() == [2, 3] and part.g.tolist() == [12, 13]
    assert part.index.tolist() == [22, 23] and part.trace == [{"g": 2}, {"g": 3}]
    assert (part.step, part.micro, part.last) == (4, 1, False)
    moved = batch.to("meta")
    assert {t.device.type for t in (moved.images, moved.labels, moved.g, moved.index)} == {"meta"}
