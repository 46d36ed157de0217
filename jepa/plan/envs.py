"""Environments to plan in: put into a start state, given a goal, stepped, drawn, and asked whether it was reached.

What an environment needs is said in the suite, in words of its own methods, so that a new one takes a YAML file and no
code. Anything that an environment raises comes out as `DataError`: the episode has failed, the others go on.

Shapes: H W height and width of a frame, a numbers of one action of the environment.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from jepa.data import blank
from jepa.data.envs import record
from jepa.data.envs.guard import first_reset
from jepa.data.envs.open import Env, load, open_env, picture
from jepa.errors import ConfigError, DataError, JepaError

Frame = npt.NDArray[np.uint8]  # (H, W, 3)
Values = Mapping[str, npt.NDArray[Any]]  # arrays of an episode at one frame, by name
_ARRAY = re.compile(r"([A-Za-z_][\w.-]*)(?:\[(\d*):(\d*)\])?")


@dataclass(frozen=True)
class CallConfig:
    """A method of the unwrapped environment to call, or one of its attributes to set.

    An argument that is text names an array, or a part of one: "state", "state[0:2]"; anything else is taken as it is.
    """

    call: str | None = None  # dotted name of a method, e.g. _set_state or point_env.set_state
    args: dict[str, Any] = field(default_factory=dict)  # its arguments by name
    attribute: str | None = None  # dotted name of an attribute, e.g. goal
    value: Any = None  # what it is set to

    def __post_init__(self) -> None:
        if (self.call is None) == (self.attribute is None):
            raise ConfigError("give either call (with args) or attribute (with value)")
        if (self.args and self.attribute) or (self.value is not None and self.call):
            raise ConfigError("args belong to call, value belongs to attribute")

    @property
    def arrays(self) -> tuple[str, ...]:
        """Names of the arrays it reads."""
        given = self.args.values() if self.call else [self.value]
        return tuple(dict.fromkeys(_name(text)[0] for text in given if isinstance(text, str)))


@dataclass(frozen=True)
class EnvConfig:
    """An environment, how its start and goal are set, and how its success is read."""

    env: str = ""  # registered id, e.g. swm/TwoRoom-v1
    modules: tuple[str, ...] = ()  # imported first, because they register environments, e.g. stable_worldmodel
    extra: str = "env"  # the extra that installs what it needs, for messages
    kwargs: dict[str, Any] = field(default_factory=dict)  # of the environment
    options: dict[str, Any] = field(default_factory=dict)  # of its reset
    size: tuple[int, int] | None = None  # frames are resized to it; null: to that of the data set's, else as drawn
    start: list[CallConfig] = field(default_factory=list)  # put it into a state, with arrays of the start's frame
    goal: list[CallConfig] = field(default_factory=list)  # give it a goal, with arrays of the goal's frame
    own_goal: dict[str, str] = field(default_factory=dict)  # its own goal after a reset, by arrays; each as `success`
    success: str = "terminated"  # or where to read it: info.KEY, observation.KEY, package.module:function of env
    distance: str | None = None  # how far it is from the goal: -reward, or where to read it
    proprio: str | None = None  # where to read proprioception, for models that take it
    blank: float = 0.0  # share of frames that planners see black, by seed, episode and step; never the start
    alone: bool = False  # several in one process disturb each other's pictures: episodes are planned one at a time
    deadline: float | None = 120.0  # seconds to open, reset and draw it, tried first in a process of its own; null: not
    nothing: Any = 0  # the action of doing nothing: one number for all, or a list
    expert: str | None = None  # scripted expert, package.module:name; see `make_expert`

    def __post_init__(self) -> None:
        if not self.env:
            raise ConfigError("env is empty: say which environment, e.g. env=swm/TwoRoom-v1")
        blank.check_share(self.blank, "blank")
        if self.size is not None and min(self.size) < 2:
            raise ConfigError(f"size: both sides must be at least 2 pixels, got {list(self.size)}")
        if self.expert is not None and ":" not in self.expert:
            raise ConfigError(f"expert: got {self.expert!r}, allowed: package.module:name, or null")
        for name, where in self.read.items():
            record.reader(name, where)

    @property
    def read(self) -> dict[str, str]:
        """Everything that is read from it after a step or a reset: what for -> where."""
        own = {f"own_goal.{name}": where for name, where in self.own_goal.items()}
        rest = {name: where for name in ("success", "distance", "proprio") if (where := getattr(self, name))}
        return {k: v for k, v in (own | rest).items() if v not in ("terminated", "-reward")}


@dataclass(frozen=True)
class Outcome:
    """What one step led to."""

    success: bool
    ended: bool  # the environment is over, succeeded or not
    distance: float | None  # from the goal, in the environment's units


class Arena:
    """One environment."""

    def __init__(self, config: EnvConfig) -> None:
        """Open it and reset it once.

        Raises:
            ConfigError: it cannot be opened, hangs or fails at once; its actions are neither a box of numbers in a row
                nor discrete.
        """
        self.config = config
        first_reset(config.env, config.modules, config.kwargs, config.deadline)
        try:
            self.env: Env = open_env(config.env, config.modules, config.kwargs)
        except ConfigError as error:
            text = str(error).replace("source.", "environment.")
            raise ConfigError(f"{text} Its extra: pip install 'jepa[{config.extra}]'") from None
        self._readers = {name: record.reader(name, where) for name, where in config.read.items()}
        self.info: Mapping[str, Any] = {}
        self.observation: Any = None
        self.choices, self.width, self.low, self.high = _actions(config.env, self.env)
        self.size = config.size
        self._drawn: tuple[int, int] | None = None  # width and height of what it drew last

    def close(self) -> None:
        """Let go of it."""
        self.env.close()

    def reset(self, seed: int) -> None:
        """Its own reset.

        Raises:
            DataError: it failed.
        """
        with _asked(f"reset with seed {seed}"):
            self.observation, self.info = self.env.reset(seed=seed, options=dict(self.config.options) or None)
            self.env.action_space.seed(seed)

    def begin(self, seed: int, start: Values | None, goal: Values | None) -> None:
        """Reset, then give it a goal and put it into a start state, as far as these are given.

        Raises:
            DataError: it failed, or an array is not there.
        """
        self.reset(seed)
        if goal is not None:
            self.apply(self.config.goal, goal)
        if start is not None:
            self.apply(self.config.start, start)

    def apply(self, calls: Sequence[CallConfig], values: Values) -> None:
        """Make the calls.

        Raises:
            DataError: an array is not there, or the environment does not take it.
        """
        for call in calls:
            name = call.call or call.attribute or ""
            *parents, last = name.split(".")
            with _asked(f"{name} with {', '.join(call.arrays) or 'no array'}"):
                holder = reduce(getattr, parents, self.env.unwrapped)
                if call.call:
                    getattr(holder, last)(**{key: _value(given, values) for key, given in call.args.items()})
                else:
                    setattr(holder, last, _value(call.value, values))

    def own_goal(self) -> Values:
        """The state of the goal it has chosen itself, by names of arrays.

        Raises:
            DataError: it does not tell.
        """
        return {name: np.asarray(self._read(f"own_goal.{name}")) for name in self.config.own_goal}

    def draw(self) -> Frame:
        """What it looks like now, resized.

        Raises:
            DataError: it draws something else than pictures, or of another size than before.
        """
        with _asked("render"):
            frame = picture(self.env)
        size = frame.shape[1], frame.shape[0]
        before, self._drawn = self._drawn or size, size
        if size != before:
            raise DataError("it draws {} x {} pixels now, and {} x {} before".format(*size, *before))
        return resized(frame, self.size)

    def step(self, action: npt.NDArray[np.floating[Any]]) -> Outcome:
        """One step with an action (a,), clipped to its bounds; for discrete actions one-hot or scores of the choices.

        Raises:
            DataError: it failed, or its info lacks what the suite reads.
        """
        if not np.isfinite(action).all():
            raise DataError(f"the action {action.tolist()} is not finite")
        given: Any = int(np.argmax(action)) if self.choices else self._within(action)
        with _asked("step"):
            self.observation, reward, terminated, truncated, self.info = self.env.step(given)
        success = bool(terminated) if self.config.success == "terminated" else bool(np.all(self._read("success")))
        distance = self._distance(float(reward))
        return Outcome(success, bool(terminated or truncated or success), distance)

    def nothing(self) -> npt.NDArray[np.float32]:
        """The action of doing nothing."""
        if self.choices:
            return _one_hot(int(self.config.nothing), self.choices)
        return np.array(np.broadcast_to(np.asarray(self.config.nothing, np.float32), (self.width,)))

    def random(self) -> npt.NDArray[np.float32]:
        """An action by chance, from its own space (seeded at the reset)."""
        drawn = self.env.action_space.sample()
        if self.choices:
            return _one_hot(int(drawn), self.choices)
        return np.asarray(drawn, np.float32).reshape(-1)

    def proprio(self) -> npt.NDArray[np.float32]:
        """Proprioception now (P,).

        Raises:
            DataError: it does not tell.
        """
        return np.asarray(self._read("proprio"), np.float32).reshape(-1)

    def _within(self, action: npt.NDArray[np.floating[Any]]) -> npt.NDArray[Any]:
        space = self.env.action_space
        return np.asarray(np.clip(action, self.low, self.high).reshape(space.shape), space.dtype)

    def _read(self, what: str) -> Any:
        with _asked(f"reading {self.config.read[what]}"):
            return self._readers[what](self.observation, self.info, self.env)

    def _distance(self, reward: float) -> float | None:
        if self.config.distance is None:
            return None
        value = -reward if self.config.distance == "-reward" else float(np.asarray(self._read("distance")).item())
        return value if np.isfinite(value) else None


Expert = Callable[[Arena], npt.NDArray[np.float32]]


def make_expert(path: str, arena: Arena, seed: int) -> Expert:
    """A scripted expert for one episode.

    Args:
        path: "package.module:name" of a class with stable-worldmodel's interface (`set_env`, `get_action(info)`), or
            of a function as for recipes: called with (env, seed), it returns a function observation -> action.

    Raises:
        ConfigError: no such thing there.
        DataError: it failed.
    """
    made = load(path, "environment.expert")
    with _asked(f"expert {path}"):
        if hasattr(made, "get_action"):
            policy = made()
            policy.set_env(arena.env)
            return lambda arena: np.asarray(policy.get_action(_full_info(arena)), np.float32).reshape(-1)
        act = made(arena.env, seed)
        return lambda arena: np.asarray(act(arena.observation), np.float32).reshape(-1)


def resized(frame: Frame, size: tuple[int, int] | None) -> Frame:
    """A frame uint8 (h, w, 3) to uint8 (H, W, 3), as the data set's source of environments does it."""
    if size is None or frame.shape[:2] == tuple(size):
        return frame
    packed = torch.from_numpy(np.ascontiguousarray(frame)).permute(2, 0, 1)[None]
    small = torch.nn.functional.interpolate(
        packed.contiguous(memory_format=torch.channels_last), size, mode="bicubic", antialias=True
    )
    return small[0].permute(1, 2, 0).contiguous().numpy()


