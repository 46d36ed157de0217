"""What a checkpoint holds, taken from a run at one step, so that it can be written while the run goes on.

Sharded tensors are gathered one by one: all ranks take part, only the one that writes keeps them, and no rank ever
has more than one whole tensor besides its own part.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from jepa.config import RunConfig
from jepa.methods.base import Method
from jepa.nn.sharded import whole

Host = Callable[[str, Tensor], Tensor]  # a tensor of this name, to one in main memory


@dataclass(frozen=True)
class Snapshot:
    """Everything in a checkpoint. Tensors are in main memory; `settled` waits until they are all there."""

    step: int
    model: dict[str, Tensor]
    optim: dict[str, Tensor] | None
    state: Mapping[str, Any]  # plain JSON values
    config: RunConfig
    about: dict[str, Any]  # of the method, for the manifest
    settled: Callable[[], None] = lambda: None


class Staging:
    """Main memory for the tensors of one checkpoint: allocated when first used, then used again.

    On CUDA it is page-locked, and copies do not make the host wait: they stand in the queue before the step that will
    change the weights.
    """

    def __init__(self) -> None:
        self._tensors: dict[str, Tensor] = {}
        self._copied: torch.cuda.Event | None = None

    @property
    def bytes(self) -> int:
        """Memory held."""
        return sum(t.numel() * t.element_size() for t in self._tensors.values())

    def __call__(self, name: str, x: Tensor) -> Tensor:
        """A copy of `x`."""
        kept = self._tensors.get(name)
        if kept is None or kept.shape != x.shape or kept.dtype != x.dtype:  # a table of positions grows with a phase
            kept = torch.empty(x.shape, dtype=x.dtype, pin_memory=x.device.type == "cuda")
            self._tensors[name] = kept
        kept.copy_(x, non_blocking=x.device.type == "cuda")
        if x.device.type == "cuda":
            self._copied = self._copied or torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._copied.record(torch.cuda.current_stream(x.device))
        return kept

    def settled(self) -> None:
        """Wait for the copies; from any thread."""
        if self._copied is not None:
            self._copied.synchronize()


def on_host(name: str, x: Tensor) -> Tensor:
    """The tensor itself when it is in main memory already, else a copy."""
    return x.cpu().contiguous()


def dropped(name: str, x: Tensor) -> Tensor:
    """Nothing: for ranks that only take part in gathering."""
    return x.new_empty(0)


def model_tensors(method: nn.Module, host: Host = on_host) -> dict[str, Tensor]:
    """Every parameter and saved buffer by its own name, on the CPU; wrappers' name parts are dropped."""
    out: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, value in method.state_dict().items():
        tensor = host(f"model/{plain(name)}", whole(value))
        if tensor.data_ptr() in seen:  # tied weights: safetensors refuses memory that is shared
            tensor = tensor.clone()
        seen.add(tensor.data_ptr())
        out[plain(name)] = tensor
    return out


def optim_tensors(method: nn.Module, optimizer: torch.optim.Optimizer, host: Host = on_host) -> dict[str, Tensor]:
    """Optimiser state by parameter name: ``exp_avg.encoder.norm.weight`` and so on."""
    names = {id(p): plain(n) for n, p in method.named_parameters()}
    out: dict[str, Tensor] = {}
    for parameter, values in optimizer.state.items():
        for kind, value in values.items():
            name = f"{kind}.{names[id(parameter)]}"
            out[name] = host(f"optim/{name}", whole(value))
    return out


def plain(name: str) -> str:
    """A parameter's name without what DistributedDataParallel and torch.compile add."""
    return ".".join(part for part in name.split(".") if part not in ("module", "_orig_mod"))


def take(
    step: int,
    method: Method,
    optimizer: torch.optim.Optimizer | None,
    state: Mapping[str, Any],
    config: RunConfig,
    host: Host = on_host,
) -> Snapshot:
    """A snapshot after `step` optimiser steps. Of a sharded method all ranks must take one, at the same place.

    Args:
        host: where the tensors go; with `on_host` weights in main memory are not copied, so write them at once.
    """
    model = model_tensors(method, host)
    kept = None if optimizer is None else optim_tensors(method, optimizer, host)
    about = {
        "method": config.method.get("name"),
        "image_size": list(method.size),
        "normalisation": {"mean": list(config.data.mean), "std": list(config.data.std)},
        "encoders": sorted(method.encoders()),
        "exported": method.exported(),
        "parameters": _counts(model),
        "dtypes": sorted({str(t.dtype).removeprefix("torch.") for t in model.values()}),
    }
    settled = host.settled if isinstance(host, Staging) else lambda: None
    return Snapshot(step, model, kept, dict(state), config, about, settled)


def _counts(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    out: dict[str, int] = {}
    for name, tensor in tensors.items():
        part = name.split(".")[0]
        out[part] = out.get(part, 0) + tensor.numel()
    return out


__all__ = ["Host", "Snapshot", "Staging", "dropped", "model_tensors", "on_host", "optim_tensors", "plain", "take"]
