"""``jepa bench dynamics``: a training step of a world model against stable-worldmodel's, same weights, same loss.

Forward, backward and AdamW on windows of 4 frames, 3 predictions each, in alternating order within one run: the
library's reference class of the method with the loss of its training script, and ours. The optimiser is torch's for
both. Dropout is off, so that before anything is timed both losses of prediction must be equal.

Shapes: B windows, T frames, A numbers of an action, D width.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from jepa.bench import plan_reference
from jepa.bench.plan import reference_model, reference_scene
from jepa.bench.result import Result, hardware, interleaved, median, pick_device
from jepa.data import Batch
from jepa.errors import ConfigError
from jepa.methods.world import WorldModel
from jepa.nn.memory import keep_freed_memory

_TOLERANCE = 1e-3  # of the losses, relative; float32 sums in another order


@dataclass(frozen=True)
class DynamicsSettings:
    """What is measured."""

    method: Literal["lewm", "dinowm"] = "lewm"
    batch: int = 8  # windows
    action: int = 10  # numbers of an action: 5 steps of 2
    image_size: int = 224
    rounds: int = 5
    clock: Literal["time", "processor"] = "time"  # processor: of this process alone, for one thread on a busy machine
    reference: bool = True  # stable-worldmodel too (extra `envs`)
    seed: int = 0

    def __post_init__(self) -> None:
        if self.batch < 2 or self.action < 1:
            raise ConfigError(f"batch={self.batch}, action={self.action}: at least 2 (of batch norm) and 1")


Loss = Callable[[], tuple[Tensor, Tensor]]  # the whole loss, and its part of prediction


def bench_dynamics(settings: DynamicsSettings | None = None, device: str | None = None) -> Result:
    """Run the benchmark.

    Returns:
        Figures: step_ms, windows_per_s, parameters (trained); with the reference reference_step_ms,
        reference_windows_per_s, speedup (medians), loss_difference (relative).

    Raises:
        ConfigError: settings that cannot be trained with, no such device, or the reference is not installed.
    """
    wanted, where = settings or DynamicsSettings(), pick_device(device)
    if where.type == "cpu":
        keep_freed_memory()
    torch.manual_seed(wanted.seed)
    ours = reference_model(wanted.method, wanted.action, wanted.image_size, {"dropout": 0.0}).to(where)
    frames, actions = _windows(wanted, where)
    losses: dict[str, tuple[nn.Module, Loss]] = {"ours": (ours, _ours(ours, frames, actions))}
    if wanted.reference:
        scene = reference_scene(wanted.seed, 1, 3, wanted.action, wanted.image_size, where)
        theirs = getattr(plan_reference, wanted.method)(ours, scene, where).model
        losses["reference"] = (theirs, getattr(plan_reference, f"{wanted.method}_loss")(theirs, frames, actions, ours))
    for model, _ in losses.values():
        model.train()
    shown = {"method": wanted.method, "batch": wanted.batch, "rounds": wanted.rounds, "clock": wanted.clock}
    result = Result("dynamics", shown, hardware(where))
    trained = sum(p.numel() for p in ours.parameters() if p.requires_grad)
    result.add("parameters", trained, "", "that are trained")
    if wanted.reference:
        result.add("loss_difference", _difference(losses), "", "of the prediction's loss, relative")

    clock = time.process_time if wanted.clock == "processor" else time.perf_counter
    variants: dict[str, Any] = {name: _step(model, loss) for name, (model, loss) in losses.items()}
    seconds = interleaved(variants, wanted.rounds, device=where, clock=clock)
    middle = {name: median(values) for name, values in seconds.items()}
    for name, prefix, note in (("ours", "", "ours"), ("reference", "reference_", "stable-worldmodel")):
        if name in middle:
            result.add(f"{prefix}step_ms", 1e3 * middle[name], "ms", f"{note}: forward, backward, AdamW; median")
            result.add(f"{prefix}windows_per_s", wanted.batch / middle[name], "/s", f"{note}: of 4 frames")
    if wanted.reference:
        result.add("speedup", middle["reference"] / middle["ours"], "x", "reference / ours")
    return result


def _windows(wanted: DynamicsSettings, device: torch.device) -> tuple[Tensor, Tensor]:
    """Noise: frames (B, 4, 3, H, W) and the actions between them (B, 3, A); times do not depend on what is shown."""
    g = torch.Generator().manual_seed(wanted.seed)
    frames = torch.randn(wanted.batch, 4, 3, wanted.image_size, wanted.image_size, generator=g)
    return frames.to(device), torch.randn(wanted.batch, 3, wanted.action, generator=g).to(device)


def _ours(model: WorldModel, frames: Tensor, actions: Tensor) -> Loss:
    x, none = frames.transpose(1, 2).contiguous(), torch.zeros(len(frames), dtype=torch.int64)
    batch = Batch(none, none, torch.arange(len(frames)), none, step=0, steps={"action": actions}).to(frames.device)
    schedule = {name: torch.tensor(value, device=frames.device) for name, value in model.schedule(0, 100).items()}

    def loss() -> tuple[Tensor, Tensor]:
        output = model(x, None, schedule, batch=batch)
        names = ("loss_prediction", "loss_one_step")
        return output.loss, next(output.metrics[name] for name in names if name in output.metrics)

    return loss


def _step(model: nn.Module, loss: Loss) -> Callable[[], None]:
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-5, foreach=True)

    def step() -> None:
        optimizer.zero_grad()
        loss()[0].backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return step


@torch.no_grad()
def _difference(losses: dict[str, tuple[nn.Module, Loss]]) -> float:
    """How far the losses of prediction are apart, relative; they must be equal."""
    found, expected = (losses[name][1]()[1] for name in ("ours", "reference"))
    apart = float((found - expected).abs() / expected.abs())
    assert apart < _TOLERANCE, f"losses differ by {apart:.2g}: ours {found}, reference {expected}"
    return apart


__all__ = ["DynamicsSettings", "bench_dynamics"]
