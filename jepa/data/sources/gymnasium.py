"""Videos of Gymnasium environments, rolled out by a policy; with `source.state` the state they were in as targets.

An episode is a pure function of its number: the environment is made anew for it and reset with the episode's own seed,
and so is the policy. Episodes of different splits have different seeds, and all videos of an episode lie in one split.

Shapes: T frames of a video, H W height and width.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from jepa import keyed
from jepa.data.envs import atari, policy
from jepa.data.envs.guard import first_reset
from jepa.data.envs.open import Env, load, open_env, picture
from jepa.data.recipe import check_name
from jepa.data.sources.base import Sample, Source, hashed
from jepa.errors import ConfigError, DataError, JepaError

Frame = npt.NDArray[np.uint8]  # (H, W, 3)
Moment = tuple[Frame, tuple[float, ...]]  # what it looks like, and its state
_SPLIT = 1_000_000  # most episodes of a split: those of the next split are numbered from here


@dataclass(frozen=True)
class Config:
    """Which environment, who acts in it, and how its episodes become videos."""

    env: str = ""  # registered id, e.g. CartPole-v1 or ALE/Pong-v5
    modules: tuple[str, ...] = ()  # imported first, because they register environments, e.g. ale_py
    kwargs: dict[str, Any] = field(default_factory=dict)  # of the environment
    policy: str = "random"  # random, repeat, or package.module:function, called with (env, seed) for every episode
    hold: float = 0.75  # of `repeat`: chance that the last action stays
    state: str | None = None  # targets: atari (the RAM's variables), or package.module:function of env giving numbers
    state_at: Literal["middle", "last"] = "middle"  # frame whose state is the video's: number frames // 2, or the last
    episodes: dict[str, int] = field(default_factory=lambda: {"train": 60, "val": 10, "test": 20})  # of each split
    videos: int = 10  # most videos of an episode, one after the other; a rest too short for one is left out
    frames: int = 16  # frames of a video; 1: single frames, kept as images
    gap: int = 0  # frames left out between videos
    start: tuple[int, int] = (0, 0)  # fewest and most frames left out before the first video, drawn for each episode
    frame_skip: int = 1  # steps with the same action from one frame to the next, besides the environment's own
    fps: float = 15.0  # written into the file
    size: tuple[int, int] | None = None  # height and width; null: as drawn
    grey: bool = False  # grey pictures
    deadline: float | None = 300.0  # seconds for an episode, then it is stopped and left out; null: nothing is stopped
    seed: int = 0  # of all episodes

    def __post_init__(self) -> None:
        if not 0 <= self.hold < 1:
            raise ConfigError(f"hold: allowed are 0 to below 1, got {self.hold:g}")
        if not self.episodes or not all(1 <= n <= _SPLIT for n in self.episodes.values()):
            raise ConfigError(f"episodes: give 1 to {_SPLIT} for every split, e.g. {{train: 60}}, got {self.episodes}")
        if self.videos < 1 or self.frames < 1 or self.frame_skip < 1 or self.gap < 0 or self.fps <= 0:
            raise ConfigError(
                f"videos={self.videos}, frames={self.frames}, frame_skip={self.frame_skip}, gap={self.gap}, "
                f"fps={self.fps:g}: need videos, frames and frame_skip from 1, gap from 0, fps above 0"
            )
        if not 0 <= self.start[0] <= self.start[1]:
            raise ConfigError(f"start: need 0 <= fewest <= most, got {list(self.start)}")
        if self.deadline is not None and self.deadline <= 0:
            raise ConfigError(f"deadline: got {self.deadline:g}, allowed: seconds above 0, or null")
        if self.size is not None and min(self.size) < 2:
            raise ConfigError(f"size: both sides must be at least 2 pixels, got {list(self.size)}")
        if self.policy not in ("random", "repeat") and ":" not in self.policy:
            raise ConfigError(f"policy: got {self.policy!r}, allowed: random, repeat, or package.module:function")
        if self.state not in (None, "atari") and ":" not in str(self.state):
            raise ConfigError(f"state: got {self.state!r}, allowed: atari, package.module:function, or null")


def open_source(config: Config) -> Source:
    """The source; tasks are (split, episode). The environment is opened once to see that it works.

    Raises:
        ConfigError: no such environment, it draws no pictures, it fails at once, or the policy or state do not fit.
    """
    if not config.env:
        raise ConfigError("source.env is empty: say which environment, e.g. source.env=CartPole-v1")
    targets = Maker(config, ()).look()
    return Source(
        splits={name: [(name, i) for i in range(count)] for name, count in config.episodes.items()},
        maker=Maker(config, targets),
        classes=[],
        targets=list(targets),
        notes=[f"the state of a video is that of its {config.state_at} frame"] if targets else [],
        at_once=1,
        deadline=config.deadline,
    )


class Maker:
    """Rolls episodes out; a pure function of (split, episode)."""

    def __init__(self, config: Config, targets: tuple[str, ...]) -> None:
        self.config, self.targets = config, targets

    def __call__(self, task: tuple[str, int]) -> list[Sample]:
        """Every video of an episode.

        Raises:
            DataError: the environment failed, ended too early for one video, or its pictures never change.
        """
        split, episode = task
        c = self.config
        number = _SPLIT * list(c.episodes).index(split) + episode
        begin = int(keyed.generator("gymnasium.start", c.seed, number).integers(c.start[0], c.start[1] + 1))
        videos: list[list[Moment]] = []
        seen = 0
        for seen, moment in enumerate(islice(self._episode(number), self._most(begin)), start=1):
            which, place = divmod(seen - 1 - begin, c.frames + c.gap)
            if which >= 0 and place < c.frames:
                if place == 0:
                    videos.append([])
                videos[which].append(moment)
        whole = [video for video in videos if len(video) == c.frames]
        if not whole:
            raise DataError(
                f"the episode ended after {seen} frames; a video takes {c.frames}"
                + (f" behind {begin} that are left out" if begin else "")
            )
        first = whole[0][0][0]
        if all(np.array_equal(frame, first) for video in whole for frame, _ in video):
            raise DataError("its pictures never change: the environment does not draw what happens in it")
        return [self._sample(split, episode, number, i, video) for i, video in enumerate(whole)]

    def look(self) -> tuple[str, ...]:
        """Open the environment, draw it, and take one step: the names of its state variables.

        Raises:
            ConfigError: anything does not work.
        """
        c = self.config
        first_reset(c.env, c.modules, c.kwargs, c.deadline)
        env = open_env(c.env, c.modules, c.kwargs)
        try:
            observation, _ = env.reset(seed=0)
            picture(env)
            names = tuple(self._state(env))
            action = policy.make(c.policy, env, 0, c.hold)(observation)
            fits = bool(env.action_space.contains(action))
            space = str(env.action_space)
        except JepaError as error:
            raise ConfigError(f"source.env={c.env!r}: {error}") from None
        except Exception as error:  # whatever an environment, a policy or a state function raises
            raise ConfigError(f"source.env={c.env!r} cannot be rolled out: {type(error).__name__}: {error}") from None
        finally:
            env.close()
        if not fits:
            raise ConfigError(f"source.policy={c.policy!r} gave the action {action!r}; {c.env} takes {space}")
        for name in names:
            check_name(name, "state variable")
        return names

    def _most(self, begin: int) -> int:
        """Frames that an episode's videos need."""
        c = self.config
        return begin + c.videos * (c.frames + c.gap) - c.gap

    def _episode(self, number: int) -> Iterator[Moment]:
        """Moments from the reset on, until the episode ends."""
        c = self.config
        seed = (hashed("gymnasium.episode", c.seed) + number) % 2**31  # distinct for distinct episodes
        env = open_env(c.env, c.modules, c.kwargs)
        step = 0
        try:
            observation, _ = env.reset(seed=seed)
            act = policy.make(c.policy, env, seed, c.hold)
            ended = False
            yield self._moment(env)
            while not ended:
                action = act(observation)
                for _ in range(c.frame_skip):
                    step += 1
                    observation, _, terminated, truncated, _ = env.step(action)
                    ended = bool(terminated or truncated)
                    if ended:
                        break
                yield self._moment(env)
        except JepaError:
            raise
        except Exception as error:  # whatever an environment, a policy or a state function raises
            raise DataError(f"it failed at step {step}: {type(error).__name__}: {error}") from None
        finally:
            env.close()

    def _moment(self, env: Env) -> Moment:
        values = self._state(env)
        if tuple(values) != self.targets:
            raise DataError(f"its state has the variables {list(values)}, at first it had {list(self.targets)}")
        return picture(env), tuple(float(v) for v in values.values())

    def _state(self, env: Env) -> Mapping[str, float]:
        state = self.config.state
        if state is None:
            return {}
        found = atari.state(env) if state == "atari" else load(state, "source.state")(env)
        if not isinstance(found, Mapping):
            raise ConfigError(f"source.state={state!r} gave {type(found).__name__}; it must give numbers by name")
        return found

    def _sample(self, split: str, episode: int, number: int, i: int, video: list[Moment]) -> Sample:
        c = self.config
        if len({frame.shape for frame, _ in video}) > 1:
            raise DataError("its pictures change their size")
        frames = np.stack([frame for frame, _ in video])
        if c.grey:
            luma = frames @ np.array([0.299, 0.587, 0.114])  # ITU-R BT.601
            frames = np.repeat((luma + 0.5).astype(np.uint8)[..., None], 3, axis=-1)
        if c.size is not None and frames.shape[1:3] != c.size:
            packed = torch.from_numpy(frames).permute(0, 3, 1, 2)  # channels last in memory
            small = torch.nn.functional.interpolate(packed, c.size, mode="bicubic", antialias=True)
            frames = small.permute(0, 2, 3, 1).contiguous().numpy()
        state = video[c.frames // 2 if c.state_at == "middle" else -1][1]
        shown = frames if c.frames > 1 else frames[0]
        return Sample(shown, -1, number, f"{split}/{episode}/{i}", state, fps=c.fps)
