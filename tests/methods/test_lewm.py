"""LeWorldModel: causal, rolled out as defined, and able to learn without collapse."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from jepa.config import RunConfig, build
from jepa.cost import step_flops
from jepa.errors import ConfigError
from jepa.methods import base
from jepa.methods.lewm import LeWM
from tests.methods.squares import LEWM, SIZE, history_of, loss_of, make, squares, train


def lewm(**more: object) -> LeWM:
    model = make(LEWM | more)
    assert isinstance(model, LeWM)
    return model


def test_every_parameter_gets_a_gradient() -> None:
    model = lewm().train()
    x, actions, _ = squares(6)
    output = loss_of(model, x, actions)
    assert output.loss.ndim == 0 and torch.isfinite(output.loss)
    assert all(m.ndim == 0 and not m.requires_grad for m in output.metrics.values())
    output.loss.backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


@pytest.mark.parametrize("tokens", ["cls", "mean"])
@pytest.mark.parametrize("norm", ["batch", "layer"])
def test_encodes_each_frame_by_itself(tokens: str, norm: str) -> None:
    model = lewm(tokens=tokens, norm=norm).eval()
    x, _, _ = squares(3)
    z = model.encode(x)
    assert z.shape == (3, 4, 32)
    torch.testing.assert_close(model.encode(x[:, :, 2]), z[:, 2:3])


def test_what_comes_later_never_changes_a_prediction() -> None:
    model = lewm().eval()
    z, c = torch.randn(2, 3, 32), torch.randn(2, 3, 32)
    before = model.predict(z, c)
    for t in (1, 2):
        z_later, c_later = z.clone(), c.clone()
        z_later[:, t:] += 1
        c_later[:, t:] += 1
        assert torch.equal(model.predict(z_later, c_later)[:, :t], before[:, :t])
        assert not torch.equal(model.predict(z_later, c)[:, t:], before[:, t:])
        assert not torch.equal(model.predict(z, c_later)[:, t:], before[:, t:])


def rolled_by_hand(model: LeWM, z: Tensor, known: Tensor, plan: Tensor) -> Tensor:
    """The definition: (T, D), (T - 1, D), (H, D) to (H, D), one plan and one step at a time."""
    frames, actions, found = list(z), list(known), []
    for step in plan:
        actions.append(step)
        window = model.config.history
        out = model.predict(torch.stack(frames)[None, -window:], torch.stack(actions)[None, -window:])
        frames.append(out[0, -1])
        found.append(frames[-1])
    return torch.stack(found)


@pytest.mark.parametrize("seen", [1, 2, 3, 4])
@pytest.mark.parametrize("window", [1, 3])
def test_imagining_is_the_sliding_roll_out(seen: int, window: int) -> None:
    model = lewm(history=window).eval()
    x, actions, _ = squares(2)
    plans = torch.randn(2, 3, 6, 2)
    with torch.no_grad():
        state = model.observe(history_of(x, actions, seen))
        found = model.imagine(state, plans).latents
        assert found.shape == (2, 3, 6, 1, 32)
        assert state.latents.shape == (2, min(seen, window), 1, 32)
        for b in range(2):
            for s in range(3):
                z, known = model.encoder.each(x.transpose(1, 2)[b : b + 1, :seen])[0], model.embed(actions[b])
                expected = rolled_by_hand(model, z, known[: seen - 1], model.embed(plans[b, s]))
                torch.testing.assert_close(found[b, s, :, 0], expected, atol=1e-5, rtol=1e-5)


def test_imagining_is_teacher_forcing_on_its_own_predictions() -> None:
    """The first imagined step is the training's prediction, from the same frames and actions."""
    model = lewm().eval()
    x, actions, _ = squares(5)
    with torch.no_grad():
        z = model.encoder.each(x.transpose(1, 2))
        predicted = model.predict(z[:, :3], model.embed(actions))[:, -1]
        state = model.observe(history_of(x, actions, 3))
        found = model.imagine(state, actions[:, None, 2:])
    torch.testing.assert_close(found.latents[:, 0, 0, 0], predicted, atol=1e-5, rtol=1e-5)


