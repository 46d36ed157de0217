"""Dense probes: label maps are cut as images are, heads find the linear optimum, scores are the textbook's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import Ridge
from sklearn.metrics import jaccard_score
from torch import Tensor

from jepa.checkpoint import random_encoder
from jepa.config import Duration
from jepa.data import Manifest, Split, eval_batches
from jepa.data.labelmap import VOID
from jepa.errors import ConfigError, DataError
from jepa.probe.dense import (
    DepthConfig,
    Scale,
    SegmentationConfig,
    _ridge,
    depth_probe,
    enlarge,
    features,
    miou,
    overlaps,
    segmentation_probe,
)
from jepa.probe.maps import Maps, known_mean, nearest, patches, shares
from jepa.probe.tokens import Held
from tests.tiny import run_config


class DigitMaps(Split):
    """The digits' split with maps made of what is known of each: where the digit is, and how near (the wider)."""

    map_names = ("class", "depth", "odd")

    def read_map(self, i: int, name: str) -> npt.NDArray:
        x, y, size = (float(self.targets[t][i]) * 20 for t in ("x", "y", "size"))
        rows, columns = np.mgrid[:20, :20] + 0.5
        inside = (abs(rows - y) <= size / 2) & (abs(columns - x) <= size / 2)
        if name == "odd":
            return np.zeros((20, 20, 3))
        if name == "depth":
            return np.where(inside, 1.0 + columns / 20, 3.0 + rows / 20).astype(np.float32)
        found = inside.astype(np.uint8)
        found[:, 0] = VOID
        return found


@pytest.fixture(scope="module")
def splits(probe_data: Path) -> dict[str, DigitMaps]:
    found = Manifest.open(probe_data).splits
    return {name: DigitMaps(split.root, name, split._values) for name, split in found.items()}


@pytest.fixture(scope="module")
def parts(probe_data: Path, splits: dict[str, DigitMaps]) -> tuple[list[Held], list[np.ndarray]]:
    encoder, tokens, chosen = random_encoder(run_config(probe_data), 0), [], []
    for name, split in splits.items():
        (batch,) = eval_batches(split, (20, 20), 1000)
        tokens.append(Held(encoder(batch.images).unsqueeze(1)))
        chosen.append(np.arange(len(split)))
        assert name in ("train", "val", "test")
    return tokens, chosen


def maps_of(splits: dict[str, DigitMaps], chosen: list[np.ndarray], name: str) -> tuple[Maps, Maps, Maps]:
    train, val, test = (Maps(s, i, name, (20, 20)) for s, i in zip(splits.values(), chosen, strict=True))
    return train, val, test


# --- real pictures ------------------------------------------------------------------------------------------------


def test_where_the_digit_is(splits, parts):
    tokens, chosen = parts
    maps = maps_of(splits, chosen, "class")
    config = SegmentationConfig(lr=(0.03,), weight_decay=(1e-4, 0.3), duration=Duration(steps=60), batch=50, detail=2)
    columns, picked = segmentation_probe((tokens[0], tokens[1], tokens[2]), maps, (5, 5), config)
    assert columns.shape == (90, 4) and picked["classes"] == 2
    found = float(miou(columns.sum(axis=0)))
    truth = np.stack([maps[2].whole(i) for i in range(90)])
    commonest = float((truth == 1).sum() / (truth != VOID).sum())
    assert columns[:, 2:].sum() >= (truth != VOID).sum()  # every labelled pixel is in a union, void ones in none
    assert found > commonest / 2 + 0.15  # saying everywhere what is commonest: its share, and 0 for the other class
    shuffled = Held(tokens[2].tokens[torch.randperm(90, generator=torch.Generator().manual_seed(0))])
    wrong, _ = segmentation_probe((tokens[0], tokens[1], shuffled), maps, (5, 5), config)
    assert float(miou(wrong.sum(axis=0))) < found - 0.03  # read from the pictures, not from their average


def test_how_near_the_digit_is(splits, parts):
    tokens, chosen = parts
    maps = maps_of(splits, chosen, "depth")
    error, picked = depth_probe((tokens[0], tokens[1], tokens[2]), maps, (5, 5), DepthConfig(detail=2))
    truth = np.stack([maps[2].whole(i) for i in range(90)])
    plain = np.sqrt(((truth - truth.mean()) ** 2).mean(axis=(1, 2))).mean()  # always saying the mean
    assert error.shape == (90,) and error.mean() < 0.85 * plain
    assert picked["alpha"] in DepthConfig().alpha and picked["val"] == pytest.approx(error.mean(), rel=0.2)


