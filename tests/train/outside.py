"""A method that lives outside the package, given by dotted path: predict the teacher's mean token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from jepa import ema
from jepa.data import Batch
from jepa.masks import Masks
from jepa.methods.base import Method, Output, Schedule


@dataclass(frozen=True)
class Config:
    """Its settings; those from the third on make it fail on purpose."""

    width: int = 16
    momentum: float = 0.9
    nan_loss_at: int = -1  # step whose loss is NaN
    nan_grad_at: int = -1  # step whose gradient is NaN while its loss is not
    noise: float = 0.0  # drawn from torch's global generator
    bright: tuple[int, ...] = ()  # numbers g of pictures that are a hundred times too bright


class _ScaleGradient(torch.autograd.Function):
    """The same values, with the gradient times a factor."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, factor: Tensor) -> Tensor:
        ctx.save_for_backward(factor)
        return values.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient * ctx.saved_tensors[0], None


class Tokens(nn.Module):
    """Patches of 10 x 10 through one linear map: (B, 3, H, W) to (B, N, D)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, 10, 10)

    def forward(self, images: Tensor) -> Tensor:
        out: Tensor = self.proj(images).flatten(2).transpose(1, 2)
        return out


class Mean(Method):
    """No masks; the schedule carries the step, so that failures can be placed."""

    Config = Config
    config: Config

    def __init__(self, config: Config, image_size: tuple[int, int]) -> None:
        super().__init__(config, image_size)
        self.student = Tokens(config.width)
        self.head = nn.Linear(config.width, config.width)
        self.teacher = ema.teacher(self.student)

    def schedule(self, step: int, total_steps: float) -> dict[str, float]:
        return {"momentum": self.config.momentum, "now": float(step)}

    def forward(self, images: Tensor, masks: Masks | None, schedule: Schedule, batch: Batch | None = None) -> Output:
        assert masks is None and (batch is None or len(batch) == len(images))
        if self.config.bright and batch is not None:
            wrong = torch.isin(batch.g, torch.tensor(self.config.bright))
            images = images * torch.where(wrong, 100.0, 1.0).to(images).view(-1, 1, 1, 1)
        with torch.no_grad():
            want = self.teacher(images).mean(dim=1)
        predicted = self.head(self.student(images).mean(dim=1))
        if self.config.noise:
            predicted = predicted + self.config.noise * torch.randn_like(predicted)
        here, nan = schedule["now"], torch.full_like(schedule["now"], torch.nan)
        predicted = _ScaleGradient.apply(
            predicted, torch.where(here == self.config.nan_grad_at, nan, torch.ones_like(nan))
        )
        loss = (predicted - want).square().mean()
        loss = loss * torch.where(here == self.config.nan_loss_at, nan, torch.ones_like(nan))
        return Output(loss, {"spread": predicted.detach().std()})

    def after_step(self, values: dict[str, float]) -> None:
        ema.update(self.teacher.parameters(), self.student.parameters(), values["momentum"])

    def encode(self, images: Tensor) -> Tensor:
        tokens: Tensor = self.teacher(images)
        return tokens

    def encoders(self) -> dict[str, nn.Module]:
        return {"context": self.student, "target": self.teacher}


class Gated(Mean):
    """Leaves a step that the loss guard skips to the device."""

    gated = True

    def after_step(self, values: dict[str, float], keep: Tensor | None = None) -> None:
        ema.update(self.teacher.parameters(), self.student.parameters(), values["momentum"], keep)


class Coupled(Mean):
    """As if its loss mixed the samples of a batch."""

    couples_samples = True


class Scalar(Mean):
    """Has a trainable 0-d parameter, which no optimiser rule covers."""

    def __init__(self, config: Any, image_size: tuple[int, int]) -> None:
        super().__init__(config, image_size)
        self.temperature = nn.Parameter(torch.tensor(1.0))
