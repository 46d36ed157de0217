"""Space-time masks, exact sampler: counts, leaks, coverage against its closed form, symmetry, independence."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from jepa import config
from jepa.errors import ConfigError
from jepa.masks import BlockSpec, Masks, VideoExactSampler, VideoMasksConfig, make_video_sampler

SHORT, LONG = VideoMasksConfig().specs
GRID = (4, 10, 10)


def check(masks: Masks, sampler: VideoExactSampler, count: int) -> None:
    n = math.prod(sampler.grid)
    assert len(masks.context) == len(masks.target) == len(sampler.parts)
    for context, target, part in zip(masks.context, masks.target, sampler.parts, strict=True):
        assert context.shape == (count, part.context_count) and target.shape == (count, part.target_count)
        for block in (context, target):
            assert (block.diff(dim=1) > 0).all(), "indices must be strictly increasing"
            assert block.min() >= 0 and block.max() < n
        for row, other in zip(context.tolist(), target.tolist(), strict=True):
            assert not set(row) & set(other), "a target token is visible"


@settings(deadline=None, max_examples=40)
@given(
    st.tuples(st.integers(1, 8), st.integers(3, 16), st.integers(3, 16)),
    st.integers(1, 8),
    st.floats(0.05, 0.7),
    st.floats(0.2, 1.0),
    st.sampled_from(["none", "target", "context"]),
    st.sampled_from([1.0, 0.5]),
    st.integers(0, 2**40),
    st.integers(0, 10**6),
)
def test_properties_over_sizes(
    grid: tuple[int, int, int],
    blocks: int,
    scale: float,
    times: float,
    complement: str,
    keep: float,
    g0: int,
    step: int,
) -> None:
    spec = config.build(
        BlockSpec,
        {
            "blocks": blocks,
            "spatial_scale": [scale * 0.8, scale],
            "temporal_scale": [times * 0.9, times],
            "complement": complement,
            "max_temporal_keep": keep if complement != "context" else 1.0,
        },
    )
    try:
        sampler = VideoExactSampler((spec, SHORT), grid, seed=1)
    except ConfigError as error:
        assert "cannot be satisfied" in str(error)
        assume(False)
    masks = sampler(step, g0 + np.arange(9))
    check(masks, sampler, 9)
    single = sampler(step, np.array([g0 + 4]))
    for whole, alone in zip(masks.context + masks.target, single.context + single.target, strict=True):
        np.testing.assert_array_equal(whole[4:5], alone)  # a sample's masks do not depend on its batch
    visible = max(1, round(grid[0] * spec.max_temporal_keep)) * grid[1] * grid[2]
    assert masks.context[0].max() < visible, "the context ends with max_temporal_keep"
    if complement != "none":
        assert masks.context[0].shape[1] + masks.target[0].shape[1] == math.prod(grid)


def covered(length: int, size: int) -> np.ndarray:
    """Probability that a block at a uniform, inclusive offset covers each place of an axis."""
    i, places = np.arange(length), length - size + 1
    return (np.minimum(i, places - 1) - np.maximum(i - size + 1, 0) + 1) / places


@pytest.mark.parametrize("grid", [(4, 8, 8), (6, 5, 9)])
def test_union_coverage_within_four_sigma_of_its_closed_form(grid: tuple[int, int, int]) -> None:
    spec = BlockSpec(blocks=3, spatial_scale=(0.1, 0.3), temporal_scale=(0.3, 0.8), context_keep=0.01, target_keep=0.01)
    part = VideoExactSampler((spec,), grid, seed=5).parts[0]
    steps, per_step = 150, 100
    hits, want = np.zeros(math.prod(grid)), np.zeros(math.prod(grid))
    for step in range(steps):
        size = part.block_size(step)
        union, tries = part.place(np.arange(per_step) + step * per_step, size)
        assert not tries.any(), "so small a count is never missed"
        hits += union.sum(axis=0)
        t, h, w = (covered(length, side) for length, side in zip(grid, size, strict=True))
        one = t[:, None, None] * h[:, None] * w
        want += (1 - (1 - one.flatten()) ** spec.blocks) / steps
    sigma = np.sqrt(want * (1 - want) / (steps * per_step))
    z = (hits / (steps * per_step) - want) / sigma
    assert np.abs(z).max() < 4, f"worst token is {np.abs(z).max():.1f} sigma off"
    assert want[-1] > 0 and hits[-1] > 0, "last time step, row and column must be used"


def test_trimmed_sides_keep_the_closed_form_of_one_block() -> None:
    """With one block the union has one size, so trimming scales its coverage and nothing else."""
    grid, steps, per_step = (3, 6, 6), 100, 100
    spec = BlockSpec(blocks=1, spatial_scale=(0.3, 0.3), temporal_scale=(0.7, 0.7), context_keep=0.3, target_keep=0.1)
    sampler = VideoExactSampler((spec,), grid, seed=2)
    n, part = math.prod(grid), sampler.parts[0]
    hits, want = np.zeros((2, n)), np.zeros((2, n))
    for step in range(steps):
        masks = sampler(step, np.arange(per_step) + step * per_step)
        for side, index in enumerate((masks.context[0], masks.target[0])):
            hits[side] += np.bincount(index.flatten(), minlength=n)
        size = part.block_size(step)
        t, h, w = (covered(length, side) for length, side in zip(grid, size, strict=True))
        inside = (t[:, None, None] * h[:, None] * w).flatten()
        tokens = math.prod(size)
        want[0] += (1 - inside) * part.context_count / (n - tokens) / steps
        want[1] += inside * part.target_count / tokens / steps
    sigma = np.sqrt(want * (1 - want) / (steps * per_step))
    z = (hits / (steps * per_step) - want) / sigma
    assert np.abs(z).max() < 4, f"worst token is {np.abs(z).max():.1f} sigma off"


@pytest.mark.parametrize("spec", [SHORT, LONG], ids=["short", "long"])
def test_both_sides_are_symmetric_under_flips(spec: BlockSpec) -> None:
    sampler = VideoExactSampler((spec,), GRID, seed=3)
    counts, samples = np.zeros((2, *GRID)), 0
    for step in range(100):
        masks = sampler(step, np.arange(64) + step * 64)
        for side, index in enumerate((masks.context[0], masks.target[0])):
            counts[side] += np.bincount(index.flatten(), minlength=400).reshape(GRID)
        samples += 64
    share = counts / samples
    sigma = np.sqrt(share * (1 - share) / samples)
    for axis in (1, 2, 3):
        flipped = np.flip(share, axis)
        z = (share - flipped) / np.sqrt(2 * sigma**2 + 1e-12)
        assert np.abs(z).max() < 4.5, f"masks lean to one side of axis {axis} by {np.abs(z).max():.1f} sigma"
    late, early = share[0, -1].sum(), share[0, 0].sum()
    assert abs(late - early) / early < 0.03, "the official sampler keeps 5 % of the last time step at batch 24"


def test_counts_are_those_of_the_spec_for_every_seed_and_step() -> None:
    sizes = set()
    for seed in range(3):
        sampler = VideoExactSampler(VideoMasksConfig().specs, (8, 16, 16), seed)
        for step in range(4):
            masks = sampler(step, np.arange(4))
            sizes.add(tuple(m.shape[1] for m in masks.context + masks.target))
    assert sizes == {(568, 176, 1072, 1456)}  # the official means at batch 24: 516, 128, 969, 1440


def test_redraws_stay_rare_and_end() -> None:
    sampler = VideoExactSampler(VideoMasksConfig().specs, (8, 14, 14), seed=0)
    for part, most in zip(sampler.parts, (0.3, 0.6), strict=True):
        tries = np.concatenate([part.place(np.arange(500) + 500 * k, part.block_size(k))[1] for k in range(20)])
        assert 0 < (tries > 0).mean() < most and (tries >= 8).mean() < 0.01


def test_fallback_moves_as_many_tokens_as_are_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jepa.masks.video._ATTEMPTS", 1)  # the last resort, reached at once
    sampler = VideoExactSampler((LONG,), GRID, seed=0)
    part = sampler.parts[0]
    step = next(k for k in range(20) if part.place(np.arange(300), part.block_size(k))[1].any())
    check(sampler(step, np.arange(300)), sampler, 300)
    union, tries = part.place(np.arange(300), part.block_size(step))
    free = part.draw(np.arange(300), np.zeros(300, np.int64), part.block_size(step))
    changed = (union != free).sum(axis=1)
    assert (changed[tries == 0] == 0).all() and (changed[tries > 0] > 0).all()
    short_context = free.sum(axis=1) > 400 - part.least[0]
    assert (union[short_context].sum(axis=1) == 400 - part.least[0]).all(), "no more than missing"


def test_block_sizes_change_with_the_step_and_areas_hold() -> None:
    spec = BlockSpec(spatial_scale=(0.1, 0.2), temporal_scale=(0.25, 0.75))
    part = VideoExactSampler((spec,), (8, 32, 32), seed=0).parts[0]
    sizes = np.array([part.block_size(k) for k in range(1500)], dtype=float)
    area, ratio = sizes[:, 1] * sizes[:, 2] / 32**2, sizes[:, 1] / sizes[:, 2]
    assert 0.09 < area.min() < 0.11 and 0.19 < area.max() < 0.21
    assert ratio.min() < 0.8 and ratio.max() > 1.4
    assert set(sizes[:, 0]) == {2, 3, 4, 5, 6}
    assert abs(np.corrcoef(area, ratio)[0, 1]) < 4 / np.sqrt(1500) + 0.03


def test_specs_differ_and_images_may_have_their_own() -> None:
    masks = VideoExactSampler((SHORT, SHORT), GRID, seed=0)(0, np.arange(8))
    assert (masks.target[0] != masks.target[1]).any()
    settings_ = VideoMasksConfig(image_specs=(BlockSpec(blocks=10),))
    image = make_video_sampler(settings_, (1, 10, 10), 0, "image")(0, np.arange(3))
    clip = make_video_sampler(settings_, GRID, 0)(0, np.arange(3))
    assert (len(image.context), len(clip.context)) == (1, 2)
    assert settings_.of("clip") == settings_.specs and VideoMasksConfig().of("image") == settings_.specs


@pytest.mark.parametrize("mode", ["exact", "reference"])
@pytest.mark.parametrize(
    ("spec", "grid", "words"),
    [
        (BlockSpec(blocks=1, spatial_scale=(1.0, 1.0), aspect_ratio=(1.0, 1.0)), (2, 6, 6), "cannot be satisfied"),
        (BlockSpec(), (1, 1, 1), "cannot be satisfied"),
    ],
)
def test_unsatisfiable_specs_are_refused(mode: str, spec: BlockSpec, grid: tuple[int, int, int], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        make_video_sampler(VideoMasksConfig(mode=mode, specs=(spec,)), grid, seed=0)  # type: ignore[arg-type]


def test_counts_that_are_asked_for_too_high_name_what_is_possible() -> None:
    with pytest.raises(ConfigError, match=r"context_keep=0.9 \(360 tokens\). Allowed here: context_keep <= 0\.[34]"):
        VideoExactSampler((BlockSpec(context_keep=0.9),), GRID, seed=0)
    sampler = VideoExactSampler((BlockSpec(context_keep=0.2, target_keep=0.3, max_keep=50),), GRID, seed=0)
    assert (sampler.parts[0].context_count, sampler.parts[0].target_count) == (50, 120)


@pytest.mark.parametrize(
    "bad",
    [
        {"spatial_scale": (0.3, 0.2)},
        {"temporal_scale": (0.0, 0.2)},
        {"blocks": 0},
        {"context_keep": 1.5},
        {"max_temporal_keep": 0.0},
        {"aspect_ratio": (0.0, 1.0)},
        {"target_keep": 0.5, "complement": "target"},
        {"complement": "context", "max_temporal_keep": 0.5},
    ],
)
def test_bad_values_are_named(bad: dict) -> None:
    with pytest.raises(ConfigError, match=next(iter(bad))):
        BlockSpec(**bad)
    with pytest.raises(ConfigError, match="specs"):
        VideoMasksConfig(specs=())
