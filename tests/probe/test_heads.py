"""The grid of attentive heads computes what each head computes alone, and trains to where it trains alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from jepa import optim
from jepa.config import Duration
from jepa.nn.pooling import AttentiveClassifier
from jepa.probe.attentive import AttentiveConfig, train_grid
from jepa.probe.fit import Params, Recipe, Room, Stack, cut, fit, order
from jepa.probe.heads import HeadShape, forward, heads_for, parameters
from jepa.probe.tokens import Held

WIDTH, TOKENS, CLASSES = 12, 5, 4


def sharp(module: torch.nn.Module, seed: int) -> None:
    """Weights of a size at which attention is not flat and norms and biases matter."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in module.named_parameters():
            noise = torch.randn(p.shape, generator=generator, dtype=p.dtype)
            p.copy_((1.0 if name.endswith(("norm1.weight", "norm2.weight")) else 0.0) + 0.4 * noise)


def stacked(modules: list[AttentiveClassifier], dtype: torch.dtype) -> Params:
    found = [parameters(module) for module in modules]
    return {name: torch.stack([one[name] for one in found]).to(dtype) for name in found[0]}


@pytest.mark.parametrize("outputs", [CLASSES, (CLASSES, 2, 3)])
@pytest.mark.parametrize("depth", [1, 2, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_outputs_and_gradients_are_those_of_the_modules(depth, dtype, outputs):
    shape = HeadShape(WIDTH, 3, depth, outputs)
    modules = [shape.module(seed).to(dtype) for seed in range(3)]
    for seed, module in enumerate(modules):
        sharp(module, seed)
    x = torch.randn(6, TOKENS, WIDTH, dtype=dtype, generator=torch.Generator().manual_seed(9))
    params = {name: value.requires_grad_() for name, value in stacked(modules, dtype).items()}
    out = forward(shape, params, x)
    close = {"atol": 1e-11, "rtol": 0} if dtype == torch.float64 else {"atol": 1e-4, "rtol": 1e-4}
    pull = torch.randn(out.shape, dtype=dtype, generator=torch.Generator().manual_seed(10))
    (out * pull).sum().backward()
    for g, module in enumerate(modules):
        alone = module(x)
        torch.testing.assert_close(out[g], alone, **close)
        (alone * pull[g]).sum().backward()
        for name, p in module.named_parameters():
            torch.testing.assert_close(params[name].grad[g], p.grad, msg=lambda m, n=name: f"{n}: {m}", **close)


def trained_alone(
    shape: HeadShape, x: Tensor, y: Tensor, config: AttentiveConfig, lr: float, decay: float
) -> AttentiveClassifier:
    """The textbook loop: the module, torch's AdamW, one head."""
    module = shape.module(config.seed).to(x.dtype)
    recipe = config.recipe(len(x))
    optimizer = torch.optim.AdamW(module.parameters(), lr=lr, weight_decay=decay)
    for step, places in enumerate(order(len(x), recipe.batch, recipe.steps, config.seed)):
        at = torch.from_numpy(places)
        optimizer.param_groups[0]["lr"] = optim.warmup_cosine(
            step, start=recipe.start_lr, peak=lr, final=0.0, warmup=recipe.warmup, total=recipe.steps
        )
        optimizer.zero_grad()
        F.cross_entropy(module(x[at]), y[at]).backward()
        optimizer.step()
    return module


CONFIG = AttentiveConfig(
    depth=2, heads=3, lr=(1e-3, 5e-3), weight_decay=(0.01, 0.4), duration=Duration(steps=25), batch=8,
    warmup=Duration(steps=3), start_lr=1e-5,
)  # fmt: skip


def problem(count: int = 21, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(count, TOKENS, WIDTH, generator=generator).to(dtype)
    return x, torch.randint(0, CLASSES, (count,), generator=generator)


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 2e-5)])
def test_each_head_of_the_grid_ends_where_it_ends_alone(depth, dtype, tolerance):
    config = AttentiveConfig(**{**vars(CONFIG), "depth": depth})
    x, y = problem(dtype=dtype)
    shape = HeadShape(WIDTH, 3, depth, CLASSES)
    grid = train_grid(Held(x.unsqueeze(1)), y, CLASSES, config, dtype=dtype)
    outs = forward(shape, grid.stack.params(), x)
    for head, (lr, decay) in enumerate(config.grid()):
        alone = trained_alone(shape, x, y, config, lr, decay)
        torch.testing.assert_close(outs[head], alone(x).detach(), atol=tolerance, rtol=0)
    spread = (outs[:, None] - outs[None]).abs().amax(dim=(2, 3))
    assert spread[spread > 0].min() > 10 * tolerance, "the settings do not tell the heads apart"


def test_several_questions_add_up_and_leave_out_what_is_not_known():
    """Each with a query and a linear map of its own; the loss is the sum of their cross-entropies."""
    x, first = problem()
    answers = torch.stack([first, first.clamp(max=1)], dim=1)
    answers[::3, 1] = -1
    one = AttentiveConfig(**{**vars(CONFIG), "depth": 1, "lr": (5e-3,), "weight_decay": (0.01,)})
    grid = train_grid(Held(x.unsqueeze(1).double()), answers, (CLASSES, 2), one, dtype=torch.float64)
    module = grid.shape.module(one.seed).double()
    recipe = one.recipe(len(x))
    optimizer = torch.optim.AdamW(module.parameters(), lr=5e-3, weight_decay=0.01)
    for step, places in enumerate(order(len(x), recipe.batch, recipe.steps, one.seed)):
        at = torch.from_numpy(places)
        optimizer.param_groups[0]["lr"] = optim.warmup_cosine(
            step, start=recipe.start_lr, peak=5e-3, final=0.0, warmup=recipe.warmup, total=recipe.steps
        )
        optimizer.zero_grad()
        out, wanted = module(x[at].double()), answers[at]
        known = wanted[:, 1] >= 0
        loss = F.cross_entropy(out[:, :CLASSES], wanted[:, 0], reduction="sum")
        loss = loss + F.cross_entropy(out[known, CLASSES:], wanted[known, 1], reduction="sum")
        (loss / len(at)).backward()
        optimizer.step()
    found = forward(grid.shape, grid.stack.params(), x.double())[0]
    torch.testing.assert_close(found, module(x.double()).detach(), atol=1e-10, rtol=0)


