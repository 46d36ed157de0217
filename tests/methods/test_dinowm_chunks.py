"""DINO-WM with chunks of actions."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from jepa.errors import ConfigError
from jepa.methods import base
from jepa.methods.dinowm import DinoWM
from jepa.methods.world import State
from tests.methods.frozen_worlds import ACTION, SIDE, example, make


def dinowm(**more: Any) -> DinoWM:
    model = make("dinowm", frames=5, **more)
    assert isinstance(model, DinoWM)
    return model.eval()


@pytest.mark.parametrize("action", ["concat", "adaln"])
@pytest.mark.parametrize("seen", [1, 2, 4])
def test_leaps_are_predictions_over_the_first_k_actions(action: str, seen: int) -> None:
    model = dinowm(chunk=3, predictor={"action": action})
    assert model.chunks is not None
    torch.nn.init.normal_(model.chunks.fc2.weight)
    plans = torch.randn(2, 3, 5, ACTION)
    with torch.no_grad():
        state = model.observe(example(model, frames=seen))
        found = model.imagine(state, plans).latents
        assert found.shape[:3] == (2, 3, 5)
        for s in range(3):
            known, chosen = model._seen(state, plans), model.action_scale(plans[:, s])
            begin = known.count
            for start, length in ((0, 3), (3, 2)):
                known.actions[:, -1] = chosen[:, start]
                window = known.part(max(0, known.count - model.config.history), known.count)
                ahead = []
                for k in range(1, length + 1):
                    chunk = chosen[:, start : start + k]
                    told = model.action_embed(window.actions)
                    told[:, -1] = model.chunks(model.action_embed(chunk), chunk)[:, 0, k - 1]
                    ahead.append(model.ahead(window, last=True, told=told))
                for k, step in enumerate(ahead):
                    at = min(start + k + 1, 4)
                    known = known.join(type(known)(step.latents, step.proprio, chosen[:, at : at + 1]))
            torch.testing.assert_close(found[:, s], known.latents[:, begin:], atol=1e-4, rtol=1e-3)


def test_a_later_action_never_changes_an_earlier_prediction() -> None:
    model = dinowm(chunk=3)
    state, plans = model.observe(example(model, frames=2)), torch.randn(2, 2, 5, ACTION)
    with torch.no_grad():
        before = model.imagine(state, plans).latents
        for step in range(5):
            later = plans.clone()
            later[:, :, step] += 1
            changed = (model.imagine(state, later).latents != before).flatten(3).any(-1)
            assert not changed[:, :, :step].any() and changed[:, :, step].all()


def added(model: DinoWM, seed: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Latents (B, 5, N, D) that go on by what the actions (B, 4, A) add to them."""
    push = torch.randn(ACTION, model.encoder.width, generator=torch.Generator().manual_seed(3))
    draw = torch.Generator().manual_seed(seed)
    actions = torch.randn(count, 4, ACTION, generator=draw) / 2
    first = torch.randn(count, 1, 1, model.encoder.width, generator=draw)
    path = torch.cat([first, first + (actions @ push).cumsum(1).unsqueeze(2)], 1)
    return path.expand(-1, -1, model.encoder.tokens, -1), model.action_scale.back(actions).float()


def test_chunks_beat_single_steps_after_as_many_training_steps() -> None:
    """Errors of predictions in a row add up: one over four actions is nearer to the truth than four in a row."""
    torch.set_num_threads(1)
    errors = {}
    for most in (1, 4):
        model = dinowm(chunk=most, rollout=0, space={"proprio": 0}).float()
        learner = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], 3e-3)
        losses = []
        for step in range(60):
            output = model.learn(*added(model, step, 16), None)
            learner.zero_grad()
            output.loss.backward()  # type: ignore[no-untyped-call]
            learner.step()
            losses.append(float(output.metrics["loss_one_step" if most == 1 else "loss_chunk"]))
        assert sum(losses[-10:]) < 0.8 * sum(losses[:10])
        latents, actions = added(model, 10**6, 128)
        with torch.no_grad():
            future = model.imagine(State(latents[:, :1], None, {"actions": actions[:, :0]}), actions.unsqueeze(1))
        wanted = latents[:, 1:]
        copied = (latents[:, :1] - wanted).square().mean((0, 2, 3))
        errors[most] = (future.latents[:, 0] - wanted).square().mean((0, 2, 3)) / copied
    assert (errors[4][1:] < 0.92 * errors[1][1:]).all(), errors  # horizons 2, 3 and 4


def test_without_chunks_there_is_none_of_it() -> None:
    plain, chunked = dinowm(), dinowm(chunk=2)
    extra = chunked.state_dict().keys() - plain.state_dict().keys()
    assert extra and all(name.startswith("chunks.") for name in extra)


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ConfigError, match="chunk=5 needs 6"):
        dinowm(chunk=5)
    with pytest.raises(ConfigError, match="chunk=0"):
        dinowm(chunk=0)


def test_a_phase_with_windows_too_short_for_its_chunks_is_refused() -> None:
    model = dinowm(chunk=3, rollout=0)
    model.enter(model.config, (4, SIDE, SIDE))
    with pytest.raises(ConfigError, match="windows of 3 frames are too short: chunk=3 needs 4"):
        model.enter(model.config, (3, SIDE, SIDE))
    assert model.size[0] == 4


@pytest.mark.parametrize("name", ["ac", "rssm"])
def test_methods_that_step_by_single_actions_refuse_chunks(name: str) -> None:
    for frames in (2, 5):
        with pytest.raises(ConfigError, match=f"chunk=2: {name} predicts over one action at a time.*data.clip.stride"):
            base.create({"name": name, "chunk": 2}, (frames, SIDE, SIDE))
