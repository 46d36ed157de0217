"""World models over a frozen encoder: what was seen never depends on what comes later, and imagining is predicting."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from jepa import config
from jepa.data import Batch
from jepa.errors import ConfigError
from jepa.methods import base
from jepa.methods.ac import AC
from jepa.methods.dinowm import DinoWM
from jepa.methods.frozen import FrozenWorldModel
from jepa.methods.world import History, State
from jepa.nn import frame_causal
from jepa.nn.pose import moved
from jepa.nn.rollout import Frames
from tests.methods import frozen_worlds as worlds
from tests.methods.frozen_worlds import ACTION, FRAMES, PROPRIO, SIDE, example, make
from tests.methods.squares import squares

ADALN = {"predictor": {"action": "adaln"}}
NARROW = {"predictor": {"width": 16}}
BARE = {"space": {"proprio": 0}}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "ac": ("ac", {}),
    "ac, bare": ("ac", BARE),
    "ac, camera": ("ac", {"extrinsics": 2}),
    "dinowm": ("dinowm", {}),
    "dinowm, bare": ("dinowm", BARE),
    "dinowm, adaln": ("dinowm", ADALN),
    "dinowm, narrow": ("dinowm", NARROW),
}
ALL = pytest.mark.parametrize("kind", KINDS)
BOTH = pytest.mark.parametrize("few", [0, 10**6], ids=["frame by frame", "masked"])


def of(kind: str, **more: Any) -> FrozenWorldModel:
    name, settings = KINDS[kind]
    return make(name, **settings, **more)


def one_step(model: FrozenWorldModel, latents: Tensor, actions: Tensor, proprio: Tensor | None) -> Tensor:
    """Predictions (B, T, N, D) of what follows each of T frames, with their T actions."""
    if isinstance(model, AC):
        states = None if proprio is None else model.proprio_scale(proprio)
        return model._forced(latents, model.action_scale(actions), states)[0]
    assert isinstance(model, DinoWM)
    return model.ahead(model.frames(latents, actions, proprio)).latents


@ALL
@BOTH
def test_a_later_frame_action_or_state_never_changes_an_earlier_prediction(
    kind: str, few: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(frame_causal, "_FEW", few)
    model, count = of(kind).eval(), 3
    history = example(model, frames=count + 1)
    latents = model.latents(history.frames)[:, :count]
    proprio = None if history.proprio is None else history.proprio[:, :count]
    start = one_step(model, latents, history.actions, proprio)
    for time in range(count):
        for which in range(3):
            given = [x if x is None else x.clone() for x in (latents, history.actions, proprio)]
            changed = given[which]
            if changed is None:
                continue
            changed[:, time] += torch.randn_like(changed[:, time])  # a constant would leave with the norms
            found = one_step(model, *given)  # type: ignore[arg-type]
            change = (found - start).abs()
            assert change[:, time].max() > 1e-4, (time, which)
            # Products may round by where in memory their operands lie.
            assert not (change[:, :time] > 1e-12).any(), (time, which)


@ALL
@BOTH
@pytest.mark.parametrize("seen", [1, 2, 3])
def test_imagining_is_predicting_one_step_after_the_other(
    kind: str, few: int, seen: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each frame from all that the window holds, computed anew for every plan, with nothing kept."""
    monkeypatch.setattr(frame_causal, "_FEW", few)
    more = {"window": 3} if kind.startswith("ac") else {"history": 3}
    model = of(kind, **more).eval()
    history = example(model, frames=seen)
    plans = torch.randn(2, 3, 5, ACTION, dtype=torch.float64)
    state = model.observe(history)
    future = model.imagine(state, plans)
    assert future.latents.shape == (2, 3, 5, *state.latents.shape[2:])
    assert torch.equal(model.readout(future), future.latents)
    for plan in range(plans.shape[1]):
        latents, proprio = state.latents, state.proprio
        actions = torch.cat([history.actions, plans[:, plan]], dim=1)
        if isinstance(model, DinoWM) and proprio is not None:
            proprio = proprio.unsqueeze(2).expand(-1, -1, latents.shape[2], -1)
        for step in range(plans.shape[2]):
            end = seen + step
            begin = max(0, end - 3)
            window = Frames(
                latents[:, begin:end],
                None if proprio is None else proprio[:, begin:end],
                model.action_scale(actions[:, begin:end]),
            )
            ahead = model.ahead(window)  # type: ignore[operator]
            latents = torch.cat([latents, ahead.latents[:, -1:]], dim=1)
            if proprio is not None:
                proprio = torch.cat([proprio, ahead.proprio[:, -1:]], dim=1)
        torch.testing.assert_close(future.latents[:, plan], latents[:, seen:], atol=1e-10, rtol=0)
        if proprio is not None:
            assert future.proprio is not None
            says = proprio[:, seen:].mean(dim=2) if isinstance(model, DinoWM) else proprio[:, seen:]
            torch.testing.assert_close(future.proprio[:, plan], says, atol=1e-10, rtol=0)


