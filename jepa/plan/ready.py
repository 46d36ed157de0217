"""Before planning: the model of a run, the data set of the goals, the actions, and whether all of them fit together."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from jepa import checkpoint
from jepa.config import RunConfig
from jepa.data import Manifest
from jepa.errors import ConfigError, DataError
from jepa.methods.world import WorldModel
from jepa.plan.envs import Arena
from jepa.plan.space import ActionSpace
from jepa.plan.starts import Origin, Problem, mean_difference
from jepa.plan.suite import PlanSuite
from jepa.plan.trial import Trial


def load_world_model(path: Path) -> tuple[RunConfig, WorldModel]:
    """The configuration and the model of a checkpoint folder, frozen and in eval mode.

    Raises:
        CheckpointError: weights that do not fit.
        ConfigError: a method that is no world model.
    """
    run_config = checkpoint.read_config(path)
    model = checkpoint.create(run_config)
    if not isinstance(model, WorldModel):
        raise ConfigError(
            f"{path} was trained with method {run_config.method.get('name')!r}, which does not tell what actions lead "
            "to. Planning needs a world model: train one on episodes, on top of this encoder if you like"
        )
    checkpoint.load_model(path, model)
    return run_config, model.eval().requires_grad_(False)


def open_manifest(suite: PlanSuite, run_config: RunConfig) -> Manifest | None:
    """The data set that starts and goals come from; None where they come from elsewhere.

    Raises:
        DataError: it is not there.
    """
    return Manifest.open(suite.goals.dataset or run_config.data.path) if suite.goals.source == "episodes" else None


def action_space(arena: Arena, suite: PlanSuite, model: WorldModel, origin: Origin) -> ActionSpace:
    """What the planner may do: actions of the environment, side by side as in the run's episodes.

    Where the environment has no bounds those of the suite hold, else the smallest and largest actions of the data set.

    Raises:
        ConfigError: actions of another kind or number than the model was trained on, or without any bounds.
    """
    env, wanted = suite.environment.env, model.space
    if bool(arena.choices) != bool(wanted.discrete) or (arena.choices and arena.choices != wanted.discrete):
        trained = f"one of {wanted.discrete} choices" if wanted.discrete else "continuous numbers"
        given = f"one of {arena.choices} choices" if arena.choices else f"{arena.width} continuous numbers"
        raise ConfigError(f"an action of {env} is {given}; the model was trained with {trained}")
    if wanted.action % arena.width or wanted.action % (arena.width * origin.stride):
        raise ConfigError(
            f"an action of {env} has {arena.width} number(s); the model was trained on {wanted.action}, "
            f"{origin.stride} step(s) of {wanted.action / origin.stride:g} side by side. Plan in the environment that "
            "its episodes came from"
        )
    stride = wanted.action // arena.width
    if arena.choices:
        return ActionSpace.choices(arena.choices, stride)
    low, high = _bounds(arena, suite, origin)
    scale = model.action_scale
    return ActionSpace.box(low, high, stride, scale.mean.detach().cpu().float(), scale.std.detach().cpu().float())


def _bounds(arena: Arena, suite: PlanSuite, origin: Origin) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    found = []
    for side, own, given, data in (
        ("low", arena.low, suite.planner.low, origin.actions[0] if origin.actions else None),
        ("high", arena.high, suite.planner.high, origin.actions[1] if origin.actions else None),
    ):
        bound = own.copy()
        if given is not None:
            asked = np.asarray(given, np.float32)
            if asked.ndim and asked.shape != bound.shape:
                raise ConfigError(
                    f"planner.{side} has {asked.size} numbers, an action of {suite.environment.env} has {bound.size}"
                )
            bound = np.maximum(bound, asked) if side == "low" else np.minimum(bound, asked)
        open_ends = ~np.isfinite(bound)
        if open_ends.any() and data is not None and data.shape == bound.shape:
            bound[open_ends] = data[open_ends]
        if not np.isfinite(bound).all():
            raise ConfigError(
                f"{suite.environment.env} takes actions without bounds, and no data set tells how large they are: give "
                f"planner.low and planner.high"
            )
        found.append(bound)
    return found[0], found[1]


def check_frames(arena: Arena, problem: Problem, suite: PlanSuite) -> tuple[int, int] | None:
    """Refuse an environment that does not look like the data set, or a goal of another size, before any planning.

    An environment that fails here is left to the trials, which count it.

    Returns:
        (H, W) that its frames are resized to: the suite's, or those of the data set; None: as drawn.

    Raises:
        ConfigError: another size or aspect, or a start that looks different.
    """
    try:
        arena.begin(problem.reset, problem.start, problem.goal if arena.config.goal else None)
        frame = arena.draw()
    except DataError:
        return arena.size
    if problem.goal_frame is None:
        return arena.size
    (height, width), (h, w) = frame.shape[:2], problem.goal_frame.shape[:2]
    shown = f"{suite.environment.env} is seen at {height} x {width} pixels (height x width)"
    if (height, width) != (h, w):
        if suite.goals.image is not None:
            raise ConfigError(
                f"{shown}, the goal {suite.goals.image} has {h} x {w}: draw it in the environment at that size, or set "
                f"environment.size=[{h},{w}]"
            )
        if arena.size is not None or abs(height * w - width * h) > max(height, width):
            raise ConfigError(f"{shown}, the data set holds frames of {h} x {w}: set environment.size=[{h},{w}]")
        arena.size = (h, w)
    _check_look(arena, problem, suite)
    return arena.size


def _check_look(arena: Arena, problem: Problem, suite: PlanSuite) -> None:
    trial = Trial(arena, problem, 1)
    trial.begin()
    if trial.difference is not None and trial.difference > suite.goals.tolerance:
        raise ConfigError(
            f"{suite.environment.env}, put into the state of frame {problem.place['frame']} of episode "
            f"{problem.place['key']}, looks different from that frame: {trial.difference:.3f} of 1 on average, "
            f"goals.tolerance={suite.goals.tolerance:g}. Check environment.start, kwargs and options, and the version "
            "of the environment that the episodes were recorded with"
        )


def check_company(arenas: tuple[Arena, Arena], problem: Problem) -> None:
    """Refuse environments that draw something else once there is another one in the process.

    Raises:
        ConfigError: saying what to set.
    """
    one, other = arenas
    try:
        one.begin(problem.reset, problem.start, None)
        before = one.draw()
        other.begin(problem.reset, problem.start, None)
        other.draw()
        after = one.draw()
    except DataError:  # left to the trials
        return
    if mean_difference(before, after) > 0.01:
        raise ConfigError(
            f"{one.config.env} draws something else once there is another one in the process: set "
            "environment.alone=true, and episodes are planned one at a time"
        )
