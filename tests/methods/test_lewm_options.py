"""LeWorldModel with chunks of actions, heads and straightening."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from jepa.errors import ConfigError
from jepa.methods import base
from jepa.methods.lewm import LeWM
from tests.methods.squares import LEWM, SIZE, history_of, loss_of, make, squares, train

ALL = {"reward": True, "value": True, "ensemble": 3, "width": 16}


def lewm(**more: Any) -> LeWM:
    model = make(LEWM | more)
    assert isinstance(model, LeWM)
    return model


def test_every_parameter_gets_a_gradient_with_everything_on() -> None:
    model = lewm(chunk=3, straighten=0.1, heads=ALL).train()
    assert model.needs() == {"action": (3, 2), "reward": (3, 1)}
    x, actions, _ = squares(8)
    output = loss_of(model, x, actions, reward=torch.randn(8, 3, 1))
    output.loss.backward()
    expected = {"curvature", "loss_chunk", "loss_reward", "loss_value", "loss_ensemble"}
    assert expected <= output.metrics.keys()
    learned = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert [n for n, p in learned.items() if p.grad is None or not p.grad.abs().sum() > 0] == []


def test_heads_tell_of_every_imagined_step() -> None:
    model = lewm(heads=ALL).eval()
    x, actions, _ = squares(2)
    with torch.no_grad():
        future = model.imagine(model.observe(history_of(x, actions, 2)), torch.randn(2, 3, 5, 2))
        for found in (model.reward(future), model.value(future), model.uncertainty(future)):
            assert found is not None and found.shape == (2, 3, 5)
    plain = lewm().eval()
    assert plain.reward(future) is plain.value(future) is plain.uncertainty(plain.imagine(
        plain.observe(history_of(x, actions, 2)), torch.randn(2, 3, 5, 2))) is None  # fmt: skip


@pytest.mark.parametrize("seen", [1, 2, 4])
def test_leaps_are_what_training_predicts(seen: int) -> None:
    """Step k of a round is the prediction from the round's last frame over k actions."""
    model = lewm(chunk=3).eval()
    assert model.chunks is not None
    x, actions, _ = squares(2)
    plans = torch.randn(2, 3, 5, 2)
    with torch.no_grad():
        state = model.observe(history_of(x, actions, seen))
        found = model.imagine(state, plans).latents.squeeze(3)
        assert found.shape == (2, 3, 5, 32)
        for s in range(3):
            z, known = state.latents.squeeze(2), actions[:, : seen - 1][:, -(min(seen, 3) - 1) :] if seen > 1 else None
            for start, length in ((0, 3), (3, 2)):
                ahead = []
                for k in range(1, length + 1):
                    chosen = plans[:, s, start : start + k]
                    condition = model.chunks(model.embed(chosen), model.action_scale(chosen))[:, 0, k - 1 : k]
                    told = condition if known is None else torch.cat([model.embed(known), condition], 1)[:, -3:]
                    ahead.append(model.predict(z[:, -3:], told)[:, -1:])
                z = torch.cat([z, *ahead], dim=1)
                done = plans[:, s, start : start + length]
                known = done if known is None else torch.cat([known, done], dim=1)
            torch.testing.assert_close(found[:, s], z[:, -5:], atol=1e-5, rtol=1e-4)


def test_a_chunk_of_one_action_is_that_action() -> None:
    model = lewm(chunk=3).eval()
    assert model.chunks is not None
    actions = torch.randn(2, 4, 2)
    chunks = model.chunks(model.embed(actions), actions)
    assert torch.equal(chunks[:, :, 0], model.embed(actions))
    later = actions.clone()
    later[:, 2:] += 1
    changed = model.chunks(model.embed(later), later) != chunks
    assert not changed[:, 0, :2].any() and changed[:, 0, 2].any() and changed[:, 1, 1].any()


def test_chunks_look_at_the_past_only() -> None:
    """A prediction over k actions depends on no frame after its own and no action after the k-th."""
    model = lewm(chunk=2).eval()
    x, actions, _ = squares(1)
    z = model.encode(x).detach().requires_grad_()
    told = model.embed(actions)
    assert model.chunks is not None
    error = model.chunk_error(z, told, model.chunks(told, actions), torch.arange(1))
    (gradient,) = torch.autograd.grad(error, z)
    assert torch.isfinite(gradient).all() and (gradient[0].abs().sum(-1) > 0).all()


def test_chunks_are_learned() -> None:
    torch.set_num_threads(1)
    model = lewm(chunk=3)
    train(model, 150)
    x, actions, _ = squares(200, seed=1)
    with torch.no_grad():
        z = model.encode(x)
        future = model.imagine(model.observe(history_of(x, actions, 1)), actions[:, None])
        error = (future.latents[:, 0, :, 0] - z[:, 1:]).square().mean((0, 2))
        copied = (z[:, :1] - z[:, 1:]).square().mean((0, 2))
    assert bool((error < 0.7 * copied).all())


def test_windows_that_are_too_short_are_refused() -> None:
    with pytest.raises(ConfigError, match="chunk=4 .* need 5"):
        base.create(LEWM | {"chunk": 4}, SIZE)


def test_a_phase_may_have_other_windows_but_no_other_frames() -> None:
    model = lewm(chunk=3)
    model.enter(model.config, (6, *SIZE[1:]))
    assert model.size == (6, *SIZE[1:])
    with pytest.raises(ConfigError, match=r"frames of \(16, 20\): .* made for .*\(16, 16\), so data.image_size"):
        model.enter(model.config, (6, 16, 20))
    with pytest.raises(ConfigError, match="windows of 3 frames are too short: chunk=3 .* need 4"):
        model.enter(model.config, (3, *SIZE[1:]))
    assert model.size == (6, *SIZE[1:]), "what was refused changed nothing"
    x, actions, _ = squares(4, frames=6)
    assert torch.isfinite(loss_of(model.train(), x, actions).loss)
