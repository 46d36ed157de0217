"""Planning suites: shipped ones load, keep to their protocols, and mistakes are named."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from jepa import config, resources
from jepa.errors import ConfigError
from jepa.plan import solvers
from jepa.plan.suite import load_suite
from jepa.probe.suite import load_suite as load_probes
from jepa.rollout.suite import load_suite as load_rollouts

PLANS = [n for n in resources.names("eval") if "environment" in config.read(resources.find("eval", n), "eval")]


@pytest.mark.parametrize("name", PLANS)
def test_shipped_suites_load(name: str) -> None:
    suite = load_suite(name)
    assert suite.name == name and suite.protocol == "1" and suite.episodes >= 50
    assert suite.goals.source == "episodes" and suite.goals.split == "test" and suite.goals.dataset is None
    assert suite.baselines.random and suite.baselines.nothing
    solvers.create(suite.planner.solver)
    assert all(0 <= p.value <= 1 and p.source for p in suite.published)


@pytest.mark.parametrize(
    ("name", "offset", "budget", "iterations", "figures"),
    [
        ("tworoom", 25, 50, 10, {"DINO-WM": 1.0, "PLDM": 0.97, "LeWM": 0.87}),
        ("tworoom-lewm", 100, 150, 10, {}),
        ("pusht", 25, 50, 30, {"PLDM": 0.78, "TD-MPC2": 0.12}),
        ("reacher", 25, 50, 10, {"LeWM": 0.86, "PLDM": 0.78, "DINO-WM": 0.79}),
        ("cube", 25, 50, 10, {"LeWM": 0.74, "PLDM": 0.65, "DINO-WM": 0.86}),
    ],
)
def test_they_are_the_published_protocols(
    name: str, offset: int, budget: int, iterations: int, figures: dict[str, float]
) -> None:
    suite = load_suite(name)
    assert (suite.goals.offset, suite.budget, suite.episodes) == (offset, budget, 50)
    assert suite.planner.solver == {"name": "cem", "samples": 300, "elites": 30, "iterations": iterations}
    assert (suite.planner.horizon, suite.planner.execute) == (5, 5)
    shown = {p.model: p.value for p in suite.published if "baselines.md" in p.source}
    assert shown.items() >= figures.items()


def test_the_demos_task_is_tworooms() -> None:
    quick, whole = load_suite("tworoom-demo"), load_suite("tworoom")
    assert quick.environment == whole.environment and quick.goals == whole.goals
    assert (quick.budget, quick.episodes, quick.seeds) == (whole.budget, whole.episodes, whole.seeds)


def test_the_blanked_task_is_tworooms_but_for_the_blanks() -> None:
    part, whole, quick = load_suite("tworoom-blanked"), load_suite("tworoom"), load_suite("tworoom-demo")
    assert part.environment == replace(whole.environment, blank=0.5) and part.goals == whole.goals
    assert (part.budget, part.episodes, part.seeds) == (whole.budget, whole.episodes, whole.seeds)
    assert part.planner == replace(quick.planner, history="all"), "the whole episode, for models with a belief"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("goals.ofset=3", "goals.ofset.*offset"),
        ("budget=0", "budget=0"),
        ("goals.offset=0", "offset=0"),
        ("protocol='2'", "protocol '2' is not the one"),
        ("environment.start=[{call: f, attribute: g}]", "either call .* or attribute"),
        ("environment.start=[{attribute: g, args: {a: 1}}]", "args belong to call"),
        ("environment.distance=far", "environment: .*distance.*got 'far'"),
        ("environment.expert=nobody", "package.module:name"),
        ("planner.history=0", "history=0: give at least 1 frame"),
        ("planner.objective={goal: 0}", "all 0"),
        ("goals.source=image", "needs a file"),
        ("pictures.steps=1", "steps=1"),
    ],
)
def test_mistakes_are_named(change: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load_suite("tworoom", [change])


def test_an_environment_without_goals_of_its_own() -> None:
    with pytest.raises(ConfigError, match="give environment.own_goal and environment.start"):
        load_suite("reacher", ["goals.source=environment"])


def test_suites_of_the_other_kind_are_named() -> None:
    with pytest.raises(ConfigError, match="section probes.* none for `jepa plan`: .*jepa probe RUN --suite digits"):
        load_suite("digits")
    with pytest.raises(ConfigError, match="section environment.*: run it with `jepa plan RUN --suite tworoom`"):
        load_probes("tworoom")
    with pytest.raises(ConfigError, match="none for `jepa rollout`: run it with `jepa plan RUN --suite tworoom`"):
        load_rollouts("tworoom")
    with pytest.raises(ConfigError, match="no section environment, so it is none for `jepa plan`"):
        load_suite("tworoom-rollout")


def test_a_suite_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("extends: tworoom\nbudget: 30\n")
    assert load_suite(path).budget == 30 and load_suite(path).name == "mine"