@ALL
def test_plans_and_states_do_not_mix(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = of(kind).eval()
    state = model.observe(example(model, batch=3, frames=2))
    plans = torch.randn(3, 4, 3, ACTION, dtype=torch.float64)
    with torch.no_grad():
        together = model.imagine(state, plans)
        monkeypatch.setattr("jepa.methods.frozen._TOKENS_CPU", 1)  # one plan after the other
        apart = model.imagine(state, plans)
        alone = model.imagine(state.rows(slice(1, 2)), plans[1:2, 2:3, :2])
    torch.testing.assert_close(apart.latents, together.latents, atol=1e-12, rtol=0)
    torch.testing.assert_close(alone.latents[0, 0], together.latents[1, 2, :2], atol=1e-12, rtol=0)


@ALL
def test_gradients_of_plans(kind: str) -> None:
    """What planning by gradient needs: from the last latent to every action, and to no parameter of the encoder."""
    model = of(kind).eval()
    state = model.observe(example(model, frames=2))
    plans = torch.randn(2, 2, 4, ACTION, dtype=torch.float64, requires_grad=True)
    future = model.imagine(state, plans)
    (gradient,) = torch.autograd.grad(future.latents[0, 1, -1].square().sum(), plans)
    assert (gradient[0, 1].abs().sum(dim=-1) > 0).all()
    assert gradient[1].abs().sum() == 0 and gradient[0, 0].abs().sum() == 0


@ALL
def test_training_reaches_every_parameter_but_the_encoder(kind: str) -> None:
    model = of(kind).train()
    history = example(model)
    steps = {"action": history.actions} | ({} if history.proprio is None else {"proprio": history.proprio})
    none = torch.zeros(0, dtype=torch.int64)
    batch = Batch(images=none, labels=none, g=none, index=none, steps=steps)
    output = model(history.frames.transpose(1, 2), None, {}, batch=batch)
    parts = [output.metrics["loss_one_step"], output.metrics["loss_rollout"]]
    parts += [output.metrics["loss_state"]] if "loss_state" in output.metrics else []
    assert ("loss_state" in output.metrics) == (kind in ("ac", "ac, camera"))
    torch.testing.assert_close(output.loss.detach(), sum(parts))
    assert all(m.ndim == 0 and not m.requires_grad for m in output.metrics.values())
    output.loss.backward()
    for name, parameter in model.named_parameters():
        if name.startswith("encoder."):
            assert parameter.grad is None and not parameter.requires_grad, name
        else:
            assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name
    assert not model.encoder.training and not model.encoder.encoder.training
    assert not model.encoders()[model.exported()].training


@ALL
def test_a_step_is_counted_on_the_meta_device(kind: str) -> None:
    name, settings = KINDS[kind]
    worlds.step_on_meta(name, **settings)


@pytest.mark.parametrize("name", ["ac", "dinowm"])
def test_activation_checkpointing_changes_nothing(name: str) -> None:
    found = []
    for enabled in (False, True):
        model = make(name).train()
        model.checkpoint_blocks(enabled)
        history = example(model)
        loss = model.learn(model.latents(history.frames), history.actions, history.proprio).loss  # type: ignore[operator]
        loss.backward()
        found.append([loss.detach(), *(p.grad for p in model.parameters() if p.grad is not None)])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=0)


