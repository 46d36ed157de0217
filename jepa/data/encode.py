"""A source's image or video -> the bytes that go into a shard. Runs in workers; a pure function of its task."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from jepa.data import decode, episode, labelmap, recipe
from jepa.data.arrays import ArrayConfig, Values
from jepa.data.recipe import ImageConfig, Recipe
from jepa.data.sources.base import Maker, Sample
from jepa.data.video.source import is_video
from jepa.errors import ConfigError, DataError


@dataclass(frozen=True)
class Encoded:
    """A sample as it is written."""

    data: bytes
    extension: str
    height: int
    width: int
    sample: Sample  # its `image` is emptied: it has become `data`
    video: tuple[float, float, float] = (0.0, 0.0, 0.0)  # frames, frames per second, seconds; zeros for an image
    facts: bytes = b""  # JSON of a video's `Facts`
    arrays: dict[str, Values] = dataclasses.field(default_factory=dict)  # of an episode, as they are written


@dataclass(frozen=True)
class Bad:
    """A source image or video that cannot be used, and why."""

    source: str
    reason: str


Result = list[Encoded] | Bad  # a video may be cut into several samples
Schema = Mapping[str, ArrayConfig]  # arrays of episodes as the source gives them


def encode(maker: Maker, task: Any, config: Recipe, schema: Schema) -> Result:
    """Make the samples of a task and bring their images, videos and arrays into the form the recipe asks for.

    Samples that a clean list leaves out are not among them.
    """
    try:
        made = maker(task)
    except DataError as error:
        return Bad(str(task), str(error))
    samples = [made] if isinstance(made, Sample) else made
    if config.clean is not None:
        names = recipe.listed(config.clean)
        samples = [sample for sample in samples if sample.source in names]
    results = [_encoded(sample, config, schema) for sample in samples]
    bad = next((r for r in results if isinstance(r, Bad)), None)  # a task is used whole or not at all
    return bad or [piece for r in results if not isinstance(r, Bad) for piece in r]


def _encoded(sample: Sample, config: Recipe, schema: Schema) -> Result:
    emptied = dataclasses.replace(sample, image=b"", arrays={})
    try:
        if isinstance(sample.image, Path) or sample.media == "video" or _is_video(sample):
            return _videos(sample, emptied, config, schema)
        written = _image(sample.image, config.image)
        for found in sample.maps if config.image.verify else ():
            labelmap.check(found, written[2:])
        return [Encoded(*written, sample=emptied)]
    except DataError as error:
        return Bad(sample.source, str(error))


def _is_video(sample: Sample) -> bool:
    """By what it is where the source does not say; names are never trusted."""
    image = sample.image
    if isinstance(image, Path) or sample.media:
        return False
    if isinstance(image, np.ndarray):
        return image.ndim == 4
    try:
        decode.header(image)
    except DataError as error:
        if is_video(image):
            return True
        if str(error).startswith("not a"):
            raise DataError(f"{error}, nor a video") from None
        raise
    return False


def _videos(sample: Sample, emptied: Sample, config: Recipe, schema: Schema) -> Result:
    try:
        from jepa.data.video import recode
    except ImportError as error:
        raise ConfigError(f"videos need PyAV ({error}). Install it with: pip install 'jepa[video]'") from None
    keeper = _Keeper(sample, schema, config) if schema else None
    out: Result = [
        Encoded(
            c.data, c.extension, c.facts.height, c.facts.width, emptied, c.facts.numbers, c.facts.to_json(),
            keeper.arrays if keeper else {},
        )
        for c in recode.code(sample.image, sample.fps, config.video, sample.span, keeper)
    ]  # fmt: skip
    return out


class _Keeper:
    """Says which frames of an episode are kept, when it is known how many there are, and keeps the arrays with them."""

    def __init__(self, sample: Sample, schema: Schema, config: Recipe) -> None:
        self.sample, self.schema, self.least = sample, schema, config.video.min_frames
        self.config = config.episode or episode.EpisodeConfig()
        self.skip, self.arrays = self.config.frame_skip, dict[str, Values]()

    def __call__(self, frames: int) -> episode.Int64:
        self.arrays = episode.thinned(self.sample.arrays, self.schema, frames, self.config)
        chosen = episode.kept(frames, self.config)
        if len(chosen) < self.least:
            raise DataError(f"the episode keeps {len(chosen)} frame(s), the recipe asks for min_frames={self.least}")
        return chosen


def _image(image: bytes | np.ndarray[Any, Any], config: ImageConfig) -> tuple[bytes, str, int, int]:
    """(bytes, extension, height, width)."""
    wanted = {"jpeg": "jpg"}.get(config.format, config.format)
    if isinstance(image, np.ndarray):
        picture = Image.fromarray(image)
        if config.resize is not None and min(picture.size) > config.resize:
            picture = picture.resize(_shrunk(picture.width, picture.height, config.resize), Image.Resampling.BICUBIC)
        extension = "png" if wanted == "keep" else wanted
        return _write(picture, extension, config.quality), extension, picture.height, picture.width
    found = decode.header(image)
    shrink = config.resize is not None and min(found.height, found.width) > config.resize
    if not shrink and wanted in ("keep", found.format):
        if config.verify:
            _, height, width = decode.decode(image).shape
            return image, found.format, height, width
        return image, found.format, found.height, found.width
    pixels = decode.decode(image)
    if shrink:
        assert config.resize is not None
        width, height = _shrunk(pixels.shape[2], pixels.shape[1], config.resize)
        packed = pixels.unsqueeze(0).contiguous(memory_format=torch.channels_last)
        pixels = torch.nn.functional.interpolate(packed, (height, width), mode="bicubic", antialias=True)[0]
    extension = found.format if wanted == "keep" else wanted
    picture = Image.fromarray(np.ascontiguousarray(pixels.permute(1, 2, 0).numpy()))
    return _write(picture, extension, config.quality), extension, picture.height, picture.width


def _shrunk(width: int, height: int, shorter: int) -> tuple[int, int]:
    scale = shorter / min(width, height)
    return max(shorter, round(width * scale)), max(shorter, round(height * scale))


def _write(picture: Image.Image, extension: str, quality: int) -> bytes:
    out = io.BytesIO()
    if extension == "jpg":
        picture.save(out, "JPEG", quality=quality, subsampling="4:4:4" if quality >= 95 else "4:2:0")
    elif extension == "webp":
        picture.save(out, "WEBP", quality=quality)
    else:
        picture.save(out, extension.upper())
    return out.getvalue()


_worker: tuple[Maker, Recipe, Schema] | None = None


def start_worker(maker: Maker, config: Recipe, schema: Schema) -> None:
    """Called once in every worker process."""
    global _worker
    torch.set_num_threads(1)
    _worker = (maker, config, schema)


def encode_many(tasks: list[Any]) -> list[Result]:
    """Encode a chunk of tasks in a worker process."""
    assert _worker is not None, "start_worker was not called in this process"
    maker, config, schema = _worker
    return [encode(maker, task, config, schema) for task in tasks]
