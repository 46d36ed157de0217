"""The exponential moving average that makes a teacher of a student."""

from __future__ import annotations

import copy
from collections.abc import Iterable

import torch
from torch import Tensor, nn


def momentum(step: int, total_steps: float, start: float, end: float) -> float:
    """Momentum in force at `step` (0-based): linear from `start` to `end`, which the last step does not reach."""
    share = min(step / total_steps, 1.0) if total_steps > 0 else 1.0
    return start + share * (end - start)


def teacher(student: nn.Module) -> nn.Module:
    """A copy of `student` that takes no gradients and stays in eval mode."""
    target = copy.deepcopy(student)
    target.requires_grad_(False)
    return target.eval()


@torch.no_grad()
def update(target: Iterable[Tensor], online: Iterable[Tensor], momentum: float) -> None:
    """target = momentum * target + (1 - momentum) * online, in place, in one fused pass over all parameters."""
    torch._foreach_lerp_(list(target), [p.detach() for p in online], 1.0 - momentum)
