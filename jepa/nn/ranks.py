"""What samples of all ranks share in a forward pass: means over ranks with gradient, and batch norm over all of them.

Shapes: B samples of this rank, D width.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


def count() -> int:
    """Number of ranks; 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def full_precision(device: torch.device) -> AbstractContextManager[Any]:
    """No autocast inside; for statistics that bfloat16 would spoil. The meta device has no autocast to turn off."""
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)


class _Mean(torch.autograd.Function):
    """Mean over ranks, forward and backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        out = x.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(out)
        return out / count()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        out = gradients[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(out)
        return out / count()


def mean(x: Tensor) -> Tensor:
    """Mean of a tensor over ranks; all of them must call this, in the same order.

    The gradient is such that after DDP's own averaging the parameters get that of one process with all samples: each
    rank's loss counts 1 / W, and so does each rank's part of the mean.
    """
    out: Tensor = _Mean.apply(x) if count() > 1 else x
    return out


class BatchNorm(nn.Module):
    """Batch norm over the samples of all ranks, in float32. Buffers are named as in torch.nn.BatchNorm1d.

    Running statistics are those of the last training forward until `fold` takes them over: a step that is skipped
    leaves them alone, as it does the weights. In eval mode nothing is exchanged: one rank may run alone.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, width: int, momentum: float = 0.1, eps: float = 1e-5) -> None:
        super().__init__()
        self.momentum, self.eps = momentum, eps
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))
        self.register_buffer("running_mean", torch.zeros(width))
        self.register_buffer("running_var", torch.ones(width))
        self.seen: tuple[Tensor, Tensor] | None = None

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) to (..., D)."""
        dtype = x.dtype
        with full_precision(x.device):
            x = x.to(self.weight.dtype)
            if self.training:
                axes = tuple(range(x.ndim - 1))
                average = mean(x.mean(axes))
                variance = mean((x - average).square().mean(axes))
                samples = x.numel() // x.shape[-1] * count()
                self.seen = (average.detach(), variance.detach() * (samples / max(1, samples - 1)))
                out = (x - average) * (torch.rsqrt(variance + self.eps) * self.weight) + self.bias
            else:  # one operation instead of three: plans run through this at every step
                scale = torch.rsqrt(self.running_var + self.eps) * self.weight
                out = torch.addcmul(self.bias - self.running_mean * scale, x, scale)
        return out.to(dtype)

    @torch.no_grad()
    def fold(self, keep: Tensor | None = None) -> None:
        """Take the last forward's statistics over; not at all where `keep` (0-d) is 0."""
        if self.seen is None:
            return
        for running, seen in zip((self.running_mean, self.running_var), self.seen, strict=True):
            moved = torch.lerp(running, seen, self.momentum)
            running.copy_(moved if keep is None else torch.where(keep > 0, moved, running))
        self.seen = None


__all__ = ["BatchNorm", "count", "full_precision", "mean"]
