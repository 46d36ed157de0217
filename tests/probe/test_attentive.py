"""The attentive probe reads what the mean over tokens forgets; chooses on validation; averages views."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from jepa.checkpoint import random_encoder
from jepa.config import Duration
from jepa.data import Manifest, eval_batches
from jepa.errors import ConfigError, DataError
from jepa.probe.attentive import AttentiveConfig, attentive_probe, attentive_regression, score, train_grid
from jepa.probe.axes import Axes
from jepa.probe.clips import average_probabilities
from jepa.probe.linear import LinearConfig, linear_probe
from jepa.probe.ridge import RidgeConfig, r2_score, ridge_probe
from jepa.probe.tokens import Held
from tests.tiny import run_config

PLACES = 5


def held(x: Tensor) -> Held:
    """(n, N, D) as tokens of one view."""
    return Held(x.unsqueeze(1))


def shuffled(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Every content once, at shuffled places; a token is (one-hot content, one-hot place). Label: what is at place 0.

    The mean over tokens is the same for every sample.
    """
    generator = torch.Generator().manual_seed(seed)
    content = torch.stack([torch.randperm(PLACES, generator=generator) for _ in range(count)])
    place = torch.eye(PLACES).expand(count, -1, -1)
    tokens = torch.cat([torch.eye(PLACES)[content], place], dim=2)
    order = torch.stack([torch.randperm(PLACES, generator=generator) for _ in range(count)])
    return tokens[torch.arange(count)[:, None], order], content[:, 0]


CONFIG = AttentiveConfig(heads=2, lr=(3e-3, 1e-2), weight_decay=(0.01,), duration=Duration(steps=150), batch=64)


def test_it_reads_where_things_are_and_the_mean_does_not():
    (x, y), (xv, yv), (xt, yt) = (shuffled(n, seed) for n, seed in ((300, 0), (100, 1), (200, 2)))
    chances, chosen = attentive_probe((held(x), y), (held(xv), yv), held(xt), PLACES, CONFIG)
    assert (chances.argmax(dim=1) == yt).double().mean() > 0.95
    assert chosen["val"] > 0.95 and chosen["steps"] == 150
    assert chances.shape == (200, PLACES) and torch.allclose(chances.sum(dim=1), torch.ones(200).double())
    pooled = [part.mean(dim=1) for part in (x, xv, xt)]
    assert (pooled[0] - pooled[0][0]).abs().max() < 1e-6
    axes = Axes.fit(pooled[0])
    z = [axes.apply(part) for part in pooled]
    found, _ = linear_probe(axes, (z[0], y), (z[1], yv), z[2], PLACES, LinearConfig())
    assert (found == yt).double().mean() < 0.35  # chance is 0.2


def test_without_places_it_is_at_chance_too():
    """The success above is owed to the places: with them taken out the label cannot be read."""
    parts = [shuffled(n, seed) for n, seed in ((300, 0), (100, 1), (200, 2))]
    blind = [(held(torch.cat([x[..., :PLACES], torch.zeros_like(x[..., PLACES:])], dim=2)), y) for x, y in parts]
    chances, _ = attentive_probe(blind[0], blind[1], blind[2][0], PLACES, CONFIG)
    assert (chances.argmax(dim=1) == parts[2][1]).double().mean() < 0.35


# --- a real encoder on real pictures ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def digits(probe_data: Path) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
    """Tokens of a tiny random encoder, class and position of every digit, by split."""
    encoder = random_encoder(run_config(probe_data), 0)
    found = {}
    for name, split in Manifest.open(probe_data).splits.items():
        (batch,) = eval_batches(split, (20, 20), 1000)
        where = np.stack([split.targets[t] for t in "xy"], axis=1)
        found[name] = (encoder(batch.images), torch.tensor(split.labels), torch.tensor(where).double())
    return found


def test_position_of_a_real_digit(digits):
    """Better than ridge regression of the mean over the same tokens."""
    (x, _, y), (xv, _, yv), (xt, _, yt) = (digits[name] for name in ("train", "val", "test"))
    config = AttentiveConfig(
        heads=2, lr=(1e-3, 3e-3), weight_decay=(0.01, 0.4), duration=Duration(steps=150), classify=False, targets=("x",)
    )
    fit, chosen = attentive_regression((held(x), y), (held(xv), yv), held(xt), config)
    found = r2_score(yt, fit)
    axes = Axes.fit(x.mean(dim=1))
    z = [axes.apply(part.mean(dim=1)) for part in (x, xv, xt)]
    mean, _ = ridge_probe(axes, (z[0], y), (z[1], yv), z[2], RidgeConfig())
    assert (found > 0.6).all() and (found > r2_score(yt, mean) + 0.1).all()
    assert [c["val"] > 0.5 for c in chosen] == [True, True]


