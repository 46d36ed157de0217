"""Model-predictive control: plan, act on the beginning of the plan, look, plan again from what was seen.

Every row is an environment with an episode of its own: rows begin and end at different times, and what a row does
depends on its own history, its episode's key and how often it has planned, never on the rows beside it.

Shapes: B environments, T frames seen, k actions of the environment in one go, a numbers of each, H horizon.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from jepa.errors import ConfigError
from jepa.methods.world import History, WorldModel
from jepa.plan.look import Look
from jepa.plan.objective import Goal, Objective, Target
from jepa.plan.solvers.base import Noise, Plan, Solver, Start
from jepa.plan.space import ActionSpace

Array = Any  # numpy or torch


@dataclass(frozen=True)
class MPC:
    """How often and how far ahead to plan. All in steps of the model."""

    horizon: int = 5
    execute: int = 5  # of the plan, before the next one; 1 plans at every step
    history: int | None = 3  # frames shown to the model; None: all of the episode, for models with a belief
    warm: bool = True  # the rest of a plan is where the next search begins
    chunk: int = 0  # most roll-outs at a time, for memory; 0: all at once
    beyond_reach: bool = False  # a horizon longer than the model was trained to roll out

    def __post_init__(self) -> None:
        if not 1 <= self.execute <= self.horizon:
            raise ConfigError(f"execute={self.execute} of horizon={self.horizon}; give 1 <= execute <= horizon")
        if self.history is not None and self.history < 1:
            raise ConfigError(f"history={self.history}: give at least 1 frame, or null for the whole episode")


@dataclass
class Stats:
    """What planning took."""

    seconds: list[float] = field(default_factory=list)  # of each plan, for all its rows together
    rows: list[int] = field(default_factory=list)  # planned together
    calls: int = 0  # of `imagine`
    imagined: int = 0  # steps of the model, over all candidates
    steps: int = 0  # of the environments, planned for

    def summary(self) -> dict[str, float]:
        """Seconds per step of an environment (median and 95th percentile over plans), model calls per step."""
        if not self.seconds:
            return {}
        per = np.array(self.seconds) / (np.array(self.rows) * self.steps / sum(self.rows))
        return {
            "seconds_per_step": float(np.median(per)),
            "seconds_per_step_p95": float(np.quantile(per, 0.95)),
            "seconds_per_plan": float(np.median(self.seconds)),
            "calls_per_step": self.calls / self.steps,
            "imagined_per_step": self.imagined / self.steps,
        }


@dataclass
class _Row:
    """One environment's episode."""

    key: int
    plans: int = 0
    frames: list[Tensor] = field(default_factory=list)  # (3, H, W) one per step of the model
    proprio: list[Tensor] = field(default_factory=list)  # (P,)
    taken: list[Tensor] = field(default_factory=list)  # (a,) or (): every action of the environment
    queue: list[Tensor] = field(default_factory=list)  # the rest of what was planned
    goal: tuple[np.ndarray[Any, Any], ...] | None = None  # as given, to see whether it is another one
    target: Target | None = None  # (1, ...)
    start: Start | None = None  # (1, ...)


