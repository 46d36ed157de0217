"""Optimisation: schedules as pure functions of the step, parameter rules, and one optimiser step.

Nothing here counts steps by itself: the loop asks for the values of step k, so resuming is arithmetic.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from jepa.config import OptimConfig
from jepa.errors import ConfigError, TrainingError
from jepa.nn.sharded import everywhere_same, whole

Shape = Literal["cosine", "linear", "constant"]

# --- schedules ----------------------------------------------------------------------------------------------------


def warmup_decay(
    step: int, *, start: float, peak: float, final: float, warmup: int, total: int, shape: Shape = "cosine"
) -> float:
    """Linear warm-up from `start` to `peak` over `warmup` steps, then by its shape down to `final` at `total`.

    Timing of I-JEPA and V-JEPA: step k (0-based) uses the value at k + 1, so the first step is already above
    `start` and the last one lands on `final`. Past the end the value stays at `final`; it does not rise again.
    """
    done = step + 1
    if done < warmup:
        return start + done / warmup * (peak - start)
    if shape == "constant":
        return peak
    progress = min(1.0, (done - warmup) / max(1, total - warmup))
    left = 0.5 * (1.0 + math.cos(math.pi * progress)) if shape == "cosine" else 1.0 - progress
    return final + (peak - final) * left


def warmup_cosine(step: int, *, start: float, peak: float, final: float, warmup: int, total: int) -> float:
    """`warmup_decay` along a cosine."""
    return warmup_decay(step, start=start, peak=peak, final=final, warmup=warmup, total=total)


def cosine(step: int, *, start: float, final: float, total: int) -> float:
    """Half a cosine from `start` to `final`, with the timing of `warmup_decay`; `final` may be the larger one."""
    progress = min(1.0, (step + 1) / max(1, total))
    return final + (start - final) * 0.5 * (1.0 + math.cos(math.pi * progress))


@dataclass(frozen=True)
class Schedules:
    """Learning rate and weight decay of a run, or of phases that share them, over ``schedule_scale * total_steps``.

    Raises:
        ConfigError: a warm-up that never ends, or numbers out of range.
    """

    config: OptimConfig
    batch: int  # global batch, turns durations into steps
    dataset_size: int
    total_steps: int  # of the run, or of those phases

    def __post_init__(self) -> None:
        _check_ranges(self.config)
        if self.warmup > self.total:
            raise ConfigError(
                f"optim.warmup is {self.warmup} steps but the schedule has {self.total}: the warm-up would never "
                "end. Lower optim.warmup or lengthen train.duration"
            )

    @property
    def warmup(self) -> int:
        """Steps of linear warm-up."""
        return self.config.warmup.to_steps(self.batch, self.dataset_size)

    @property
    def total(self) -> int:
        """Steps the schedules are laid out over; past the run's end when `schedule_scale` > 1."""
        return int(self.config.schedule_scale * self.total_steps)

    def at(self, step: int) -> dict[str, float]:
        """``{"lr": ..., "wd": ...}`` in force at `step` (0-based)."""
        c, total = self.config, self.total
        return {
            "lr": warmup_decay(
                step, start=c.start_lr, peak=c.lr, final=c.final_lr, warmup=self.warmup, total=total, shape=c.shape
            ),
            "wd": cosine(step, start=c.weight_decay, final=c.final_weight_decay, total=total),
        }


def _check_ranges(config: OptimConfig) -> None:
    checks = {
        "lr": config.lr >= 0,
        "start_lr": config.start_lr >= 0,
        "final_lr": config.final_lr >= 0,
        "weight_decay": config.weight_decay >= 0,
        "final_weight_decay": config.final_weight_decay >= 0,
        "eps": config.eps > 0,
        "betas": all(0 <= b < 1 for b in config.betas),
        "clip_norm": config.clip_norm is None or config.clip_norm > 0,
        "schedule_scale": config.schedule_scale >= 1,
    }
    wrong = [f"optim.{name}={getattr(config, name)}" for name, fine in checks.items() if not fine]
    if wrong:
        raise ConfigError(
            f"out of range: {', '.join(wrong)}. Allowed: rates and decays >= 0, eps > 0, 0 <= betas < 1, "
            "clip_norm > 0 or null, schedule_scale >= 1"
        )


# --- parameter groups ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rule:
    """Which parameters a rule covers, and whether they are decayed."""

    name: str
    covers: Callable[[str, nn.Parameter], bool]
    decayed: bool


def _is_bias(name: str) -> bool:
    return "bias" in name.rsplit(".", 1)[-1]


RULES: tuple[Rule, ...] = (
    Rule("weights", lambda name, p: p.ndim > 1 and not _is_bias(name), decayed=True),
    Rule("biases and vectors", lambda name, p: p.ndim == 1 or (p.ndim > 1 and _is_bias(name)), decayed=False),
)


