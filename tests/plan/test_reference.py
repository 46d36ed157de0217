"""Against stable-worldmodel's solvers: the same costs and, where the algorithm is the same, the same random numbers."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import Tensor

from jepa.plan import ActionSpace, Noise, create

B, S, H, A = 3, 64, 4, 2


@pytest.fixture(scope="module")
def theirs() -> Any:
    return pytest.importorskip("stable_worldmodel.solver", exc_type=ImportError)


class SameNumbers(Noise):
    """Draws as stable-worldmodel does: one generator for all rows."""

    def __init__(self, seed: int) -> None:
        super().__init__(0, [(row,) for row in range(B)])
        self.generator = torch.Generator().manual_seed(seed)

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(B, *shape, generator=self.generator)


def valley(actions: Tensor) -> Tensor:
    """A curved valley with the end at a place of its own for each row: (B, S, H, A) to (B, S)."""
    way = actions.cumsum(2)
    goal = torch.tensor([[1.0, 0.5], [-0.5, 1.5], [0.0, -2.0]])[: len(actions), None]
    bend = way[..., 1] - 0.5 * way[..., 0].square()
    value: Tensor = (way[:, :, -1] - goal).square().sum(-1) + 0.3 * bend.square().sum(-1)
    return value + 0.05 * actions.square().sum((2, 3))


def solved(solver_class: Any, bound: float = np.inf, seed: int = 5, **settings: Any) -> Tensor:
    """What the other library plans for the valley, (B, H, A)."""
    model = SimpleNamespace(get_cost=lambda info, candidates: valley(candidates))
    solver = solver_class(model, batch_size=B, num_samples=S, seed=seed, **settings)
    space = gym.spaces.Box(-bound, bound, (B, A), dtype=np.float32)
    solver.configure(action_space=space, n_envs=B, config=SimpleNamespace(horizon=H, action_block=1))
    found: Tensor = solver.solve({"rows": torch.arange(B)})["actions"]
    return found


FREE = ActionSpace.box([-np.inf] * A, [np.inf] * A, mean=torch.zeros(A), std=torch.ones(A))


def ours(space: ActionSpace, noise: Noise, **settings: Any) -> Tensor:
    return create({"samples": S, **settings}).plan(valley, space, H, noise).actions


def test_cem_is_the_same(theirs: Any) -> None:
    found = solved(theirs.CEMSolver, topk=8, n_steps=6)
    torch.testing.assert_close(ours(FREE, SameNumbers(5), name="cem", elites=8, iterations=6), found)


def test_mppi_is_the_same(theirs: Any) -> None:
    found = solved(theirs.MPPISolver, topk=8, n_steps=6, temperature=0.3)
    settings: dict[str, Any] = {"name": "mppi", "elites": 8, "iterations": 6, "temperature": 0.3}
    torch.testing.assert_close(ours(FREE, SameNumbers(5), **settings, std=1.0, adapt=False), found)


def test_predictive_sampling_is_the_same(theirs: Any) -> None:
    found = solved(theirs.PredictiveSamplingSolver)
    torch.testing.assert_close(ours(FREE, SameNumbers(5), name="sampling"), found)


@pytest.mark.parametrize("bound", [np.inf, 0.5])
def test_plans_are_as_good(theirs: Any, bound: float) -> None:
    """As many samples and iterations, over six seeds: a cost no higher by more than a hundredth of the way to it."""
    space = FREE if np.isinf(bound) else ActionSpace.box([-bound] * A, [bound] * A, 1, torch.zeros(A), torch.ones(A))
    zero = valley(torch.zeros(B, 1, H, A)).mean()
    same: dict[str, Any] = {"elites": 8, "iterations": 10}
    for solver, more, settings in (
        (theirs.CEMSolver, {}, {"name": "cem"}),
        (theirs.ICEMSolver, {}, {"name": "icem", "decay": 1.0, "std": 1.0}),
        (theirs.MPPISolver, {"temperature": 0.1}, {"name": "mppi", "temperature": 0.1, "std": 1.0}),
    ):
        costs: dict[str, list[Tensor]] = {"theirs": [], "ours": []}
        for seed in range(6):
            found = solved(solver, bound, seed, topk=8, n_steps=10, **more)
            costs["theirs"].append(valley(space.clip(found)[:, None]))  # it may be outside; the environment clips
            mine = ours(space, Noise(seed, [(row,) for row in range(B)]), **same, **settings)
            costs["ours"].append(valley(mine[:, None]))
        reference, own = (torch.cat(costs[who]).mean() for who in ("theirs", "ours"))
        assert own <= reference + 0.01 * (zero - reference), (settings["name"], own, reference)
