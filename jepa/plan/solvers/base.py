"""What all solvers share: the noise that only a row's own key decides, the plan they give, and where they begin.

Shapes: B environments, S candidates, H steps, A numbers of an action, I iterations, K elites.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from jepa.errors import ConfigError, DataError
from jepa.plan.space import ActionSpace

Cost = Callable[[Tensor], Tensor]  # candidates (B, S, H, A) in units of the environment -> (B, S), smaller is better
Key = tuple[int, ...]


class Noise:
    """Random numbers for B rows, each from a generator of its own on the device, seeded by (seed, the row's key).

    A row draws the same numbers whichever rows it is planned with. CPU and CUDA draw different ones.
    """

    def __init__(
        self,
        seed: int,
        keys: Sequence[Key],
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.device, self.dtype = torch.device(device), dtype
        self.generators = [torch.Generator(self.device).manual_seed(_hash(seed, key)) for key in keys]

    def __len__(self) -> int:
        return len(self.generators)

    def normal(self, *shape: int) -> Tensor:
        """Standard normal numbers (B, *shape)."""
        return self._drawn(torch.randn, shape)

    def uniform(self, *shape: int) -> Tensor:
        """Numbers in [0, 1), (B, *shape)."""
        return self._drawn(torch.rand, shape)

    def _drawn(self, draw: Any, shape: tuple[int, ...]) -> Tensor:
        return torch.stack([draw(shape, generator=g, device=self.device, dtype=self.dtype) for g in self.generators])

    def coloured(self, samples: int, horizon: int, size: int, beta: float, stride: int = 1) -> Tensor:
        """Normal numbers (B, S, H, A) whose power over time falls with frequency f as f^-beta, of variance 1.

        Time is that of the environment: the `stride` actions that are side by side in one of the model come one after
        the other. White noise over them goes nowhere, for five steps of chance add up to two.

        Timmer & König 1995 as in iCEM (arXiv 2008.06389, section 3.1): beta 0 is white, 1 pink, 2 red; the frequency
        0 gets the power of the lowest other one. Every number's variance is 1 by theory rather than by dividing by
        what was drawn, so that short horizons keep their slow part.
        """
        if stride > 1 and beta != 0.0:
            long = self.coloured(samples, horizon * stride, size // stride, beta)
            return long.reshape(*long.shape[:2], horizon, size)
        if beta == 0.0 or horizon == 1:
            return self.normal(samples, horizon, size)
        frequency = torch.fft.rfftfreq(horizon, device=self.device, dtype=self.dtype)
        amplitude = frequency.clamp(min=1.0 / horizon) ** (-beta / 2)
        twice = torch.full_like(amplitude, 2.0)  # all but the first and, of an even horizon, the last stand for two
        twice[0] = 1.0
        if horizon % 2 == 0:
            twice[-1] = 1.0
        amplitude = amplitude / ((twice * amplitude**2).sum() / horizon).sqrt()
        spectrum = torch.fft.rfft(self.normal(samples, size, horizon), dim=-1) * amplitude
        noise: Tensor = torch.fft.irfft(spectrum, n=horizon, dim=-1)
        return noise.transpose(-1, -2)


def _hash(seed: int, key: Key) -> int:
    digest = hashlib.blake2b(repr(("plan", seed, tuple(map(int, key)))).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") & (2**63 - 1)


@dataclass(frozen=True)
class Start:
    """Where a search begins: the rest of the plan before."""

    actions: Tensor  # (B, H, A) in units of the environment
    warm: Tensor  # (B,) bool: whether there was a plan before; the others begin at the centre
    elites: Tensor | None = None  # (B, K, H, A) other good plans, best first

    def rows(self, index: slice) -> Start:
        """Some of the batch."""
        return Start(self.actions[index], self.warm[index], None if self.elites is None else self.elites[index])

    @classmethod
    def joined(cls, parts: Sequence[Start]) -> Start:
        """Several batches side by side."""
        elites = [part.elites for part in parts if part.elites is not None]
        assert len(elites) in (0, len(parts)), f"{len(elites)} of {len(parts)} starts have elites"
        actions, warm = (torch.cat([getattr(part, name) for part in parts]) for name in ("actions", "warm"))
        return cls(actions, warm, torch.cat(elites) if elites else None)


@dataclass(frozen=True)
class Plan:
    """What a solver found."""

    actions: Tensor  # (B, H, A) in units of the environment, within its bounds
    cost: Tensor  # (B,) of these actions
    trace: Tensor  # (I, B) lowest cost among the candidates of every iteration
    elites: Tensor | None = None  # (B, K, H, A), best first, of solvers that use them again

    def shift(self, steps: int, space: ActionSpace) -> Start:
        """`steps` were taken: what is left, filled up with the centre of the space."""
        rest = _shifted(self.actions, steps, space)
        elites = None if self.elites is None else _shifted(self.elites, steps, space)
        left = steps < self.actions.shape[1]
        return Start(rest, torch.full((len(rest),), left, dtype=torch.bool, device=rest.device), elites)


def _shifted(actions: Tensor, steps: int, space: ActionSpace) -> Tensor:
    kept = actions[..., steps:, :]
    missing = actions.shape[-2] - kept.shape[-2]
    fill = space.centre.expand(*actions.shape[:-2], missing, actions.shape[-1])
    return torch.cat([kept, fill], dim=-2)


class Solver(ABC):
    """Base class. A subclass has a frozen dataclass ``Config`` and the method `search`.

    Nothing in `search` waits for the device: what depends on costs is chosen by topk, where and argmin.
    """

    Config: ClassVar[type]
    discrete: ClassVar[bool] = False  # searches one-hot actions
    gradients: ClassVar[bool] = False

    def __init__(self, config: Any = None) -> None:
        self.config = self.Config() if config is None else config

    def plan(self, cost: Cost, space: ActionSpace, horizon: int, noise: Noise, start: Start | None = None) -> Plan:
        """The best actions found for each row.

        Args:
            cost: candidates (B, S, H, A) in units of the environment to (B, S). NaN counts as infinitely bad.
            space: bounds and units, on any device.
            horizon: H.
            noise: of B rows; its device and dtype are those of the search.
            start: the rest of the plan before; None: begin at the centre.

        Raises:
            ConfigError: a solver that cannot search this kind of actions, or a horizon below 1.
            DataError: no candidate of some row has a finite cost.
        """
        if horizon < 1:
            raise ConfigError(f"a planning horizon of {horizon} steps: give at least 1")
        if self.discrete != bool(space.discrete):
            name, given = type(self).__name__, "discrete" if space.discrete else "continuous"
            raise ConfigError(
                f"{name} does not search {given} actions: " + ("categorical" if space.discrete else "cem") + " does"
            )
        space = space.to(noise.device, noise.dtype)
        if start is None:
            centre = space.centre.expand(len(noise), horizon, -1)
            start = Start(centre, torch.zeros(len(noise), dtype=torch.bool, device=noise.device))
        found = self.search(cost, space, horizon, noise, start)
        if not bool(found.cost.isfinite().all()):
            rows = (~found.cost.isfinite()).nonzero().flatten().tolist()
            raise DataError(
                f"the plans found for rows {rows} have no finite cost: the model's prediction or its goal is NaN or "
                "infinite there. Check the observation, the goal and the statistics of the actions"
            )
        return found

    @abstractmethod
    def search(self, cost: Cost, space: ActionSpace, horizon: int, noise: Noise, start: Start) -> Plan:
        """`plan` after its checks, with space and start on the device."""


def scored(cost: Cost, z: Tensor, space: ActionSpace, smooth: float = 0.0) -> Tensor:
    """Costs (B, S) of candidates in the units of the search (B, S, H, A).

    Args:
        smooth: weight of the squared change from one action of the environment to the next, averaged over the numbers
            of an action and over time.
    """
    values = cost(space.outward(z))
    if smooth:
        rows, samples, horizon, size = z.shape
        steps = space.inward(space.outward(z)).reshape(rows, samples, horizon * space.stride, size // space.stride)
        if steps.shape[2] > 1:
            values = values + smooth * steps.diff(dim=2).square().mean((2, 3))
    return values.nan_to_num(nan=torch.inf, posinf=torch.inf)


def lowest(values: Tensor, candidates: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` best of (B, S) costs and their candidates (B, S, ...), best first: (B, K) and (B, K, ...)."""
    best, index = values.topk(count, dim=1, largest=False)
    return best, candidates[torch.arange(len(values), device=values.device)[:, None], index]


def inside(z: Tensor, space: ActionSpace) -> Tensor:
    """Candidates in the units of the search, moved to the nearest ones within the bounds."""
    return torch.minimum(torch.maximum(z, space.inward(space.low)), space.inward(space.high))


def check_counts(name: str, *, samples: int, elites: int, iterations: int) -> None:
    """Refuse a population that cannot be searched with.

    Raises:
        ConfigError: saying what is allowed.
    """
    if iterations < 1:
        raise ConfigError(f"solver {name}: iterations={iterations}; give at least 1")
    if not 2 <= elites <= samples:
        raise ConfigError(f"solver {name}: elites={elites} of samples={samples}; give 2 <= elites <= samples")
