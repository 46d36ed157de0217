"""Clips of videos for training and evaluation: samples of a built dataset, through the pool that outlives decoders.

Shapes: B samples, C clips of a video, V views of a clip, T frames, H W height and width.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from jepa import keyed
from jepa.config import ClipConfig
from jepa.data import augment, blank
from jepa.data.batch import Batch
from jepa.data.manifest import Split
from jepa.data.samples import ATTEMPTS, TrainData
from jepa.data.video import clips
from jepa.data.video.choose import choose
from jepa.data.video.decode import decode
from jepa.data.video.pool import ClipDecoder, Row, decode_clips_in_order
from jepa.data.video.probe import Facts, probe
from jepa.data.video.sample import write_clips
from jepa.errors import DataError, TrainingError

Int64 = npt.NDArray[np.int64]
Float64 = npt.NDArray[np.float64]


class TrainClips(ClipDecoder):
    """Random clips, randomly cropped: everything drawn for sample g is keyed by g."""

    attempts = ATTEMPTS

    def __init__(self, data: TrainData, decoder: str, trace: bool) -> None:
        assert data.config.clip is not None, "the data section has no clip"
        self.data, self.decoder, self.trace, self.config = data, decoder, trace, data.config.clip
        self.size = data.config.size

    def start(self) -> None:
        choose(self.decoder)

    def index(self, number: int, attempt: int) -> int:
        data = self.data
        if attempt == 0:
            return int(data.order(np.array([number]))[0])
        return int(keyed.uniform("substitute", data.seed, number, 1, sub=attempt)[0] * data.size)

    def place(self, index: int) -> str:
        return self.data.split.place(index)

    def clip(self, out: Tensor, number: int, index: int) -> Row:
        data, g = self.data, np.array([number], dtype=np.int64)
        box = functools.partial(augment.box, data.law, augment.draw(data.seed, g)[0])
        video, facts = read_video(data.split, index)
        drawn = write_clips(
            out, video, self.config, clips.draw(data.seed, g)[0], box, interpolation=data.config.interpolation,
            backend=self.decoder, facts=facts,
        )  # fmt: skip
        if data.config.steps is not None and data.config.steps.blank:
            there = blank.shown("blank", data.seed, number, self.config.frames, data.config.steps.blank)
            out[:, torch.from_numpy(~there)] = 0
        row = {"g": number, "index": index, "key": data.split.key(index), **drawn} if self.trace else None
        steps = data.steps.read(index, drawn["frames"][0][0]) if data.steps is not None else None
        return Row(int(data.split.labels[index]), row, steps)


class EvalClips(ClipDecoder):
    """Clips spread evenly over each video, seen in `views` parts of the frame. Deterministic; nothing is skipped.

    With `ends`, (n,) seconds for the n samples of the split, each video gives the one clip that ends then.
    """

    attempts = 0

    def __init__(
        self,
        split: Split,
        config: ClipConfig,
        image_size: tuple[int, int],
        decoder: str = "auto",
        interpolation: augment.Interpolation = "bilinear",
        views: int = 1,
        ends: Float64 | None = None,
    ) -> None:
        assert ends is None or config.clips == 1, f"{config.clips} clips cannot end at one time"
        self.ends = ends
        self.split, self.config, self.decoder, self.interpolation = split, config, decoder, interpolation
        self.image_size, self.views = image_size, views
        self.size = (config.clips, views, config.frames, *image_size)

    def start(self) -> None:
        choose(self.decoder)

    def index(self, number: int, attempt: int) -> int:
        return number

    def place(self, index: int) -> str:
        return self.split.place(index)

    def clip(self, out: Tensor, number: int, index: int) -> Row:
        video, known = read_video(self.split, index)
        facts = known or probe(video, strict=False)
        if self.ends is None:
            indices = clips.place(self.config, facts.timeline, clips.evenly(self.config.clips))
        else:
            indices = clips.ending(self.config, facts.timeline, float(self.ends[index]))
        found = decode(video, indices.ravel(), backend=self.decoder, facts=facts)
        for c, clip in enumerate(out):
            frames = found.pixels[c * self.config.frames : (c + 1) * self.config.frames]
            for view, place in zip(clip, np.linspace(0, 1, self.views) if self.views > 1 else [0.5], strict=True):
                box = augment.view_box(facts.height, facts.width, self.image_size, float(place))
                view.copy_(clips.fit(frames, box, self.image_size, self.interpolation))
        return Row(int(self.split.labels[index]))


def read_video(split: Split, index: int) -> tuple[bytes, Facts | None]:
    """The video and what the build found out about it.

    Raises:
        DataError: not the shard that was indexed.
        TrainingError: the storage fails.
    """
    try:
        video, known = split.read(index)[0], split.facts(index)
    except OSError as error:
        name = error.filename or f"a shard of {split.root}"
        raise TrainingError(
            f"reading {name} failed and did not recover: {error.strerror or error}. Check the storage, then continue "
            "with --resume"
        ) from None
    if known is None:
        return video, None
    try:
        return video, Facts.from_dict(json.loads(known))
    except ValueError as error:
        raise DataError(f"{split.place(index)}: its facts are damaged ({error})") from None


def eval_clips(
    split: Split,
    config: ClipConfig,
    image_size: tuple[int, int],
    batch_size: int,
    indices: Sequence[int] | Int64 | None = None,
    *,
    workers: int = 0,
    decoder: str = "auto",
    interpolation: augment.Interpolation = "bilinear",
    deadline: float = 60.0,
    views: int = 1,
    ends: Float64 | None = None,
) -> Iterator[Batch]:
    """Clips of a split's videos, in order; `Batch.images` is (B, C, V, 3, T, H, W) with C = config.clips.

    Args:
        views: V parts of each frame, from one end of its longer side to the other; a single one is the middle.
        ends: (n,) seconds at which each of the split's n videos has its one clip end, instead of clips all over it.

    Raises:
        DataError: while iterating, when a video cannot be read.
    """
    chosen = np.arange(len(split)) if indices is None else np.asarray(indices, dtype=np.int64)
    lists = [chosen[i : i + batch_size] for i in range(0, len(chosen), batch_size)]
    maker = EvalClips(split, config, image_size, decoder, interpolation, views, ends)
    found = decode_clips_in_order(maker, lists, most=batch_size, workers=workers, deadline=deadline)
    for loaded, images in found:
        yield loaded.batch(images)


__all__ = ["EvalClips", "TrainClips", "eval_clips", "read_video"]