def param_groups(model: nn.Module, rules: Iterable[Rule] = RULES) -> list[dict[str, Any]]:
    """Trainable parameters by rule; every one of them matches exactly one.

    Returns:
        One dict per rule that covers something: params, names (same order), rule, decayed.

    Raises:
        ConfigError: nothing to train, or parameters that no rule or several rules cover; lists them all.
    """
    rules = tuple(rules)
    found: dict[str, list[tuple[str, nn.Parameter]]] = {rule.name: [] for rule in rules}
    uncovered, doubly = [], []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        matching = [rule.name for rule in rules if rule.covers(name, parameter)]
        if len(matching) == 1:
            found[matching[0]].append((name, parameter))
        elif not matching:
            uncovered.append(f"{name} {tuple(parameter.shape)}")
        else:
            doubly.append(f"{name} ({', '.join(matching)})")
    if uncovered or doubly:
        parts = [f"no optimiser rule covers: {', '.join(uncovered)}"] if uncovered else []
        parts += [f"several rules cover: {', '.join(doubly)}"] if doubly else []
        raise ConfigError(
            f"{'; '.join(parts)}. Every trainable parameter must match exactly one of: {', '.join(found)}. "
            "Give a scalar parameter the shape (1,), or set requires_grad_(False) on what is not trained"
        )
    if not any(found.values()):
        raise ConfigError(f"{type(model).__name__} has no trainable parameter (all have requires_grad=False)")
    return [
        {"params": [p for _, p in found[r.name]], "names": [n for n, _ in found[r.name]], "rule": r.name,
         "decayed": r.decayed}
        for r in rules
        if found[r.name]
    ]  # fmt: skip


def build_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.AdamW:
    """AdamW over `param_groups`, fused where the device has the kernel (CPU, CUDA and MPS do)."""
    groups = param_groups(model)
    devices = {p.device.type for group in groups for p in group["params"]}
    fused = devices <= {"cpu", "cuda", "mps", "xpu"}
    return torch.optim.AdamW(
        groups, lr=config.lr, betas=config.betas, eps=config.eps, weight_decay=config.weight_decay, fused=fused
    )


def apply(optimizer: torch.optim.Optimizer, values: dict[str, float]) -> None:
    """Put the ``lr`` and ``wd`` of a step in force; parameters that are not decayed keep 0."""
    for group in optimizer.param_groups:
        group["lr"] = values["lr"]
        group["weight_decay"] = values["wd"] if group["decayed"] else 0.0


# --- one step -----------------------------------------------------------------------------------------------------


def grad_norm(optimizer: torch.optim.Optimizer) -> Tensor:
    """Global L2 norm of all gradients, of all ranks' parts when sharded, as a 0-d tensor on their device."""
    grads = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    return whole(torch.nn.utils.get_total_norm(grads, error_if_nonfinite=False, foreach=None))


def take_step(
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler | None = None,
    clip_norm: float | None = None,
    want_norm: bool = False,
    keep: Tensor | None = None,
) -> tuple[bool, Tensor | None]:
    """Clip and step on the accumulated gradients.

    Without a scaler nothing is read back from the device. With one (fp16) the loss scale is: a skipped step must
    not move the teacher, and only the host can leave that call out.

    Args:
        keep: the loss guard's verdict, 0-d on the device: at 0 neither weights nor optimiser state change.

    Returns:
        Whether the step was taken (False: fp16 overflow, gradients thrown away, scale lowered; or skipped by the
        guard, where the host knows), and the gradient norm before clipping where it was needed or asked for.

    Raises:
        TrainingError: fp16 gradients overflow whatever the loss scale.
    """
    if scaler is not None:
        scaler.unscale_(optimizer)
    norm = grad_norm(optimizer) if clip_norm is not None or want_norm else None
    if clip_norm is not None:
        assert norm is not None
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        torch.nn.utils.clip_grads_with_norm_(parameters, clip_norm, norm)
    if scaler is None and keep is not None and all(group.get("fused") for group in optimizer.param_groups):
        _step_where(optimizer, keep)
        return True, norm
    skipped = keep is not None and not bool(keep)
    if scaler is None:
        if not skipped:
            optimizer.step()
        return not skipped, norm
    before = scaler.get_scale()
    if not skipped:
        scaler.step(optimizer)
    scaler.update()
    after = scaler.get_scale()  # lowered by an overflow and by nothing else
    if after < 2.0**-20:
        raise TrainingError(
            f"fp16 gradients overflow at every step (loss scale down to {after:g}): no step is taken any more. "
            "Use train.precision=bf16 or fp32 in a new run, from the last checkpoint with --init-from"
        )
    return after >= before and not skipped, norm


def _step_where(optimizer: torch.optim.Optimizer, keep: Tensor) -> None:
    """Step if `keep` is 1, decided on the device: the fused kernels have a switch for it, which GradScaler uses too."""
    first = optimizer.param_groups[0]["params"][0]
    optimizer.found_inf = everywhere_same(1.0 - keep, first)  # type: ignore[attr-defined]
    try:
        optimizer.step()
    finally:
        del optimizer.found_inf  # type: ignore[attr-defined]
