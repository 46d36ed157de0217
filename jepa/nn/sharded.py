"""Parameters of which every rank holds a part (torch's DTensor, as `fully_shard` makes them), and those that are whole.

Everything here takes both kinds, so that what uses it need not know whether a run is sharded.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Partial, Replicate, distribute_tensor


def local(x: Tensor) -> Tensor:
    """This rank's part, sharing memory with it; a whole tensor is its own part."""
    return x._local_tensor if isinstance(x, DTensor) else x


@torch.no_grad()
def whole(x: Tensor) -> Tensor:
    """The whole tensor; of a sharded one all ranks must ask, in the same order."""
    if not isinstance(x, DTensor):
        return x.detach()
    found: Tensor = x.full_tensor()
    return found.detach()


def placed(x: Tensor, like: Tensor) -> Tensor:
    """A whole tensor that every rank has, as `like` is: this rank keeps its part, and nothing is sent."""
    if not isinstance(like, DTensor):
        return x
    return distribute_tensor(x.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def finite(tensors: Iterable[Tensor]) -> bool:
    """Whether all numbers are; reads one from the device. Of sharded tensors all ranks must ask, and agree."""
    given = [t.detach() for t in tensors]
    norms = torch._foreach_norm([local(t) for t in given])
    bad = (~torch.isfinite(torch.stack(norms))).sum().float()
    mesh = next((t.device_mesh for t in given if isinstance(t, DTensor)), None)
    if mesh is not None:
        found: Tensor = DTensor.from_local(bad, mesh, [Partial("sum")]).full_tensor()
        bad = found
    return not bool(bad)


def everywhere_same(x: Tensor, like: Tensor) -> Tensor:
    """A tensor that is the same on all ranks, in the company of sharded ones like `like`."""
    return DTensor.from_local(x, like.device_mesh, [Replicate()]) if isinstance(like, DTensor) else x


__all__ = ["everywhere_same", "finite", "local", "placed", "whole"]
