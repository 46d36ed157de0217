"""Floating-point operations that an I-JEPA or V-JEPA training step needs, counted from its sizes.

What is counted: the matrix products of the model, on the tokens really processed (context encoder on kept tokens
only, target encoder on all, predictor on context and target tokens together), attention products included; a
multiply-add is two operations. Backward costs twice the forward for what is trained, minus the gradient with
respect to the images, which nobody needs. The target encoder has no backward. Not counted: norms, activations,
softmax, position tables, the optimiser, and anything an implementation computes twice (recomputation in attention
kernels or activation checkpointing does not make a step better).

``torch.utils.flop_counter`` agrees to the last operation (tests/bench/test_flops.py).
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Geometry:
    """Sizes of encoder and predictor. `grid` is ([time,] rows, columns) of tokens, `patch` the same in pixels."""

    grid: tuple[int, ...]
    patch: tuple[int, ...]
    width: int
    depth: int
    heads: int
    hidden: int
    predictor_width: int
    predictor_depth: int
    predictor_heads: int
    predictor_hidden: int

    @property
    def tokens(self) -> int:
        return math.prod(self.grid)


@dataclass(frozen=True)
class StepFlops:
    """Operations of one step, by part; forward and backward of one batch."""

    target: int  # forward of the target encoder
    context: int  # forward of the context encoder
    predictor: int  # forward of the predictor
    backward: int

    @property
    def total(self) -> int:
        return self.target + self.context + self.predictor + self.backward


def blocks(tokens: int, width: int, hidden: int, depth: int) -> int:
    """Forward of `depth` transformer blocks on one sequence."""
    linear = 2 * tokens * (3 * width * width + width * width + 2 * width * hidden)
    attention = 2 * 2 * tokens * tokens * width  # queries x keys, weights x values
    return depth * (linear + attention)


def patch_embedding(tokens: int, g: Geometry) -> int:
    """Forward of the patch embedding for `tokens` patches."""
    return 2 * tokens * 3 * math.prod(g.patch) * g.width


def step_flops(g: Geometry, batch: int, context: list[int], targets: list[int], paired: bool = False) -> StepFlops:
    """Operations of one optimiser step on `batch` images or clips.

    Args:
        g: sizes of the model.
        batch: images or clips in the step.
        context: kept tokens of each context mask.
        targets: tokens of each target mask.
        paired: context i predicts target i (V-JEPA), instead of every target from every context (I-JEPA).
    """
    embed = [patch_embedding(kept, g) for kept in context]
    encoder = [blocks(kept, g.width, g.hidden, g.depth) for kept in context]
    predictor = 0
    for i, kept in enumerate(context):
        predictor += 2 * kept * g.width * g.predictor_width  # context tokens are projected once, used by every target
        for asked in targets[i : i + 1] if paired else targets:
            predictor += blocks(kept + asked, g.predictor_width, g.predictor_hidden, g.predictor_depth)
            predictor += 2 * asked * g.predictor_width * g.width
    target = patch_embedding(g.tokens, g) + blocks(g.tokens, g.width, g.hidden, g.depth)
    forward_context = sum(embed) + sum(encoder)
    backward = sum(embed) + 2 * sum(encoder) + 2 * predictor
    return StepFlops(batch * target, batch * forward_context, batch * predictor, batch * backward)
