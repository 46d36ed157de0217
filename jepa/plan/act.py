"""Who acts: the planner, several episodes at a time, and the policies it is compared with, one episode at a time.

Shapes: B episodes, k environment steps between two plans, a numbers of one action.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from jepa import keyed
from jepa.config import DataConfig
from jepa.data.augment import centre_box
from jepa.data.video.clips import fit
from jepa.errors import ConfigError, DataError
from jepa.methods.world import History, WorldModel
from jepa.plan import solvers
from jepa.plan.agent import MPC, Agent, Stats
from jepa.plan.envs import Arena, Frame, make_expert
from jepa.plan.look import Look
from jepa.plan.objective import Goal, Objective, Target
from jepa.plan.space import ActionSpace
from jepa.plan.starts import Problem
from jepa.plan.suite import PlanSuite
from jepa.plan.trial import Trial

RANDOM, NOTHING, EXPERT = "random", "do nothing", "scripted expert"


@dataclass(frozen=True)
class Eyes:
    """Frames of the environment as the run saw frames in training: the largest centred box of their aspect, resized."""

    data: DataConfig
    look: Look

    @classmethod
    def of(cls, data: DataConfig) -> Eyes:
        """Of a run's `data` section."""
        return cls(data, Look(data.image_size, data.mean, data.std))

    def __call__(self, frames: Sequence[Frame], device: torch.device) -> Tensor:
        """B frames uint8 (h, w, 3) to (B, 3, H, W), normalised."""
        seen = torch.from_numpy(np.ascontiguousarray(np.stack(frames))).permute(0, 3, 1, 2)
        box = centre_box(seen.shape[-2], seen.shape[-1], self.data.image_size)
        small = fit(seen, box, self.data.image_size, self.data.interpolation)  # (3, B, H, W)
        return self.look(small.permute(1, 2, 3, 0), device)


class _Row:
    """What the planner remembers of one trial."""

    def __init__(self, trial: Trial, frame: Frame, proprio: Tensor | None) -> None:
        self.trial = trial
        self.target: Target | None = None
        self.frames: list[Frame] = [frame]
        self.actions: list[Tensor] = []  # (A,) of the model
        self.proprio = [] if proprio is None else [proprio]