def test_gradients_of_plans_go_through_the_roll_out() -> None:
    model = lewm().eval().requires_grad_(False)
    x, actions, _ = squares(2)
    plans = torch.randn(2, 3, 5, 2, requires_grad=True)
    model.imagine(model.observe(history_of(x, actions, 2)), plans).latents[:, :, -1].square().sum().backward()
    assert plans.grad is not None and bool((plans.grad.abs().sum(-1) > 0)[:, :, -3:].all())


def test_longer_windows_are_all_runs_of_the_history() -> None:
    model = lewm().eval()
    x, actions, _ = squares(3, frames=6)
    with torch.no_grad():
        z, c = model.encoder.each(x.transpose(1, 2)), model.embed(actions)
        predicted, error = model.prediction(z, c)
        parts = [model.prediction(z[:, t : t + 4], c[:, t : t + 3]) for t in range(3)]
    torch.testing.assert_close(error, torch.stack([part[1] for part in parts]).mean())
    torch.testing.assert_close(predicted[:, :3], parts[0][0])
    torch.testing.assert_close(predicted[:, 4], parts[2][0][:, -1])


def test_learns_without_collapse() -> None:
    torch.set_num_threads(1)
    model = lewm()
    train(model, 200)
    x, actions, _ = squares(200, seed=1)
    with torch.no_grad():
        output = loss_of(model, x, actions)
        z = model.encode(x).flatten(0, 1)
    assert output.metrics["loss_prediction"] < 0.5 * output.metrics["loss_of_copy"]
    assert z.std(0).min() > 0.2 and z.std(0).mean() > 0.6
    values = torch.linalg.svdvals(z - z.mean(0))
    share = values.square() / values.square().sum()
    assert torch.exp(-(share * share.log()).sum()) > 3.5  # effective rank, of what two numbers tell


def test_bf16_leaves_sigreg_and_running_statistics_alone() -> None:
    model = lewm().train()
    x, actions, _ = squares(8)
    with torch.autocast("cpu", torch.bfloat16):
        output = loss_of(model, x, actions)
    output.loss.backward()
    assert output.metrics["sigreg"].dtype == output.loss.dtype == torch.float32
    assert torch.isfinite(output.loss)


def test_a_skipped_step_leaves_the_running_statistics() -> None:
    model = lewm().train()
    x, actions, _ = squares(8)
    before = model.encoder.projector.norm.running_mean.clone()
    loss_of(model, x, actions)
    model.after_step({}, torch.tensor(0.0))
    assert torch.equal(model.encoder.projector.norm.running_mean, before)
    loss_of(model, x, actions)
    model.after_step({}, torch.tensor(1.0))
    assert not torch.equal(model.encoder.projector.norm.running_mean, before)


def test_cost_is_counted_on_the_meta_device() -> None:
    values = {"method": LEWM, "data": {"clip": {"frames": 4, "stride": 1}, "image_size": 16, "steps": {}}}
    one = step_flops(build(RunConfig, values | {"train": {"batch": 1}}))
    assert one is not None and 1e6 < one < 1e9


def test_the_paper_s_size() -> None:
    with torch.device("meta"):
        model = base.create({"name": "lewm", "space": {"action": 10}}, (4, 224, 224))
    assert 15e6 < sum(p.numel() for p in model.parameters()) < 19e6


def test_what_it_cannot_take_is_explained() -> None:
    with pytest.raises(ConfigError, match=r"\bactions\b"):
        base.create(LEWM | {"space": {}}, SIZE)
    with pytest.raises(ConfigError, match="pixels only"):
        base.create(LEWM | {"space": {"action": 2, "proprio": 3}}, SIZE)
    with pytest.raises(ConfigError, match=r"frames of \(20, 20\)"):
        lewm().encode(torch.zeros(1, 3, 2, 20, 20))
