"""Features of every sample of a split, from anything that turns images into vectors; computed once, then cached.

A `Source` says what the vectors are called in the table, which images it wants and what identifies its numbers. The
cache is RUN/probes/cache/HASH.safetensors, where the hash covers the weights, the data set, the samples and every
setting that changes a number; a file that cannot be read is computed again. The folder may be deleted at any time.

Vectors are means over tokens, of the encoder's output and of the layers asked for. Attentive and dense probes want the
tokens themselves; they are kept as tokens.py says, computed in the same pass.

Shapes: n samples, B batch, H W image, V views of a sample, N tokens, D width, L layers.
"""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from jepa import config as configuration
from jepa.data import Manifest, Split, eval_batches, eval_clips, storage
from jepa.errors import ConfigError
from jepa.probe import tokens
from jepa.probe.clips import ClipsConfig, average_features, embed_clips
from jepa.probe.tokens import Made, Sink, Tokens, TokensConfig

Ints = npt.NDArray[np.int64]
Embed = Callable[[Tensor], Tensor]  # uint8 (B, 3, H, W) on the device -> (B, D)
Levels = Callable[[Tensor], list[Tensor]]  # the same images -> tokens (B, N, D) of the output, then of each layer
Alter = Callable[[Tensor, Ints], Tensor]  # clips (B, C, V, 3, T, H, W) of samples (B,) -> what the encoder sees of them
Parts = Sequence[tuple[Split, Ints]]
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
    tokens: TokensConfig = field(default_factory=TokensConfig)  # how tokens are kept, for probes that want them
    clips: ClipsConfig | None = None  # what of a video is looked at; null for images

    def __post_init__(self) -> None:
        if self.batch < 1 or self.workers < 0:
            raise ConfigError(f"batch={self.batch}, workers={self.workers}: allowed: batch from 1, workers from 0")


@dataclass
class Source:
    """Something that gives features."""

    name: str  # in the table: "target (step 800)", "pixels (32×32)"
    role: Literal["run", "seen", "random", "pixels", "timm", "frames", "other", "features"]
    image_size: tuple[int, ...]  # (H, W), or (T, H, W) for clips
    identity: dict[str, Any] | None  # what determines its numbers besides the images; None: too cheap to cache
    build: Callable[[torch.device], Embed]  # made when first needed: cached features need no model
    facts: dict[str, Any] = field(default_factory=dict)  # for the result file
    levels: Callable[[torch.device, tuple[int, ...]], Levels] | None = None  # tokens too, of the output and of layers
    grid: tuple[int, int] | None = None  # rows and columns of the tokens of one image
    layered: bool = True  # whether `levels` knows layers; without, its output stands for them
    alter: Alter | None = None  # of clips, before the encoder sees them
    stored: Callable[[Parts, Wants, FeaturesConfig], Features] | None = None  # read, not computed: see stored.py

    @property
    def baseline(self) -> bool:
        """Whether it is a yardstick and no encoder of the run."""
        return self.role != "run"


@dataclass(frozen=True)
class Wants:
    """What of a source is wanted."""

    pooled: bool = True  # means over tokens
    layers: tuple[int, ...] = ()  # of these layers too, beside the output
    tokens: bool = False  # the tokens themselves


@dataclass
class Features:
    """What was wanted, for each part of the data."""

    output: list[Tensor]  # (n, D) float32 on the CPU
    layers: dict[int, list[Tensor]] = field(default_factory=dict)  # the same of inner layers, as they were asked for
    tokens: list[Tokens] | None = None  # (n, V, L * N, D); None: the source has no tokens, or they were not wanted

    def close(self) -> None:
        """Give back the tokens' files."""
        for part in self.tokens or ():
            part.close()