def _full_info(arena: Arena) -> dict[str, Any]:
    """The info with the parts of the observation, which stable-worldmodel's wrapper puts there too."""
    seen = arena.observation if isinstance(arena.observation, Mapping) else {"observation": arena.observation}
    return {**seen, **arena.info}


def _actions(name: str, env: Env) -> tuple[int, int, npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """(choices or 0, numbers of an action, their bounds, infinite where there are none)."""
    from gymnasium.spaces import Box, Discrete

    space = env.action_space
    if isinstance(space, Discrete):
        if int(space.start) != 0:
            raise ConfigError(f"{name} numbers its actions from {space.start}; only those from 0 are supported")
        count = int(space.n)
        return count, count, np.zeros(count, np.float32), np.ones(count, np.float32)
    if isinstance(space, Box):
        low, high = (np.asarray(bound, np.float32).reshape(-1) for bound in (space.low, space.high))
        return 0, len(low), low, high
    raise ConfigError(f"{name} takes actions of {space}; planning needs a Box of numbers or a Discrete space")


def _name(text: str) -> tuple[str, slice]:
    found = _ARRAY.fullmatch(text)
    if found is None:
        raise ConfigError(f"{text!r} names no array; write name or name[from:to]")
    name, low, high = found.groups()
    return name, slice(int(low) if low else None, int(high) if high else None)


def _value(given: Any, values: Values) -> Any:
    if not isinstance(given, str):
        return given
    name, part = _name(given)
    if name not in values:
        raise DataError(f"there is no array {name!r}; there are: {', '.join(sorted(values)) or 'none'}")
    return np.array(values[name])[part]


def _one_hot(choice: int, choices: int) -> npt.NDArray[np.float32]:
    return np.array(np.arange(choices) == choice, dtype=np.float32)


class _asked:
    """Whatever an environment raises becomes a DataError that says what it was asked for."""

    def __init__(self, what: str) -> None:
        self.what = what

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, Exception) and not isinstance(error, JepaError):
            raise DataError(f"the environment failed at {self.what}: {type(error).__name__}: {error}") from None
