"""Starts and goals, fixed before anybody acts: from held-out episodes, from the environment's resets, or from a file.

Shapes: H W height and width of a frame.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from jepa import keyed
from jepa.config import DataConfig
from jepa.data import Manifest
from jepa.data.manifest import Split
from jepa.data.windows import read_episode
from jepa.errors import ConfigError
from jepa.plan.envs import Arena, CallConfig, Frame, Values
from jepa.plan.suite import PlanSuite


@dataclass(frozen=True)
class Problem:
    """One episode to plan: where it begins and where it is to end."""

    number: int  # in the suite
    seed: int  # one of the suite's
    index: int  # among those of its seed
    reset: int  # seed of the environment's reset
    place: dict[str, Any]  # where start and goal were found, plain values
    start: Values | None = None  # arrays at the start; None: where the reset puts it
    goal: Values | None = None  # arrays at the goal; None: the environment's own
    start_frame: Frame | None = None  # as the data set holds it
    goal_frame: Frame | None = None  # None: drawn by the environment


@dataclass(frozen=True)
class Origin:
    """What the problems come from, for the task's fingerprint and for people."""

    facts: dict[str, Any]
    actions: tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]] | None = None  # smallest and largest, of a step
    stride: int = 1  # environment steps in one action of the run's model; 1 where no data set tells


def problems(suite: PlanSuite, manifest: Manifest | None, data: DataConfig) -> tuple[list[Problem], Origin]:
    """All problems of a suite, `episodes` for each of its seeds, and what they come from.

    Args:
        manifest: the data set that episodes are taken from; None where the suite needs none.
        data: of the run: the split it was trained on, which is refused, and the arrays it was given.

    Raises:
        ConfigError: the training split, too few or too short episodes, arrays that the data set has not, a picture
            that cannot be read.
        DataError: episodes that cannot be read.
    """
    if suite.goals.source == "episodes":
        assert manifest is not None, "episodes come from a data set"
        return _from_episodes(suite, manifest, data)
    places = [(seed, i, _reset_seed(seed, i)) for seed in suite.seeds for i in range(suite.episodes)]
    found = [Problem(n, seed, i, key, {"reset": key}) for n, (seed, i, key) in enumerate(places)]
    keys = [key for _, _, key in places]
    if suite.goals.source == "environment":
        return found, Origin({"resets": keys})
    frame, digest = _picture(Path(str(suite.goals.image)))
    goal = {name: np.asarray(value) for name, value in suite.goals.state.items()}
    _check_arrays(suite.environment.goal, list(goal), "goals.state")
    found = [replace(problem, goal=goal, goal_frame=frame) for problem in found]
    return found, Origin({"resets": keys, "image": digest, "state": suite.goals.state})


def draw_goal(arena: Arena, problem: Problem) -> tuple[Values, Frame]:
    """The environment's own goal after this problem's reset: its state, and the environment drawn in it.

    Raises:
        DataError: the environment failed.
    """
    arena.reset(problem.reset)
    goal = arena.own_goal()
    arena.apply(arena.config.start, goal)
    return goal, arena.draw()


def mean_difference(one: Frame, other: Frame) -> float:
    """Mean absolute difference of two frames of equal size, 0 to 1."""
    return float(np.abs(one.astype(np.float32) - other.astype(np.float32)).mean() / 255)


# --- held-out episodes ------------------------------------------------------------------------------------------------