class Agent:
    """A world model, a solver and an objective, acting."""

    def __init__(
        self,
        model: WorldModel,
        solver: Solver,
        objective: Objective,
        space: ActionSpace,
        look: Look | None = None,
        mpc: MPC | None = None,
        *,
        seed: int = 0,
    ) -> None:
        """`look` is needed to act on uint8 frames only.

        Raises:
            ConfigError: parts that do not fit together: another number of actions, a horizon beyond the model's reach,
                a term of the objective that the model has no head for.
        """
        self.model, self.solver, self.objective = model.eval(), solver, objective
        self.look, self.mpc, self.seed = look, mpc or MPC(), seed
        self.device = next(model.parameters(), torch.zeros(0)).device
        self.space = space.to(self.device)
        space.expect(model)
        objective.expect(model)
        if model.reach is not None and self.mpc.horizon > model.reach and not self.mpc.beyond_reach:
            raise ConfigError(
                f"a horizon of {self.mpc.horizon} steps; the model was trained to roll out {model.reach}. Shorten the "
                "horizon, or set beyond_reach and look at the open-loop error at that horizon first"
            )
        self.stats = Stats()
        self.last: Plan | None = None  # of the rows planned last, for pictures
        self._rows: list[_Row] = []
        self._episodes = 0

    # --- episodes ---------------------------------------------------------------------------------------------------

    def reset(
        self, count: int | None = None, *, rows: Sequence[int] | None = None, keys: Sequence[int] | None = None
    ) -> None:
        """Episodes begin: of `count` environments (default 1), or of some `rows` of those there are.

        Args:
            keys: a number for each beginning episode that decides its noise; default: they are counted from 0.
        """
        beginning = list(range(count or 1)) if rows is None else list(rows)
        names = list(range(self._episodes, self._episodes + len(beginning))) if keys is None else list(keys)
        if len(names) != len(beginning):
            raise ConfigError(f"{len(names)} keys for {len(beginning)} episodes: give one for each")
        if rows is None:
            self._rows = [_Row(name) for name in names]
        else:
            for row, name in zip(beginning, names, strict=True):
                self._rows[row] = _Row(name)
        self._episodes += len(beginning)

    # --- acting -----------------------------------------------------------------------------------------------------

    def act(self, seen: History | Array, goal: Any = None, **more: Any) -> Any:
        """What to do now; see `decide` for a `History`, `step` for uint8 frames of (B, H, W, 3), or (H, W, 3)."""
        if isinstance(seen, History):
            return self.decide(seen, goal, **more)
        if np.ndim(seen) != 3:
            return self.step(seen, goal, **more)
        if not self._rows:
            self.reset(1)
        alone = {name: None if x is None else x[None] for name, x in more.items()}
        return self.step(seen[None], None if goal is None else goal[None], **alone)[0]

    def decide(
        self,
        history: History,
        goal: Goal | None = None,
        rows: Sequence[int] | None = None,
        target: Target | None = None,
    ) -> Tensor:
        """Plan for `rows` (default: all) from histories that the caller keeps.

        Args:
            history: of B rows, T frames each, at the model's frame skip.
            goal: of these rows; or its `target`, encoded before.

        Returns:
            (B, k, a) actions of the environment, k = execute * stride, or whole numbers (B, k) for discrete ones.
        """
        chosen = list(range(len(history.frames))) if rows is None else list(rows)
        if len(chosen) != len(history.frames) or not set(chosen) <= set(range(len(self._rows))):
            raise ConfigError(
                f"histories of {len(history.frames)} environments for rows {chosen} of {len(self._rows)}: call reset "
                "with the number of environments, and give one history for each row"
            )
        if target is None:
            target = self.objective.target(self.model, self._placed(goal))
        return self._plan(history, target, chosen)

    def step(
        self, frames: Array, goal: Array | None = None, *, proprio: Array = None, goal_proprio: Array = None
    ) -> Any:
        """One step of all environments, called at every step: histories are kept here.

        Args:
            frames: uint8 (B, H, W, 3).
            goal: uint8 (B, H, W, 3); encoded when it is another one than before.
            proprio, goal_proprio: (B, P) for models with proprioception.

        Returns:
            numpy (B, a) within the bounds, or whole numbers (B,) for discrete actions.
        """
        if len(frames) != len(self._rows):
            raise ConfigError(
                f"{len(frames)} frames for {len(self._rows)} environments: call reset({len(frames)}) first"
            )
        if self.model.space.proprio and proprio is None:
            raise ConfigError(
                f"the model was trained with {self.model.space.proprio} numbers of proprioception: give them"
            )
        self._see(frames, proprio)
        due = [i for i, row in enumerate(self._rows) if not row.queue]
        if due:
            self._aim(due, goal, goal_proprio)
        for group in _by_length(due, [len(row.frames) for row in self._rows]):
            history = self._history(group)
            targets = [row.target for row in (self._rows[i] for i in group) if row.target is not None]
            for i, actions in zip(group, self._plan(history, _joined(targets), group), strict=True):
                self._rows[i].queue = list(actions)
        chosen = [row.queue.pop(0) for row in self._rows]
        for row, action in zip(self._rows, chosen, strict=True):
            row.taken.append(action)
        return torch.stack(chosen).cpu().numpy()

    # --- parts of a step --------------------------------------------------------------------------------------------

    def _see(self, frames: Array, proprio: Array) -> None:
        """Keep the frames of rows that are at a step of the model."""
        if self.look is None:
            raise ConfigError(
                "this agent was built without a Look: give it the size and normalisation of the model's frames"
            )
        now = [i for i, row in enumerate(self._rows) if len(row.taken) % self.space.stride == 0]
        if not now:
            return
        x = self.look(frames[now], self.device)
        body = None if proprio is None else self._body(proprio[now], "proprio")
        for j, i in enumerate(now):
            row = self._rows[i]
            row.frames.append(x[j])
            if body is not None and self.model.space.proprio:
                row.proprio.append(body[j])
            if self.mpc.history is not None:
                del row.frames[: -self.mpc.history], row.proprio[: -self.mpc.history]

    def _body(self, proprio: Array, what: str) -> Tensor:
        x = torch.as_tensor(np.asarray(proprio), dtype=torch.float32, device=self.device)
        if x.ndim != 2 or x.shape[1] != self.model.space.proprio:
            raise ConfigError(f"{what} of shape {tuple(x.shape)}: give (B, {self.model.space.proprio}), as in training")
        return x

    def _history(self, rows: list[int]) -> History:
        """Of rows with the same number of frames."""
        some = [self._rows[i] for i in rows]
        frames = torch.stack([torch.stack(row.frames) for row in some])
        between = (frames.shape[1] - 1) * self.space.stride
        if between:
            taken = torch.stack([torch.stack(row.taken[-between:]) for row in some])
            actions = self.space.join(taken)
        else:
            actions = frames.new_zeros(len(rows), 0, self.space.size)
        proprio = torch.stack([torch.stack(row.proprio) for row in some]) if some[0].proprio else None
        return History(frames, actions, proprio)

    def _aim(self, rows: list[int], goal: Array | None, goal_proprio: Array) -> None:
        """Encode the goals of `rows` that are new."""
        new = []
        for i in rows:
            given = tuple(np.asarray(x[i]) for x in (goal, goal_proprio) if x is not None)
            row = self._rows[i]
            same = row.goal is not None and len(row.goal) == len(given) and all(map(np.array_equal, row.goal, given))
            if row.target is None or (given and not same):
                row.goal = tuple(x.copy() for x in given)
                new.append(i)
        if not new:
            return
        wanted: Goal | None = None
        if goal is not None and self.look is not None and self.objective.wants_goal:
            body = None if goal_proprio is None else self._body(goal_proprio[new], "goal_proprio")
            wanted = Goal(self.look(goal[new], self.device, "goal"), body)
        target = self.objective.target(self.model, wanted)
        for j, i in enumerate(new):
            self._rows[i].target = target.rows(slice(j, j + 1))

    @torch.no_grad()
    def _plan(self, history: History, target: Target, rows: list[int]) -> Tensor:
        began = time.perf_counter()
        some = [self._rows[i] for i in rows]
        state = self.model.observe(self._shown(history))
        cost = self.objective.cost(self.model, state, target, self.mpc.chunk)
        noise = Noise(self.seed, [(row.key, row.plans) for row in some], self.device)
        plan = self.solver.plan(cost, self.space, self.mpc.horizon, noise, self._start(some))
        actions = self.space.split(plan.actions[:, : self.mpc.execute])
        left = (
            plan.shift(self.mpc.execute, self.space) if self.mpc.warm and self.mpc.execute < self.mpc.horizon else None
        )
        for j, row in enumerate(some):
            row.plans += 1
            row.start = None if left is None else left.rows(slice(j, j + 1))
        self.last = plan
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.stats.seconds.append(time.perf_counter() - began)
        self.stats.rows.append(len(rows))
        self.stats.calls += cost.calls
        self.stats.imagined += cost.steps
        self.stats.steps += len(rows) * self.mpc.execute * self.space.stride
        return actions

    def _shown(self, history: History) -> History:
        """The newest frames, on the device."""
        most = self.mpc.history or history.frames.shape[1]
        proprio = None if history.proprio is None else history.proprio[:, -most:].to(self.device)
        between = history.actions[:, history.actions.shape[1] - min(most, history.frames.shape[1]) + 1 :]
        return History(history.frames[:, -most:].to(self.device), between.to(self.device), proprio)

    def _placed(self, goal: Goal | None) -> Goal | None:
        if goal is None:
            return None
        return Goal(goal.frames.to(self.device), None if goal.proprio is None else goal.proprio.to(self.device))

    def _start(self, rows: list[_Row]) -> Start | None:
        """Where the searches of `rows` begin; those without a plan before at the centre."""
        warm = [row.start for row in rows if row.start is not None]
        if not warm:
            return None
        cold = Start(
            self.space.centre.expand_as(warm[0].actions),
            torch.zeros_like(warm[0].warm),
            None if warm[0].elites is None else self.space.centre.expand_as(warm[0].elites),
        )
        return Start.joined([row.start or cold for row in rows])


def _by_length(rows: list[int], lengths: list[int]) -> list[list[int]]:
    """Rows whose histories are equally long, together."""
    groups: dict[int, list[int]] = {}
    for i in rows:
        groups.setdefault(lengths[i], []).append(i)
    return list(groups.values())


def _joined(targets: list[Target]) -> Target:
    def put(parts: list[Tensor | None]) -> Tensor | None:
        present = [x for x in parts if x is not None]
        return torch.cat(present) if present else None

    return Target(put([t.latents for t in targets]), put([t.proprio for t in targets]))


__all__ = ["MPC", "Agent", "Look", "Stats"]