def test_depths_that_are_left_out_count_nowhere(splits, parts):
    tokens, chosen = parts
    maps = maps_of(splits, chosen, "depth")
    near, _ = depth_probe((tokens[0], tokens[1], tokens[2]), maps, (5, 5), DepthConfig(most=2.5))
    assert np.nanmax(near) < 1.0  # only the digit's pixels, between 1 and 2, are left
    with pytest.raises(DataError, match="no pixel of the training split has a known depth"):
        depth_probe((tokens[0], tokens[1], tokens[2]), maps, (5, 5), DepthConfig(most=0.5))


# --- fits ---------------------------------------------------------------------------------------------------------


def test_depth_is_the_weighted_ridge_regression():
    generator = torch.Generator().manual_seed(0)
    x = 3 + torch.randn(40, 1, 4, 6, generator=generator) * torch.logspace(0, 2, 6)
    points = torch.rand(40, 4, 4, generator=generator) * 2  # (n, h s, w s) with h = w = s = 2
    points[torch.rand(40, 4, 4, generator=generator) < 0.3] = float("nan")
    tokens, config = Held(x), DepthConfig(alpha=(1e-3, 10.0))
    scale = Scale.of(tokens, 4)
    weights, span = _ridge(tokens, points, (2, 2), config, scale)
    flat = x.view(-1, 6).double()
    standard = ((flat - flat.mean(dim=0)) / flat.std(dim=0, correction=0)).numpy()
    depth, known = known_mean(patches(points, (2, 2)), None)
    y, w = depth.flatten().numpy(), known.flatten().numpy()
    assert span == (y[w > 0].min(), y[w > 0].max())
    for row, alpha in zip(weights, config.alpha, strict=True):
        exact = Ridge(alpha=alpha * w.sum()).fit(standard, y, sample_weight=w)
        np.testing.assert_allclose(row[:-1], exact.coef_, atol=1e-5)
        assert float(row[-1]) == pytest.approx(exact.intercept_, abs=1e-5)


