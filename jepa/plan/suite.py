"""A planning suite: which environment, where starts and goals come from, who plans, and published figures beside.

Suites are YAML files in eval/, read strictly, as those of probes are. The sections `environment` and `goals`, `budget`,
`episodes` and `seeds` make the task, and its fingerprint; `planner` and `baselines` are what is tried at it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from jepa import suites
from jepa.errors import ConfigError
from jepa.plan.agent import MPC
from jepa.plan.envs import EnvConfig
from jepa.plan.objective import ObjectiveConfig
from jepa.plan.protocol import PROTOCOL


@dataclass(frozen=True)
class GoalsConfig:
    """Where starts and goals come from."""

    source: Literal["episodes", "environment", "image"] = "episodes"  # held-out episodes, its own resets, or a file
    dataset: str | None = None  # folder made by `jepa data build`; null: the run's own
    split: str = "test"  # held-out split of it: never the one that was trained on
    offset: int = 25  # environment steps from start to goal in an episode
    image: str | None = None  # source image: a picture file of the size of the frames
    state: dict[str, Any] = field(default_factory=dict)  # source image: the state it shows, for environment.goal
    tolerance: float = 0.05  # most mean difference (of 0..1) of a restored start's frame from the data set's

    def __post_init__(self) -> None:
        if self.offset < 1 or not 0 < self.tolerance <= 1:
            raise ConfigError(
                f"offset={self.offset}, tolerance={self.tolerance:g}: allowed: offset from 1, tolerance above 0, at "
                "most 1"
            )
        if (self.source == "image") != (self.image is not None):
            raise ConfigError(
                f"source={self.source} and image={self.image}: source image needs a file, others have none"
            )


@dataclass(frozen=True)
class PlannerConfig:
    """Receding-horizon control: plan so many actions of the model, execute some, look, and plan again.

    An action of the model is `clip.stride` frames of its data set's episodes long.
    """

    horizon: int = 5  # actions of the model in a plan
    execute: int = 5  # of these, executed before planning anew
    history: int | Literal["all"] | None = None  # most frames the model is shown; null: as many as the run's clips have
    warm: bool = True  # begin with the rest of the plan before
    chunk: int = 0  # most roll-outs at a time, for memory; 0: all at once
    beyond_reach: bool = False  # a horizon longer than the model was trained to roll out
    solver: dict[str, Any] = field(default_factory=lambda: {"name": "cem"})  # name + its settings
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)  # what a plan is judged by
    low: float | tuple[float, ...] | None = None  # least action where the environment has no bounds; null: the data's
    high: float | tuple[float, ...] | None = None  # largest action, likewise

    def __post_init__(self) -> None:
        self.mpc(1)

    def mpc(self, frames: int) -> MPC:
        """As the agent takes it, for a run whose clips have so many frames.

        Raises:
            ConfigError: numbers that do not fit together.
        """
        history = None if self.history == "all" else frames if self.history is None else self.history
        return MPC(self.horizon, self.execute, history, self.warm, self.chunk, self.beyond_reach)


@dataclass(frozen=True)
class BaselinesConfig:
    """Who else acts, from the same starts to the same goals."""

    random: bool = True  # actions by chance
    nothing: bool = True  # the action of doing nothing
    expert: bool = True  # environment.expert, where there is one


@dataclass(frozen=True)
class PicturesConfig:
    """Pictures of what the planner did."""

    episodes: int = 2  # first so many as films: start, goal, what was executed, and the imagined distance
    landscape: bool = True  # of the first episode: cost of first actions
    steps: int = 41  # points of the landscape along each of two numbers of the action

    def __post_init__(self) -> None:
        if self.episodes < 0 or self.steps < 2:
            raise ConfigError(f"episodes={self.episodes}, steps={self.steps}: allowed: episodes from 0, steps from 2")


@dataclass(frozen=True)
class PublishedPlan:
    """A success rate from the literature, shown beside the measured ones."""

    model: str  # what was measured
    value: float  # share of successes
    source: str  # where it was read
    note: str = ""  # how its protocol differs


@dataclass(frozen=True)
class PlanSuite:
    """One evaluation by planning."""

    environment: EnvConfig  # what is planned in
    name: str = "suite"  # of the result file; default: the suite's file name
    protocol: Literal["1"] = "1"  # rules the numbers are made by
    goals: GoalsConfig = field(default_factory=GoalsConfig)  # starts and goals
    budget: int = 50  # environment steps
    episodes: int = 50  # for every seed
    seeds: tuple[int, ...] = (0,)  # each draws its own starts and goals, and the planner's and baselines' chance
    planner: PlannerConfig = field(default_factory=PlannerConfig)  # how the run plans
    baselines: BaselinesConfig = field(default_factory=BaselinesConfig)  # who else acts
    batch: int = 10  # episodes planned for at once
    pictures: PicturesConfig = field(default_factory=PicturesConfig)  # what is drawn
    published: list[PublishedPlan] = field(default_factory=list)  # figures from the literature to show beside

    @property
    def together(self) -> int:
        """Episodes planned for at once."""
        return 1 if self.environment.alone else min(self.batch, self.episodes)

    def __post_init__(self) -> None:
        if min(self.budget, self.episodes, self.batch) < 1:
            raise ConfigError(
                f"budget={self.budget}, episodes={self.episodes}, batch={self.batch}: all must be at least 1"
            )
        if not self.seeds or len(set(self.seeds)) < len(self.seeds) or min(self.seeds) < 0:
            raise ConfigError(f"seeds: give different numbers from 0, got {list(self.seeds)}")
        if self.goals.source != "environment" and not self.environment.goal:
            raise ConfigError(
                f"goals.source={self.goals.source}: environment.goal is empty, so the environment would judge by a "
                "goal of its own. Say which of its methods takes a goal"
            )
        if self.goals.source == "episodes" and not self.environment.start:
            raise ConfigError("goals.source=episodes: environment.start is empty; say which method sets its state")
        if self.goals.source == "environment" and not (self.environment.own_goal and self.environment.start):
            raise ConfigError(
                "goals.source=environment: give environment.own_goal and environment.start, by which the goal is drawn"
            )


def load_suite(name: str | Path, overrides: list[str] | None = None) -> PlanSuite:
    """A suite from a file or a shipped name ("tworoom"), with ``key.subkey=value`` overrides.

    Raises:
        ConfigError: no such suite, one of probes, an unknown key or wrong type, or another protocol.
    """
    return suites.load("plan", PlanSuite, PROTOCOL, name, overrides)
