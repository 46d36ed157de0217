"""The exponential moving average that makes a teacher of a student."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import TypeVar

import torch
from torch import Tensor, nn

from jepa.nn.sharded import local

M = TypeVar("M", bound=nn.Module)


def momentum(step: int, total_steps: float, start: float, end: float) -> float:
    """Momentum in force at `step` (0-based): linear from `start` to `end`, which the last step does not reach."""
    share = min(step / total_steps, 1.0) if total_steps > 0 else 1.0
    return start + share * (end - start)


def teacher(student: M) -> M:
    """A copy of `student` that takes no gradients and stays in eval mode."""
    target = copy.deepcopy(student)
    target.requires_grad_(False)
    return target.eval()


@torch.no_grad()
def update(target: Iterable[Tensor], online: Iterable[Tensor], momentum: float, keep: Tensor | None = None) -> None:
    """target = momentum * target + (1 - momentum) * online, in place, in one fused pass over all parameters.

    Of sharded parameters every rank moves its own part, and nothing is sent.

    keep: 0-d on the device; at 0 nothing changes, at 1 the result is bit-equal to that without it.
    """
    targets, weight = [local(p) for p in target], 1.0 - momentum
    sources = [local(p.detach()) for p in online]
    if keep is None:
        torch._foreach_lerp_(targets, sources, weight)
    else:
        by_type = {dtype: keep.to(dtype) * weight for dtype in {t.dtype for t in targets}}
        torch._foreach_lerp_(targets, sources, [by_type[t.dtype] for t in targets])
