"""A trained encoder, frozen, with everything around it: images or clips in, tokens out.

Shapes: B batch, T frames, H W image, N tokens, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from jepa.checkpoint import folder, io
from jepa.checkpoint import layers as inner
from jepa.config import RunConfig
from jepa.data.arrange import arrange, fit
from jepa.errors import CheckpointError, ConfigError
from jepa.methods import base
from jepa.methods.frozen import FrozenEncoder
from jepa.nn.tokens import Normalise


class Encoder(nn.Module):
    """One encoder, frozen and in eval mode, with its normalisation inside.

    Attributes:
        config: the run configuration it was trained with; of a foreign model, what it says of its images.
        size: of what it was trained on, (height, width) or (frames, height, width).
        image_size: (height, width) it takes.
        width: D.
        which: "context" or "target".
        step: training steps behind it (0: random weights, or unknown).
    """

    def __init__(
        self, encoder: nn.Module, config: RunConfig, size: tuple[int, ...], which: str = "target", step: int = 0
    ) -> None:
        """`encoder` maps normalised images (B, 3, H, W) or clips (B, 3, T, H, W) to tokens (B, N, D)."""
        super().__init__()
        self.encoder = encoder.eval().requires_grad_(False)
        self.normalise = Normalise(config.data.mean, config.data.std)
        self.config, self.size, self.which, self.step = config, size, which, step
        self.image_size = (self.size[-2], self.size[-1])
        self.width = self._width()

    @classmethod
    def of(cls, method: base.Method, config: RunConfig, which: str | None = None, step: int = 0) -> Encoder:
        """An encoder of a method: `which`, or the one that it exports.

        Raises:
            CheckpointError: the method has no such encoder.
        """
        encoders = method.encoders()
        which = which or method.exported()
        if which not in encoders:
            raise CheckpointError(f"no encoder {which!r} in method {config.method.get('name')!r}: {sorted(encoders)}")
        return cls(encoders[which], config, method.size, which, step)

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, 3, H, W) to tokens (B, N, D); an encoder of clips takes clips (B, 3, T, H, W) of any length too.

        Pixels are uint8 in 0..255, or floats in 0..1.

        Raises:
            ConfigError: another shape, size or type.
        """
        clips = len(self.size) == 3
        if x.ndim not in ((4, 5) if clips else (4,)) or x.shape[1] != 3 or x.shape[-2:] != self.image_size:
            frames = "[T, ]" if clips else ""
            raise ConfigError(
                f"got {'clips' if x.ndim == 5 else 'images'} of shape {tuple(x.shape)}; this encoder takes "
                f"(B, 3, {frames}{self.image_size[0]}, {self.image_size[1]}), uint8 in 0..255 or floats in 0..1"
            )
        if x.dtype != torch.uint8 and not x.is_floating_point():
            raise ConfigError(f"got images of type {x.dtype}; use torch.uint8 (0..255) or floats (0..1)")
        with torch.no_grad():
            tokens: Tensor = self.encoder(self.normalised(x))
        return tokens

    def normalised(self, x: Tensor) -> Tensor:
        """Pixels as the encoder itself takes them, in the type of its weights."""
        out: Tensor = self.normalise(x)
        return out.to(self.dtype)

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return next(self.encoder.parameters()).dtype

    def pool(self, x: Tensor) -> Tensor:
        """Mean over tokens: tokens (B, N, D), images (B, 3, H, W) or clips (B, 3, T, H, W), to (B, D)."""
        tokens = self(x) if x.ndim > 3 else x
        return tokens.mean(dim=1)

    def features(
        self,
        x: Any,
        *,
        layers: Sequence[int] = (),
        pool: bool = False,
        batch: int = 64,
        layout: str | None = None,
    ) -> Tensor | list[Tensor]:
        """Features of images or videos as they come: of any size, bytes or floats, tensors, arrays or PIL images.

        What is too large or of another shape is cut to the largest centred part of the encoder's aspect ratio and
        resized, as in every evaluation. Inputs may lie anywhere; they are moved to the encoder's device.

        Args:
            x: images or videos; see `jepa.data.arrange`.
            layers: inner blocks to give besides the output, counted from 0 or (negative) from the end.
            pool: the mean over tokens.
            batch: images or videos in one pass.
            layout: the axes, such as "BTHWC", where the shape may be read in two ways.

        Returns:
            Tokens (B, N, D), or (B, D) pooled, on the encoder's device in float32; with `layers` a list, the output
            first.

        Raises:
            ConfigError: no such layer, another shape or type, floats outside 0..1, or videos for an encoder of images.
        """
        given = arrange(x, len(self.size) == 3, layout)
        if given.ndim == 5 and len(self.size) == 2:
            raise ConfigError(
                f"got videos, layout BCTHW {tuple(given.shape)}; this encoder takes images: give frames as a batch"
            )
        look = inner.levels(self, layers)
        found: list[list[Tensor]] = []
        device, interpolation = self.normalise.mean.device, self.config.data.interpolation
        for start in range(0, len(given), batch):
            pixels = _checked(fit(given[start : start + batch].to(device), self.image_size, interpolation))
            found.append([t.mean(dim=1).float() if pool else t.float() for t in look(pixels)])
        each = [torch.cat(parts) for parts in zip(*found, strict=True)]
        return each if layers else each[0]

    def train(self, mode: bool = True) -> Encoder:
        """Stays in eval mode: it is frozen."""
        return super().train(False)

    def _width(self) -> int:
        width = getattr(self.encoder, "width", None)
        if isinstance(width, int):
            return width
        parameter = next(self.encoder.parameters())
        with torch.no_grad():
            return int(self.encoder(torch.zeros(1, 3, *self.size).to(parameter)).shape[-1])


def load_encoder(path: Path | str, device: str | torch.device = "cpu", which: str | None = None) -> Encoder:
    """The frozen encoder of a run (its newest checkpoint) or of a checkpoint folder.

    Args:
        which: "target" or "context"; None takes the one the method exports.

    Raises:
        CheckpointError: nothing there, damaged, of another architecture, or a pickle.
    """
    found = folder.resolve(path, files=(folder.MODEL, folder.CONFIG))
    config = io.read_config(found)
    method = create(config)
    io.load_model(found, method)
    encoder = Encoder.of(method, config, which, step=int(io.read_state(found)["step"])).to(device)
    return encoder


def _checked(pixels: Tensor) -> Tensor:
    """Raises ConfigError for floats that are no share of white: normalised already, or 0..255."""
    if pixels.is_floating_point() and len(pixels):
        low, high = float(pixels.min()), float(pixels.max())
        if not (low >= 0 and high <= 1):
            raise ConfigError(
                f"got floats from {low:g} to {high:g}; give bytes (0..255) or floats in 0..1, not normalised: the "
                "encoder does that itself"
            )
    return pixels


def random_encoder(config: RunConfig, seed: int, which: str | None = None) -> Encoder:
    """The same architecture with random weights drawn from `seed`; torch's generator is left as it was."""
    return Encoder.of(random_method(config, seed), config, which)


def random_method(config: RunConfig, seed: int) -> base.Method:
    """The run's method with nothing but random weights, also in a frozen encoder, which otherwise waits for its own."""
    method = create(config, seed)
    for module in method.modules():
        if isinstance(module, FrozenEncoder):
            module.filled.fill_(1)
    return method


def create(config: RunConfig, seed: int | None = None) -> base.Method:
    """The run's method with weights drawn from `seed` (default: the run's), the same on every rank and machine.

    torch's own generator is left as it was.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed if seed is None else seed)
        return base.create(config.method, config.data.size)
