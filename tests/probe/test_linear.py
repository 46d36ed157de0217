"""The batched linear probe finds the optimum scikit-learn finds, and a grid is its heads trained alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from torch.nn import functional as F

from jepa.errors import ConfigError, DataError
from jepa.probe.axes import Axes
from jepa.probe.linear import Heads, LinearConfig, linear_probe, score_heads, train_heads


@pytest.fixture(scope="module")
def digits() -> tuple[torch.Tensor, torch.Tensor]:
    pixels, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(labels))
    return torch.tensor(pixels[order], dtype=torch.float32), torch.tensor(labels[order])


def ill_conditioned(count: int, width: int, classes: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Correlated features over three orders of magnitude, as an encoder's are."""
    g = torch.Generator().manual_seed(seed)
    mix = torch.randn(width, width, generator=torch.Generator().manual_seed(1)) * torch.logspace(0, -3, width)
    hidden = torch.randn(count, width, generator=g)
    labels = (hidden[:, :classes] + 0.5 * torch.randn(count, classes, generator=g)).argmax(dim=1)
    return hidden @ mix, labels


@pytest.mark.parametrize("decay", [1e-3, 1e-2, 0.3])
def test_full_rate_reaches_the_regularised_optimum(digits, decay):
    pixels, labels = digits[0][:1000], digits[1][:1000]
    axes = Axes.fit(pixels)
    x = axes.apply(pixels)
    heads = train_heads(x, labels, axes.variance, [(1.0, decay)], 10, steps=200)
    standard = (pixels.double() - axes.mean) * axes.scale
    exact = LogisticRegression(C=1 / (len(x) * decay), tol=1e-10, max_iter=5000).fit(standard.numpy(), labels.numpy())
    weight = axes.basis @ heads.weight[..., 0].double()  # back from the principal axes

    def objective(w: torch.Tensor, b: torch.Tensor) -> float:
        return float(F.cross_entropy(standard @ w + b, labels) + decay / 2 * w.square().sum())

    best = objective(torch.tensor(exact.coef_.T), torch.tensor(exact.intercept_))
    assert objective(weight, heads.bias[:, 0].double()) == pytest.approx(best, abs=1e-4)


def test_ill_conditioned_features_converge_as_well():
    features, labels = ill_conditioned(800, 96, 5, seed=2)
    axes = Axes.fit(features)
    assert axes.variance.max() / axes.variance.clamp(min=1e-9).min() > 1e4  # a plain gradient step would crawl
    heads = train_heads(axes.apply(features), labels, axes.variance, [(1.0, 1e-3)], 5, steps=150)
    standard = ((features.double() - axes.mean) * axes.scale).numpy()
    exact = LogisticRegression(C=1 / (800 * 1e-3), tol=1e-10, max_iter=20000).fit(standard, labels.numpy())
    loss = F.cross_entropy(torch.tensor(exact.decision_function(standard)), labels) + 0.5e-3 * (exact.coef_**2).sum()
    found = score_heads(heads, axes.apply(features), labels)[1][0] + 0.5e-3 * heads.weight.double().square().sum()
    assert float(found) == pytest.approx(float(loss), abs=1e-4)


def test_fewer_samples_than_dimensions_reach_the_same_optimum():
    features, labels = ill_conditioned(60, 96, 3, seed=8)
    others, _ = ill_conditioned(200, 96, 3, seed=9)
    axes = Axes.fit(features)
    assert axes.basis.shape == (96, 59)  # 60 samples around their mean span 59 directions
    heads = train_heads(axes.apply(features), labels, axes.variance, [(1.0, 1e-2)], 3, steps=300)
    standard = (
        ((features.double() - axes.mean) * axes.scale).numpy(),
        ((others.double() - axes.mean) * axes.scale).numpy(),
    )
    exact = LogisticRegression(C=1 / (60 * 1e-2), tol=1e-10, max_iter=20000).fit(standard[0], labels.numpy())
    logits = heads.logits(axes.apply(others))[..., 0]
    difference = logits.log_softmax(-1) - torch.tensor(exact.predict_log_proba(standard[1]))
    assert difference.abs().max() < 5e-3


def test_grid_is_its_heads_trained_alone():
    features, labels = ill_conditioned(300, 32, 4, seed=3)
    axes = Axes.fit(features)
    x = axes.apply(features)
    grid = LinearConfig(lr=(0.01, 0.3, 1.0), weight_decay=(1e-4, 1e-3, 1e-2, 1e-1)).heads()
    together = train_heads(x, labels, axes.variance, grid, 4, steps=60)
    for i, head in enumerate(grid):
        alone = train_heads(x, labels, axes.variance, [head], 4, steps=60)
        torch.testing.assert_close(together.weight[..., i], alone.weight[..., 0], rtol=1e-3, atol=2e-5)
        torch.testing.assert_close(together.bias[:, i], alone.bias[:, 0], rtol=1e-3, atol=2e-5)
    assert len({round(float(together.weight[..., i].norm()), 6) for i in range(len(grid))}) == len(grid)


