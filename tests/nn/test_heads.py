"""Reward, value and ensemble heads."""

from __future__ import annotations

import pytest
import torch

from jepa.errors import ConfigError
from jepa.losses import curvature
from jepa.nn.heads import Ensemble, Heads, HeadsConfig, ScalarHead, symexp, symlog, two_hot


def test_two_hot_weights_have_the_number_as_their_mean() -> None:
    x = torch.tensor([-30.0, -20.0, -3.3, 0.0, 0.01, 7.7, 20.0])
    weights = two_hot(x, 41)
    torch.testing.assert_close(weights.sum(-1), torch.ones(7))
    torch.testing.assert_close((weights * torch.linspace(-20, 20, 41)).sum(-1), x.clamp(-20, 20), atol=1e-5, rtol=1e-5)
    assert int((weights > 0).sum(-1).max()) == 2
    torch.testing.assert_close(symexp(symlog(x)), x, atol=1e-3, rtol=1e-5)


@pytest.mark.parametrize("bins", [0, 41])
def test_a_head_learns_numbers(bins: int) -> None:
    torch.manual_seed(0)
    head = ScalarHead(4, 32, bins)
    x = torch.randn(256, 4)
    target = 3 * x[:, 0]
    optimizer = torch.optim.Adam(head.parameters(), lr=1e-2)
    for _ in range(150):
        optimizer.zero_grad()
        head.loss(x, target).backward()
        optimizer.step()
    assert (head(x) - target).abs().mean() < 0.6


def test_members_agree_where_they_have_learned_and_differ_elsewhere() -> None:
    torch.manual_seed(0)
    ensemble = Ensemble(4, 3, 2, 32)
    optimizer = torch.optim.Adam(ensemble.parameters(), lr=1e-2)
    for step in range(150):
        z, a = torch.randn(64, 2, 3), torch.randn(64, 2, 2)
        following = z + 0.1 * a[..., :1]
        optimizer.zero_grad()
        ensemble.loss(z, a, following, torch.arange(64) + 64 * step, 0).backward()
        optimizer.step()
    z, a = torch.randn(100, 1, 3), torch.randn(100, 1, 2)
    near, far = ensemble.disagreement(z, a), ensemble.disagreement(z * 6, a * 6)
    assert near.shape == (100, 1) and far.mean() > 4 * near.mean()


def test_ensemble_is_each_member_by_itself() -> None:
    ensemble = Ensemble(3, 4, 2, 8)
    z, a = torch.randn(2, 5, 4), torch.randn(2, 5, 2)
    found = ensemble(z, a)
    for m in range(3):
        hidden = torch.nn.functional.silu(torch.cat([z, a], -1) @ ensemble.first[m] + ensemble.first_bias[m])
        torch.testing.assert_close(found[m], hidden @ ensemble.second[m] + ensemble.second_bias[m])


def test_value_is_the_discounted_sum_of_rewards() -> None:
    """A reward of 1 in every step is worth 1 / (1 - discount); an end makes it 1."""
    torch.manual_seed(0)
    heads = Heads(HeadsConfig(value=True, discount=0.5, width=16), 2, 1)
    optimizer = torch.optim.Adam([p for p in heads.parameters() if p.requires_grad], lr=1e-2)
    z, g = torch.zeros(8, 3, 2), torch.arange(8)
    z[4:] = 1.0
    ends = torch.zeros(8, 2, 1)
    ends[4:] = 1.0
    steps = {"reward": torch.ones(8, 2, 1), "terminated": ends}
    for _ in range(400):
        optimizer.zero_grad()
        loss, parts = heads.loss(z, z[:, 1:], torch.zeros(8, 2, 1), steps, g, 0)
        loss.backward()
        optimizer.step()
        heads.after_step()
    assert heads.value is not None and set(parts) == {"loss_value"}
    assert abs(heads.value(z[0, 0]) - 2.0) < 0.25 and abs(heads.value(z[4, 0]) - 1.0) < 0.1


def test_a_skipped_step_leaves_the_slow_head() -> None:
    heads = Heads(HeadsConfig(value=True), 2, 1)
    assert heads.slow is not None and heads.value is not None
    with torch.no_grad():
        heads.value.fc1.weight += 1
    before = heads.slow.fc1.weight.clone()
    heads.after_step(torch.tensor(0.0))
    assert torch.equal(heads.slow.fc1.weight, before)
    heads.after_step(torch.tensor(1.0))
    torch.testing.assert_close(heads.slow.fc1.weight, before.lerp(heads.value.fc1.weight, 0.01))


def test_curvature_of_straight_and_turning_paths() -> None:
    straight = torch.arange(5.0).view(1, 5, 1) * torch.tensor([1.0, 2.0])
    corner = torch.tensor([[[0.0, 0.0], [1.0, 0.0], [1.0, 1.0]]])
    back = torch.tensor([[[0.0, 0.0], [1.0, 0.0], [0.0, 0.0]]])
    for path, expected in ((straight, 0.0), (corner, 1.0), (back, 2.0)):
        torch.testing.assert_close(curvature(path), torch.tensor(expected), atol=1e-6, rtol=0)


def test_what_heads_cannot_be_is_explained() -> None:
    for values, words in (({"ensemble": 1}, "at least 2"), ({"discount": 1.0}, "discount=1"), ({"bins": 2}, "bins=2")):
        with pytest.raises(ConfigError, match=words):
            HeadsConfig(**values)