@pytest.mark.parametrize(("depth", "lr"), [(1, 1e-2), (4, 3e-3)])
def test_quarter_of_the_picture_that_a_real_digit_is_in(digits, depth, lr):
    (x, y), (xv, yv), (xt, yt) = (
        (digits[name][0], (digits[name][2] > 0.5).long() @ torch.tensor([1, 2])) for name in ("train", "val", "test")
    )
    config = AttentiveConfig(
        depth=depth, heads=2, lr=(lr,), weight_decay=(0.01,), duration=Duration(steps=150), batch=50
    )
    chances, _ = attentive_probe((held(x), y), (held(xv), yv), held(xt), 4, config)
    commonest = np.bincount(yt).max() / len(yt)
    assert (chances.argmax(dim=1) == yt).double().mean() > commonest + 0.2


# --- choice, views, errors ----------------------------------------------------------------------------------------


def test_choice_follows_validation_and_edges_are_named():
    (x, y), (xv, yv) = shuffled(60, 0), shuffled(50, 1)
    config = AttentiveConfig(
        heads=2, lr=(1e-7, 1e-2, 1e-6), weight_decay=(0.01, 0.1), duration=Duration(steps=80), batch=32
    )
    grid = train_grid(held(x), y, PLACES, config)
    accuracy, loss = score(grid, held(xv), yv)
    assert accuracy.shape == loss.shape == (6,)
    _, chosen = attentive_probe((held(x), y), (held(xv), yv), held(xv), PLACES, config)
    best = config.grid()[int(np.lexsort((loss.numpy(), -accuracy.numpy()))[0])]
    assert (chosen["lr"], chosen["weight_decay"]) == best and best[0] == 1e-2
    assert chosen["val"] == float(accuracy.max())
    side = "low" if chosen["weight_decay"] == 0.01 else "high"
    assert chosen["at_edge"] == f"lr high, weight_decay {side}"
    # where the head that learned is always wrong on the validation split, another one is taken
    _, chosen = attentive_probe((held(x), y), (held(xv), (yv + 1) % PLACES), held(xv), PLACES, config)
    assert chosen["lr"] < 1e-2


def test_views_are_trained_on_one_by_one_and_averaged_in_the_test():
    x, y = shuffled(60, 0)
    config = AttentiveConfig(heads=2, lr=(3e-3,), weight_decay=(0.1,), duration=Duration(steps=20), batch=60)
    noise = 0.3 * torch.randn(60, 2, PLACES, 2 * PLACES, generator=torch.Generator().manual_seed(0))
    several = Held(x.unsqueeze(1) + noise)
    grid = train_grid(several, y, PLACES, config, dtype=torch.float64)
    # the same samples, each view a sample of its own, in full batches: the same gradients
    flat = Held(several.tokens.flatten(0, 1).unsqueeze(1))
    alone = train_grid(
        flat, y.repeat_interleave(2), PLACES, AttentiveConfig(**{**vars(config), "batch": 120}), dtype=torch.float64
    )
    for name, value in grid.stack.values.items():
        torch.testing.assert_close(alone.stack.values[name], value, atol=1e-9, rtol=0)
    (out,) = grid.answers(several)
    chances, _ = attentive_probe((several, y), (several, y), several, PLACES, config)
    torch.testing.assert_close(chances, average_probabilities(out[0]), atol=1e-5, rtol=0)


def test_bfloat16_products_come_close():
    (x, y), (xt, yt) = shuffled(200, 0), shuffled(100, 1)
    config = AttentiveConfig(**{**vars(CONFIG), "precision": "bf16", "lr": (1e-2,)})
    chances, _ = attentive_probe((held(x), y), (held(xt), yt), held(xt), PLACES, config)
    assert (chances.argmax(dim=1) == yt).double().mean() > 0.9


def test_all_heads_diverging_is_an_error():
    x, y = shuffled(40, 0)
    config = AttentiveConfig(heads=2, lr=(1e30,), weight_decay=(0.1,), duration=Duration(steps=5))
    with pytest.raises(DataError, match="random init: every head of the attentive probe diverged"):
        attentive_probe((held(x), y), (held(x), y), held(x), PLACES, config, name="random init")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"lr": ()}, r"lr: got \[\]"),
        ({"lr": (0.0,)}, "numbers above 0"),
        ({"weight_decay": (-1.0,)}, "weight_decay: got"),
        ({"depth": 0}, "depth=0"),
        ({"heads": 0}, "heads=0"),
        ({"batch": 0}, "batch=0"),
        ({"mlp_ratio": 0.0}, "mlp_ratio=0.0"),
        ({"memory_gib": 0.0}, "memory_gib=0.0"),
        ({"classify": False}, "nothing to probe"),
    ],
)
def test_bad_settings(values, message):
    with pytest.raises(ConfigError, match=message):
        AttentiveConfig(**values)


def test_settings_that_do_not_fit_the_tokens():
    x, y = shuffled(20, 0)
    with pytest.raises(ConfigError, match="heads=3 does not divide the width 10"):
        train_grid(held(x), y, PLACES, AttentiveConfig(heads=3))
    with pytest.raises(ConfigError, match="5 steps with a warm-up of 9"):
        AttentiveConfig(duration=Duration(steps=5), warmup=Duration(steps=9)).recipe(20)