def test_chunks_do_not_matter(monkeypatch):
    features, labels = ill_conditioned(301, 16, 3, seed=4)
    axes = Axes.fit(features)
    whole = train_heads(axes.apply(features), labels, axes.variance, [(1.0, 1e-2)], 3, steps=30)
    monkeypatch.setattr("jepa.probe.axes._NUMBERS", 16 * 40)  # 40 rows at a time, the last chunk shorter
    monkeypatch.setattr(Heads, "chunk", lambda self: 70)
    axes = Axes.fit(features)
    pieces = train_heads(axes.apply(features), labels, axes.variance, [(1.0, 1e-2)], 3, steps=30)
    # an eigenvector's sign is free, so compare what the heads say
    left, right = whole.logits(axes.apply(features)), pieces.logits(axes.apply(features))
    torch.testing.assert_close(left, right, rtol=1e-3, atol=1e-3)


def test_accuracy_on_digits_is_logistic_regressions(digits):
    pixels, labels = digits
    axes = Axes.fit(pixels[:1000])
    x = axes.apply(pixels)
    found, chosen = linear_probe(
        axes, (x[:1000], labels[:1000]), (x[1000:1300], labels[1000:1300]), x[1300:], 10, LinearConfig()
    )
    accuracy = float((found == labels[1300:]).double().mean())
    standard = ((pixels.double() - axes.mean) * axes.scale).numpy()
    other = LogisticRegression(C=0.1, max_iter=2000).fit(standard[:1000], labels[:1000])
    assert accuracy == pytest.approx(other.score(standard[1300:], labels[1300:]), abs=0.012)
    assert accuracy > 0.94
    assert chosen["lr"] in LinearConfig().lr and chosen["weight_decay"] in LinearConfig().weight_decay
    assert chosen["val"] > 0.94


def test_choice_follows_validation_and_edges_are_named():
    features, labels = ill_conditioned(120, 64, 2, seed=5)  # few samples, many dimensions: needs a strong penalty
    axes = Axes.fit(features)
    val, val_labels = ill_conditioned(500, 64, 2, seed=6)
    config = LinearConfig(lr=(1.0,), weight_decay=(1e-6, 1e-3, 1e-1), steps=100)
    train = (axes.apply(features), labels)
    _, chosen = linear_probe(axes, train, (axes.apply(val), val_labels), axes.apply(val), 2, config)
    heads = train_heads(*train, axes.variance, config.heads(), 2, 100)
    accuracy, _ = score_heads(heads, axes.apply(val), val_labels)
    assert chosen["val"] == float(accuracy.max())
    assert chosen["weight_decay"] == config.weight_decay[int(accuracy.argmax())]
    assert chosen.get("at_edge") == {1e-6: "low", 1e-1: "high"}.get(chosen["weight_decay"])


def test_a_dimension_that_does_not_vary_is_left_out_not_blown_up():
    features, _ = ill_conditioned(200, 8, 2, seed=7)
    features = torch.cat([features, torch.full((200, 1), 7.3), torch.zeros(200, 1)], dim=1)
    axes = Axes.fit(features)
    assert (axes.scale[-2:] == 0).all() and (axes.scale[:8] > 0).all()
    assert float(axes.variance.sum()) == pytest.approx(8.0, abs=1e-6)
    shifted = features.clone()
    shifted[:, -2:] += 100  # a new value there must not reach the prediction
    assert torch.equal(axes.apply(features), axes.apply(shifted))


@pytest.mark.parametrize("width", [4, 60])
def test_a_collapsed_encoder_gets_the_commonest_class_not_an_error(width):
    features = torch.full((40, width), 0.3)
    labels = torch.tensor([0, 1, 1, 1] * 10)
    axes = Axes.fit(features)
    x = axes.apply(features)
    found, _ = linear_probe(axes, (x, labels), (x, labels), x, 2, LinearConfig(steps=20))
    assert (found == 1).all()


def test_broken_features_name_their_encoder():
    with pytest.raises(DataError, match=r"random init: 2 of 10 samples"):
        features = torch.ones(10, 3)
        features[4, 0], features[7, 2] = float("inf"), float("nan")
        Axes.fit(features, "random init")


@pytest.mark.parametrize("values", [{"lr": ()}, {"lr": (0.1, 1.5)}, {"weight_decay": (-1.0,)}, {"steps": 0}])
def test_bad_settings(values):
    with pytest.raises(ConfigError, match="allowed"):
        LinearConfig(**values)
