"""World models over a frozen encoder, with chunks of actions."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from jepa import config, losses
from jepa.errors import ConfigError
from jepa.methods import base
from jepa.methods.ac import AC
from jepa.methods.dinowm import DinoWM
from jepa.methods.world import History, State
from jepa.nn.leap import Chunk
from jepa.nn.rollout import Frames
from tests.methods.frozen_worlds import ACTION, SIDE, example, make

MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "dinowm": ("dinowm", {"predictor": {"action": "concat"}}),
    "dinowm, adaptive norms": ("dinowm", {"predictor": {"action": "adaln"}}),
    "ac": ("ac", {}),
    "ac, a window": ("ac", {"window": 2, "space": {"proprio": 0}}),
    "ac, states added up": ("ac", {"motion": "add", "extrinsics": 1}),
    "ac, poses": ("ac", {"motion": "pose", "space": {"action": 14, "proprio": 7}}),
}


def world(name: str, normal: bool = True, **more: Any) -> AC | DinoWM:
    """`normal`: chunks say as much as single actions do."""
    method, settings = MODELS[name]
    model = make(method, frames=5, **config.merge(settings, more))
    assert isinstance(model, AC | DinoWM)
    if model.chunks is not None and normal:
        torch.nn.init.normal_(model.chunks.fc2.weight)
    return model.eval()


def known(model: AC | DinoWM, state: State) -> Frames:
    before = torch.cat([state.memory["actions"], torch.zeros(2, 1, model.space.action)], dim=1).double()
    proprio = state.proprio
    if isinstance(model, DinoWM) and proprio is not None:
        proprio = proprio.unsqueeze(2).expand(-1, -1, state.latents.shape[2], -1)
    return Frames(state.latents, proprio, model.action_scale(before))


@pytest.mark.parametrize("seen", [1, 2, 4])
@pytest.mark.parametrize("name", MODELS)
def test_leaps_are_predictions_over_the_first_k_actions(name: str, seen: int) -> None:
    """Against a roll-out without any keys kept, one plan and one length at a time."""
    model = world(name, chunk=3)
    assert model.chunks is not None
    window = model.config.history if isinstance(model, DinoWM) else model.frames_at_once
    plans = torch.randn(2, 3, 5, model.space.action).double()
    with torch.no_grad():
        state = model.observe(example(model, frames=seen))
        found = model.imagine(state, plans)
        assert found.latents.shape[:3] == (2, 3, 5)
        for s in range(3):
            frames, chosen = known(model, state), model.action_scale(plans[:, s])
            begin = frames.count
            for start, length in ((0, 3), (3, 2)):
                frames.actions[:, -1] = chosen[:, start]
                seen_now = frames.part(max(0, frames.count - window), frames.count)
                ahead = []
                for k in range(1, length + 1):
                    actions = chosen[:, start : start + k]
                    told = model.embedded(seen_now.actions)
                    told[:, -1] = model.chunks(model.embedded(actions), actions)[:, 0, k - 1]
                    chunk = Chunk(told, actions, torch.full((2,), k))
                    ahead.append(model.ahead(seen_now, last=True, chunk=chunk))
                for k, step in enumerate(ahead):
                    at = min(start + k + 1, 4)
                    frames = frames.join(Frames(step.latents, step.proprio, chosen[:, at : at + 1]))
            torch.testing.assert_close(found.latents[:, s], frames.latents[:, begin:])
            if frames.proprio is not None:
                assert found.proprio is not None
                wanted = frames.proprio.mean(dim=-2) if isinstance(model, DinoWM) else frames.proprio
                torch.testing.assert_close(found.proprio[:, s], wanted[:, begin:])


@pytest.mark.parametrize("name", ["dinowm", "ac"])
def test_a_later_action_never_changes_an_earlier_prediction(name: str) -> None:
    model = world(name, chunk=3)
    state, plans = model.observe(example(model, frames=2)), torch.randn(2, 2, 5, ACTION).double()
    with torch.no_grad():
        before = model.imagine(state, plans).latents
        for step in range(5):
            later = plans.clone()
            later[:, :, step] += 1
            changed = (model.imagine(state, later).latents != before).flatten(3).any(-1)
            assert not changed[:, :, :step].any() and changed[:, :, step].all()


def test_states_that_actions_move_are_moved_by_every_action_of_a_chunk() -> None:
    """What single actions add up to does not depend on how many of them one prediction covers."""
    plans = torch.randn(2, 3, 5, ACTION).double()
    ends = []
    for most in (1, 2, 4):
        model = world("ac, states added up", chunk=most)
        model.action_scale.fit(torch.full((ACTION,), 0.5), torch.full((ACTION,), 2.0))
        model.proprio_scale.fit(torch.ones(3), torch.full((3,), 0.7))
        with torch.no_grad():
            ends.append(model.imagine(model.observe(example(model, frames=2)), plans).proprio)
    torch.testing.assert_close(ends[0], ends[1])
    torch.testing.assert_close(ends[0], ends[2])


@pytest.mark.parametrize("name", ["dinowm", "ac", "ac, states added up"])
def test_the_loss_is_what_leaping_from_true_frames_costs(name: str) -> None:
    """With K = 2 there is one length, and each of the first three frames of five is followed by two actions."""
    model = world(name, chunk=2, **({"space": {"proprio": 0}} if name == "dinowm" else {}))
    history, errors = example(model), []
    with torch.no_grad():
        latents = model.latents(history.frames)
        states = None if history.proprio is None else model.proprio_scale(history.proprio)
        loss = model.learn(latents, history.actions, history.proprio).metrics["loss_chunk"]
        for at in range(3):
            proprio = None if history.proprio is None else history.proprio[:, : at + 1]
            state = model.observe(History(history.frames[:, : at + 1], history.actions[:, :at], proprio))
            future = model.imagine(state, history.actions[:, at : at + 2].unsqueeze(1))
            errors.append(losses.latent_loss(future.latents[:, 0, 1], latents[:, at + 2], model.config.loss))
            if name == "ac":  # here the predictor tells states too
                assert future.proprio is not None and states is not None
                errors[-1] = errors[-1] + (future.proprio[:, 0, 1] - states[:, at + 2]).square().mean()
    torch.testing.assert_close(loss, torch.stack(errors).mean())


@pytest.mark.parametrize("name", ["dinowm", "ac"])
def test_every_part_of_the_chunk_encoder_learns(name: str) -> None:
    model = world(name, chunk=3)
    history = example(model)
    model.learn(model.latents(history.frames), history.actions, history.proprio).loss.backward()  # type: ignore[no-untyped-call]
    assert model.chunks is not None
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.chunks.parameters())


def added(model: AC | DinoWM, seed: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
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
        model = world("dinowm", chunk=most, rollout=0, space={"proprio": 0}, normal=False).float()
        learner = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], 3e-3)
        steps = []
        for step in range(60):
            output = model.learn(*added(model, step, 16), None)
            learner.zero_grad()
            output.loss.backward()  # type: ignore[no-untyped-call]
            learner.step()
            steps.append(float(output.metrics["loss_one_step" if most == 1 else "loss_chunk"]))
        assert sum(steps[-10:]) < 0.8 * sum(steps[:10])
        latents, actions = added(model, 10**6, 128)
        with torch.no_grad():
            future = model.imagine(State(latents[:, :1], None, {"actions": actions[:, :0]}), actions.unsqueeze(1))
        wanted = latents[:, 1:]
        copied = (latents[:, :1] - wanted).square().mean((0, 2, 3))
        errors[most] = (future.latents[:, 0] - wanted).square().mean((0, 2, 3)) / copied
    assert (errors[4][1:] < 0.92 * errors[1][1:]).all(), errors  # horizons 2, 3 and 4


@pytest.mark.parametrize("name", ["dinowm", "ac"])
def test_without_chunks_there_is_none_of_it(name: str) -> None:
    plain, chunked = world(name).state_dict(), world(name, chunk=2).state_dict()
    extra = chunked.keys() - plain.keys()
    assert extra and all(part.startswith("chunks.") for part in extra)


@pytest.mark.parametrize("name", ["dinowm", "ac"])
def test_what_cannot_be_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="chunk=5 needs 6"):
        world(name, chunk=5)
    with pytest.raises(ConfigError, match="chunk.*0.*at least 1"):
        world(name, chunk=0)


@pytest.mark.parametrize("name", ["dinowm", "ac"])
def test_a_phase_with_windows_too_short_for_its_chunks_is_refused(name: str) -> None:
    model = world(name, chunk=3, rollout=0)
    model.enter(model.config, (4, SIDE, SIDE))
    with pytest.raises(ConfigError, match="windows of 3 frames are too short: chunk=3 needs 4"):
        model.enter(model.config, (3, SIDE, SIDE))
    assert model.size[0] == 4


def test_a_belief_refuses_chunks() -> None:
    for frames in (2, 5):
        with pytest.raises(ConfigError, match=r"chunk=2: rssm predicts over one action at a time.*data.clip.stride"):
            base.create({"name": "rssm", "chunk": 2}, (frames, SIDE, SIDE))
