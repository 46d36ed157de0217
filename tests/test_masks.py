"""The exact sampler: counts, overlap, coverage against its closed form, symmetry, independence of the batch."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from jepa.errors import ConfigError
from jepa.masks import ExactSampler, Masks, MultiBlockConfig, ReferenceSampler, make_sampler

DEFAULT = MultiBlockConfig()


def check(masks: Masks, sampler: ExactSampler, count: int) -> None:
    n = sampler.grid[0] * sampler.grid[1]
    assert len(masks.context) == sampler.config.contexts
    assert len(masks.target) == sampler.config.targets
    for context in masks.context:
        assert context.shape == (count, sampler.context_count)
    for block in [*masks.context, *masks.target]:
        assert (block.diff(dim=1) > 0).all(), "indices must be strictly increasing"
        assert block.min() >= 0 and block.max() < n
    for context in masks.context:
        for target in masks.target:
            for row, other in zip(context.tolist(), target.tolist(), strict=True):
                assert not set(row) & set(other), "context and target overlap"


@settings(deadline=None, max_examples=60)
@given(
    st.tuples(st.integers(3, 24), st.integers(3, 24)),
    st.integers(1, 5),
    st.integers(1, 2),
    st.floats(0.05, 0.3),
    st.floats(0.05, 0.4),
    st.integers(0, 2**40),
    st.integers(0, 10**6),
)
def test_properties_over_sizes(
    grid: tuple[int, int], targets: int, contexts: int, scale: float, keep: float, g0: int, step: int
) -> None:
    spec = MultiBlockConfig(targets=targets, contexts=contexts, target_scale=(scale * 0.8, scale), context_keep=keep)
    try:
        sampler = ExactSampler(spec, grid, seed=1)
    except ConfigError as error:
        assert "context_keep" in str(error)
        assume(False)
    masks = sampler(step, g0 + np.arange(9))
    check(masks, sampler, 9)
    single = sampler(step, np.array([g0 + 4]))
    for whole, alone in zip(masks.context + masks.target, single.context + single.target, strict=True):
        np.testing.assert_array_equal(whole[4:5], alone)  # a sample's masks do not depend on its batch


def closed_form(sampler: ExactSampler, steps: int) -> np.ndarray:
    """Probability that a uniformly placed target block covers each cell, for the block sizes of these steps."""

    def axis(length: int, size: int) -> np.ndarray:
        i = np.arange(length)
        places = length - size + 1
        return (np.minimum(i, places - 1) - np.maximum(i - size + 1, 0) + 1) / places

    sizes = [sampler.block_sizes(k)[0] for k in range(steps)]
    return np.mean([np.outer(axis(sampler.grid[0], h), axis(sampler.grid[1], w)) for h, w in sizes], axis=0)


@pytest.mark.parametrize("grid", [(14, 14), (8, 8), (10, 16)])
def test_target_coverage_within_four_sigma_of_its_closed_form(grid: tuple[int, int]) -> None:
    sampler = ExactSampler(dataclasses.replace(DEFAULT, context_keep=0.02), grid, seed=5)  # nothing drawn again
    steps, per_step = 100, 100
    hits = np.zeros(grid[0] * grid[1])
    for step in range(steps):
        g = np.arange(per_step) + step * per_step
        for block in sampler(step, g).target:
            hits += np.bincount(block.flatten(), minlength=len(hits))
    blocks = steps * per_step * DEFAULT.targets
    want = closed_form(sampler, steps).flatten()
    sigma = np.sqrt(want * (1 - want) / blocks)
    z = (hits / blocks - want) / sigma
    assert np.abs(z).max() < 4, f"worst cell is {np.abs(z).max():.1f} sigma off"
    assert want.reshape(grid)[-1, -1] > 0 and hits.reshape(grid)[-1, -1] > 0, "last row and column must be used"


def test_context_coverage_is_symmetric_under_flips() -> None:
    sampler = ExactSampler(DEFAULT, (14, 14), seed=3)
    counts = np.zeros((14, 14))
    samples = 0
    for step in range(200):
        g = np.arange(64) + step * 64
        counts += np.bincount(sampler(step, g).context[0].flatten(), minlength=196).reshape(14, 14)
        samples += 64
    share = counts / samples
    np.testing.assert_allclose(share.sum(), sampler.context_count)
    sigma = np.sqrt(share * (1 - share) / samples)
    for flipped in (share[::-1], share[:, ::-1]):
        z = (share - flipped) / np.sqrt(2 * sigma**2)
        off_axis = z[np.abs(share - flipped) > 0]
        assert np.abs(off_axis).max() < 4.5, f"context leans to one side by {np.abs(off_axis).max():.1f} sigma"
    top, bottom = share[:7].sum(), share[7:].sum()
    assert abs(top - bottom) / top < 0.02


def test_the_reference_sampler_leans_to_the_top_and_exact_does_not() -> None:
    """Raster-order cutting loses the bottom of the context in a batch: the reason for `exact`."""
    reference = ReferenceSampler(dataclasses.replace(DEFAULT, mode="reference"), (14, 14), seed=0)
    exact = ExactSampler(DEFAULT, (14, 14), seed=0)
    ratios = []
    for sampler in (reference, exact):
        rows = np.concatenate([sampler(k, np.arange(64) + 64 * k).context[0].flatten().numpy() // 14 for k in range(8)])
        ratios.append((rows >= 7).sum() / (rows < 7).sum())
    assert ratios[0] < 0.6 < 0.9 < ratios[1] < 1.1


def test_block_sizes_change_with_the_step_scale_and_ratio_independent() -> None:
    sampler = ExactSampler(DEFAULT, (32, 32), seed=0)
    sizes = np.array([sampler.block_sizes(k)[0] for k in range(2000)], dtype=float)
    area, ratio = sizes.prod(axis=1) / 32**2, sizes[:, 0] / sizes[:, 1]
    assert 0.14 < area.min() < 0.16 and 0.19 < area.max() < 0.21
    assert ratio.min() < 0.8 and ratio.max() > 1.4
    assert abs(np.corrcoef(area, ratio)[0, 1]) < 4 / np.sqrt(2000) + 0.03  # rounding to tokens couples them a little


def test_redraws_stay_rare_and_end() -> None:
    sampler = ExactSampler(DEFAULT, (14, 14), seed=0)
    (th, tw), (ch, cw) = sampler.block_sizes(0)
    tries = sampler._place(np.arange(20000), th, tw, ch, cw)[2]
    assert 0 < (tries > 0).mean() < 0.05 and tries.max() < 8


def test_fallback_places_all_targets_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jepa.masks.image._ATTEMPTS", 1)  # the last resort, reached at once
    sampler = ExactSampler(dataclasses.replace(DEFAULT, context_keep=0.34), (14, 14), seed=0)
    masks = sampler(1, np.arange(500))
    check(masks, sampler, 500)


@pytest.mark.parametrize(
    ("change", "grid", "words"),
    [
        ({"context_keep": 0.7}, (14, 14), "context_keep <="),
        ({"target_scale": (0.9, 1.0)}, (14, 14), "cannot be satisfied"),
        ({}, (1, 1), "cannot be satisfied"),
    ],
)
def test_unsatisfiable_specs_are_refused(change: dict, grid: tuple[int, int], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        make_sampler(dataclasses.replace(DEFAULT, **change), grid, seed=0)


def test_reference_refuses_the_spec_that_hangs_the_official_code() -> None:
    with pytest.raises(ConfigError, match="min_keep"):
        make_sampler(MultiBlockConfig(mode="reference", min_keep=40), (14, 14), seed=0)


@pytest.mark.parametrize(
    "bad", [{"target_scale": (0.3, 0.2)}, {"targets": 0}, {"context_keep": 1.5}, {"target_ratio": (0.0, 1.0)}]
)
def test_bad_values_are_named(bad: dict) -> None:
    with pytest.raises(ConfigError, match=next(iter(bad))):
        MultiBlockConfig(**bad)
