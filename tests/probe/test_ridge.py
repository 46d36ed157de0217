"""Ridge in closed form against scikit-learn; the penalty is chosen on validation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from sklearn.metrics import r2_score as sklearn_r2

from jepa.errors import ConfigError
from jepa.probe.axes import Axes
from jepa.probe.ridge import RidgeConfig, fit_ridge, r2_score, ridge_probe


def data(count: int, seed: int, noise: float = 0.5) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    mix = torch.randn(20, 20, generator=torch.Generator().manual_seed(7))
    hidden = torch.randn(count, 20, generator=g)
    targets = torch.stack([hidden[:, 0] + 3, hidden[:, 1] - hidden[:, 2]], dim=1)
    return hidden @ mix + 5, targets + noise * torch.randn(count, 2, generator=g)


@pytest.mark.parametrize("alpha", [1e-4, 0.1, 10.0])
def test_closed_form_is_scikit_learns(alpha):
    features, targets = data(100, seed=1)
    axes = Axes.fit(features)
    weight, intercept = fit_ridge(axes, axes.apply(features), targets, (alpha,))
    standard = ((features.double() - axes.mean) * axes.scale).numpy()
    other = Ridge(alpha=100 * alpha).fit(standard, targets.double().numpy())
    np.testing.assert_allclose((axes.basis @ weight[0]).numpy(), other.coef_.T, atol=1e-5)
    np.testing.assert_allclose(intercept.numpy(), other.intercept_, atol=1e-9)


def test_each_target_gets_the_penalty_best_on_validation():
    features, targets = data(30, seed=2)
    val, val_targets = data(200, seed=3)
    test, test_targets = data(400, seed=4)
    axes = Axes.fit(features)
    config = RidgeConfig(alpha=(1e-5, 1e-2, 0.1, 0.3, 100.0))
    found, chosen = ridge_probe(
        axes, (axes.apply(features), targets), (axes.apply(val), val_targets), axes.apply(test), config
    )
    for t in range(2):
        weight, intercept = fit_ridge(axes, axes.apply(features), targets[:, t : t + 1], config.alpha)
        fits = axes.apply(val).double() @ weight + intercept  # (A, n, 1)
        scores = [sklearn_r2(val_targets[:, t], f[:, 0]) for f in fits]
        assert chosen[t]["alpha"] == config.alpha[int(np.argmax(scores))]
        assert chosen[t]["val"] == pytest.approx(max(scores), abs=1e-5)
        picked = config.alpha.index(chosen[t]["alpha"])
        expected = axes.apply(test).double() @ weight[picked] + intercept
        torch.testing.assert_close(found[:, t], expected[:, 0])
    assert sklearn_r2(test_targets, found) > 0.4


def test_r2_is_scikit_learns_and_minus_infinity_without_variation():
    g = torch.Generator().manual_seed(5)
    y, fit = torch.randn(50, 3, generator=g).double(), torch.randn(50, 3, generator=g).double()
    np.testing.assert_allclose(r2_score(y, fit), sklearn_r2(y, fit, multioutput="raw_values"), atol=1e-12)
    assert r2_score(torch.ones(5, 1).double(), torch.zeros(5, 1).double()).item() == -float("inf")


def test_chunks_do_not_matter(monkeypatch):
    features, targets = data(101, seed=6)
    axes = Axes.fit(features)
    whole, _ = fit_ridge(axes, axes.apply(features), targets, (0.1,))
    monkeypatch.setattr("jepa.probe.axes._NUMBERS", 20 * 13)
    pieces, _ = fit_ridge(axes, axes.apply(features), targets, (0.1,))
    torch.testing.assert_close(whole, pieces)


@pytest.mark.parametrize("alpha", [(), (0.0,), (-1.0, 1.0)])
def test_bad_settings(alpha):
    with pytest.raises(ConfigError, match="allowed"):
        RidgeConfig(alpha=alpha)
