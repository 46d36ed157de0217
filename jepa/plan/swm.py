"""stable-worldmodel's own evaluation, with models of ours: its World, solvers and policy, unchanged.

    import stable_worldmodel as swm
    from jepa.plan.swm import Costable

    model = Costable.of("runs/tworoom")
    solver = swm.solver.CEMSolver(model, num_samples=300, n_steps=10, topk=30, batch_size=10)
    config = swm.PlanConfig(horizon=5, receding_horizon=5, action_block=model.action_block)
    policy = swm.policy.WorldModelPolicy(solver, config, process=model.process, transform=model.transform)
    world = swm.World("swm/TwoRoom-v1", num_envs=50, image_shape=(224, 224))
    world.set_policy(policy)
    world.evaluate(dataset=..., episodes_idx=..., start_steps=..., goal_offset=25, eval_budget=50, callables=[...])

Its candidates are drawn around 0 with standard deviation 1: they are actions in the units of the model, and become
those of the environment by the statistics that travel with the weights, here for the model and in `process` for World.

A model of discrete actions takes candidates as its CategoricalCEMSolver and PGDSolver make them, one-hot: K choices
for each of action_block steps, A = action_block * K. Infos may hold more frames than the one that World hands over,
with the actions between them; the model looks at as many as it was trained for.

Shapes: B environments, S candidates, T frames seen (1 in World), H horizon, A = action_block * a numbers of an action.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from jepa import checkpoint
from jepa.checkpoint import folder
from jepa.config import DataConfig
from jepa.errors import ConfigError
from jepa.methods.world import History, State, WorldModel
from jepa.plan.act import Eyes
from jepa.plan.objective import Goal, Objective, ObjectiveConfig, Target
from jepa.plan.ready import load_world_model

Info = Mapping[str, Any]


class ActionScaler:
    """Actions of the environment to and from the units of the model; stable-worldmodel's `Transformable`."""

    def __init__(self, mean: Tensor, std: Tensor) -> None:
        """`mean`, `std`: (a,) of one step."""
        self.mean, self.std = (x.detach().cpu().numpy().astype(np.float32) for x in (mean, std))

    def transform(self, x: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """(..., a) to the units of the model."""
        return np.asarray((x - self.mean) / self.std)

    def inverse_transform(self, x: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """(..., a) to those of the environment."""
        return np.asarray(x * self.std + self.mean)


class Costable(nn.Module):
    """A world model as stable-worldmodel's solvers want one: `get_cost(info, candidates) -> (B, S)`.

    Attributes:
        action_block: environment steps in one action of the model, for `PlanConfig`.
        process, transform: for `WorldModelPolicy`.
        encoded: how often frames were encoded; infos with the same frames share one encoding.
    """

    def __init__(
        self, model: WorldModel, data: DataConfig, objective: ObjectiveConfig | None = None, action: int | None = None
    ) -> None:
        """
        Args:
            data: the `data` section of the model's run.
            action: a, numbers of one action of the environment; default: A by `clip.stride`, which is right where the
                data set keeps every frame.

        Raises:
            ConfigError: numbers of actions that do not fit.
        """
        super().__init__()
        if data.clip is None:
            raise ConfigError("data.clip is null: world models are trained on clips of episodes")
        width = action or model.space.discrete or model.space.action // int(data.clip.stride or 1)
        if width < 1 or model.space.action % width:
            raise ConfigError(f"action={width} numbers for a model of {model.space.action}: give a divisor of these")
        self.model, self.eyes, self.objective = model.eval(), Eyes.of(data), Objective(objective)
        self.objective.expect(model)
        self.action_block = model.space.action // width
        scale = model.action_scale
        # choices have no units: numbers of choices go to the environment as they are
        self.process = {} if model.space.discrete else {"action": ActionScaler(scale.mean[:width], scale.std[:width])}
        self.transform: dict[str, Callable[[Tensor], Tensor]] = {"pixels": self._frame, "goal": self._frame}
        self.encoded = 0
        self._last: tuple[dict[str, Tensor], State, Target] | None = None

    @classmethod
    def of(cls, run: Path | str, objective: ObjectiveConfig | None = None, device: str = "cpu") -> Costable:
        """The newest checkpoint of a run folder, or a checkpoint.

        Raises:
            CheckpointError, ConfigError: nothing usable there, or no world model.
        """
        config, model = load_world_model(checkpoint.resolve(run, files=(folder.MODEL, folder.CONFIG)))
        return cls(model.to(device), config.data, objective)

    def get_cost(self, info_dict: Info, action_candidates: Tensor) -> Tensor:
        """Costs (B, S), smaller is better; differentiable by the candidates, for solvers that follow gradients.

        Args:
            info_dict: "pixels" and "goal", (B, S, T, 3, H, W) normalised floats as `transform` makes them, or uint8
                (B, S, T, H, W, 3) as World gives them without, oldest first, with one frame of the goal; "proprio" (B,
                S, T, P) for models that take it. Where T is above 1, "action" (B, S, T, A) in the units of the model
                says what was done in each frame; that of the newest is not read.
            action_candidates: (B, S, horizon, A) in the units of the model, or one-hot, from the newest frame on.

        Raises:
            ConfigError: frames, candidates or a horizon that do not fit the model.
        """
        self._check(info_dict, action_candidates)
        with torch.inference_mode(False), torch.no_grad():  # kept for later calls, whatever mode those are in
            state, target = self._encoded(info_dict)
        actions = self.model.action_scale.back(action_candidates.to(self._device))
        costs = self.objective.cost(self.model, state, target)(actions)
        return costs.to(action_candidates.device, action_candidates.dtype)

    def criterion(self, info_dict: Info, action_candidates: Tensor) -> Tensor:
        """The same; part of the protocol."""
        return self.get_cost(info_dict, action_candidates)

    @property
    def _device(self) -> torch.device:
        return self.model.action_scale.mean.device

    def _frame(self, image: Tensor) -> Tensor:
        """One frame uint8 (3, h, w) to (3, H, W), normalised."""
        seen = image.as_subclass(Tensor) if isinstance(image, Tensor) else torch.from_numpy(np.asarray(image))
        return self.eyes([seen.permute(1, 2, 0).contiguous().numpy()], torch.device("cpu"))[0]

    def _check(self, info: Info, candidates: Tensor) -> None:
        missing = [key for key in ("pixels", "goal") if key not in info]
        if missing:
            raise ConfigError(
                f"info has no {missing[0]!r}; it has: {', '.join(sorted(info))}. Evaluate from a data set, whose "
                "frames are the goals, or in an environment that shows its goal as info['goal']"
            )
        size, reach = self.model.space.action, self.model.reach
        if candidates.ndim != 4 or candidates.shape[-1] != size:
            raise ConfigError(
                f"candidates of shape {tuple(candidates.shape)}; the model takes (B, S, horizon, {size}): set "
                f"PlanConfig(action_block={self.action_block}) and use the environment its episodes came from"
            )
        if reach is not None and candidates.shape[2] > reach:
            raise ConfigError(f"a horizon of {candidates.shape[2]} steps; the model was trained to roll out {reach}")

    def _encoded(self, info: Info) -> tuple[State, Target]:
        """State and goal, encoded once for all candidates and all iterations of a solver."""
        pixels, goals = self._seen(info, "pixels"), self._seen(info, "goal")[:, -1:]
        parts, count = {"pixels": pixels, "goal": goals}, pixels.shape[1]
        if self.model.space.proprio:
            parts["proprio"] = self._seen(info, "proprio", count)
        if count > 1:
            parts["action"] = self._done(info, count)
        if self._last is not None and _same(parts, self._last[0]):
            return self._last[1:]
        frames, goal = self._frames(pixels, "pixels"), self._frames(goals, "goal")[:, 0]
        proprio = parts["proprio"].to(self._device).float().flatten(2) if "proprio" in parts else None
        none = frames.new_zeros(len(frames), 0, self.model.space.action)
        state = self.model.observe(History(frames, parts["action"] if count > 1 else none, proprio))
        wanted = info.get("goal_proprio")
        body = None if wanted is None else _tensor(wanted)[:, 0].to(self._device).float().reshape(len(frames), -1)
        target = self.objective.target(self.model, Goal(goal, body))
        self._last = ({name: part.clone() for name, part in parts.items()}, state, target)
        self.encoded += 1
        return state, target

    def _seen(self, info: Info, key: str, frames: int | None = None) -> Tensor:
        """(B, T, ...) of the first candidate: what World repeats for all of them."""
        if key not in info:
            raise ConfigError(f"the model takes proprioception and info has no {key!r}")
        value = _tensor(info[key])
        if value.ndim < 3 + (frames is None) or not 1 <= value.shape[2] == (frames or value.shape[2]):
            raise ConfigError(
                f"info[{key!r}] has shape {tuple(value.shape)}; give (B, S, T, ...) with T = {frames or 'one or more'} "
                "frames"
            )
        return value[:, 0]

    def _done(self, info: Info, frames: int) -> Tensor:
        """Actions between the frames (B, T - 1, A), as the data set has them."""
        value = _tensor(info["action"]) if "action" in info else None
        size = self.model.space.action
        if value is None or value.ndim != 4 or value.shape[2] < frames - 1 or value.shape[3] != size:
            raise ConfigError(
                f"info['pixels'] holds {frames} frames, and info['action'] "
                + ("is missing" if value is None else f"has shape {tuple(value.shape)}")
                + f": give (B, S, {frames}, {size}), what was done in each frame, or the newest frame alone"
            )
        return self.model.action_scale.back(value[:, 0, : frames - 1].to(self._device).float())

    def _frames(self, seen: Tensor, key: str) -> Tensor:
        """(B, T, 3, H, W) on the device."""
        size = tuple(self.eyes.data.image_size)
        if seen.dtype == torch.uint8:
            if seen.ndim != 5 or seen.shape[-1] != 3:
                raise ConfigError(f"info[{key!r}]: uint8 frames of shape {tuple(seen.shape)}; give (B, S, T, H, W, 3)")
            frames = self.eyes(list(seen.flatten(0, 1).cpu().numpy()), self._device)
            return frames.unflatten(0, tuple(seen.shape[:2]))  # type: ignore[no-any-return, no-untyped-call]
        if seen.ndim != 5 or tuple(seen.shape[2:]) != (3, *size):
            raise ConfigError(
                f"info[{key!r}] holds frames of shape {tuple(seen.shape[2:])}, the model takes {(3, *size)}: give "
                "WorldModelPolicy transform=model.transform, which makes them of World's frames"
            )
        return seen.to(self._device).float()


def _tensor(value: Any) -> Tensor:
    return value if isinstance(value, Tensor) else torch.as_tensor(np.asarray(value))


def _same(some: Mapping[str, Tensor], others: Mapping[str, Tensor]) -> bool:
    return some.keys() == others.keys() and all(_equal(some[name], others[name]) for name in some)


def _equal(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and one.dtype == other.dtype and bool(torch.equal(one, other))
