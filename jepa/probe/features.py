"""Features of every sample of a split, from anything that turns images into vectors; computed once, then cached.

A `Source` says what the vectors are called in the table, which images it wants and what identifies its numbers. The
cache is RUN/probes/cache/HASH.safetensors, where the hash covers the weights, the data set, the samples and every
setting that changes a number; a file that cannot be read is computed again. The folder may be deleted at any time.

Shapes: n samples, B batch, H W image, D width.
"""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from jepa.data import Manifest, Split, eval_batches
from jepa.errors import ConfigError

Embed = Callable[[Tensor], Tensor]  # uint8 (B, 3, H, W) on the device -> (B, D)
_CACHE_VERSION = 1


@dataclass(frozen=True)
class FeaturesConfig:
    """How features are computed."""

    encoders: tuple[str, ...] = ()  # encoders of the method, the one that counts first; empty: the exported one
    pool: Literal["mean"] = "mean"  # tokens to one vector
    batch: int = 256  # images at a time
    workers: int = 0  # decoding processes
    precision: Literal["fp32", "bf16"] = "fp32"  # of the encoder's arithmetic
    cache: bool = True  # keep features in RUN/probes/cache

    def __post_init__(self) -> None:
        if self.batch < 1 or self.workers < 0:
            raise ConfigError(f"batch={self.batch}, workers={self.workers}: allowed: batch from 1, workers from 0")


@dataclass
class Source:
    """Something that gives features."""

    name: str  # in the table: "target (step 800)", "pixels (32×32)"
    role: Literal["run", "random", "pixels", "timm"]
    image_size: tuple[int, int]
    identity: dict[str, Any] | None  # what determines its numbers besides the images; None: too cheap to cache
    build: Callable[[torch.device], Embed]  # made when first needed: cached features need no model
    facts: dict[str, Any] = field(default_factory=dict)  # for the result file

    @property
    def baseline(self) -> bool:
        """Whether it is a yardstick and no encoder of the run."""
        return self.role != "run"


class Extractor:
    """Computes or reads features of a data set's samples.

    Args:
        cache: folder of cached features, or None.
        advance: called with the number of images done, for a progress bar.
    """

    def __init__(
        self,
        manifest: Manifest,
        config: FeaturesConfig,
        device: torch.device,
        interpolation: Literal["bilinear", "bicubic"] = "bilinear",
        cache: Path | None = None,
        advance: Callable[[int], None] = lambda done: None,
    ) -> None:
        self.manifest, self.config, self.device = manifest, config, device
        self.interpolation = interpolation
        self.cache, self.advance = cache if config.cache else None, advance

    def __call__(self, source: Source, parts: Sequence[tuple[Split, npt.NDArray[np.int64]]]) -> list[Tensor]:
        """Features (n, D), float32 on the CPU, of the chosen samples of each (split, indices)."""
        embed: Embed | None = None
        out = []
        for split, indices in parts:
            file = self._file(source, split, indices)
            found = _read(file, len(indices)) if file else None
            if found is None:
                embed = embed or source.build(self.device)
                found = self._compute(source, embed, split, indices)
                if file:
                    _write(file, found, source)
            else:
                self.advance(len(indices))
            out.append(found)
        return out

    def _compute(self, source: Source, embed: Embed, split: Split, indices: npt.NDArray[np.int64]) -> Tensor:
        config = self.config
        batches = eval_batches(
            split, source.image_size, config.batch, indices=indices, workers=config.workers,
            interpolation=self.interpolation,
        )  # fmt: skip
        lower = torch.autocast(self.device.type, torch.bfloat16, enabled=config.precision == "bf16")
        done, out = 0, torch.empty(0)
        with torch.inference_mode(), lower:
            for batch in batches:
                features = embed(batch.images.to(self.device, non_blocking=True)).float().cpu()
                if not done:
                    out = torch.empty(len(indices), features.shape[1])
                out[done : done + len(features)] = features
                done += len(features)
                self.advance(len(features))
        assert done == len(indices), f"{source.name}: {done} features for {len(indices)} samples of {split.name}"
        return out

    def _file(self, source: Source, split: Split, indices: npt.NDArray[np.int64]) -> Path | None:
        if self.cache is None or source.identity is None:
            return None
        key = {
            "version": _CACHE_VERSION,
            "source": source.identity,
            "dataset": self.manifest.hash,
            "split": split.name,
            "indices": hashlib.blake2b(np.ascontiguousarray(indices).tobytes(), digest_size=16).hexdigest(),
            "image_size": list(source.image_size),
            "interpolation": self.interpolation,
            "pool": self.config.pool,
            "precision": self.config.precision,
            "device": self.device.type,  # a CPU and a GPU differ in the last digits
            "torch": torch.__version__,
        }
        digest = hashlib.blake2b(json.dumps(key, sort_keys=True).encode(), digest_size=16).hexdigest()
        return self.cache / f"{digest}.safetensors"


def pixels(image_size: tuple[int, int], size: tuple[int, int] | None) -> Source:
    """Raw pixels, the baseline of what can be read off without any encoder.

    Args:
        image_size: what the run's encoder sees.
        size: (H, W) to shrink to; None: as they are up to 32 x 32 pixels, larger ones shrunk to that area.
    """
    height, width = image_size
    if size is None:
        shrink = min(1.0, (32 * 32 / (height * width)) ** 0.5)
        size = (max(1, round(height * shrink)), max(1, round(width * shrink)))
    return Source(
        f"pixels ({size[0]}×{size[1]})", "pixels", size, None, lambda device: lambda x: x.flatten(1).float() / 255
    )


def _read(file: Path, count: int) -> Tensor | None:
    try:
        found = load_file(file)["features"]
    except (OSError, SafetensorError, KeyError):  # not there, or cut off: computed again
        return None
    return found if found.ndim == 2 and len(found) == count else None


def _write(file: Path, features: Tensor, source: Source) -> None:
    """Atomically; a full disk costs the next probe time, not this one its result."""
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        save_file({"features": features.contiguous()}, temporary, metadata={"source": source.name})
        temporary.replace(file)
    except (OSError, SafetensorError) as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        warnings.warn(f"features of {source.name} could not be cached in {file.parent}: {error}", stacklevel=2)
