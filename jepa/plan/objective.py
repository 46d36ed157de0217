"""What makes an imagined future good, as a cost of plans.

    cost = goal * sum_h w_h d(z_h, z_goal) + proprio * sum_h w_h |q_h - q_goal|^2 + uncertainty * mean_h u_h
           - reward * (sum_h discount^h r_h + discount^H v_H)

d is a distance of latents as `model.readout` gives them: L2 to the last step for DINO-WM (arXiv 2411.04983, eq. 6) and
LeWM (arXiv 2603.19312), L1 for V-JEPA 2-AC (arXiv 2506.09985, section 3.2). Distances to all steps, later ones heavier
(w_h ~ growth^h), reward coming near early. Reward and value are those of TD-MPC2 (arXiv 2310.16828, eq. 5).

Shapes: B environments, S candidates, H steps, N tokens, D width, P proprioception.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from jepa.errors import ConfigError
from jepa.methods.world import History, State, WorldModel

_NO_PROPRIO = "objective.proprio is set and the model does not predict proprioception: set it to 0"


@dataclass(frozen=True)
class ObjectiveConfig:
    """Weights and kinds of the terms; a weight of 0 leaves the term out."""

    distance: Literal["l1", "l2", "cosine"] = "l2"  # l2 is squared
    steps: Literal["last", "all"] = "last"  # where the goal is to be: at the plan's end, or at every step
    growth: float = 1.0  # of the weights from one step to the next, with steps: all; they sum to 1
    tokens: Literal["patch", "pooled"] = "patch"  # token by token, or their mean over the frame
    reduce: Literal["mean", "sum"] = "mean"  # over tokens and width; the sum is LeWM's
    goal: float = 1.0  # weight of the distance to the goal
    proprio: float = 0.0  # mean squared difference in the model's units
    uncertainty: float = 0.0  # weight of how unsure the model is
    reward: float = 0.0  # weight of the predicted reward, and value
    discount: float = 0.99  # of rewards, per step

    def __post_init__(self) -> None:
        if self.growth <= 0 or not 0 < self.discount <= 1:
            raise ConfigError(
                f"objective: growth={self.growth}, discount={self.discount}; give growth > 0, 0 < discount <= 1"
            )
        if self.goal == 0 and self.proprio == 0 and self.reward == 0:
            raise ConfigError("objective: goal, proprio and reward are all 0; nothing is left to plan for")


@dataclass(frozen=True)
class Goal:
    """Where to go: a frame, as the model sees frames, and what the body should be like there."""

    frames: Tensor  # (B, 3, H, W) normalised
    proprio: Tensor | None = None  # (B, P) in units of the environment


@dataclass(frozen=True)
class Target:
    """A goal, encoded."""

    latents: Tensor | None  # (B, N, D)
    proprio: Tensor | None = None  # (B, P) as the model's states have it

    def rows(self, index: slice | Tensor) -> Target:
        """Some of the batch."""
        return Target(*(None if x is None else x[index] for x in (self.latents, self.proprio)))


class Objective:
    """The cost of imagined futures."""

    def __init__(self, config: ObjectiveConfig | None = None) -> None:
        self.config = config or ObjectiveConfig()

    @property
    def wants_goal(self) -> bool:
        """Whether there is anything to encode of a goal."""
        return self.config.goal != 0 or self.config.proprio != 0

    @torch.no_grad()
    def target(self, model: WorldModel, goal: Goal | None) -> Target:
        """Encode goals once, each as a history of one frame.

        Raises:
            ConfigError: no goal where one is needed, or one without the proprioception that is to be reached.
        """
        if not self.wants_goal:
            return Target(None)
        if goal is None:
            raise ConfigError("this objective leads to a goal: give a goal image, or set goal: 0 and reward: 1")
        if self.config.proprio and goal.proprio is None:
            raise ConfigError("objective.proprio is set and the goal has no proprioception: give it, or set proprio: 0")
        empty = goal.frames.new_zeros(len(goal.frames), 0, model.space.action)
        proprio = goal.proprio
        if proprio is None and model.space.proprio:  # a goal that is only an image: at the mean, 0 for the model
            proprio = model.proprio_scale.mean.to(goal.frames.dtype).expand(len(goal.frames), -1)
        state = model.observe(History(goal.frames[:, None], empty, None if proprio is None else proprio[:, None]))
        if not self.config.proprio:
            return Target(model.readout(state)[:, -1])
        if state.proprio is None:
            raise ConfigError(_NO_PROPRIO)
        return Target(model.readout(state)[:, -1], state.proprio[:, -1])

    def cost(self, model: WorldModel, state: State, target: Target, chunk: int = 0) -> RolloutCost:
        """Costs of candidates that begin in `state`; `chunk`: most roll-outs at a time, 0 for all at once."""
        self.expect(model)
        return RolloutCost(model, state, self, target, chunk)

    def expect(self, model: WorldModel) -> None:
        """Refuse a model that cannot tell what this objective asks for.

        Raises:
            ConfigError: no proprioception.
        """
        if self.config.proprio and not model.space.proprio:
            raise ConfigError("objective.proprio is set and the model was trained without proprioception: set it to 0")

    def __call__(self, model: WorldModel, future: State, target: Target) -> Tensor:
        """Costs (B, S) of imagined futures (B, S, H, ...).

        Raises:
            ConfigError: the model has no head for a term.
        """
        c = self.config
        total = torch.zeros((), device=future.latents.device)
        if c.goal:
            assert target.latents is not None, "the target has no latents: encode it with this objective"
            z = model.readout(future)
            z = z if c.steps == "all" else z[:, :, -1:]
            total = total + c.goal * self._over_time(self._distance(z, target.latents[:, None, None]))
        if c.proprio:
            if future.proprio is None or target.proprio is None:
                raise ConfigError(_NO_PROPRIO)
            gap = (future.proprio - target.proprio[:, None, None]).square().mean(-1)
            total = total + c.proprio * self._over_time(gap if c.steps == "all" else gap[:, :, -1:])
        if c.uncertainty:
            unsure = model.uncertainty(future)
            if unsure is None:
                raise ConfigError(
                    "objective.uncertainty is set and the model cannot tell how unsure it is: set it to 0"
                )
            total = total + c.uncertainty * unsure.mean(-1)
        if c.reward:
            total = total - c.reward * self._gain(model, future)
        return total

    def _distance(self, z: Tensor, goal: Tensor) -> Tensor:
        """(B, S, H, N, D) from (B, 1, 1, N, D): (B, S, H)."""
        c = self.config
        if c.tokens == "pooled":
            z, goal = z.mean(-2, keepdim=True), goal.mean(-2, keepdim=True)
        if c.distance == "cosine":
            each = 1 - cosine_similarity(z, goal, dim=-1)
            return each.mean(-1) if c.reduce == "mean" else each.sum(-1)
        gap = z - goal
        each = gap.abs() if c.distance == "l1" else gap.square()
        return each.mean((-2, -1)) if c.reduce == "mean" else each.sum((-2, -1))

    def _over_time(self, values: Tensor) -> Tensor:
        """(B, S, H) or (B, S, 1), weighted over time."""
        weights = self.config.growth ** torch.arange(values.shape[-1], device=values.device, dtype=values.dtype)
        return (values * (weights / weights.sum())).sum(-1)

    def _gain(self, model: WorldModel, future: State) -> Tensor:
        rewards = model.reward(future)
        if rewards is None:
            raise ConfigError("objective.reward is set and the model predicts no reward: train it with a reward head")
        powers = self.config.discount ** torch.arange(rewards.shape[-1] + 1, device=rewards.device, dtype=rewards.dtype)
        gain = (rewards * powers[:-1]).sum(-1)
        value = getattr(model, "value", None)  # of the methods with a value head, (B, S, H) like the reward
        worth = value(future) if callable(value) else None
        return gain if worth is None else gain + powers[-1] * worth[..., -1]


class RolloutCost:
    """Candidates (B, S, H, A) to costs (B, S): imagined and judged, some at a time."""

    def __init__(self, model: WorldModel, state: State, objective: Objective, target: Target, chunk: int = 0) -> None:
        self.model, self.state, self.objective, self.target, self.chunk = model, state, objective, target, chunk
        self.calls = 0  # of `imagine`
        self.steps = 0  # imagined, over all candidates

    def __call__(self, actions: Tensor) -> Tensor:
        """See the class."""
        rows, samples = actions.shape[:2]
        self.steps += rows * samples * actions.shape[2]
        if not self.chunk or rows * samples <= self.chunk:
            return self._some(self.state, self.target, actions)
        many = max(1, min(rows, self.chunk // samples))  # whole rows while they fit, then parts of one row
        part = min(samples, self.chunk)
        found = []
        for i in range(0, rows, many):
            pick = slice(i, i + many)
            state, target = self.state.rows(pick), self.target.rows(pick)
            parts = [self._some(state, target, actions[pick, j : j + part]) for j in range(0, samples, part)]
            found.append(torch.cat(parts, dim=1))
        return torch.cat(found)

    def _some(self, state: State, target: Target, actions: Tensor) -> Tensor:
        self.calls += 1
        return self.objective(self.model, self.model.imagine(state, actions), target)


__all__ = ["Goal", "Objective", "ObjectiveConfig", "RolloutCost", "Target"]