class Extractor:
    """Computes or reads features of a data set's samples.

    Args:
        cache: folder of cached features, or None.
        advance: called with the number of images done, for a progress bar.
        ends: of each split by name, the second at which the clip of each of its videos ends; None: clips all over.
    """

    def __init__(
        self,
        manifest: Manifest,
        config: FeaturesConfig,
        device: torch.device,
        interpolation: Literal["bilinear", "bicubic"] = "bilinear",
        cache: Path | None = None,
        advance: Callable[[int], None] = lambda done: None,
        ends: dict[str, npt.NDArray[np.float64]] | None = None,
    ) -> None:
        self.ends = ends or {}
        self.manifest, self.config, self.device = manifest, config, device
        self.interpolation = interpolation
        self.cache, self.advance = cache if config.cache else None, advance

    def __call__(self, source: Source, parts: Parts) -> list[Tensor]:
        """Features (n, D), float32 on the CPU, of the chosen samples of each (split, indices)."""
        embed: Embed | None = None
        out = []
        for number, (split, indices) in enumerate(parts):
            views = self._views(number)
            file = self._file(source, split, indices, views)
            found = _read(file, len(indices)) if file else None
            if found is None:
                embed = embed or source.build(self.device)
                found = self._compute(source, embed, split, indices, views)
                if file:
                    _write(file, found, source)
            else:
                self.advance(len(indices))
            out.append(found)
        return out

    def everything(self, source: Source, parts: Parts, wants: Wants) -> Features:
        """Pooled features of the output and of layers, and tokens, in one pass over the samples where possible.

        A source without tokens gives pooled features of its output only, one without layers nothing of layers.

        Raises:
            ConfigError: layers that the source does not have.
            DataError: tokens that are not finite or too large for float16, samples that cannot be read, a full disk.
        """
        if source.stored is not None:
            found = source.stored(parts, wants, self.config)
            self.advance(sum(len(indices) for _, indices in parts))
            return found
        if not source.layered:
            wants = replace(wants, layers=())
        if source.levels is None or not (wants.layers or wants.tokens or self.config.clips):
            return Features(self(source, parts) if wants.pooled else [])
        run = _Pass(self, source, wants)
        made: list[tuple[Tensor | None, Tokens | None]] = []
        try:
            where = run.decide(parts) if wants.tokens else "nowhere"
            for number, (split, indices) in enumerate(parts):
                made.append(run.part(split, indices, self._views(number), where))
        except BaseException:
            Features([], tokens=[kept for _, kept in made if kept]).close()
            raise
        pooled = [x for x, _ in made if x is not None]
        layers = {layer: [x[:, i] for x in pooled] for i, layer in enumerate(wants.layers, start=1)}
        kept_tokens = [x for _, x in made if x is not None]
        return Features([x[:, 0] for x in pooled], layers, kept_tokens if wants.tokens else None)

    def batches(self, source: Source, split: Split, indices: Ints, views: int = 1) -> Iterator[Tensor]:
        """uint8 images (B, 3, H, W) on the device, or clips (B, C, V, 3, T, H, W) where the suite asks for clips."""
        config, (height, width) = self.config, source.image_size[-2:]
        if config.clips is None:
            found = eval_batches(
                split, (height, width), config.batch, indices=indices, workers=config.workers,
                interpolation=self.interpolation,
            )  # fmt: skip
        else:
            found = eval_clips(
                split, config.clips, (height, width), config.batch, indices=indices, workers=config.workers,
                interpolation=self.interpolation, views=views, ends=self.ends.get(split.name),
            )  # fmt: skip
        for batch in found:
            images = batch.images.to(self.device, non_blocking=True)
            yield images if source.alter is None else source.alter(images, batch.index.numpy())

    def _views(self, part: int) -> int:
        """Views of a clip; training samples, the first part, have one."""
        return self.config.clips.views if self.config.clips and part else 1

    def lower(self) -> torch.autocast:
        """The precision encoders run in."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.precision == "bf16")

    def _compute(self, source: Source, embed: Embed, split: Split, indices: Ints, views: int) -> Tensor:
        done, out = 0, torch.empty(0)
        with torch.inference_mode(), self.lower():
            for images in self.batches(source, split, indices, views):
                if self.config.clips is None:
                    features = embed(images).float().cpu()
                else:  # each clip and view by itself, then their mean
                    single = embed(images.flatten(0, 2)).float().cpu()
                    features = average_features(single.view(*images.shape[:3], -1))
                if not done:
                    out = torch.empty(len(indices), features.shape[1])
                out[done : done + len(features)] = features
                done += len(features)
                self.advance(len(features))
        assert done == len(indices), f"{source.name}: {done} features for {len(indices)} samples of {split.name}"
        return out

    def _file(self, source: Source, split: Split, indices: Ints, views: int = 1, **more: Any) -> Path | None:
        if self.cache is None or source.identity is None:
            return None
        if self.config.clips is not None:
            more |= {"clips": configuration.to_dict(self.config.clips), "views": views}
        if split.name in self.ends:
            more["ends"] = hashlib.blake2b(self.ends[split.name].tobytes(), digest_size=16).hexdigest()
        key = more | {
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


class _Pass:
    """Pooled features of several levels, and tokens, of one source."""

    def __init__(self, extractor: Extractor, source: Source, wants: Wants) -> None:
        assert source.levels is not None, f"{source.name} has no tokens"
        self.extractor, self.source, self.wants = extractor, source, wants
        self.config = extractor.config.tokens if source.layered else replace(extractor.config.tokens, layers=())
        self._make: Callable[[torch.device, tuple[int, ...]], Levels] = source.levels
        self._embed: Levels | None = None

    def decide(self, parts: Parts) -> Literal["memory", "disk", "nowhere"]:
        """Where the tokens of all parts go together."""
        numbers = 0
        for number, (split, indices) in enumerate(parts):
            views = self.extractor._views(number)
            kept = tokens.read(self._token_file(split, indices, views), len(indices), self.config, memory=False)
            shape = kept.shape[1:] if kept else self._shape(split, indices, views)
            numbers += len(indices) * int(np.prod(shape))
        return self.config.place(numbers, disk=self.extractor.cache is not None)

    def part(
        self, split: Split, indices: Ints, views: int, where: Literal["memory", "disk", "nowhere"]
    ) -> tuple[Tensor | None, Tokens | None]:
        """Pooled (n, 1 + L, D) and tokens of one part, whatever of them is wanted."""
        wants, pooled, kept = self.wants, None, None
        pooled_file = self.extractor._file(self.source, split, indices, views, layers=wants.layers)
        if wants.pooled and pooled_file:
            pooled = _read(pooled_file, len(indices), 3)
        file = self._token_file(split, indices, views)
        if wants.tokens and where != "nowhere":
            kept = tokens.read(file, len(indices), self.config, memory=where == "memory")
        sink = None
        if wants.tokens and kept is None and where != "nowhere":
            sink = Sink(len(indices), where, self.config, file or self._scratch(split))
        if (wants.pooled and pooled is None) or sink:
            means = self._run(split, indices, views, sink)
            if pooled is None and wants.pooled:
                pooled = means
                if pooled_file:
                    _write(pooled_file, pooled, self.source)
        else:
            self.extractor.advance(len(indices))
        if sink:
            kept = sink.end()
        elif wants.tokens and kept is None:
            kept = self._made(split, indices, views)
        return pooled, kept

    def _run(self, split: Split, indices: Ints, views: int, sink: Sink | None) -> Tensor:
        done, out = 0, torch.empty(0)
        try:
            for found in self._look(split, indices, views):
                if self.wants.pooled:
                    shown = found[: 1 + len(self.wants.layers)]
                    means = torch.stack([average_features(x.mean(dim=2).float()) for x in shown], dim=1).cpu()
                    out = out if done else torch.empty(len(indices), *means.shape[1:])
                    out[done : done + len(means)] = means
                if sink:
                    sink.add(self._chosen(found))
                done += len(found[0])
                self.extractor.advance(len(found[0]))
        except BaseException:
            if sink:
                sink.drop()
            raise
        assert done == len(indices), f"{self.source.name}: {done} of {len(indices)} samples of {split.name}"
        return out

    def _look(self, split: Split, indices: Ints, views: int) -> Iterator[list[Tensor]]:
        """Levels (B, V, N, D) of every batch: the output, the layers to pool, the layers whose tokens are kept."""
        if self._embed is None:
            self._embed = self._make(self.extractor.device, (*self.wants.layers, *self.config.layers))
        clips = self.extractor.config.clips
        for images in self.extractor.batches(self.source, split, indices, views):
            with torch.no_grad(), self.extractor.lower():  # what is trained on them saves them for its backward
                if clips is not None:
                    found = embed_clips(self._embed, images, clips.join)
                else:
                    found = [level.unsqueeze(1) for level in self._embed(images)]
            yield found  # outside: the caller's work is not done under these

    def _chosen(self, found: list[Tensor]) -> Tensor:
        """The kept tokens: the output's, or the chosen layers' one after the other."""
        inner = found[1 + len(self.wants.layers) :]
        return self.config.round(torch.cat(inner, dim=2) if inner else found[0], self.source.name)

    def _shape(self, split: Split, indices: Ints, views: int) -> tuple[int, ...]:
        (found,) = self._look(split, indices[:1], views)
        return tuple(self._chosen(found).shape[1:])

    def _made(self, split: Split, indices: Ints, views: int) -> Tokens:
        def make(places: Ints) -> Iterator[Tensor]:
            return (self._chosen(found) for found in self._look(split, indices[places], views))

        n, v, t, d = len(indices), *self._shape(split, indices, views)
        return Made((n, v, t, d), make)

    def _token_file(self, split: Split, indices: Ints, views: int) -> Path | None:
        """The file that keeps this part's tokens between probes, or None."""
        if not self.config.keep:
            return None
        more = {"tokens": self.config.dtype, "token_layers": self.config.layers}
        file = self.extractor._file(self.source, split, indices, views, **more)
        return file.with_suffix(".npy") if file else None

    def _scratch(self, split: Split) -> Path | None:
        """A file for this probe only."""
        folder = self.extractor.cache
        return folder / f"tokens-{os.getpid()}-{split.name}.npy" if folder else None


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


def _read(file: Path, count: int, axes: int = 2) -> Tensor | None:
    try:
        found = load_file(file)["features"]
    except (OSError, SafetensorError, KeyError):  # not there, or cut off: computed again
        return None
    return found if found.ndim == axes and len(found) == count else None


def _write(file: Path, features: Tensor, source: Source) -> None:
    """Atomically; a full disk costs the next probe time, not this one its result."""
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        save_file({"features": features.contiguous()}, temporary, metadata={"source": source.name})
        storage.sync(temporary)
        temporary.replace(file)
    except (OSError, SafetensorError) as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        warnings.warn(f"features of {source.name} could not be cached in {file.parent}: {error}", stacklevel=2)
