"""A trained encoder, frozen, with everything around it: images or clips in, tokens out.

Shapes: B batch, T frames, H W image, N tokens, D width.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from jepa.checkpoint import folder, io
from jepa.config import RunConfig
from jepa.errors import CheckpointError, ConfigError
from jepa.methods import base
from jepa.methods.frozen import FrozenEncoder
from jepa.nn.tokens import Normalise


class Encoder(nn.Module):
    """One encoder of a method, frozen and in eval mode, with its normalisation inside.

    Attributes:
        config: the run configuration it was trained with.
        size: of what it was trained on, (height, width) or (frames, height, width).
        image_size: (height, width) it takes.
        width: D.
        which: "context" or "target".
        step: training steps behind it (0: random weights).
    """

    def __init__(self, method: base.Method, config: RunConfig, which: str | None = None, step: int = 0) -> None:
        """Raises CheckpointError when the method has no encoder called `which`."""
        super().__init__()
        encoders = method.encoders()
        which = which or method.exported()
        if which not in encoders:
            raise CheckpointError(f"no encoder {which!r} in method {config.method.get('name')!r}: {sorted(encoders)}")
        self.encoder = encoders[which].eval().requires_grad_(False)
        self.normalise = Normalise(config.data.mean, config.data.std)
        self.config, self.size, self.which, self.step = config, method.size, which, step
        self.image_size = (self.size[-2], self.size[-1])
        self.width = self._width()

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
            tokens: Tensor = self.encoder(self.normalise(x))
        return tokens

    def pool(self, x: Tensor) -> Tensor:
        """Mean over tokens: tokens (B, N, D), images (B, 3, H, W) or clips (B, 3, T, H, W), to (B, D)."""
        tokens = self(x) if x.ndim > 3 else x
        return tokens.mean(dim=1)

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
    encoder = Encoder(method, config, which, step=int(io.read_state(found)["step"])).to(device)
    return encoder


def random_encoder(config: RunConfig, seed: int, which: str | None = None) -> Encoder:
    """The same architecture with random weights drawn from `seed`; torch's generator is left as it was."""
    return Encoder(random_method(config, seed), config, which)


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
