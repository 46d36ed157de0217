"""Keyed randomness on the device is that of `jepa.keyed`."""

from __future__ import annotations

import numpy as np
import torch

from jepa import keyed
from jepa.nn import noise


def test_words_are_those_of_keyed() -> None:
    index = np.array([0, 1, 5, 2**31 + 7, 2**40 + 3])
    expected = keyed.words("sigreg", 7, index, 11)
    found = noise.words("sigreg", 7, torch.from_numpy(index), 11)
    assert np.array_equal(found.numpy(), expected.astype(np.int64))


def test_a_step_as_a_float_is_a_step() -> None:
    assert torch.equal(noise.words("a", 1, torch.tensor(12.0), 8), noise.words("a", 1, torch.tensor([12]), 8))


def test_normal_numbers_are_normal() -> None:
    drawn = noise.normal("a", 0, torch.arange(100), 1001)
    assert drawn.shape == (100, 1001) and drawn.dtype == torch.float32
    assert abs(drawn.mean()) < 0.01 and abs(drawn.std() - 1) < 0.01
    assert abs((drawn.abs() < 1).float().mean() - 0.6827) < 0.005
    assert abs((drawn[:, ::2][:, :500] * drawn[:, 1::2]).mean()) < 0.02


def test_uniform_numbers_stay_inside() -> None:
    drawn = noise.uniform("a", 0, torch.arange(100), 1000)
    assert drawn.min() > 0 and drawn.max() < 1 and abs(drawn.mean() - 0.5) < 0.005


def test_the_largest_uniform_number_is_below_one() -> None:
    """Of these words one has all of its upper 24 bits set; as a quantile, 1 would be infinite."""
    drawn = noise.uniform("rssm.z", 0, torch.tensor([1758]), 768)
    assert int((noise.words("rssm.z", 0, torch.tensor([1758]), 768) >> 8).max()) == 2**24 - 1
    assert drawn.max() < 1 and bool(torch.isfinite(torch.special.ndtri(drawn)).all())
