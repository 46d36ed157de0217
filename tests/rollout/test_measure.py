"""Curves, ratios and calibration of roll-outs of recorded episodes."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import pytest
import torch

from jepa.errors import ConfigError, DataError
from jepa.methods.world import State
from jepa.nn.tokens import Normalise
from jepa.probe.bootstrap import Bootstrap
from jepa.probe.episodes import Place, spread_places
from jepa.probe.frames import FramesConfig, Part, Reader, Source, gather, of_world
from jepa.probe.variables import VariableConfig
from jepa.rollout.measure import Errors, calibration, curves, figures, measure, ratios, useful_steps
from jepa.rollout.suite import RolloutSuite, WindowsConfig
from tests.rollout import worlds

PLAIN = Normalise((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
CPU = torch.device("cpu")
STATE = FramesConfig(
    {"place": VariableConfig("place", unit="px"), "angle": VariableConfig("angle", kind="angle")},
    per_episode=6,
    mlp=None,
)
SUITE = RolloutSuite(windows=WindowsConfig(seen=2, horizon=5, per_episode=3, batch=2), state=STATE)


def rolled(
    model: worlds.PointMass, suite: RolloutSuite = SUITE
) -> tuple[Errors, Bootstrap, list[Place], Reader | None]:
    sizes = {"train": 8, "val": 4, "test": 4}
    train, val, test = (worlds.Walks(name, [14, 12, 3] * sizes[name], seed) for seed, name in enumerate(sizes))
    reader = None
    if suite.state:
        source = Source("latents", "run", of_world(model, PLAIN, suite.state, CPU))
        parts: list[Part] = [gather(split, [source], suite.state, 8) for split in (train, val)]
        reader = Reader.fit(parts[0], parts[1], suite.state)
    places = spread_places(test.lengths, 3, 2, 5)
    errors = measure(model, PLAIN, test, places, suite, reader, CPU)
    return errors, Bootstrap(np.array([e for e, _ in places]), 200), places, reader


def test_blank_frames_hide_from_the_open_loop_alone() -> None:
    test = worlds.Walks("test", [14, 12] * 4, 2)
    places = spread_places(test.lengths, 3, 5, 4)
    errors = {}
    for share in (0.0, 0.7):
        suite = RolloutSuite(windows=WindowsConfig(seen=5, horizon=4, per_episode=3, batch=2, blank=share))
        for forgetful in (False, True):
            model = worlds.keeper(forgetful)
            found = measure(model, PLAIN, test, places, suite, None, CPU)
            errors[share, forgetful] = found.table("latent", "l2")
    whole, belief, memoryless = errors[0.0, False], errors[0.7, False], errors[0.7, True]
    assert belief["open_loop"].max() < 0.1 < 1 < memoryless["open_loop"].max()
    assert np.array_equal(belief["one_step"], whole["one_step"]), "the floor sees everything"
    assert belief["copy"].mean() > whole["copy"].mean(), "the last frame that was seen is further back"
    assert np.array_equal(belief["copy"], memoryless["copy"])
    with pytest.raises(ConfigError, match="seen=1 with blank"):
        WindowsConfig(seen=1, blank=0.5)


def test_curves_are_the_closed_form_in_latents_and_in_pixels() -> None:
    errors, boot, places, reader = rolled(worlds.model(gain=0.5))
    found = figures(errors, SUITE, boot, reader)
    test = worlds.Walks("test", [14, 12, 3] * 4, 2)
    actions = torch.stack([test.actions(e)[f : f + 5] for e, f in places]).double()
    moved, single = actions.cumsum(dim=1).norm(dim=-1), actions.norm(dim=-1)
    expected = {"open_loop": 0.5 * moved, "one_step": 0.5 * single, "copy": moved}
    for name, value in expected.items():
        curve = found["latent"]["l2"][name]
        assert curve["value"] == pytest.approx(value.mean(dim=0).tolist(), abs=0.03)
        assert all(a < b < c for a, b, c in zip(curve["low"], curve["value"], curve["high"], strict=True))
        place = found["state"][0]["curves"][name]["value"]
        assert place == pytest.approx(value.mean(dim=0).tolist(), abs=0.05)  # the reader's own error is this small
    assert found["state"][0]["unit"] == "px" and found["state"][1]["unit"] == "°"
    assert max(found["state"][0]["curves"]["read_off"]["value"]) < 0.05
    assert found["ratios"]["copy"]["value"] == pytest.approx([0.5] * 5, abs=0.03)
    assert found["useful_steps"] == 5 and found["uncertainty"] is None
    assert {e for e, _ in places} == {0, 1, 3, 4, 6, 7, 9, 10}  # episodes of 3 frames are too short


def test_wrong_actions_cost_what_they_should() -> None:
    errors, boot, _, _ = rolled(worlds.model(), RolloutSuite(windows=SUITE.windows))
    table = errors.table("latent", "l2")
    assert table["zero"] == pytest.approx(table["copy"], abs=0.02)
    over = ratios(table, "shuffled", "open_loop", boot)
    assert min(over["value"]) > 10  # a model that knows the world, but for the bytes of the frames
    ignoring, boot, _, _ = rolled(worlds.model(gain=0.0), RolloutSuite(windows=SUITE.windows))
    table = ignoring.table("latent", "l2")
    assert ratios(table, "shuffled", "open_loop", boot)["value"] == pytest.approx([1.0] * 5)
    assert ratios(table, "open_loop", "copy", boot)["high"] == pytest.approx([1.0] * 5)


def test_other_actions_come_from_other_episodes() -> None:
    class Told(worlds.PointMass):
        seen: ClassVar[list[torch.Tensor]] = []

        def imagine(self, state: State, actions: torch.Tensor) -> State:
            self.seen.append(actions)
            return super().imagine(state, actions)

    model = Told(worlds.model().config, (4, worlds.SIDE, worlds.SIDE)).eval()
    places = rolled(model, RolloutSuite(windows=SUITE.windows))[2]
    test = worlds.Walks("test", [14, 12, 3] * 4, 2)
    whole = [a for a in model.seen if a.shape[1] == 3]
    assert sum(map(len, whole)) == 24
    for right, shuffled, zero in (plans for batch in whole for plans in batch):
        homes = [{e for e in {e for e, _ in places} if _within(plan, test.actions(e))} for plan in (right, shuffled)]
        assert len(homes[0]) == len(homes[1]) == 1 and homes[0] != homes[1]
        assert not zero.any()


def _within(plan: torch.Tensor, actions: torch.Tensor) -> bool:
    return any(torch.equal(plan, actions[i : i + len(plan)]) for i in range(len(actions) - len(plan) + 1))


def test_calibration_finds_a_model_that_knows_when_it_is_wrong() -> None:
    suite = RolloutSuite(windows=SUITE.windows)
    errors, boot, _, _ = rolled(worlds.model(gain=0.5, unsure=True), suite)
    found = figures(errors, suite, boot, None)["uncertainty"]
    assert min(found["spearman"]["value"][1:]) > 0.95  # first steps are nearly all of one length
    assert found["all"]["value"] > found["all"]["low"] > 0.9
    means = [b["error"] for b in found["reliability"]]
    assert means == sorted(means) and sum(b["count"] for b in found["reliability"]) == 24 * 5


def test_calibration_is_not_fooled_by_the_horizon() -> None:
    g = np.random.default_rng(0)
    steps = np.arange(1, 9.0)
    error, uncertainty = (steps * (1 + 0.2 * g.random((200, 8))) for _ in range(2))
    found = calibration(uncertainty, error, Bootstrap(np.arange(200), 200))
    assert abs(found["all"]["value"]) < 0.1  # both grow with the horizon and know nothing of each other


def test_ranks_share_ties() -> None:
    uncertainty = np.array([[1.0], [1.0], [2.0], [3.0]])
    error = np.array([[10.0], [10.0], [20.0], [5.0]])
    found = calibration(uncertainty, error, Bootstrap(np.arange(4), 200))
    # scipy.stats.spearmanr([1, 1, 2, 3], [10, 10, 20, 5]).statistic
    assert found["all"]["value"] == pytest.approx(-1 / 3)


def test_useful_steps_end_with_the_first_that_is_not() -> None:
    assert useful_steps({"high": [0.5, 0.9, 1.0, 0.8]}) == 2
    assert useful_steps({"high": [0.5, 0.9]}) == 2
    assert useful_steps({"high": [1.2, 0.9]}) == 0


def test_intervals_are_by_episode() -> None:
    table = {"open_loop": np.repeat(np.array([[0.0], [1.0]]), 50, axis=0)}  # two episodes of 50 equal windows
    wide = curves(table, Bootstrap(np.repeat([0, 1], 50), 500))["open_loop"]
    assert (wide["low"][0], wide["high"][0]) == (0.0, 1.0)


def test_broken_weights_are_named() -> None:
    model = worlds.model()
    with torch.no_grad():
        model.encoder.scale.fill_(float("nan"))
    with pytest.raises(DataError, match="episode 0 are not finite"):
        rolled(model, RolloutSuite(windows=SUITE.windows))
