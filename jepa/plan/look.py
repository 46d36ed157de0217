"""Frames as the environment shows them become frames as the model was trained on them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional

from jepa.errors import ConfigError

_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@dataclass(frozen=True)
class Look:
    """Size and normalisation of the model's frames, those of the run's `data` section."""

    size: tuple[int, int]  # (H, W)
    mean: tuple[float, ...] = _IMAGENET[0]
    std: tuple[float, ...] = _IMAGENET[1]
    resize: bool = False  # frames of another size are resized (bicubic, antialiased); off: they are an error

    def __call__(self, frames: Any, device: torch.device, what: str = "observation") -> Tensor:
        """uint8 frames (B, H, W, 3), numpy or torch, to normalised ones (B, 3, H, W).

        Raises:
            ConfigError: not uint8 RGB, or of another size.
        """
        x = torch.as_tensor(np.ascontiguousarray(frames) if isinstance(frames, np.ndarray) else frames)
        if x.dtype != torch.uint8 or x.ndim != 4 or x.shape[-1] != 3:
            raise ConfigError(
                f"{what}: {x.dtype} of shape {tuple(x.shape)}; give uint8 RGB frames (H, W, 3), or (B, H, W, 3) of B "
                "environments"
            )
        x = x.to(device).permute(0, 3, 1, 2)
        if tuple(x.shape[-2:]) != tuple(self.size):
            if not self.resize:
                raise ConfigError(
                    f"{what}: a frame of {x.shape[-2]}x{x.shape[-1]}, the model was trained on "
                    f"{self.size[0]}x{self.size[1]}: render at that size, or allow resizing with resize=True"
                )
            x = functional.resize(x, list(self.size), InterpolationMode.BICUBIC, antialias=True)
        mean, std = (torch.tensor(v, device=device).view(3, 1, 1) for v in (self.mean, self.std))
        return (x.float() / 255 - mean) / std


__all__ = ["Look"]
