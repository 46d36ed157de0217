"""Many small models of one shape, trained at once on the same samples: a grid of learning rates and weight decays.

The parameters of G models are stacked, so one batched product does the work of G small ones and the data is read once
for all of them. A model's result does not depend on which others are trained beside it: its
start, its batches and its arithmetic (up to rounding) are its own. All are trained with AdamW from the same start on
the same batches; only learning rate and weight decay differ. As in V-JEPA's probes every parameter is decayed.

Nothing is random but what (seed, epoch) fixes: the start is drawn by the caller, the order of samples is keyed.

Shapes: G models, g of them, n samples, B samples in a step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from jepa import keyed, optim

Ints = npt.NDArray[np.int64]
Params = dict[str, Tensor]  # each (G, *shape)


class Stack:
    """Parameters of G models and their gradients.

    Args:
        start: one model's parameters by name; every model starts from them.
        count: G.
    """

    def __init__(
        self,
        start: Mapping[str, Tensor],
        count: int,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.count = count
        self.values: Params = {
            name: value.detach().to(device, dtype).expand(count, *value.shape).clone() for name, value in start.items()
        }
        self.grads: Params = {name: torch.zeros_like(value) for name, value in self.values.items()}

    def models(self) -> list[list[nn.Parameter]]:
        """The parameters of each model, for an optimiser. They share memory with `values` and `grads`."""
        found = []
        for model in range(self.count):
            found.append([nn.Parameter(value[model]) for value in self.values.values()])
            for parameter, gradient in zip(found[-1], self.grads.values(), strict=True):
                parameter.grad = gradient[model]
        return found

    def params(self, first: int = 0, stop: int | None = None) -> Params:
        """Parameters of models [first, stop) as views."""
        return {name: value[first:stop] for name, value in self.values.items()}

    def leaves(self, first: int = 0, stop: int | None = None) -> Params:
        """The same, for autograd: a backward pass adds to `grads`."""
        found = {name: value.detach().requires_grad_() for name, value in self.params(first, stop).items()}
        for name, value in found.items():
            value.grad = self.grads[name][first:stop]
        return found

    def one(self, model: int) -> Params:
        """A copy of one model's parameters, without the axis of models; as `load_state_dict` takes them."""
        return {name: value[model].clone() for name, value in self.values.items()}

    def only(self, model: int) -> Params:
        """One model's parameters as views, with an axis of models of length 1."""
        return self.params(model, model + 1)

    def zero_grad(self) -> None:
        """Set every gradient to 0, in place."""
        torch._foreach_zero_(list(self.grads.values()))


@dataclass(frozen=True)
class Recipe:
    """How the models are trained."""

    grid: list[tuple[float, float]]  # (lr, weight_decay) of each model
    steps: int
    batch: int  # samples in a step
    warmup: int = 0  # steps from start_lr to lr; then a cosine down to 0
    start_lr: float = 0.0
    seed: int = 0  # of the order of samples


@dataclass(frozen=True)
class Room:
    """What is worked on at a time, so that memory is bounded. It changes no result beyond rounding."""

    samples: int  # of a step at once
    models: int  # of the grid at once

    @classmethod
    def within(cls, budget: float, shared: float, each: float, models: int) -> Room:
        """As many models at once as `budget` bytes take, then as many samples; at least one of each.

        Args:
            shared: bytes of one sample that all models share.
            each: bytes of one sample and one model.
        """
        together = max(1, min(models, int((budget - shared) // max(each, 1.0))))
        return cls(max(1, int(budget // (shared + each * together))), together)


def order(count: int, batch: int, steps: int, seed: int) -> list[Ints]:
    """The samples of every step: step k takes numbers [k B, (k + 1) B) of one sequence of permuted epochs.

    Nothing is dropped at an epoch's end. A batch never holds a sample twice within one epoch's part of it.
    """
    epochs = -(-steps * batch // count)
    mixed = [keyed.generator("probe.order", seed, epoch).permutation(count) for epoch in range(epochs)]
    whole: Ints = np.concatenate(mixed).astype(np.int64) if mixed else np.empty(0, dtype=np.int64)
    return [whole[k * batch : (k + 1) * batch] for k in range(steps)]


def cut(places: Ints, most: int) -> list[Ints]:
    """Parts of at most `most`, as equal as can be."""
    return [part for part in np.array_split(places, -(-len(places) // most)) if len(part)]


Walk = Callable[[Sequence[Ints]], Iterator[Tensor]]  # lists of places -> their inputs, list by list
Loss = Callable[[Params, Tensor, Ints], Tensor]  # parameters of g models, inputs, places -> summed losses (g,)


def fit(
    stack: Stack, recipe: Recipe, count: int, walk: Walk, loss: Loss, room: Room, say: Callable[[str], None] | None
) -> None:
    """Train every model of the stack, in place.

    Args:
        count: n samples.
        walk: gives the inputs of lists of places in [0, n), in order.
        loss: sum over the given samples of every model's loss; the step minimises the mean over its batch.
        say: told the progress about a hundred times.
    """
    assert stack.count == len(recipe.grid), f"{stack.count} models, {len(recipe.grid)} settings"
    groups = [{"params": model, "lr": lr, "weight_decay": wd}
              for model, (lr, wd) in zip(stack.models(), recipe.grid, strict=True)]  # fmt: skip
    optimizer = torch.optim.AdamW(groups, lr=0.0, fused=True)
    parts = [stack.leaves(k, k + room.models) for k in range(0, stack.count, room.models)]
    steps = order(count, min(recipe.batch, count), recipe.steps, recipe.seed)
    pieces = [cut(places, room.samples) for places in steps]
    inputs = walk([piece for step in pieces for piece in step])
    for number, (places, step) in enumerate(zip(steps, pieces, strict=True)):
        for piece in step:
            x = next(inputs)
            for leaves in parts:
                (loss(leaves, x, piece).sum() / len(places)).backward()  # type: ignore[no-untyped-call]
        for group, (lr, _) in zip(optimizer.param_groups, recipe.grid, strict=True):
            group["lr"] = optim.warmup_cosine(
                number, start=recipe.start_lr, peak=lr, final=0.0, warmup=recipe.warmup, total=recipe.steps
            )
        optimizer.step()
        stack.zero_grad()
        if say and number % max(1, recipe.steps // 100) == 0:
            say(f"step {number + 1} of {recipe.steps}")
