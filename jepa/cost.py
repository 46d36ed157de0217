"""What models cost, counted rather than looked up: floating-point operations of any method.

The method is built on the meta device (real sizes, no memory, no arithmetic) and its forward and backward are run
there under torch's operation counter. So an outside method is counted too, and so is whatever a method computes in
its own way. Counted are matrix products, attention included; a multiply-add is two operations. Not counted: norms,
activations, softmax, the optimiser, and what a kernel or activation checkpointing computes a second time.
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import fmean

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from jepa.config import RunConfig
from jepa.data import Batch
from jepa.methods import base
from jepa.methods.world import History, State, WorldModel

_DRAWS = 2  # block sizes differ from step to step, so a few steps are counted


def step_flops(config: RunConfig) -> float | None:
    """Operations of one optimiser step on the whole batch, forward and backward, mean over a few steps' masks.

    Of a run of several phases: of the main one; give the configuration in force for another (see jepa.phases).

    None when the method cannot run on the meta device (it looks at values while it computes).
    """
    with torch.device("meta"):
        method = base.create(config.method, config.data.size).to("meta").train()
    method.expect([base.kind_of(s) for s in (config.data.size, *(m.size for m in config.mix.values()))])
    total = _source_flops(method, config.seed, config.data.size, 0)
    if total is None:
        return None
    total *= config.train.batch
    for number, source in enumerate(config.mix.values(), 1):
        more = _source_flops(method, config.seed, source.size, number)
        if more is None:
            return None
        total += more * source.batch
    return total


def encode_flops(config: RunConfig) -> float | None:
    """Operations of the frozen encoder on one sample of the main source's size; None where they cannot be counted."""
    with torch.device("meta"):
        method = base.create(config.method, config.data.size).to("meta").eval()
    x = torch.empty(1, 3, *config.data.size, device="meta")
    return _counted(lambda: method.encode(x))


def imagine_flops(config: RunConfig, horizon: int = 1) -> float | None:
    """Operations of one step of one future that a world model imagines, the mean over so many steps from one frame.

    None for other methods, and where they cannot be counted.
    """
    with torch.device("meta"):
        method = base.create(config.method, config.data.size).to("meta").eval()
    if not isinstance(method, WorldModel):
        return None
    shapes = method.needs()
    width = shapes["action"][-1]
    proprio = torch.empty(1, 1, shapes["proprio"][-1], device="meta") if "proprio" in shapes else None
    seen = torch.empty(1, 1, 3, *config.data.image_size, device="meta")
    history = History(seen, torch.empty(1, 0, width, device="meta"), proprio)
    actions = torch.empty(1, 1, horizon, width, device="meta")
    states: list[State] = []
    if _counted(lambda: states.append(method.observe(history))) is None:
        return None
    total = _counted(lambda: method.imagine(states[0], actions))
    return total / horizon if total is not None else None


def _counted(act: Callable[[], object]) -> float | None:
    with torch.no_grad(), FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        try:
            act()
        except (RuntimeError, NotImplementedError):  # it looks at values, which the meta device has none of
            return None
    return float(counter.get_total_flops())


def _source_flops(method: base.Method, seed: int, size: tuple[int, ...], source: int) -> float | None:
    """Operations for one sample of one source."""
    x = torch.empty(2, 3, *size, device="meta")
    nothing = torch.empty(2, dtype=torch.int64)
    steps = None
    if isinstance(method, WorldModel):
        steps = {name: torch.empty(2, *shape, device="meta") for name, shape in method.needs().items()}
    batch = Batch(x, nothing, nothing, nothing, source=source, steps=steps)
    sampler = method.sampler(seed, size)
    counts = []
    for step in range(_DRAWS if sampler is not None else 1):
        masks = sampler(step, np.arange(2, dtype=np.int64)).to("meta") if sampler is not None else None
        schedule = {k: torch.empty((), device="meta") for k in method.schedule(step, _DRAWS)}
        # the spelt-out attention: fused kernels recompute in backward, which is no work that the model needs
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            try:
                method(x, masks, schedule, batch=batch).loss.backward()
            except (RuntimeError, NotImplementedError):
                return None
        counts.append(counter.get_total_flops())
    return fmean(counts) / len(x)


__all__ = ["encode_flops", "imagine_flops", "step_flops"]
