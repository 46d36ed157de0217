"""Sharded training by torch's `fully_shard` (FSDP2): every rank keeps 1 / W of weights, teacher and optimiser state.

A unit is gathered when its forward or backward needs it and given back right after. Units are the transformer blocks,
those of encoder, teacher and predictor alike, and then the method itself, which holds what is left: embeddings, norms,
mask tokens, heads. Small things, and any part of the method may use them while it runs.

Weights are gathered in the type they are kept in, and autocast lowers them where it does so without sharding: a sharded
run computes the same numbers as a replicated one, up to the order of sums.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TypeVar

import torch
from accelerate import Accelerator
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

from jepa.config import RunConfig
from jepa.errors import ConfigError
from jepa.methods import base

T = TypeVar("T")
# What may be called on a method besides forward, where it has it; see jepa.methods.base and jepa.methods.world.
ENTRIES = (
    *("apart", "encode", "encode_levels", "targets", "predict"),
    *("observe", "imagine", "readout", "reward", "value", "uncertainty"),
)


def wanted(config: RunConfig, world: int) -> bool:
    """Whether the run is sharded; one process has nothing to share."""
    return config.train.sharding == "fsdp" and world > 1


def check(config: RunConfig, precision: str) -> None:
    """Raises ConfigError for what does not go together with sharding."""
    if config.train.sharding == "fsdp" and precision == "fp16":
        raise ConfigError(
            "train.sharding=fsdp goes with train.precision bf16, fp32 or fp64; fp16 needs a loss scale that all shards "
            "agree on. Use bf16, or train.sharding=none"
        )


def shard(method: base.Method, device: torch.device, world: int) -> base.Method:
    """Split the weights of a method over all ranks, in place; it comes whole and the same on every rank."""
    mesh = init_device_mesh(device.type, (world,))
    # autocast stays in force inside, see above; inputs are the loop's own affair
    policy = MixedPrecisionPolicy(cast_forward_inputs=False)
    for unit in units(method):
        fully_shard(unit, mesh=mesh, mp_policy=policy)
    fully_shard(method, mesh=mesh, mp_policy=policy)
    for name in ENTRIES:
        if hasattr(method, name):
            register_fsdp_forward_method(method, name)
    return method


def units(method: nn.Module) -> list[nn.Module]:
    """What is gathered by itself: transformer blocks, and before each the parts of it that are called on their own."""
    found: list[nn.Module] = []
    for module in method.modules():
        if hasattr(module, "activation_checkpointing"):
            found += [getattr(module, name) for name in getattr(module, "called_apart", ())]
            found.append(module)
    return found


def compiled(method: nn.Module, sharded: bool) -> None:
    """torch.compile, in place so that names in the state dict stay: part by part, or block by block when sharded.

    A graph cannot reach over the place where a unit is gathered.
    """
    for part in units(method) if sharded else method.children():
        part.compile()


@contextlib.contextmanager
def exchange(accelerator: Accelerator, wrapped: nn.Module, last: bool) -> Iterator[None]:
    """Inside, gradients of a micro-batch are exchanged between ranks only if it is the step's last one."""
    if isinstance(wrapped, FSDPModule):
        wrapped.set_requires_gradient_sync(last)
        yield
        return
    with contextlib.nullcontext() if last else accelerator.no_sync(wrapped):
        yield


def look(method: base.Method, act: Callable[[], T]) -> T:
    """`act()`, which may use any part of the method. With a sharded one every rank must do it, in the same order."""
    found = method.apart(act)
    if isinstance(method, FSDPModule):
        method.reshard()
    return found


def sharded(method: nn.Module) -> bool:
    """Whether every rank holds only a part of it."""
    return isinstance(method, FSDPModule)


__all__ = ["check", "compiled", "exchange", "look", "shard", "sharded", "units", "wanted"]
