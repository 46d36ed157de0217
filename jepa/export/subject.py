"""What is exported: one encoder of a run, or a whole world model, and what to compare its exports with.

Shapes: B batch, T frames, H W image, N tokens, D width, L layers.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from jepa import checkpoint
from jepa.checkpoint import folder
from jepa.config import RunConfig
from jepa.data import Batch, Manifest, centre_batches
from jepa.errors import CheckpointError, ConfigError, DataError
from jepa.methods.base import Method
from jepa.methods.world import WorldModel
from jepa.nn.tokens import Normalise

_REAL = 4  # samples of the run's data set that an export is tried on


@dataclass(frozen=True)
class Asked:
    """What the user wants of an export besides its format."""

    which: str | None = None  # target or context; None: the one that the method exports
    dtype: Literal["fp32", "fp16", "bf16"] = "fp32"  # of the weights
    image_size: tuple[int, int] | None = None  # (H, W) of what it takes; None: as in training
    frames: int | None = None  # of a clip; None: as in training
    layers: tuple[int, ...] = ()  # blocks whose tokens come out too, -1 the last
    any_size: bool = True  # torch, onnx: images of any size, clips of any length, where the model can


@dataclass(frozen=True)
class Subject:
    """A loaded run, frozen. The encoder takes inputs of `size`."""

    checkpoint: Path
    config: RunConfig
    method: Method
    which: str
    encoder: nn.Module
    size: tuple[int, ...]  # (H, W) or (T, H, W)
    step: int
    layers: tuple[int, ...]  # 0-based
    asked: Asked

    @property
    def world(self) -> WorldModel | None:
        """The world model, when it is one."""
        return self.method if isinstance(self.method, WorldModel) else None

    @property
    def clips(self) -> bool:
        """Whether it takes clips."""
        return len(self.size) == 3

    def normalised(self, pixels: Tensor) -> Tensor:
        """uint8, or floats in 0..1, to what the encoder takes."""
        out: Tensor = Normalise(self.config.data.mean, self.config.data.std)(pixels)
        return out

    def tokens(self, pixels: Tensor) -> Tensor:
        """Ours: pixels (B, 3, [T,] H, W), uint8 or floats in 0..1, of `size` to tokens (B, N, D), in float32."""
        with torch.no_grad():
            out: Tensor = self.encoder(self.normalised(pixels))
        return out

    def resized(self, size: tuple[int, ...]) -> Subject:
        """The same for inputs of another size; positions are interpolated as `resize` of the encoder does."""
        encoder = copy.deepcopy(self.encoder)
        _resize(encoder, size)
        return replace(self, encoder=encoder, size=size)


def load(run: Path | str, asked: Asked) -> Subject:
    """The newest checkpoint of a run, or the checkpoint given.

    Raises:
        CheckpointError: none, damaged, or no such encoder.
        ConfigError: a size or layer that the model does not have.
    """
    found = folder.resolve(run, files=(folder.MODEL, folder.CONFIG))
    config = checkpoint.read_config(found)
    method = checkpoint.create(config)
    checkpoint.load_model(found, method)
    method.eval().requires_grad_(False)
    encoders, which = method.encoders(), asked.which or method.exported()
    if which not in encoders:
        raise CheckpointError(
            f"--which {which}: method {config.method.get('name')!r} has {' and '.join(sorted(encoders))}"
        )
    encoder = encoders[which]
    size = _size(method, config, asked)
    if size != method.size:
        if isinstance(method, WorldModel):
            raise ConfigError(
                f"--image-size and --frames: a world model is exported for the frames it was trained on, {method.size}"
            )
        _resize(encoder, size)
    layers = _layers(encoder, asked.layers, isinstance(method, WorldModel))
    step = int(checkpoint.read_state(found)["step"])
    return Subject(found, config, method, which, encoder, size, step, layers, asked)


def _size(method: Method, config: RunConfig, asked: Asked) -> tuple[int, ...]:
    if asked.frames is not None and len(method.size) == 2:
        raise ConfigError(f"--frames {asked.frames}: this encoder takes images")
    image = asked.image_size or (method.size[-2], method.size[-1])
    return image if len(method.size) == 2 else (asked.frames or method.size[0], *image)


def _resize(encoder: nn.Module, size: tuple[int, ...]) -> None:
    resize = getattr(encoder, "resize", None)
    if resize is None:
        raise ConfigError(f"--image-size, --frames: {type(encoder).__name__} takes the size it was built for only")
    resize(size)


def _layers(encoder: nn.Module, layers: Sequence[int], world: bool) -> tuple[int, ...]:
    blocks = getattr(encoder, "blocks", None)
    if layers and (world or not isinstance(blocks, nn.ModuleList)):
        raise ConfigError("--layers: this model shows no layers; leave it out")
    count = len(blocks) if isinstance(blocks, nn.ModuleList) else 0
    wrong = [layer for layer in layers if not -count <= layer < count]
    if wrong:
        raise ConfigError(f"--layers {wrong}: this encoder has layers 0 to {count - 1}, or {-count} to -1 from the end")
    found = tuple(layer % count for layer in layers)
    supervised = getattr(encoder, "supervised", None)
    if supervised is not None and not set(found) <= set(supervised):
        raise ConfigError(f"--layers: this encoder has norms after blocks {list(supervised)} only")
    return found


def real_inputs(subject: Subject) -> tuple[Batch | None, str]:
    """A few samples of the run's data set at the size of the export, and a sentence on where they are from."""
    data = subject.config.data
    clip = data.clip if data.clip is None else replace(data.clip, frames=subject.size[0])
    data = replace(data, image_size=(subject.size[-2], subject.size[-1]), clip=clip)
    if not data.path or not Path(data.path).is_dir():
        return None, "none: the run's data set is not here (data.path)"
    try:
        manifest = Manifest.open(data.path)
        name = next(n for n in ("val", "test", data.split) if n in manifest.splits)
        split = manifest.splits[name]
        batch = next(iter(centre_batches(split, data, _REAL, range(min(_REAL, len(split))))))
    except (DataError, ConfigError, OSError, StopIteration) as error:
        return None, f"none: the run's data set cannot be read ({error})"
    return batch, f"{len(batch)} of split {name} of {manifest.name}"


__all__ = ["Asked", "Subject", "load", "real_inputs"]
