"""The small network reads what no straight line does, and is chosen for each variable by itself."""

from __future__ import annotations

import pytest
import torch

from jepa.errors import ConfigError
from jepa.probe.axes import Axes
from jepa.probe.mlp import MlpConfig, mlp_probe
from jepa.probe.ridge import RidgeConfig, r2_score, ridge_probe

PLACES = {"bent": slice(0, 1), "straight": slice(1, 2)}


def data(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    x = 2 * torch.rand(count, 3, generator=torch.Generator().manual_seed(seed)) - 1
    return x, torch.stack([100 + 40 * x[:, 0] * x[:, 1], x[:, 2]], dim=1).double()


def test_it_reads_a_product_and_ridge_does_not() -> None:
    train, val, (x, y) = data(800, 0), data(200, 1), data(200, 2)
    config = MlpConfig(width=32, steps=400, lr=(3e-3, 1e-7))
    fit, chosen = mlp_probe(train, val, x, PLACES, config)
    axes = Axes.fit(train[0])
    on = [(axes.apply(a), b) for a, b in (train, val)]
    linear, _ = ridge_probe(axes, *on, axes.apply(x), RidgeConfig())
    assert float(r2_score(y, fit)[0]) > 0.95 > 0.1 > float(r2_score(y, linear)[0])
    assert float(r2_score(y, fit)[1]) > 0.98
    assert chosen["bent"]["lr"] == 3e-3 and chosen["bent"]["step"] % 100 == 0
    again, _ = mlp_probe(train, val, x, PLACES, config)
    assert torch.equal(again, fit)


def test_what_is_best_on_validation_is_kept_for_each_variable() -> None:
    (x, y), val, (test, _) = data(300, 0), data(100, 1), data(100, 2)
    wrong = val[1].clone()
    wrong[:, 0] = wrong[:, 0].mean() + torch.randn(100, generator=torch.Generator().manual_seed(3)).double()
    _, chosen = mlp_probe((x, y), (val[0], wrong), test, PLACES, MlpConfig(width=16, steps=300, lr=(3e-3,)))
    assert chosen["bent"]["step"] == 100  # every further step fits worse to what is not there
    assert chosen["straight"]["step"] == 300


def test_torchs_generator_is_left_alone() -> None:
    state = torch.random.get_rng_state()
    mlp_probe(data(20, 0), data(20, 1), data(5, 2)[0], PLACES, MlpConfig(width=4, steps=2))
    assert torch.equal(torch.random.get_rng_state(), state)


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"lr=\[\]"):
        MlpConfig(lr=())
    with pytest.raises(ConfigError, match="steps=0"):
        MlpConfig(steps=0)
