"""What an extraction will write: settled and checked before anything is computed.

Which samples go to which shard follows from the data set and the settings alone. So does which samples the encoder
sees together: a batch never crosses from one shard to the next. Neither interruptions nor the number of processes
change a byte.

Shapes: B batch, C clips, V views, N tokens, D width.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

import jepa
from jepa import checkpoint
from jepa import config as configuration
from jepa.checkpoint import Encoder, folder, layers
from jepa.config import ClipConfig, RunConfig
from jepa.data import Manifest
from jepa.data.video.choose import choose
from jepa.errors import ConfigError
from jepa.probe.featureset import CLIP_FRAMES, DTYPES, POOLED, TOKENS, About, Dtype, Origin, tensor_name

_ROUND = 64  # a shard's samples are a multiple of it, so that usual batches divide them


@dataclass(frozen=True)
class ExtractConfig:
    """What is extracted, and how."""

    which: str | None = None  # encoder of the method; null: the one it exports
    tokens: bool = False  # keep the tokens too, not only their mean
    layers: tuple[int, ...] = ()  # of these too, beside the output; negative ones count from the end
    splits: tuple[str, ...] = ()  # of the data set; empty: all
    dtype: Dtype = "fp16"  # of the numbers that are written
    precision: Literal["fp32", "bf16"] = "fp32"  # of the encoder's arithmetic
    frames: int | None = None  # of a clip; null: as the run was trained, as the spacing
    fps: float | None = None  # spacing of a clip's frames: one of these three
    stride: int | None = None
    duration: float | None = None
    clips: int = 1  # of each video, spread over it
    short: Literal["pad", "loop", "skip"] | None = None  # what is done with too short a video; null: as in the run
    views: tuple[str, ...] = ()  # of a clip: a number, or SPLIT=NUMBER for one split; default 1
    batch: int = 64  # samples at a time
    workers: int = 0  # decoding processes
    shard_samples: int = 1024  # most samples in a shard
    shard_bytes: int = 300_000_000  # most bytes of features in a shard

    def __post_init__(self) -> None:
        least = {"batch": 1, "workers": 0, "shard_samples": 1, "shard_bytes": 1, "clips": 1}
        wrong = [f"{k}={getattr(self, k)} (from {v})" for k, v in least.items() if getattr(self, k) < v]
        if wrong:
            raise ConfigError(f"out of range: {', '.join(wrong)}")


@dataclass(frozen=True)
class Job:
    """One shard: samples [start, stop) of a split."""

    split: str
    number: int  # of the shard in its split
    start: int
    stop: int

    @property
    def name(self) -> str:
        return f"{self.split}-{self.number:06d}"


@dataclass(frozen=True)
class Plan:
    """A checked extraction."""

    about: About
    data: Manifest  # that features are made of
    encoder: Encoder
    batch: int  # divides `about.shard_samples`

    def jobs(self) -> Iterator[Job]:
        """Every shard, in order."""
        size = self.about.shard_samples
        for split in self.about.views:
            count = len(self.data.splits[split])
            for number, start in enumerate(range(0, count, size)):
                yield Job(split, number, start, min(start + size, count))

    def sample_bytes(self, split: str) -> int:
        """Bytes of the numbers of one sample."""
        return _bytes(self.about.shapes[split], self.about.dtype)

    @property
    def bytes(self) -> int:
        """Bytes of all numbers, without what tars add: about 3 KB a sample."""
        return sum(len(self.data.splits[split]) * self.sample_bytes(split) for split in self.about.views)


def make(run: Path | str, data: Path | str, wanted: ExtractConfig) -> Plan:
    """Load the encoder, open the data set, and settle what is written.

    Raises:
        CheckpointError: no usable checkpoint.
        ConfigError: settings that do not fit the encoder or the data set.
        DataError: no data set, or shards that are missing.
    """
    path = checkpoint.resolve(run, files=(folder.MODEL, folder.CONFIG))
    encoder = checkpoint.load_encoder(path, which=wanted.which)
    config, source = encoder.config, Manifest.open(data)
    if CLIP_FRAMES in source.arrays:
        raise ConfigError(f"{data}: its episodes hold an array {CLIP_FRAMES!r}, a name that features need. Rename it")
    splits = wanted.splits or tuple(source.splits)
    for split in splits:
        source.split(split).check()
    inner = tuple(sorted(set(layers.resolve(encoder, wanted.layers))))
    clip = _clip(config, source, wanted)
    if clip is not None and clip.frames > 1 and len(encoder.size) == 2:
        raise ConfigError(
            f"clips of {clip.frames} frames: this encoder was trained on images and sees frames singly. Give "
            "--frames 1 --stride 1, and --clips for the number of frames of each video"
        )
    views = _views(source, splits, wanted)
    shapes = {split: _shapes(encoder, clip, views[split], inner, wanted.tokens) for split in splits}
    samples = _shard_samples(max(_bytes(shape, wanted.dtype) for shape in shapes.values()), wanted)
    about = About(
        run=str(path),
        weights=str(folder.manifest(path)["files"][folder.MODEL]["sha256"]),
        which=encoder.which,
        step=encoder.step,
        width=encoder.width,
        depth=layers.depth(encoder),
        image_size=encoder.image_size,
        grid=layers.grid(encoder),
        mean=config.data.mean,
        std=config.data.std,
        interpolation=config.data.interpolation,
        source=Origin(source.name, source.hash, str(Path(data).resolve()), "video" if clip else "image"),
        clip=clip,
        views=views,
        decoder=choose(config.data.decoder).name if clip else None,
        layers=inner,
        tokens=wanted.tokens,
        pool="mean",
        dtype=wanted.dtype,
        precision=wanted.precision,
        shapes=shapes,
        shard_samples=samples,
        config=configuration.to_dict(config),
        jepa=jepa.__version__,
    )
    return Plan(about, source, encoder, max(n for n in range(1, min(wanted.batch, samples) + 1) if samples % n == 0))


def _clip(config: RunConfig, source: Manifest, wanted: ExtractConfig) -> ClipConfig | None:
    """The clips of each video: the run's, with what is asked for in its place."""
    spacing = {k: v for k in ("fps", "stride", "duration") if (v := getattr(wanted, k)) is not None}
    given = spacing | {k: v for k in ("frames", "short") if (v := getattr(wanted, k)) is not None}
    if source.media != "video":
        asked = [*given, *(["clips"] if wanted.clips > 1 else []), *(["views"] if wanted.views else [])]
        if asked:
            raise ConfigError(f"{', '.join(asked)}: of videos only, and data set {source.root} holds images")
        return None
    own = config.data.clip
    if own is None and not spacing:
        raise ConfigError(
            f"the run was trained without clips of its own, and data set {source.root} holds videos: say what a clip "
            "is, e.g. --frames 16 --stride 4"
        )
    values = {f.name: getattr(own, f.name) for f in fields(ClipConfig)} if own is not None else {}
    if spacing:
        values |= dict.fromkeys(("fps", "stride", "duration"))
    return ClipConfig(**(values | given | {"clips": wanted.clips}))


