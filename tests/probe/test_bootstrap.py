"""Intervals: deterministic, paired, clustered; R² agrees with scikit-learn; coverage is what it says."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import r2_score

from jepa.errors import DataError
from jepa.probe.bootstrap import Bootstrap, pearson_columns


def test_value_is_the_plain_mean_and_lies_in_the_interval():
    rng = np.random.default_rng(0)
    right = rng.random(500) < 0.3
    found = Bootstrap(np.arange(500), resamples=20_000).mean(right)
    assert found.value == pytest.approx(right.mean(), abs=1e-12)
    assert found.low < found.value < found.high
    # the textbook normal interval, 1.96 * sqrt(p (1 - p) / n) on either side
    half = 1.96 * np.sqrt(found.value * (1 - found.value) / 500)
    assert found.low == pytest.approx(found.value - half, abs=0.003)
    assert found.high == pytest.approx(found.value + half, abs=0.003)


def test_correlated_clusters_widen_the_interval_as_the_design_effect_says():
    rng = np.random.default_rng(1)
    originals = np.repeat(np.arange(100), 10)
    right = np.repeat(rng.random(100) < 0.5, 10)  # all ten views of an original succeed or fail together
    clustered = Bootstrap(originals).mean(right)
    naive = Bootstrap(np.arange(1000)).mean(right)
    ratio = (clustered.high - clustered.low) / (naive.high - naive.low)
    assert ratio == pytest.approx(np.sqrt(10), rel=0.12)
    assert clustered.value == naive.value


def test_interval_covers_the_truth_about_95_times_in_100():
    rng = np.random.default_rng(2)
    covered = 0
    for trial in range(200):
        ability = rng.beta(2, 3, 80)  # one per original, mean 0.4
        right = rng.random((80, 5)) < ability[:, None]
        found = Bootstrap(np.repeat(np.arange(80), 5), resamples=500, seed=trial).mean(right.ravel())
        covered += found.low <= 0.4 <= found.high
    assert 180 <= covered <= 199  # 190 expected, standard deviation 3


def test_same_seed_same_interval_other_seed_another():
    values = np.random.default_rng(3).random(300)
    clusters = np.arange(300) // 3
    assert Bootstrap(clusters, seed=5).mean(values) == Bootstrap(clusters, seed=5).mean(values)
    assert Bootstrap(clusters, seed=5).mean(values) != Bootstrap(clusters, seed=6).mean(values)


def test_chunked_counts_draw_every_cluster_once_on_average(monkeypatch):
    monkeypatch.setattr("jepa.probe.bootstrap._CHUNK", 70)  # seven rows of ten at a time, the last chunk shorter
    chunks = list(Bootstrap(np.arange(10), resamples=2000)._counts())
    counts = np.concatenate(chunks)
    assert counts.shape == (2000, 10)
    assert (counts.sum(axis=1) == 10).all()
    assert np.abs(counts.mean(axis=0) - 1).max() < 0.1
    assert len(np.unique(counts, axis=0)) > 1900  # chunks do not repeat each other


def test_r2_is_scikit_learns_and_is_averaged_over_targets():
    rng = np.random.default_rng(4)
    y = rng.normal(100.0, 1.0, (200, 2))  # far from zero: sums of squares would cancel without centring
    fit = y + rng.normal(0, [0.3, 0.8], (200, 2))
    boot = Bootstrap(np.arange(200))
    assert boot.r2(y[:, 0], fit[:, 0]).value == pytest.approx(r2_score(y[:, 0], fit[:, 0]), abs=1e-9)
    both = boot.r2(y, fit)
    assert both.value == pytest.approx(r2_score(y, fit, multioutput="uniform_average"), abs=1e-9)
    assert both.low < both.value < both.high


def test_paired_gap_is_narrower_than_the_unpaired_intervals_suggest():
    rng = np.random.default_rng(5)
    hard = rng.random(400)
    first, second = hard < 0.6, hard < 0.55  # alike on nearly all samples
    boot = Bootstrap(np.arange(400))
    gap = boot.mean(first.astype(float) - second.astype(float))
    a, b = boot.mean(first), boot.mean(second)
    assert b.high > a.low  # the intervals overlap ...
    assert gap.low > 0  # ... and yet the difference is sure
    assert gap.value == pytest.approx(a.value - b.value, abs=1e-12)


def test_paired_r2_gap():
    rng = np.random.default_rng(6)
    y = rng.normal(size=(300, 2))
    good, bad = y + 0.5 * rng.normal(size=y.shape), y + 0.9 * rng.normal(size=y.shape)
    boot = Bootstrap(np.arange(300))
    gap = boot.r2_gap(y, good, bad)
    assert gap.value == pytest.approx(boot.r2(y, good).value - boot.r2(y, bad).value, abs=1e-12)
    assert gap.low > 0
    same = boot.r2_gap(y, good, good)
    assert (same.value, same.low, same.high) == (0.0, 0.0, 0.0)


def test_one_original_is_refused():
    with pytest.raises(DataError, match="at least 2 original images"):
        Bootstrap(np.zeros(50, dtype=np.int64))


@settings(max_examples=60, deadline=None)
@given(
    values=st.lists(st.floats(-5, 5), min_size=4, max_size=60),
    groups=st.integers(2, 4),
    shift=st.floats(-3, 3),
    scale=st.floats(0.1, 10),
)
def test_interval_moves_with_its_values(values, groups, shift, scale):
    x = np.array(values)
    boot = Bootstrap(np.arange(len(x)) % groups, resamples=200)
    base, moved = boot.mean(x), boot.mean(scale * x + shift)
    assert base.low <= base.high
    assert x.min() - 1e-9 <= base.low and base.high <= x.max() + 1e-9
    for end in ("value", "low", "high"):
        assert getattr(moved, end) == pytest.approx(scale * getattr(base, end) + shift, abs=1e-6)


@settings(max_examples=30, deadline=None)
@given(value=st.floats(-3, 3), size=st.integers(2, 40))
def test_constant_values_have_an_interval_of_no_width(value, size):
    found = Bootstrap(np.arange(size), resamples=100).mean(np.full(size, value))
    assert found.low == pytest.approx(value, abs=1e-9) and found.high == pytest.approx(value, abs=1e-9)


def test_pearson_is_that_of_numpy_in_every_resample():
    rng = np.random.default_rng(6)
    y = rng.normal(5, 2, (40, 2))
    fit = y + rng.normal(3, [1, 4], (40, 2))
    columns, pearson = pearson_columns(y, fit)
    counts = rng.integers(0, 4, (20, 40))
    for drawn, found in zip(counts, pearson(counts.astype(float) @ columns), strict=True):
        rows = np.repeat(np.arange(40), drawn)
        expected = [np.corrcoef(y[rows, t], fit[rows, t])[0, 1] for t in range(2)]
        assert found == pytest.approx(np.mean(expected))
    flat, pearson = pearson_columns(y, np.ones_like(y))
    assert pearson(flat.sum(axis=0, keepdims=True)) == 0  # says nothing
