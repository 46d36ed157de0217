"""State probes of frames of episodes, on dots whose place is known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from jepa.errors import ConfigError, DataError
from jepa.nn.tokens import Normalise
from jepa.probe.bootstrap import Bootstrap
from jepa.probe.frames import FramesConfig, Part, Source, Table, flat, gather, of_encoder, of_pixels, of_world
from jepa.probe.mlp import MlpConfig
from jepa.probe.suite import load_suite
from jepa.probe.variables import VariableConfig
from tests.rollout import worlds

PLAIN = Normalise((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
CPU = torch.device("cpu")
CONFIG = FramesConfig(
    {"place": VariableConfig("place", unit="px"), "angle": VariableConfig("angle", kind="angle")},
    per_episode=6,
    mlp=MlpConfig(width=32, steps=300, lr=(3e-3,)),
)


def table(config: FramesConfig, *sources: Source) -> tuple[Table, tuple[Part, Part, Part]]:
    splits = [worlds.Walks(name, [12] * n, i) for i, (name, n) in enumerate([("train", 40), ("val", 10), ("test", 10)])]
    train, val, test = (gather(split, sources, config, 16) for split in splits)
    assert [split.reads for split in splits] == [40, 10, 10]  # once for all sources
    made = Table(config, (train, val, test), Bootstrap(test.clusters, 200), "1")
    for number, source in enumerate(sources):
        made.add(source, number)
    return made, (train, val, test)


def row(made: Table, encoder: str, probe: str, metric: str) -> dict[str, float]:
    (found,) = [r for r in made.rows if (r["encoder"], r["probe"], r["metric"]) == (encoder, probe, metric)]
    return found


def test_latents_that_are_the_place_are_read_exactly_and_the_angle_by_the_network_alone() -> None:
    own = Source("latents", "run", of_world(worlds.model(), PLAIN, CONFIG, CPU))
    noise = Source("random init", "random", lambda batch: torch.ones(len(batch.frames), 2))
    made, (_, _, test) = table(CONFIG, own, noise)
    assert row(made, "latents", "ridge:place", "r2")["value"] > 0.9999
    assert row(made, "latents", "ridge:place", "pearson")["value"] > 0.9999
    found = row(made, "latents", "ridge:place", "error")
    assert 0 < found["value"] < 0.05 and found["unit"] == "px"
    bent, straight = (row(made, "latents", f"{kind}:angle", "error") for kind in ("mlp", "ridge"))
    assert bent["value"] < straight["value"] and bent["unit"] == "°"
    nothing = row(made, "random init", "ridge:place", "r2")
    assert nothing["value"] <= 0 and nothing["gap"]["low"] > 0.9
    assert row(made, "random init", "ridge:place", "pearson")["value"] == 0
    assert row(made, "random init", "ridge:place", "error")["gap"]["high"] < 0
    assert found["n_test"] == 60 and found["n_clusters"] == 10 == len(np.unique(test.clusters))


def test_velocity_needs_two_frames() -> None:
    class Moving(worlds.Walks):
        def read(self, episode: int) -> worlds.Recording:
            found = super().read(episode)
            speed = torch.cat([torch.zeros(1, 2, dtype=torch.float64), found.arrays["place"].diff(dim=0)])
            return replace(found, arrays={"speed": speed})

    scores = []
    for frames in (1, 2):
        config = FramesConfig({"speed": VariableConfig("speed")}, 6, history=2, frames=frames, mlp=None)
        source = Source("latents", "run", of_world(worlds.model(), PLAIN, config, CPU))
        parts = [gather(Moving(name, [12] * 20, i), [source], config, 16) for i, name in enumerate("abc")]
        made = Table(config, (parts[0], parts[1], parts[2]), Bootstrap(parts[2].clusters, 200), "1")
        made.add(source, 0)
        scores.append(row(made, "latents", "ridge:speed", "r2")["value"])
    assert scores[0] < 0.5 and scores[1] > 0.99


def test_errors_by_frames_since_the_last_one_seen_tell_a_belief_from_none() -> None:
    config = replace(CONFIG, history=6, blank=0.6, mlp=None)
    sources = [
        Source(name, role, of_world(worlds.keeper(forgetful), PLAIN, config, CPU))
        for name, role, forgetful in (("belief", "run", False), ("memoryless", "random", True))
    ]
    made, (_, _, test) = table(config, *sources)
    again, (_, _, same) = table(config, *sources)
    assert made.missing == again.missing and np.array_equal(test.since, same.since)
    found = {
        name: {r["since"]: r for r in made.missing if r["encoder"] == name and r["probe"] == "ridge:place"}
        for name in ("belief", "memoryless")
    }
    assert set(found["belief"]) == set(np.unique(test.since)) and max(found["belief"]) == 5
    assert sum(r["n_test"] for r in found["belief"].values()) == len(test.places) == 60
    assert all(r["value"] < 0.1 and r["unit"] == "px" for r in found["belief"].values())
    for count, r in found["memoryless"].items():
        assert r["low"] <= r["value"] <= r["high"] and (count == 0 or r["value"] > 1)
    with pytest.raises(ConfigError, match="blank=0.5 with history=1"):
        replace(CONFIG, blank=0.5)
    with pytest.raises(ConfigError, match="blank=1: the share"):
        replace(CONFIG, history=3, blank=1.0)


def test_a_model_that_forgets_frames_is_told_so() -> None:
    config = replace(CONFIG, history=3, frames=2)
    source = Source("latents", "run", of_world(worlds.model(look_back=1), PLAIN, config, CPU))
    with pytest.raises(ConfigError, match="keeps latents of 1 frame"):
        gather(worlds.Walks("train", [12], 0), [source], config, 4)


def test_encoders_and_pixels_are_sources_too() -> None:
    config = replace(CONFIG, mlp=None)
    encoder = of_encoder(lambda x: worlds.model().encoder(x.float()), config, CPU)
    shrunk = Source("pixels", "pixels", of_pixels(config, (12, 12)))
    made, (train, _, _) = table(config, Source("context", "run", encoder), shrunk)
    assert row(made, "context", "ridge:place", "r2")["value"] > 0.9999
    assert [x.shape for x in train.features] == [(240, 2), (240, 3 * 12 * 12)]
    assert row(made, "pixels", "ridge:place", "r2")["value"] > 0.5


def test_tokens_are_pooled_or_side_by_side() -> None:
    latents = torch.arange(12.0).view(1, 2, 2, 3)
    assert flat(latents, "all")[0, 1].tolist() == [6, 7, 8, 9, 10, 11]
    assert flat(latents, "mean")[0, 1].tolist() == [7.5, 8.5, 9.5]


def test_short_episodes_are_left_out_and_too_short_ones_an_error() -> None:
    config = replace(CONFIG, history=4, episodes=None)
    source = Source("latents", "run", of_world(worlds.model(), PLAIN, config, CPU))
    part = gather(worlds.Walks("train", [12, 2, 5], 0), [source], config, 4)
    assert {e for e, _ in part.places} == {0, 2} and part.episodes == 3
    assert [f for e, f in part.places if e == 2] == [3, 4]
    with pytest.raises(DataError, match=r"no episode of 4 frames .*the longest of 2 has 3"):
        gather(worlds.Walks("train", [3, 2], 0), [source], config, 4)


def test_a_variable_of_no_array_and_settings_out_of_range_are_refused() -> None:
    wrong = FramesConfig({"place": VariableConfig("plaec")})
    with pytest.raises(ConfigError, match="place"):
        gather(worlds.Walks("train", [5], 0), [], wrong, 4)
    with pytest.raises(ConfigError, match="name at least one"):
        FramesConfig()
    with pytest.raises(ConfigError, match="frames=2"):
        FramesConfig(CONFIG.variables, frames=2)
    with pytest.raises(ConfigError, match="ridge and mlp are both null"):
        FramesConfig(CONFIG.variables, ridge=None, mlp=None)


@pytest.mark.parametrize("name", ["tworoom-state", "pusht-state"])
def test_shipped_suites_load_with_published_figures(name: str) -> None:
    suite = load_suite(name)
    assert suite.probes.frames is not None
    rows = {f"{kind}:{variable}" for kind in ("ridge", "mlp") for variable in suite.probes.frames.variables}
    assert {p.probe for p in suite.published} <= rows
    assert {p.metric for p in suite.published} == {"pearson"} and all("2603.19312" in p.source for p in suite.published)


def test_a_suite_does_not_mix_frames_with_samples() -> None:
    with pytest.raises(ConfigError, match=r"put probes\.linear into a suite of its own"):
        load_suite("tworoom-state", ["probes.linear={}"])
    with pytest.raises(ConfigError, match="leave baselines.frames"):
        load_suite("tworoom-state", ["baselines.features=[elsewhere]"])