def _views(source: Manifest, splits: tuple[str, ...], wanted: ExtractConfig) -> dict[str, int]:
    found = dict.fromkeys(splits, 1)
    for text in sorted(wanted.views, key=lambda text: "=" in text):  # that of one split counts more
        name, equals, number = text.rpartition("=")
        if not number.isdigit() or int(number) < 1 or (equals and name not in splits):
            raise ConfigError(
                f"views {text!r}: give a number from 1, or SPLIT=NUMBER with one of the splits {', '.join(splits)}"
            )
        found |= {name: int(number)} if equals else dict.fromkeys(splits, int(number))
    return found


def _shapes(
    encoder: Encoder, clip: ClipConfig | None, views: int, inner: tuple[int, ...], tokens: bool
) -> dict[str, tuple[int, ...]]:
    """Tensors of one sample, found by looking at a black one."""
    frames = () if clip is None else (clip.frames,)
    black = torch.zeros(1, 3, *frames, *encoder.image_size, dtype=torch.uint8)
    output = layers.levels(encoder, ())(_seen(encoder, black))[0]
    n, d = output.shape[1:]
    lead = () if clip is None else (clip.clips, views)
    names = (None, *inner)
    found = {tensor_name(POOLED, layer): (*lead, d) for layer in names}
    return found | ({tensor_name(TOKENS, layer): (*lead, n, d) for layer in names} if tokens else {})


def _seen(encoder: Encoder, x: Tensor) -> Tensor:
    """Images or clips (B, 3, [T, ]H, W) as the encoder takes them: one of images sees the only frame of a clip."""
    return x[:, :, 0] if x.ndim == 5 and len(encoder.size) == 2 else x


def _bytes(shapes: dict[str, tuple[int, ...]], dtype: str) -> int:
    return sum(math.prod(shape) for shape in shapes.values()) * DTYPES[dtype].itemsize


def _shard_samples(sample_bytes: int, wanted: ExtractConfig) -> int:
    most = max(1, min(wanted.shard_samples, wanted.shard_bytes // sample_bytes))
    return most // _ROUND * _ROUND or most


def embed(plan: Plan, images: Tensor) -> dict[str, Tensor]:
    """Every tensor of a batch of samples, as it is written but still on the device.

    Args:
        images: uint8 (B, 3, H, W), or (B, C, V, 3, T, H, W).
    """
    about, dtype = plan.about, DTYPES[plan.about.dtype]
    lead = images.shape[:1] if about.clip is None else images.shape[:3]
    lower = torch.autocast(images.device.type, torch.bfloat16, enabled=about.precision == "bf16")
    with torch.inference_mode(), lower:
        found = layers.levels(plan.encoder, about.layers)(
            images if about.clip is None else _seen(plan.encoder, images.flatten(0, 2))
        )
    out = {}
    for layer, level in zip((None, *about.layers), found, strict=True):
        out[tensor_name(POOLED, layer)] = level.mean(dim=1).reshape(*lead, -1).to(dtype)
        if about.tokens:
            out[tensor_name(TOKENS, layer)] = level.reshape(*lead, *level.shape[1:]).to(dtype)
    return out