def _from_episodes(suite: PlanSuite, manifest: Manifest, data: DataConfig) -> tuple[list[Problem], Origin]:
    goals, where = suite.goals, manifest.root
    if goals.split in ("train", data.split):
        held_out = [name for name in manifest.splits if name not in ("train", data.split)]
        raise ConfigError(
            f"goals.split={goals.split} is a split for training; starts and goals come from episodes that the run has "
            f"not seen: {', '.join(held_out) or f'{where} has none, build it with a test split'}"
        )
    split = manifest.split(goals.split)
    if not manifest.arrays:
        raise ConfigError(f"{where} holds no arrays of episodes, so no states to start from. Give goals.dataset")
    wanted = _names(suite.environment.start + suite.environment.goal)
    _check_arrays(suite.environment.start + suite.environment.goal, list(manifest.arrays), str(where))
    unfit = [name for name in wanted if manifest.arrays[name].kind != "frame"]
    if unfit:
        raise ConfigError(f"array {unfit[0]!r} of {where} has a row for every action; states have one for every frame")
    assert data.steps is not None and data.clip is not None, "world models are trained on clips with actions"
    if data.steps.proprio in manifest.arrays and data.steps.proprio not in wanted:
        wanted.append(data.steps.proprio)
    actions = manifest.arrays.get(data.steps.action)
    steps = actions.steps if actions else 1
    if goals.offset % steps:
        near = sorted({max(steps, goals.offset // steps * steps), (goals.offset // steps + 1) * steps})
        raise ConfigError(
            f"goals.offset={goals.offset} environment steps: {where} keeps a frame every {steps} steps; "
            f"give one of {near}"
        )
    offset = goals.offset // steps
    chosen = [
        (seed, *place)
        for seed in suite.seeds
        for place in _places(split, offset, suite.episodes, seed, f"split {goals.split!r} of {where}", steps)
    ]
    found = [_problem(split, n, seed, i, frame, offset, wanted, suite) for n, (seed, i, frame) in enumerate(chosen)]
    facts = {
        "dataset": manifest.name,
        "content": manifest.hash,
        "split": goals.split,
        "offset": goals.offset,
        "places": [[seed, split.key(i), frame] for seed, i, frame in chosen],
    }
    ends = None
    if actions and actions.count and not actions.discrete:
        width = actions.width // steps
        ends = (np.array(actions.min[:width], np.float32), np.array(actions.max[:width], np.float32))
    return found, Origin(facts, ends, steps * int(data.clip.stride or 1))


def _places(split: Split, offset: int, count: int, seed: int, where: str, steps: int) -> list[tuple[int, int]]:
    """(episode, frame) of `count` different starts, all equally likely, in the order of the data set."""
    lengths = split.video[:, 0].astype(np.int64)
    rooms = np.maximum(lengths - offset, 0)  # starts of each episode
    total = int(rooms.sum())
    if total < count:
        longest = int(lengths.max(initial=0))
        raise ConfigError(
            f"{where} has {total} starts with a goal {offset * steps} environment steps later, episodes={count} are "
            f"asked for. Its {len(lengths)} episodes have up to {max(longest - 1, 0) * steps} steps: lower goals.offset"
            " or episodes, or build more or longer held-out episodes"
        )
    drawn = np.sort(keyed.generator("plan.starts", seed).choice(total, count, replace=False))
    ends = np.cumsum(rooms)
    episodes = np.searchsorted(ends, drawn, side="right")
    return [(int(i), int(d - (ends[i] - rooms[i]))) for i, d in zip(episodes, drawn, strict=True)]


def _problem(
    split: Split, number: int, seed: int, i: int, frame: int, offset: int, wanted: Sequence[str], suite: PlanSuite
) -> Problem:
    frames, arrays = read_episode(split, i)
    start, goal = ({name: arrays[name][at] for name in wanted} for at in (frame, frame + offset))
    first, last = (frames[at].permute(1, 2, 0).contiguous().numpy() for at in (frame, frame + offset))
    place = {"episode": i, "key": split.key(i), "frame": frame, "goal_frame": frame + offset}
    index = number % suite.episodes
    return Problem(number, seed, index, _reset_seed(seed, index), place, start, goal, first, last)


def _reset_seed(seed: int, i: int) -> int:
    return int(keyed.words("plan.reset", seed, i, 1)[0, 0] >> np.uint64(1))  # Gymnasium takes 31 bits everywhere


# --- names and files --------------------------------------------------------------------------------------------------


def _names(calls: Sequence[CallConfig]) -> list[str]:
    return list(dict.fromkeys(name for call in calls for name in call.arrays))


def _check_arrays(calls: Sequence[CallConfig], known: Sequence[str], where: str) -> None:
    missing = [name for name in _names(calls) if name not in known]
    if missing:
        raise ConfigError(
            f"environment.start and environment.goal read the array(s) {', '.join(missing)}, which {where} has not; it "
            f"has: {', '.join(known) or 'none'}"
        )


def _picture(path: Path) -> tuple[Frame, str]:
    try:
        data = path.read_bytes()
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB")), hashlib.sha256(data).hexdigest()[:16]
    except UnidentifiedImageError:
        raise ConfigError(f"goals.image={path} is no picture that can be read; give a PNG or JPEG file") from None
    except OSError as error:
        raise ConfigError(f"goals.image={path} cannot be read: {error.strerror or error}") from None