def test_the_roll_out_loss_is_that_of_predictions_in_a_row() -> None:
    """DINO-WM's: a clip longer than its window, from what was seen before the last frames."""
    model = make("dinowm", frames=7, history=3, rollout=4)
    history = example(model, frames=7)
    assert history.proprio is not None
    latents = model.latents(history.frames)
    metrics = model.learn(latents, history.actions, history.proprio).metrics  # type: ignore[operator]
    state = model.observe(dataclasses.replace(history, frames=history.frames[:, :3], actions=history.actions[:, :2],
                                              proprio=history.proprio[:, :3]))  # fmt: skip
    future = model.imagine(state, history.actions[:, None, 2:])
    wanted = latents[:, 3:]
    ours, theirs = (x.flatten(2).square().sum() for x in (future.latents[:, 0] - wanted, wanted))
    assert theirs > 0
    # the loss is a mean over features and embedded proprioception: the features' part is checked
    frames = model.frames(latents, history.actions, history.proprio)  # type: ignore[operator]
    seen = frames.part(0, 3)
    rolled = model._follow(frames, model.ahead(seen), 3, 4)  # type: ignore[operator]
    torch.testing.assert_close((rolled.latents - wanted).square().sum(), ours, atol=1e-9, rtol=0)
    torch.testing.assert_close(metrics["loss_rollout"], model.distance(rolled, frames.part(3, 7)))  # type: ignore[operator]


def test_new_adaptive_norms_let_everything_through() -> None:
    torch.manual_seed(0)
    model = base.create(worlds.values("dinowm", **ADALN), (FRAMES, SIDE, SIDE)).double()
    assert isinstance(model, DinoWM)
    block = model.predictor.blocks[0]
    x = torch.randn(2, 3, 9, block.get_parameter("attn.proj.weight").shape[0], dtype=torch.float64)
    out, _ = block(x, condition=torch.randn(2, 3, 10, dtype=torch.float64))
    assert torch.equal(out, x)


@pytest.mark.parametrize("motion", ["hold", "add", "pose"])
def test_states_of_a_plan(motion: str) -> None:
    """In the units of the data set; actions of two steps are two motions."""
    model = make("ac", motion=motion, extrinsics=2, space={"action": 14, "proprio": 9})
    history = example(model, frames=2)
    assert history.proprio is not None
    plans = 0.2 * torch.randn(2, 1, 2, 14, dtype=torch.float64)
    future = model.imagine(model.observe(history), plans)
    assert future.proprio is not None
    found = model.proprio_scale.back(future.proprio[:, 0])
    want, camera = history.proprio[:, -1, :7], history.proprio[:, -1, 7:]
    for step in range(2):
        for part in plans[:, 0, step].split(7, dim=-1):
            want = {"hold": want, "add": want + part, "pose": moved(want, part)}[motion]
        torch.testing.assert_close(found[:, step, :7], want, atol=1e-9, rtol=0)
        torch.testing.assert_close(found[:, step, 7:], camera, atol=1e-9, rtol=0)


def test_a_goal_needs_no_state_but_a_plan_does() -> None:
    model = make("dinowm")
    history = dataclasses.replace(example(model, frames=1), proprio=None)
    goal = model.observe(history)
    assert goal.latents.shape == (2, 1, 9, 24)
    with pytest.raises(ConfigError, match=r"needs proprioception .*History\.proprio"):
        model.imagine(goal, torch.zeros(2, 1, 1, ACTION))


