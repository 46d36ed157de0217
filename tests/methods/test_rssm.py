"""The belief: it filters, imagines by its prior, and carries on where frames are missing."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical, Normal, kl_divergence

from jepa.config import RunConfig, build
from jepa.cost import step_flops
from jepa.errors import ConfigError
from jepa.methods import base
from jepa.methods.rssm import RSSM
from jepa.methods.world import History
from jepa.nn.belief import BeliefConfig, Distribution
from tests.methods import squares
from tests.methods.squares import SIZE, history_of, loss_of, make

KINDS = pytest.mark.parametrize("kind", ["categorical", "gaussian"])


def rssm(**more: Any) -> RSSM:
    model = make(squares.RSSM | more)
    assert isinstance(model, RSSM)
    return model


def belief(kind: str) -> dict[str, Any]:
    return {"width": 48, "hidden": 48, "groups": 6, "classes": 8, "stochastic": kind}


@KINDS
def test_every_parameter_gets_a_gradient(kind: str) -> None:
    model = rssm(belief=belief(kind), blank=0.5, free=0.0, straighten=0.1).train()
    x, actions, _ = squares.squares(8)
    output = loss_of(model, x, actions)
    output.loss.backward()
    assert output.loss.ndim == 0 and torch.isfinite(output.loss)
    assert all(m.ndim == 0 and not m.requires_grad for m in output.metrics.values())
    learned = {n: p for n, p in model.named_parameters() if not n.startswith("encoder.")}
    assert [n for n, p in learned.items() if p.grad is None or not p.grad.abs().sum() > 0] == []
    assert all(p.grad is None for n, p in model.named_parameters() if n.startswith("encoder."))


def test_divergence_is_that_of_torch() -> None:
    config = BeliefConfig(stochastic="categorical", groups=3, classes=5, unimix=0.0)
    a, b = torch.randn(4, 15), torch.randn(4, 15)
    p, q = Distribution(a, config), Distribution(b, config)
    plain = [Categorical(logits=x.view(4, 3, 5)) for x in (a, b)]
    torch.testing.assert_close(p.divergence(q), kl_divergence(*plain).sum(-1))
    torch.testing.assert_close(p.spread(), plain[0].entropy().mean(-1))
    config = BeliefConfig(groups=5, stochastic="gaussian")
    p, q = Distribution(a[:, :10], config), Distribution(b[:, :10], config)
    torch.testing.assert_close(p.divergence(q), kl_divergence(Normal(p.mean, p.std), Normal(q.mean, q.std)).sum(-1))


def test_samples_have_their_distribution() -> None:
    config = BeliefConfig(stochastic="categorical", groups=1, classes=3, unimix=0.3)
    p = Distribution(torch.tensor([[2.0, 0.0, -30.0]]).expand(20000, -1), config)
    assert math.isclose(float(p.probabilities[0, 0, 2]), 0.1, abs_tol=1e-6)
    found = p.sample(torch.rand(20000, 3)).mean(0)
    torch.testing.assert_close(found, p.probabilities[0, 0], atol=0.02, rtol=0)
    config = BeliefConfig(groups=1, stochastic="gaussian")
    p = Distribution(torch.tensor([[3.0, 1.0]]).expand(20000, -1), config)
    z = p.sample(torch.rand(20000, 2))
    assert abs(z.mean() - 3) < 0.05 and abs(z.std() - p.std[0, 0]) < 0.05


def test_what_comes_later_never_changes_a_belief() -> None:
    model = rssm().eval()
    x, actions, _ = squares.squares(2)
    target, there = model.seen(history_of(x, actions, 4))
    before = model.follow(target, there, actions).features
    for t in range(1, 4):
        changed, told = target.clone(), actions.clone()
        changed[:, t:] += 1
        told[:, t - 1 :] += 1
        after = model.follow(changed, there, told).features
        assert torch.equal(after[:, :t], before[:, :t]) and not torch.equal(after[:, t], before[:, t])


def test_noise_is_keyed_by_sample() -> None:
    model = rssm(blank=0.5).train()
    x, actions, _ = squares.squares(6)
    target, there = model.seen(history_of(x, actions, 4))
    g = torch.arange(6)
    whole = model.follow(target, there & model.shown(g, 4), actions, g).features
    half = model.follow(target[3:], there[3:] & model.shown(g[3:], 4), actions[3:], g[3:]).features
    torch.testing.assert_close(whole[3:], half)
    shown = model.shown(torch.arange(2000), 4)
    assert shown[:, 0].all() and abs(shown[:, 1:].float().mean() - 0.5) < 0.03
    assert bool(model.eval().shown(g, 4).all())


def test_imagining_is_the_prior_step_by_step() -> None:
    model = rssm().eval()
    x, actions, _ = squares.squares(2)
    plans = torch.randn(2, 3, 5, 2)
    model.requires_grad_(False)
    state = model.observe(history_of(x, actions, 3))
    assert state.latents.shape == (2, 3, 16, 16)
    future = model.imagine(state, plans)
    assert future.latents.shape == (2, 3, 5, 16, 16)
    for b in range(2):
        for s in range(3):
            h, z = state.memory["h"][b : b + 1], state.memory["z"][b : b + 1]
            for step in range(5):
                h = model.belief.step(h, z, model.action_scale(plans[b : b + 1, s, step]))
                z = model.belief.prior(h).mode()
                expected = model.decoder(torch.cat([h, z], -1)).view(16, 16)
                torch.testing.assert_close(future.latents[b, s, step], expected, atol=1e-5, rtol=1e-4)
    found = model.uncertainty(future)
    assert found is not None and found.shape == (2, 3, 5) and float(found.min()) > 0


def blanked(x: Tensor, *times: int) -> Tensor:
    x = x.clone()
    x[:, :, list(times)] = 0.7
    return x


def test_the_belief_recovers_where_frames_are_missing() -> None:
    """With the last frames hidden, it is nearer to the truth than the last frame that was seen."""
    torch.set_num_threads(1)
    model = rssm(blank=0.4)
    squares.train(model, 300, batch=48, lr=5e-3)
    x, actions, _ = squares.squares(200, seed=1)
    with torch.no_grad():
        truth, _ = model.seen(history_of(x, actions, 4))
        state = model.observe(history_of(blanked(x, 2, 3), actions, 4))
        error = (state.latents[:, -1].flatten(1) - truth[:, -1]).square().mean()
        copied = (truth[:, 1] - truth[:, -1]).square().mean()
        future = model.imagine(model.observe(history_of(x, actions, 2)), actions[:, None, 1:])
        ahead = (future.latents[:, 0, -1].flatten(1) - truth[:, -1]).square().mean()
        wrong = model.imagine(model.observe(history_of(x, actions, 2)), actions.roll(1, 0)[:, None, 1:])
        shuffled = (wrong.latents[:, 0, -1].flatten(1) - truth[:, -1]).square().mean()
    assert error < 0.7 * copied and ahead < 0.7 * copied and ahead < 0.75 * shuffled


def test_missing_frames_need_training_for_them() -> None:
    x, actions, _ = squares.squares(2)
    with pytest.raises(ConfigError, match=r"method\.blank"):
        rssm().eval().observe(history_of(blanked(x, 1), actions, 2))


def test_missing_frames_are_no_targets() -> None:
    model = rssm(blank=0.2).eval()
    x, actions, _ = squares.squares(4)
    first = loss_of(model, blanked(x, 2), actions).metrics["loss_reconstruction"]
    other = x.clone()
    other[:, :, 2] = -5.0  # a blank of another colour
    torch.testing.assert_close(first, loss_of(model, other, actions).metrics["loss_reconstruction"])


def test_proprioception_is_seen_and_predicted() -> None:
    model = rssm(space={"action": 2, "proprio": 3}).train()
    x, actions, _ = squares.squares(4)
    proprio = torch.randn(4, 4, 3)
    assert torch.isfinite(loss_of(model, x, actions, proprio=proprio).loss)
    history = History(x.transpose(1, 2), actions, proprio)
    future = model.eval().imagine(model.observe(history), torch.randn(4, 2, 3, 2))
    assert future.proprio is not None and future.proprio.shape == (4, 2, 3, 3)
    with pytest.raises(ConfigError, match="give it with every frame"):
        model.observe(history_of(x, actions, 2))


def test_bf16_and_the_meta_device() -> None:
    model = rssm(blank=0.2).train()
    x, actions, _ = squares.squares(4)
    with torch.autocast("cpu", torch.bfloat16):
        output = loss_of(model, x, actions)
    output.loss.backward()
    assert torch.isfinite(output.loss)
    values = {"method": squares.RSSM, "data": {"clip": {"frames": 4, "stride": 1}, "image_size": 16, "steps": {}}}
    flops = step_flops(build(RunConfig, values | {"train": {"batch": 1}}))
    assert flops is not None and 1e5 < flops < 1e9


def test_what_it_cannot_take_is_explained() -> None:
    for values, words in (({"space": {}}, "needs actions"), ({"blank": 1.0}, "blank=1"), ({"encoder": {}}, "encoder")):
        with pytest.raises(ConfigError, match=words):
            base.create(squares.RSSM | values, SIZE)


def test_a_phase_may_have_other_windows_but_no_other_frames() -> None:
    model = rssm(straighten=0.1)
    model.enter(model.config, (6, *SIZE[1:]))
    assert model.size == (6, *SIZE[1:])
    with pytest.raises(ConfigError, match="made for frames of"):
        model.enter(model.config, (6, 16, 20))
    with pytest.raises(ConfigError, match="windows of 2 frames are too short, 3 are needed"):
        model.enter(model.config, (2, *SIZE[1:]))