class Planner:
    """A world model that plans; what it does in an episode depends on its seed and index alone."""

    def __init__(
        self, model: WorldModel, data: DataConfig, suite: PlanSuite, space: ActionSpace, device: torch.device
    ) -> None:
        """Raises ConfigError when model, solver, objective and actions do not fit together."""
        assert data.clip is not None and data.steps is not None, "world models are trained on clips with actions"
        self.proprio = str(data.steps.proprio)
        self.model, self.suite, self.space, self.device = model, suite, space, device
        self.eyes = Eyes.of(data)
        self.mpc: MPC = suite.planner.mpc(data.clip.frames)
        self.objective = Objective(suite.planner.objective)
        self.solver = solvers.create(suite.planner.solver)
        self.agent = self._agent(suite.seeds[0])

    def _agent(self, seed: int) -> Agent:
        return Agent(self.model, self.solver, self.objective, self.space, self.eyes.look, self.mpc, seed=seed)

    def run(
        self,
        arenas: Sequence[Arena],
        problems: Sequence[Problem],
        films: Callable[[Problem], bool],
        first: Callable[[History, Target], None] | None = None,
        say: Callable[[str], None] = lambda words: None,
    ) -> tuple[list[Trial], Stats]:
        """Plan for some problems of one seed together, each in an arena of its own.

        Args:
            films: whether a problem's trial is filmed.
            first: told once, after the first plan, of its rows.
            say: told how far it is.

        Returns:
            The trials, over, and what planning took.
        """
        seed = problems[0].seed
        assert {p.seed for p in problems} == {seed}, "problems planned together have the same seed"
        agent = self.agent = self._agent(seed)
        agent.reset(len(problems), keys=[p.index for p in problems])
        trials = [Trial(a, p, self.suite.budget, films(p)) for a, p in zip(arenas, problems, strict=False)]
        rows: dict[int, _Row] = {}
        for i, trial in enumerate(trials):
            frame = trial.begin()
            try:
                if frame is not None:
                    rows[i] = _Row(trial, frame, self._proprio(trial))
            except DataError as error:
                trial.fail(error)
        targets = self._targets([rows[i].trial for i in rows])
        for i, row in enumerate(rows.values()):
            row.target = targets.rows(slice(i, i + 1))
        while rows:
            some = list(rows.values())
            history = self._history(some)
            target = _joined([row.target for row in some])
            planned = agent.decide(history, rows=list(rows), target=target)
            assert agent.last is not None, "a plan was just made"
            if first is not None:
                first(history, target)
                first = None
            for row, steps, cost in zip(some, planned.cpu(), agent.last.cost.tolist(), strict=True):
                self._execute(row, steps, cost)
            say(f"planner, step {max(row.trial.steps for row in some)} of {self.suite.budget}")
            rows = {i: row for i, row in rows.items() if not row.trial.done}
        return trials, agent.stats

    def _execute(self, row: _Row, steps: Tensor, cost: float) -> None:
        """Take the planned steps (k, a) or whole numbers (k,), remembering what is seen at every step of the model."""
        trial, stride = row.trial, self.space.stride
        actions = self.space.join(steps[None].to(self.space.low.device))[0].cpu()  # (execute, A)
        for joined in actions:
            given = joined.reshape(stride, -1).numpy()
            before = trial.steps
            frame = trial.go(given)
            if trial.film is not None:
                trial.film.distance += [cost] * (trial.steps - before)
            if frame is None:
                return
            row.frames.append(frame)
            row.actions.append(joined)
            try:
                body = self._proprio(trial)
            except DataError as error:
                return trial.fail(error)
            row.proprio += [] if body is None else [body]
            most = self.mpc.history
            if most is not None:
                del row.frames[:-most], row.proprio[:-most]
                del row.actions[: max(0, len(row.actions) - most + 1)]

    def _history(self, rows: Sequence[_Row]) -> History:
        count = len(rows[0].frames)
        frames = self.eyes([frame for row in rows for frame in row.frames], self.device)
        actions = torch.stack(
            [torch.stack(row.actions) if row.actions else torch.zeros(0, self.space.size) for row in rows]
        )
        proprio = torch.stack([torch.stack(row.proprio) for row in rows]) if rows[0].proprio else None
        place = self.device
        return History(
            frames.view(len(rows), count, *frames.shape[1:]),
            actions.to(place),
            None if proprio is None else proprio.to(place),
        )

    def _targets(self, trials: Sequence[Trial]) -> Target:
        if not trials or not self.objective.wants_goal:
            return Target(None)
        frames = self.eyes([trial.goal for trial in trials if trial.goal is not None], self.device)
        found = [self._goal_proprio(trial) for trial in trials]
        known = [p for p in found if p is not None]
        proprio = torch.stack(known).to(self.device) if len(known) == len(trials) else None
        return self.objective.target(self.model, Goal(frames, proprio))

    def _goal_proprio(self, trial: Trial) -> Tensor | None:
        """Proprioception at the goal, where the problem's arrays tell it."""
        goal, name = trial.problem.goal, self.proprio
        if not self.model.space.proprio or goal is None or name not in goal:
            return None
        return torch.as_tensor(np.asarray(goal[name], np.float32).reshape(-1))

    def _proprio(self, trial: Trial) -> Tensor | None:
        wanted = self.model.space.proprio
        if not wanted:
            return None
        if trial.arena.config.proprio is None:
            raise ConfigError(
                f"the model takes {wanted} numbers of proprioception with every frame: name where the environment "
                "tells them, environment.proprio=WHERE"
            )
        found = trial.arena.proprio()
        if found.size != wanted:
            raise ConfigError(
                f"environment.proprio={trial.arena.config.proprio} has {found.size} numbers, the model was trained "
                f"with {wanted}"
            )
        return torch.from_numpy(found)


class Scripted:
    """A policy that needs no model: chance, nothing, or an expert."""

    def __init__(self, name: str, suite: PlanSuite) -> None:
        self.name, self.suite = name, suite

    def run(self, arena: Arena, problem: Problem) -> Trial:
        """One trial."""
        trial = Trial(arena, problem, self.suite.budget)
        if trial.begin() is None:
            return trial
        try:
            for action in self._actions(arena, problem):
                trial.go(action[None])
                if trial.done:
                    break
        except DataError as error:
            trial.fail(error)
        return trial

    def _actions(self, arena: Arena, problem: Problem) -> Iterator[np.ndarray]:
        if self.name == RANDOM:
            arena.env.action_space.seed(
                int(keyed.words("plan.random", problem.seed, problem.index, 1)[0, 0] >> np.uint64(1))
            )
            while True:
                yield arena.random()
        if self.name == NOTHING:
            while True:
                yield arena.nothing()
        assert self.name == EXPERT and self.suite.environment.expert, f"no policy {self.name!r}"
        act = make_expert(self.suite.environment.expert, arena, problem.reset)
        while True:
            yield act(arena)


def scripted(suite: PlanSuite) -> list[Scripted]:
    """The suite's baselines."""
    asked = {
        RANDOM: suite.baselines.random,
        NOTHING: suite.baselines.nothing,
        EXPERT: suite.baselines.expert and suite.environment.expert is not None,
    }
    return [Scripted(name, suite) for name, wanted in asked.items() if wanted]


def _joined(targets: Sequence[Target | None]) -> Target:
    found = [t for t in targets if t is not None]
    latents = [t.latents for t in found if t.latents is not None]
    proprio = [t.proprio for t in found if t.proprio is not None]
    return Target(torch.cat(latents) if latents else None, torch.cat(proprio) if proprio else None)
