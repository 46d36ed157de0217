"""The loss guard: steps whose loss jumps are skipped, as in V-JEPA 2.1's training code.

A step is skipped when its loss exceeds mean + k * standard deviation of the last losses. Skipped losses do not enter
that window, so that outliers cannot make room for more of them. The verdict is made on the device, from the mean loss
over all processes, so that all of them agree and none waits; it is read with the next line of metrics.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from jepa.config import GuardConfig
from jepa.errors import DivergedError
from jepa.methods.base import Method
from jepa.progress import Window

_LOOK_EVERY, _MUCH = 100, 0.05  # steps between looks at the share of skipped ones, and the share that is reported


class Guard:
    """The window of losses and what became of the steps; everything is on the device until a line is written."""

    def __init__(
        self, config: GuardConfig | None, device: torch.device, saved: Mapping[str, Any] | None = None
    ) -> None:
        """`config` None: nothing is judged. `saved`: what `state` gave."""
        self.on, self.config = config is not None, config or GuardConfig(window=2)
        config = self.config
        self.dtype = torch.float32 if device.type == "mps" else torch.float64  # MPS has no float64
        self._places = torch.arange(config.window, device=device)
        values = saved or {"losses": [], "seen": 0, "row": 0, "longest": 0, "skipped": 0, "look": [0, 0]}
        losses = [*values["losses"], *[0.0] * (config.window - len(values["losses"]))]
        self._losses = torch.tensor(losses, dtype=self.dtype, device=device)  # a ring
        self._seen, self._row, self._longest, self._skipped = (
            torch.tensor(values[key], device=device) for key in ("seen", "row", "longest", "skipped")
        )
        self._look: list[int] = list(values["look"])  # step and skipped steps at the last look at their share

    def judge(self, window: Window, accelerator: Any) -> Tensor | None:
        """1.0 when the step that `window` holds the loss of is taken, 0.0 when it is skipped; None: the guard is off.

        All processes judge the same number, their mean loss.
        """
        if not self.on:
            return None
        return self.verdict(accelerator.reduce(window.now("loss"), reduction="mean"))

    def verdict(self, loss: Tensor) -> Tensor:
        """`judge` for a step's mean loss (0-d, on the device)."""
        loss = loss.detach().to(self.dtype)
        bound = self._losses.mean() + self.config.std * self._losses.std(correction=0)
        jump = (self._seen >= self.config.window) & (loss > bound)
        here = (self._places == self._seen % self.config.window) & ~jump
        self._losses = torch.where(here, loss, self._losses)
        self._seen = self._seen + ~jump
        self._row = (self._row + 1) * jump
        self._longest = torch.maximum(self._longest, self._row)
        self._skipped = self._skipped + jump
        return (~jump).float()

    def forget(self) -> None:
        """Start a new window: another phase has losses of another size."""
        self._seen, self._row = torch.zeros_like(self._seen), torch.zeros_like(self._row)

    def figures(self) -> list[Tensor]:
        """What a line reads from the device: steps skipped since the run began, most in a row since the last line."""
        return [self._skipped, self._longest] if self.on else []

    def report(self, figures: Sequence[float], step: int, good: Path | None) -> tuple[dict[str, Any], list[str]]:
        """Metrics and warnings from the read `figures`, after `step` steps.

        Raises:
            DivergedError: too many steps in a row were skipped.
        """
        if not self.on:
            return {}, []
        skipped, longest = (round(x) for x in figures)
        self._longest = self._row
        if longest >= self.config.patience:
            left = f"the last good checkpoint is {good}" if good is not None else "no checkpoint was written"
            raise DivergedError(
                f"train.guard skipped {longest} steps in a row before step {step}: their losses lie above mean + "
                f"{self.config.std:g} standard deviations of the {self.config.window} before. Training has diverged, "
                f"or its loss is at another level for good; {left}. Resuming would repeat the same steps. Try a new "
                "run from it (--init-from) with a lower optim.lr, a longer optim.warmup or optim.clip_norm=1, or with "
                "a larger train.guard.std"
            )
        warnings = []
        steps = step - self._look[0]
        if steps >= _LOOK_EVERY:
            lately = skipped - self._look[1]
            if lately > _MUCH * steps:
                warnings.append(
                    f"train.guard skipped {lately} of the last {steps} steps ({lately / steps:.0%}). Look for samples "
                    "that do not belong (jepa data show), lower optim.lr, or raise train.guard.std"
                )
            self._look = [step, skipped]
        return {"guarded": skipped}, warnings

    def state(self) -> dict[str, Any] | None:
        """What a checkpoint keeps; None when the guard is off."""
        if not self.on:
            return None
        return {
            "losses": self._losses[: int(self._seen)].tolist(), "seen": int(self._seen), "row": int(self._row),
            "longest": int(self._longest), "skipped": int(self._skipped), "look": self._look,
        }  # fmt: skip


def follow(method: Method, values: dict[str, float], keep: Tensor | None) -> None:
    """`Method.after_step` unless the guard skipped the step; no wait where the method leaves it to the device."""
    if keep is None:
        method.after_step(values)
    elif method.gated:
        method.after_step(values, keep)
    elif bool(keep):
        method.after_step(values)