def test_segmentation_reaches_the_optimum_of_its_convex_problem():
    """Tokens that tell the class exactly are read exactly, with soft labels too."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 3, (30, 2, 2), generator=generator)
    tokens = Held(torch.eye(3)[labels.flatten(1)].unsqueeze(1) + 5)

    class Exact(Maps):
        def __init__(self) -> None:
            self.index = np.arange(30)

        def whole(self, place: int) -> npt.NDArray:
            return np.kron(labels[place].numpy(), np.ones((2, 2), int))

    config = SegmentationConfig(lr=(0.1,), weight_decay=(1e-4,), duration=Duration(steps=80), detail=2)
    columns, picked = segmentation_probe((tokens,) * 3, (Exact(),) * 3, (2, 2), config)
    assert picked["val"] == 1.0 and miou(columns.sum(axis=0)) > 0.6  # bilinear edges cost the test some pixels


# --- measures -----------------------------------------------------------------------------------------------------


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10_000), classes=st.integers(2, 5))
def test_miou_is_scikit_learns(seed, classes):
    rng = np.random.default_rng(seed)
    truth, guess = rng.integers(0, classes, (2, 4, 6, 6))
    truth[rng.random(truth.shape) < 0.2] = VOID
    columns = np.stack([overlaps(torch.tensor(g), torch.tensor(t), classes).numpy()
                        for g, t in zip(guess, truth, strict=True)])  # fmt: skip
    known = truth != VOID
    there = np.unique(np.concatenate([truth[known], guess[known]]))
    want = jaccard_score(truth[known], guess[known], labels=there, average="macro", zero_division=0)
    assert float(miou(columns.sum(axis=0))) == pytest.approx(want, abs=1e-12)
    assert miou(np.stack([columns.sum(axis=0)] * 3)).shape == (3,)


def test_maps_are_cut_as_images_are(splits, monkeypatch):
    wide = np.arange(20 * 40).reshape(20, 40)
    monkeypatch.setattr(DigitMaps, "read_map", lambda self, i, name: wide)
    maps = Maps(splits["val"], np.array([0]), "class", (10, 10))
    assert np.array_equal(maps.whole(0), wide[:, 10:30])
    assert np.array_equal(maps.sampled((2, 2), 1)[0], wide[:, 10:30][5::10, 5::10])


def test_points_of_a_token():
    square = patches(torch.arange(16).view(1, 4, 4), (2, 2))
    assert square[0].tolist() == [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]


def test_shares_and_known_means():
    points = torch.tensor([[[0, 0, 1, VOID], [VOID, VOID, VOID, VOID]]], dtype=torch.int16)
    assert shares(points, 3)[0].tolist() == [[0.5, 0.25, 0.0], [0.0, 0.0, 0.0]]
    depth = torch.tensor([[[1.0, 3.0, float("nan"), 0.0], [20.0, float("inf"), -1.0, 0.0]]])
    mean, known = known_mean(depth, 10.0)
    assert mean[0].tolist() == [2.0, 0.0] and known[0].tolist() == [0.5, 0.0]


def test_nearest_and_enlarge():
    assert nearest(np.arange(16).reshape(4, 4), (2, 2)).tolist() == [[5, 7], [13, 15]]
    values = torch.tensor([[[1.0], [2.0], [3.0], [4.0]]])
    assert enlarge(values, (2, 2), (2, 2)).flatten().tolist() == [1.0, 2.0, 3.0, 4.0]
    assert enlarge(values, (2, 2), (4, 4))[0, 0, 0].tolist() == pytest.approx([1.0, 1.25, 1.75, 2.0])


def test_several_layers_are_read_side_by_side():
    x = torch.randn(2, 1, 6, 4)  # two layers of three tokens
    assert torch.equal(features(x, 3)[1, 2], torch.cat([x[1, 0, 2], x[1, 0, 5]]))
    with pytest.raises(ConfigError, match="one view of 3 tokens"):
        features(torch.randn(2, 2, 3, 4), 3)


def test_scale_is_that_of_all_tokens():
    x = 100 + torch.randn(70, 1, 3, 5) * torch.tensor([1.0, 10.0, 0.1, 1.0, 0.0])
    scale = Scale.of(Held(x), 3)
    flat = x.view(-1, 5).double()
    np.testing.assert_allclose(scale.mean, flat.mean(dim=0), rtol=1e-9)
    np.testing.assert_allclose(scale.inverse[:4], 1 / flat.std(dim=0, correction=0)[:4], rtol=1e-5)
    assert scale.inverse[4] == 0
    out: Tensor = scale.apply(x.view(-1, 5))
    assert out.mean(dim=0).abs().max() < 1e-2 and (out.std(dim=0)[:4] - 1).abs().max() < 0.02


# --- what cannot be probed ----------------------------------------------------------------------------------------


def test_data_without_maps(probe_data, splits):
    plain = Manifest.open(probe_data).splits["val"]
    assert list(splits["val"].map_names) == ["class", "depth", "odd"] and plain.map_names == []
    with pytest.raises(ConfigError, match=r"need a label for every pixel.*probes.segmentation=null probes.depth=null"):
        Maps(plain, np.arange(3), "class", (20, 20))
    with pytest.raises(ConfigError, match="unknown key 'clas'. Did you mean 'class'"):
        Maps(splits["val"], np.arange(3), "clas", (20, 20))
    with pytest.raises(DataError, match=r"map 'odd' of sample 4 .*float64 \(20, 20, 3\)"):
        Maps(splits["val"], np.array([4]), "odd", (20, 20)).whole(0)
    with pytest.raises(DataError, match="holds no class numbers"):
        _ = Maps(splits["val"], np.arange(3), "depth", (20, 20)).classes


@pytest.mark.parametrize(
    ("cls", "values"),
    [
        (SegmentationConfig, {"lr": ()}),
        (SegmentationConfig, {"lr": (0.0,)}),
        (SegmentationConfig, {"weight_decay": (-1.0,)}),
        (SegmentationConfig, {"detail": 0}),
        (DepthConfig, {"alpha": (0.0,)}),
        (DepthConfig, {"detail": 0}),
    ],
)
def test_bad_settings(cls, values):
    with pytest.raises(ConfigError):
        cls(**values)
