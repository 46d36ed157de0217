"""Whole episodes of Gymnasium environments: frames, actions, rewards, and arrays out of observation and info.

An episode is a pure function of its number, as in `gymnasium`, which records videos without actions: the environment is
made anew for it and reset with the episode's own seed, and so is the policy. Episodes of different splits have
different seeds.

Every episode runs in a process that may be killed. One whose environment or policy hangs, or crashes, is left out and
listed among what is bad; so is one that raises, changes its pictures' or its observation's shape, or acts with NaN.

Shapes: T frames of an episode, H W height and width.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from jepa.data.arrays import ArrayConfig, check_names, describe
from jepa.data.envs import policy, record
from jepa.data.envs.guard import first_reset
from jepa.data.envs.open import Env, open_env, picture
from jepa.data.sources.base import Sample, Source, hashed
from jepa.errors import ConfigError, DataError, JepaError

_SPLIT = 1_000_000  # most episodes of a split: those of the next split are numbered from here
_OWN = ("action", "reward", "terminated")


@dataclass(frozen=True)
class Config:
    """Which environment, who acts in it, and what is recorded."""

    env: str = ""  # registered id, e.g. swm/TwoRoom-v1
    modules: tuple[str, ...] = ()  # imported first, because they register environments, e.g. stable_worldmodel
    kwargs: dict[str, Any] = field(default_factory=dict)  # of the environment
    policy: str = "random"  # random, repeat, or package.module:function, called with (env, seed) for every episode
    options: dict[str, Any] = field(default_factory=dict)  # further keyword arguments of that function
    hold: float = 0.75  # of `repeat`: chance that the last action stays
    arrays: dict[str, str] = field(
        default_factory=dict
    )  # name: observation[.KEY], info.KEY, or package.module:function
    episodes: dict[str, int] = field(default_factory=lambda: {"train": 100, "val": 10, "test": 50})  # of each split
    steps: int = 100  # most steps of an episode
    until: Literal["ended", "steps"] = "ended"  # stop when the environment says so, or go on to `steps` all the same
    least: int = 1  # episodes of fewer steps are left out
    fps: float = 10.0  # written into the file
    size: tuple[int, int] | None = None  # height and width; null: as drawn
    deadline: float | None = 120.0  # seconds for an episode, then it is stopped and left out; null: nothing is stopped
    seed: int = 0  # of all episodes

    def __post_init__(self) -> None:
        if not 0 <= self.hold < 1:
            raise ConfigError(f"hold: allowed are 0 to below 1, got {self.hold:g}")
        if not self.episodes or not all(1 <= n <= _SPLIT for n in self.episodes.values()):
            raise ConfigError(f"episodes: give 1 to {_SPLIT} for every split, e.g. {{train: 60}}, got {self.episodes}")
        if self.steps < 1 or not 1 <= self.least <= self.steps or self.fps <= 0 or (self.deadline or 1) <= 0:
            raise ConfigError(
                f"steps={self.steps}, least={self.least}, fps={self.fps:g}, deadline={self.deadline}: need steps "
                "from 1, least from 1 to steps, fps and deadline above 0"
            )
        if self.size is not None and min(self.size) < 2:
            raise ConfigError(f"size: both sides must be at least 2 pixels, got {list(self.size)}")
        if self.policy not in ("random", "repeat") and ":" not in self.policy:
            raise ConfigError(f"policy: got {self.policy!r}, allowed: random, repeat, or package.module:function")
        if self.options and ":" not in self.policy:
            raise ConfigError(f"options={self.options}: they are for a function of yours, not for {self.policy}")
        check_names(self.arrays)
        taken = sorted(set(self.arrays) & set(_OWN))
        if taken:
            raise ConfigError(f"arrays: {', '.join(taken)} are always recorded; choose other names")


def open_source(config: Config) -> Source:
    """The source; tasks are (split, episode). The environment is opened and takes a step, to see that it works.

    Raises:
        ConfigError: no such environment, it draws no pictures, it hangs or fails at once, its actions cannot be
            recorded, or policy or arrays do not fit.
    """
    if not config.env:
        raise ConfigError("source.env is empty: say which environment, e.g. source.env=CartPole-v1")
    arrays, notes = _look(config)
    return Source(
        splits={name: [(name, i) for i in range(count)] for name, count in config.episodes.items()},
        maker=Maker(config),
        classes=[],
        notes=notes,
        at_once=1,
        arrays=arrays,
        deadline=config.deadline,
    )


def _look(config: Config) -> tuple[dict[str, ArrayConfig], list[str]]:
    """What is recorded, from a reset and a step, and what is worth a note."""
    first_reset(config.env, config.modules, config.kwargs, config.deadline)
    env = open_env(config.env, config.modules, config.kwargs)
    try:
        actions = record.Actions(env)
        steps = _steps(config, env, 0, actions)
        next(steps)  # as it is after the reset
        moment = next(steps)
        fits, space = bool(env.action_space.contains(moment.action)), str(env.action_space)
    except JepaError as error:
        raise ConfigError(f"source.env={config.env!r}: {error}") from None
    except Exception as error:  # whatever an environment or a policy raises
        raise ConfigError(f"source.env={config.env!r} cannot be rolled out: {type(error).__name__}: {error}") from None
    finally:
        env.close()
    if not fits:
        raise ConfigError(
            f"source.policy={config.policy!r} gave the action {moment.action!r}; {config.env} takes {space}"
        )
    found = {"action": actions.config, "reward": ArrayConfig("action"), "terminated": ArrayConfig("action", 1, "bool")}
    found |= {name: describe(name, value[None], "frame") for name, value in moment.values.items()}
    notes = []
    if actions.unbounded:
        drawn = "; random draws them from a normal distribution" if config.policy in ("random", "repeat") else ""
        notes.append(f"the actions of {config.env} are unbounded{drawn}")
    return found, notes


@dataclass(frozen=True)
class _Moment:
    """A frame, what came with it, and the action that led to it."""

    frame: npt.NDArray[np.uint8]
    values: dict[str, npt.NDArray[Any]]
    action: Any = None
    row: npt.NDArray[Any] | None = None
    reward: float = 0.0
    terminated: bool = False


class Maker:
    """Rolls episodes out; a pure function of (split, episode)."""

    def __init__(self, config: Config) -> None:
        self.config = config

    def start(self) -> None:
        """Import what an environment needs, so that its first episode is not charged for it."""
        env = open_env(self.config.env, self.config.modules, self.config.kwargs)
        try:
            env.reset(seed=0)
            picture(env)
        except Exception:  # said when it is rolled out
            pass
        finally:
            env.close()

    def __call__(self, task: tuple[str, int]) -> Sample:
        """An episode.

        Raises:
            DataError: the environment or policy failed, changed what it gives, or ended too early; or its pictures
                never change.
        """
        split, episode = task
        c = self.config
        number = _SPLIT * list(c.episodes).index(split) + episode
        seed = (hashed("rollouts.episode", c.seed) + number) % 2**31  # distinct for distinct episodes
        env = open_env(c.env, c.modules, c.kwargs)
        moments: list[_Moment] = []
        try:
            before = env.observation_space
            for moment in _steps(c, env, seed, record.Actions(env)):
                moments.append(moment)
                if env.observation_space != before:
                    raise DataError(f"its observation space changed from {before} to {env.observation_space}")
        except JepaError as error:
            raise DataError(f"it failed at step {len(moments)}: {error}") from None
        except Exception as error:  # whatever an environment or a policy raises
            raise DataError(f"it failed at step {len(moments)}: {type(error).__name__}: {error}") from None
        finally:
            env.close()
        if len(moments) - 1 < c.least:
            raise DataError(f"the episode ended after {len(moments) - 1} steps; source.least={c.least}")
        return Sample(_frames(moments), -1, number, f"{split}/{episode}", fps=c.fps, arrays=_arrays(moments))


def _steps(config: Config, env: Env, seed: int, actions: record.Actions) -> Iterator[_Moment]:
    """Moments from the reset on, until the episode ends."""
    readers = {name: record.reader(name, where) for name, where in config.arrays.items()}

    def values(observation: Any, info: Mapping[str, Any]) -> dict[str, npt.NDArray[Any]]:
        return {name: record.row(name, read(observation, info, env)) for name, read in readers.items()}

    observation, info = env.reset(seed=seed)
    act = policy.informed(policy.make(config.policy, env, seed, config.hold, config.options))
    first = values(observation, info)
    yield _Moment(_sized(picture(env), config.size), first)
    for _ in range(config.steps):
        action = act(observation, info)
        row = actions.row(action)
        observation, reward, terminated, truncated, info = env.step(action)
        now = values(observation, info)
        for name, value in now.items():
            if value.shape != first[name].shape:
                raise DataError(f"array {name!r} has {value.size} numbers now, it had {first[name].size} at first")
        frame = _sized(picture(env), config.size)
        yield _Moment(frame, now, action, row, float(reward), bool(terminated))
        if config.until == "ended" and (terminated or truncated):
            return


def _sized(frame: npt.NDArray[np.uint8], size: tuple[int, int] | None) -> npt.NDArray[np.uint8]:
    if size is None or frame.shape[:2] == size:
        return frame
    packed = torch.from_numpy(frame)[None].permute(0, 3, 1, 2)  # channels last in memory
    small = torch.nn.functional.interpolate(packed, size, mode="bicubic", antialias=True)
    return small[0].permute(1, 2, 0).contiguous().numpy()


def _frames(moments: list[_Moment]) -> npt.NDArray[np.uint8]:
    """(T, H, W, 3)."""
    if len({m.frame.shape for m in moments}) > 1:
        raise DataError("its pictures change their size")
    frames = np.stack([m.frame for m in moments])
    if (frames == frames[0]).all():
        raise DataError("its pictures never change: the environment does not draw what happens in it")
    return frames


def _arrays(moments: list[_Moment]) -> dict[str, npt.NDArray[Any]]:
    """Rows by name: action, reward and terminated (T - 1), all others (T)."""
    rows = [m.row for m in moments if m.row is not None]
    found: dict[str, npt.NDArray[Any]] = {
        "action": np.stack(rows),
        "reward": np.array([[m.reward] for m in moments[1:]], dtype=np.float32),
        "terminated": np.array([[m.terminated] for m in moments[1:]]),
    }
    return found | {name: np.stack([m.values[name] for m in moments]) for name in moments[0].values}


__all__ = ["Config", "Maker", "open_source"]