@pytest.mark.parametrize(
    ("name", "frames", "more", "words"),
    [
        ("ac", 1, {"rollout": 0}, "2 frames or more"),
        ("ac", 3, {"rollout": 3}, "at most frames - 1"),
        ("dinowm", 4, {"space": {"action": 0}}, "method.space.action"),
        ("ac", 4, {"motion": "pose"}, "position, angles, gripper"),
        ("ac", 4, {"motion": "add", "space": {"action": 7}}, "cannot be added"),
        ("ac", 4, {"extrinsics": 4}, "only 3 numbers"),
        ("ac", 4, {"window": 0}, "at least 1"),
        ("dinowm", 4, {"history": 0}, "history=0"),
        ("dinowm", 4, {"predictor": {"dropout": 1.0}}, "dropout=1"),
    ],
)
def test_settings_that_cannot_be(name: str, frames: int, more: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        make(name, frames=frames, **more)


def test_actions_of_another_size_are_refused() -> None:
    model = make("ac")
    state = model.observe(example(model, frames=1))
    for wrong in (torch.zeros(2, 3, 4, ACTION + 1), torch.zeros(1, 3, 4, ACTION), torch.zeros(2, 4, ACTION)):
        with pytest.raises(ConfigError, match=rf"\(states, plans, steps, {ACTION}\)"):
            model.imagine(state, wrong)


def test_a_phase_may_have_longer_clips_but_no_other_frames() -> None:
    model = make("ac")
    model.enter(model.config, (8, SIDE, SIDE))
    assert model.size[0] == 8 and model.frames_at_once == 7  # type: ignore[comparison-overlap]
    with pytest.raises(ConfigError, match="data.image_size stays"):
        model.enter(model.config, (8, SIDE, 16))
    with pytest.raises(ConfigError, match="at most frames - 1"):
        model.enter(model.config, (2, SIDE, SIDE))


def test_states_map_and_pick() -> None:
    model = make("ac")
    state = model.observe(example(model))
    assert isinstance(state, State) and state.latents.shape[1] == FRAMES - 1, "the newest frames in its window"
    assert state.proprio is not None and state.proprio.shape == (2, FRAMES - 1, PROPRIO)
    assert state.memory["actions"].shape == (2, FRAMES - 2, ACTION)
    assert state.rows([1]).memory["actions"].shape[0] == 1


def test_targets_get_no_gradient() -> None:
    """Embedded proprioception is part of the target too, and must not be pulled towards what is predicted."""
    model = make("dinowm", rollout=0)
    history = example(model)
    assert isinstance(model, DinoWM) and model.proprio_embed is not None and history.proprio is not None
    frames = model.frames(model.latents(history.frames), history.actions, history.proprio)
    ahead = model.ahead(frames.part(0, 3))
    assert ahead.proprio is not None
    fixed = dataclasses.replace(ahead, latents=ahead.latents.detach(), proprio=ahead.proprio.detach())
    assert not model.distance(fixed, frames.part(1, 4)).requires_grad


@pytest.mark.parametrize("name", ["ac", "dinowm"])
def test_it_learns_what_actions_do(name: str) -> None:
    """A few clips of a square that actions push: far below standing still, and worse with actions of other clips."""
    torch.manual_seed(0)
    encoder = config.merge(worlds.IMAGES, {"encoder": {"init": "fan_in"}})
    section = worlds.values(name, space={"action": 2, "proprio": 0})
    section["encoder"] = {"spec": {"method": encoder, "size": [16, 16]}}
    sizes: dict[str, dict[str, Any]] = {
        "ac": {"width": 64, "heads": 4, "init": "fan_in"},
        "dinowm": {"action": "adaln", "width": 48},
    }
    section["predictor"] = section["predictor"] | sizes[name]
    section |= {"action_width": 32} if name == "dinowm" else {}
    model = base.create(section, (4, 16, 16)).train()
    assert isinstance(model, AC | DinoWM)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=5e-3)
    x, actions, _ = squares(8, 4)
    steps = 120 if name == "dinowm" else 300
    latents = model.latents(x.transpose(1, 2))
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 5e-3 * min(1, (step + 1) / 10) * (1 - step / steps)
        optimizer.zero_grad()
        model.learn(latents, actions, None).loss.backward()
        optimizer.step()
    model.eval()
    with torch.no_grad():
        state = model.observe(History(x.transpose(1, 2)[:, :1], actions[:, :0]))
        plans = torch.stack([actions[:, :2], actions.roll(1, 0)[:, :2]], dim=1)
        future = model.imagine(state, plans).latents
        metrics = model.learn(latents, actions, None).metrics
    right, wrong = ((future[:, i] - latents[:, 1:3]).abs().mean() for i in range(2))
    assert metrics["loss_one_step"] < 0.6 * metrics["loss_of_copy"], metrics
    assert right < 0.8 * wrong, (right, wrong)
