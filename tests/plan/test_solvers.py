"""Every solver on problems whose best plan is known."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from jepa.errors import ConfigError, DataError
from jepa.plan import ActionSpace, Noise, Solver, create
from jepa.plan.solvers import SOLVERS
from jepa.plan.solvers.base import scored
from tests.plan.worlds import box

CONTINUOUS = sorted(set(SOLVERS) - {"categorical"})
SMALL: dict[str, dict[str, Any]] = {
    "cem": {"samples": 200, "elites": 20, "iterations": 20},
    "icem": {"samples": 200, "elites": 10, "iterations": 12},
    "mppi": {"samples": 200, "elites": 20, "iterations": 20, "relative": True, "min_std": 0.01},
    "sampling": {"samples": 300, "iterations": 60, "std": 0.15},
    "gradient": {"restarts": 4, "iterations": 60},
    "categorical": {"samples": 200, "elites": 20, "iterations": 10},
}
WIDE = ActionSpace.box([-3.0, -2.0], [3.0, 2.0])


def solver(name: str, **more: Any) -> Solver:
    return create({"name": name, **SMALL[name], **more})


def noise(rows: int = 2, seed: int = 0, call: int = 0) -> Noise:
    return Noise(seed, [(row, call) for row in range(rows)])


def bowl(best: Tensor) -> Any:
    """(B, S, H, A) -> (B, S): squared distance to `best` (B, H, A)."""
    return lambda actions: (actions - best[:, None]).square().sum((2, 3))


@pytest.mark.parametrize("name", CONTINUOUS)
def test_bowl(name: str) -> None:
    best = torch.tensor([[[1.0, -0.5], [0.3, 0.8], [-1.2, 0.0]], [[0.0, 0.0], [2.0, 1.0], [0.5, -1.5]]])
    plan = solver(name).plan(bowl(best), WIDE, 3, noise())
    assert plan.actions.shape == (2, 3, 2) and plan.trace.shape[1] == 2
    assert plan.cost.max() < 0.05
    torch.testing.assert_close(plan.cost, bowl(best)(plan.actions[:, None])[:, 0])
    assert bool((plan.trace[-1] < 0.2 * plan.trace[0]).all())


@pytest.mark.parametrize("name", CONTINUOUS)
def test_the_best_is_on_the_border(name: str) -> None:
    best = torch.full((2, 3, 2), 5.0)
    plan = solver(name).plan(bowl(best), WIDE, 3, noise())
    assert bool((plan.actions <= WIDE.high).all())
    torch.testing.assert_close(plan.actions, WIDE.high.expand_as(plan.actions), atol=0.15, rtol=0)


@pytest.mark.parametrize("name", CONTINUOUS)
def test_round_an_obstacle(name: str) -> None:
    """From (0, 0) to (1, 0) in eight steps of at most 0.3; on the straight line stands a disc."""

    def cost(actions: Tensor) -> Tensor:
        way = actions.cumsum(2)
        near = (0.35 - (way - torch.tensor([0.5, 0.05])).norm(dim=-1)).clamp(min=0)
        value: Tensor = (way[:, :, -1] - torch.tensor([1.0, 0.0])).square().sum(-1) + 20 * near.square().sum(-1)
        return value

    more: dict[str, Any] = {"icem": {"std": 1.0}, "sampling": {"std": 0.3}}.get(name, {})
    plan = solver(name, **more).plan(cost, box(0.3), 8, noise(3))
    assert plan.cost.max() < 0.02
    way = plan.actions.cumsum(1)
    assert (way - torch.tensor([0.5, 0.05])).norm(dim=-1).min() > 0.3
    assert bool((way[:, -1] - torch.tensor([1.0, 0.0])).norm(dim=-1).max() < 0.15)


def test_categorical() -> None:
    space = ActionSpace.choices(4, stride=2)
    best = torch.tensor([[0, 3, 2, 2, 1, 0], [1, 1, 1, 3, 0, 2]])

    def cost(actions: Tensor) -> Tensor:
        picks = actions.reshape(*actions.shape[:2], 6, 4)
        assert bool((picks.sum(-1) == 1).all()) and bool((picks.max(-1).values == 1).all())
        return (picks.argmax(-1) != best[:, None]).float().sum(-1)

    plan = solver("categorical").plan(cost, space, 3, noise())
    assert plan.actions.shape == (2, 3, 8)
    assert torch.equal(space.split(plan.actions), best) and plan.cost.max() == 0
    again = plan.shift(1, space)
    assert torch.equal(space.split(again.actions)[:, :4], best[:, 2:])


def test_categorical_holds_on_to_an_action() -> None:
    changes = []
    for change in (0.0, 1.0):
        plan = solver("categorical", change=change).plan(
            lambda a: a.sum((2, 3)) * 0, ActionSpace.choices(3), 8, noise()
        )
        changes.append(int((plan.actions.argmax(-1).diff(dim=1) != 0).sum()))
    assert changes[1] == 0 < changes[0]


@pytest.mark.parametrize("name", sorted(SOLVERS))
def test_a_row_depends_on_its_key_alone(name: str) -> None:
    space = ActionSpace.choices(3) if name == "categorical" else WIDE
    target = torch.randn(4, 5, space.size, generator=torch.Generator().manual_seed(0))
    keys = [(7, 0), (8, 0), (9, 3), (10, 0)]
    together = solver(name).plan(bowl(target), space, 5, Noise(1, keys))
    for row, key in enumerate(keys):
        alone = solver(name).plan(bowl(target[row : row + 1]), space, 5, Noise(1, [key]))
        assert torch.equal(alone.actions[0], together.actions[row])
        assert torch.equal(alone.cost[0], together.cost[row])
    more = {"iterations": 1} | ({"restarts": 50} if name == "gradient" else {})
    one, other = (solver(name, **more).plan(bowl(target), space, 5, Noise(seed, keys)) for seed in (1, 2))
    assert not torch.equal(one.actions, other.actions)


def test_equal_keys_and_others() -> None:
    drawn = Noise(0, [(1, 0), (1, 1), (2, 0), (1, 0)]).normal(4)
    assert torch.equal(drawn[0], drawn[3]) and not torch.equal(Noise(1, [(1, 0)]).normal(4)[0], drawn[0])
    assert len({tuple(row.tolist()) for row in drawn}) == 3


@pytest.mark.parametrize("name", sorted(SOLVERS))
def test_rows_with_and_without_a_plan_before(name: str) -> None:
    space = ActionSpace.choices(3) if name == "categorical" else WIDE
    target = torch.randn(2, 5, space.size, generator=torch.Generator().manual_seed(0))
    first = solver(name).plan(bowl(target), space, 5, noise())
    start = first.shift(2, space)
    torch.testing.assert_close(start.actions[:, :3], first.actions[:, 2:])
    assert torch.equal(start.actions[:, 3:], space.centre.expand(2, 2, -1))
    start = type(start)(start.actions, torch.tensor([True, False]), start.elites)
    start.actions[1] = space.centre
    mixed = solver(name).plan(bowl(target), space, 5, noise(call=1), start)
    cold = solver(name).plan(bowl(target[1:]), space, 5, Noise(0, [(1, 1)]))
    warm = solver(name).plan(bowl(target[:1]), space, 5, Noise(0, [(0, 1)]), start.rows(slice(0, 1)))
    assert torch.equal(mixed.actions[1:], cold.actions) and torch.equal(mixed.actions[:1], warm.actions)


def test_sampling_is_never_worse_than_the_plan_before() -> None:
    best = torch.randn(2, 4, 2, generator=torch.Generator().manual_seed(3)).clamp(-1, 1)
    good = create({"name": "gradient"}).plan(bowl(best), WIDE, 4, noise())
    start = good.shift(0, WIDE)
    plan = create({"name": "sampling", "samples": 5, "std": 3.0}).plan(bowl(best), WIDE, 4, noise(), start)
    assert bool((plan.cost <= good.cost).all())


def test_elites_of_icem_come_back() -> None:
    """A single needle in a flat cost is kept once it was found, within a plan and from plan to plan."""
    best = torch.zeros(1, 3, 2)
    found = solver("icem").plan(bowl(best), WIDE, 3, noise(1))
    assert bool((found.trace.diff(dim=0) <= 0).all())
    assert found.elites is not None
    start = found.shift(0, WIDE)
    start = type(start)(torch.full_like(start.actions, 2.0), start.warm, start.elites)  # a mean that leads astray
    again = solver("icem", iterations=1).plan(bowl(best), WIDE, 3, noise(1, call=1), start)
    assert bool((again.cost <= found.cost).all())


def test_icem_shrinks_its_population() -> None:
    counts = []

    def cost(actions: Tensor) -> Tensor:
        counts.append(actions.shape[1])
        return actions.square().sum((2, 3))

    create({"name": "icem", "samples": 100, "elites": 10, "iterations": 9}).plan(cost, WIDE, 3, noise(1))
    # N 1.25^-i, at least 2K; 3 elites come back from the second on, and the mean joins the last
    assert counts == [100, 83, 67, 54, 43, 35, 29, 23, 24]


def test_coloured_noise() -> None:
    drawn = {beta: Noise(0, [(0,)]).coloured(20000, 8, 1, beta)[0, :, :, 0] for beta in (0.0, 1.0, 2.0)}
    for x in drawn.values():
        torch.testing.assert_close(x.var(0), torch.ones(8), atol=0.05, rtol=0)
    neighbours = {beta: float((x[:, 1:] * x[:, :-1]).mean()) for beta, x in drawn.items()}
    assert abs(neighbours[0.0]) < 0.02 < 0.3 < neighbours[1.0] < neighbours[2.0]
    power = torch.fft.rfft(drawn[2.0], dim=-1).abs().square().mean(0)[1:]
    torch.testing.assert_close(power / power[0], torch.arange(1.0, 5.0) ** -2, atol=0.01, rtol=0.1)


def test_smoothness() -> None:
    best = torch.tensor([[[1.0, 1.0], [-1.0, -1.0]] * 3])
    rough, smooth = (solver("cem", smooth=w).plan(bowl(best), WIDE, 6, noise(1)).actions for w in (0.0, 1000.0))
    assert smooth.diff(dim=1).abs().max() < 0.2 < rough.diff(dim=1).abs().min()
    # between the two steps inside one action of the model, too
    z = torch.tensor([[[[1.0, 1.0, -1.0, -1.0]]]])
    assert float(scored(lambda a: a.new_zeros(1, 1), z, box(1.0, stride=2), 1.0)) == 4.0


@given(
    low=st.lists(st.floats(-5, 1), min_size=2, max_size=2),
    width=st.floats(0.01, 10),
    name=st.sampled_from(CONTINUOUS),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=40, deadline=None)
def test_bounds_always_hold(low: list[float], width: float, name: str, seed: int) -> None:
    space = ActionSpace.box(low, [x + width for x in low], 2, mean=torch.zeros(2), std=torch.tensor([0.5, 4.0]))
    few = {"iterations": 3} | ({"restarts": 2} if name == "gradient" else {"samples": 12})
    few |= {} if name in ("gradient", "sampling") else {"elites": 4}
    seen = []

    def cost(actions: Tensor) -> Tensor:
        seen.append(actions.detach())
        return actions.sum((2, 3))

    plan = create({"name": name, **few}).plan(cost, space, 3, Noise(seed, [(0,), (1,)]))
    for actions in (*seen, plan.actions):
        assert bool((actions >= space.low).all()) and bool((actions <= space.high).all())


def test_tanh_stays_inside_and_finds_the_best() -> None:
    best = torch.tensor([[[1.0, -0.5], [0.3, 0.8]]])
    plan = solver("gradient", bounds="tanh").plan(bowl(best), WIDE, 2, noise(1))
    assert plan.cost.max() < 0.01
    plan = solver("gradient", bounds="tanh").plan(bowl(best + 10), WIDE, 2, noise(1))
    assert bool((plan.actions <= WIDE.high).all()) and bool((plan.actions > 0.9 * WIDE.high).all())


def test_gradient_needs_a_gradient() -> None:
    with pytest.raises(ConfigError, match=r"no gradient.*Use cem"):
        solver("gradient").plan(lambda a: a.detach().sum((2, 3)), WIDE, 2, noise())
    weight = torch.ones((), requires_grad=True)
    with pytest.raises(ConfigError, match="no gradient"):
        solver("gradient").plan(lambda a: a.detach().sum((2, 3)) * weight, WIDE, 2, noise())
    free = ActionSpace.box([-torch.inf] * 2, [torch.inf] * 2, mean=torch.zeros(2), std=torch.ones(2))
    with pytest.raises(ConfigError, match="bounds=project"):
        solver("gradient", bounds="tanh").plan(bowl(torch.zeros(2, 2, 2)), free, 2, noise())


def test_gradient_leaves_the_weights_alone() -> None:
    weight = torch.ones((), requires_grad=True)
    with torch.no_grad():  # as in an agent
        plan = solver("gradient").plan(lambda a: (weight * a - 1).square().sum((2, 3)), WIDE, 2, noise())
    assert weight.grad is None and plan.cost.max() < 0.01 and not plan.actions.requires_grad


@pytest.mark.parametrize("name", CONTINUOUS)
def test_nan_is_never_chosen(name: str) -> None:
    def cost(actions: Tensor) -> Tensor:
        value = actions.square().sum((2, 3))
        return torch.where(actions[:, :, 0, 0] > 0.3, value * torch.nan, value)

    plan = solver(name).plan(cost, WIDE, 2, noise())
    assert bool(plan.cost.isfinite().all())
    with pytest.raises(DataError, match=r"rows \[1\] have no finite cost"):
        solver(name).plan(lambda a: a.sum((2, 3)) + torch.tensor([[0.0], [torch.nan]]), WIDE, 2, noise())


def test_what_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"solver 'solver.name=cen'.*Did you mean 'cem'"):
        create({"name": "cen"})
    with pytest.raises(ConfigError, match="elites"):
        create({"name": "cem", "elite": 3})
    with pytest.raises(ConfigError, match="2 <= elites <= samples"):
        create({"name": "icem", "samples": 5, "elites": 10})
    with pytest.raises(ConfigError, match="iterations=0"):
        create({"name": "mppi", "iterations": 0})
    with pytest.raises(ConfigError, match="categorical does"):
        solver("cem").plan(bowl(torch.zeros(2, 1, 3)), ActionSpace.choices(3), 1, noise())
    with pytest.raises(ConfigError, match="cem does"):
        solver("categorical").plan(bowl(torch.zeros(2, 1, 2)), WIDE, 1, noise())
    with pytest.raises(ConfigError, match="horizon of 0"):
        solver("cem").plan(bowl(torch.zeros(2, 1, 2)), WIDE, 0, noise())