def test_a_head_loads_into_the_module():
    x, y = problem()
    grid = train_grid(Held(x.unsqueeze(1)), y, CLASSES, CONFIG)
    module = HeadShape(WIDTH, 3, 2, CLASSES).module(99)
    module.load_state_dict(grid.stack.one(3))
    torch.testing.assert_close(module(x), forward(grid.shape, grid.stack.params(), x)[3], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("room", [Room(8, 4), Room(3, 4), Room(100, 1), Room(1, 3)])
def test_how_much_is_worked_on_at_a_time_does_not_matter(monkeypatch, room):
    x, y = problem(dtype=torch.float64)
    whole = train_grid(Held(x.unsqueeze(1)), y, CLASSES, CONFIG, dtype=torch.float64)
    monkeypatch.setattr(HeadShape, "room", lambda self, *arguments: room)
    pieces = train_grid(Held(x.unsqueeze(1)), y, CLASSES, CONFIG, dtype=torch.float64)
    for name, value in whole.stack.values.items():
        torch.testing.assert_close(pieces.stack.values[name], value, atol=1e-11, rtol=0)


def test_twice_the_same_to_the_last_bit_and_another_seed_another():
    x, y = problem()
    first, again = (train_grid(Held(x.unsqueeze(1)), y, CLASSES, CONFIG).stack.values for _ in range(2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    other = train_grid(Held(x.unsqueeze(1)), y, CLASSES, AttentiveConfig(**{**vars(CONFIG), "seed": 1})).stack.values
    assert not torch.equal(first["linear.weight"], other["linear.weight"])


def test_torchs_generator_is_left_alone():
    x, y = problem()
    torch.manual_seed(5)
    before = torch.get_rng_state()
    train_grid(Held(x.unsqueeze(1)), y, CLASSES, CONFIG)
    assert torch.equal(before, torch.get_rng_state())


def test_a_head_that_diverges_leaves_the_others_alone():
    x, y = problem(dtype=torch.float64)
    config = AttentiveConfig(**{**vars(CONFIG), "lr": (1e-3, 1e200)})
    grid = train_grid(Held(x.unsqueeze(1)), y, CLASSES, config, dtype=torch.float64)
    outs = forward(grid.shape, grid.stack.params(), x)
    assert not torch.isfinite(outs[2:]).all()
    alone = trained_alone(grid.shape, x, y, config, 1e-3, 0.01)
    torch.testing.assert_close(outs[0], alone(x).detach(), atol=1e-10, rtol=0)


# --- order, room --------------------------------------------------------------------------------------------------


def test_order_visits_every_sample_once_an_epoch_and_drops_none():
    steps = order(10, 4, 5, seed=0)
    assert [len(s) for s in steps] == [4] * 5
    flat = np.concatenate(steps)
    assert sorted(flat[:10]) == sorted(flat[10:]) == list(range(10))
    assert (flat[:10] != flat[10:]).any()
    assert all(np.array_equal(a, b) for a, b in zip(steps[:2], order(10, 4, 2, seed=0), strict=True))


def test_cut_is_even_and_complete():
    for count in range(1, 30):
        for most in range(1, 12):
            parts = cut(np.arange(count), most)
            assert np.array_equal(np.concatenate(parts), np.arange(count))
            assert max(map(len, parts)) <= most and max(map(len, parts)) - min(map(len, parts)) <= 1


def test_room_stays_within_its_budget_where_it_can():
    assert Room.within(100, 10, 5, 4) == Room(3, 4)  # 10 + 4 * 5 a sample
    assert Room.within(30, 10, 5, 20) == Room(1, 4)
    assert Room.within(1, 10, 5, 20) == Room(1, 1)  # the least there is
    shape = HeadShape(1024, 16, 4, 174)
    small, large = (shape.room(4096, gib, 20, 2, torch.device("cuda")) for gib in (2.0, 64.0))
    assert small.samples == 1 and 1 <= small.models < large.models == 20
    assert large.samples > 1


def test_heads_for_a_width():
    assert [heads_for(w) for w in (16, 32, 64, 192, 384, 768, 1024, 1280, 1408)] == [1, 1, 1, 3, 6, 12, 16, 20, 22]


def test_fit_minimises_what_it_is_told_to():
    """A stack of numbers pulled to the mean of its samples."""
    stack = Stack({"x": torch.zeros(1)}, 2)
    samples = torch.tensor([1.0, 2.0, 6.0])

    def loss(params: Params, x: Tensor, places: np.ndarray) -> Tensor:
        return (params["x"] - x).square().sum(dim=1)

    recipe = Recipe([(0.3, 0.0), (1e-4, 0.0)], steps=300, batch=3)
    walk = lambda lists: (samples[torch.from_numpy(p)] for p in lists)  # noqa: E731
    said: list[str] = []
    fit(stack, recipe, 3, walk, loss, Room(2, 2), said.append)
    assert stack.values["x"][0].item() == pytest.approx(3.0, abs=1e-2)
    assert 0 < stack.values["x"][1].item() < 0.1
    assert said[0] == "step 1 of 300" and len(said) == 100
