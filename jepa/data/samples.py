"""One micro-batch: read, decoded and cropped, with substitutes for samples that cannot be read.

Shapes: B samples, H W image height and width.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from jepa import keyed
from jepa.config import DataConfig
from jepa.data import augment, blank, decode
from jepa.data.manifest import Manifest
from jepa.data.order import Order
from jepa.data.quarantine import Bad
from jepa.data.remote import StorageError
from jepa.data.steps import Steps
from jepa.data.video.choose import choose
from jepa.data.workers import Loaded
from jepa.errors import ConfigError, DataError, TrainingError

Int64 = npt.NDArray[np.int64]
ATTEMPTS = 20  # substitutes tried for one slot before the dataset is taken for unreadable


class TrainData:
    """A split, and how its samples are ordered and cropped for training."""

    def __init__(
        self, data: DataConfig, seed: int, *, run_dir: Path | None = None, attempts: Sequence[tuple[int, int]] = ()
    ) -> None:
        """
        Args:
            data: the run's data section.
            seed: the run's seed.
            run_dir: where quarantine.jsonl is kept; None keeps none.
            attempts: (number, first g) of the run's roll-backs: the seed is that of the newest one.

        Raises:
            ConfigError: a value that cannot be used.
            DataError: no dataset at data.path, no such split, or shards missing, truncated or replaced.
        """
        _validate(data)
        self.config, self.seed, self.run_dir = data, keyed.again(seed, attempts[-1][0] if attempts else 0), run_dir
        self.manifest = Manifest.open(data.path)
        self.split = self.manifest.split(data.split)
        self.split.check()
        if (data.clip is not None) != (self.manifest.media == "video"):
            raise ConfigError(
                f"{data.path} holds {self.manifest.media}s, but data.clip is "
                + ("set; it is for videos. Leave it out" if data.clip is not None else "not set: say which frames a "
                   "clip takes, e.g. data.clip={frames: 16, fps: 4}")
            )  # fmt: skip
        # arrays of episodes that come with a clip
        self.steps = Steps(self.split, data.clip, data.steps) if data.steps is not None else None
        self.order = Order(seed, self.split.shard_sizes, data.shuffle_shards, data.lanes, attempts)
        self.law = augment.CropLaw(data.crop_scale, data.crop_ratio, data.hflip)
        # chosen once and passed on to every worker, so that all of them decode alike
        self.decoder = choose(data.decoder).name if data.clip is not None else None

    @property
    def size(self) -> int:
        """N, samples in an epoch."""
        return len(self.split)

    def load(self, images: Tensor, g: Int64, known: dict[int, int] | None = None, trace: bool = False) -> Loaded:
        """Read, decode and crop the samples g (B,) into `images` (B, 3, H, W).

        Substitutes that are `known` from earlier (g -> index) are taken without looking at the sample itself.

        Raises:
            TrainingError: a sample cannot be read, nor any of its substitutes.
            OSError: the storage fails, after several tries.
        """
        size, law = self.config.image_size, self.law
        index = self.order(g)
        numbers = augment.draw(self.seed, g)
        bad: list[Bad] = []
        boxes: list[augment.Box] = []
        for slot, number in enumerate(g.tolist()):
            image, index[slot] = self._sample(number, int(index[slot]), known or {}, bad)
            part = augment.box(law, numbers[slot], image.shape[1], image.shape[2])
            images[slot].copy_(augment.apply(image, part, size, self.config.interpolation))
            if trace:
                boxes.append(part)
        rows = [self._trace(*row) for row in zip(g.tolist(), index.tolist(), boxes, strict=True)] if trace else None
        return Loaded(np.asarray(self.split.labels[index]), g, index, bad, rows)

    def _sample(self, g: int, index: int, known: dict[int, int], bad: list[Bad]) -> tuple[Tensor, int]:
        """The decoded image of a slot and its index: the sample itself, or the first substitute that can be read."""
        reason, first = "unreadable earlier in this run", known.get(g)
        if first is None:
            try:
                return self._decode(index), index
            except StorageError:
                raise  # it says nothing about this sample, and every other one of the shard would fail alike
            except DataError as error:
                reason = str(error)
        else:
            try:
                image = self._decode(first)
                bad.append(Bad(g, index, self.split.place(index), reason, 0, first))
                return image, first
            except StorageError:
                raise  # another substitute now would be another sample than last time
            except DataError:
                pass
        for attempt in range(1, ATTEMPTS + 1):
            other = int(keyed.uniform("substitute", self.seed, g, 1, sub=attempt)[0] * self.size)
            try:
                image = self._decode(other)
            except StorageError:
                raise
            except DataError:
                continue
            bad.append(Bad(g, index, self.split.place(index), reason, attempt, other))
            return image, other
        raise TrainingError(
            f"sample {self.split.place(index)} cannot be read ({reason}), and neither could {ATTEMPTS} others chosen "
            f"in its place. The dataset {self.manifest.root} is damaged: build it again with image.verify=true"
        )

    def _decode(self, index: int) -> Tensor:
        return decode.decode(self.split.read(index)[0])

    def _trace(self, g: int, index: int, part: augment.Box) -> dict[str, Any]:
        crop = [part.top, part.left, part.height, part.width]
        return {"g": g, "index": index, "key": self.split.key(index), "crop": crop, "flip": part.flip}


def _validate(data: DataConfig) -> None:
    if data.clip is not None and data.clip.clips != 1:
        raise ConfigError(f"data.clip.clips={data.clip.clips}: training takes one clip of a video, evaluation several")
    if data.steps is not None and data.hflip:
        raise ConfigError(
            f"data.hflip={data.hflip:g} with data.steps: actions do not turn with a mirrored picture. Set data.hflip=0"
        )
    if data.steps is not None:
        blank.check_share(data.steps.blank, "data.steps.blank")
    if data.decode_seconds <= 0:
        raise ConfigError(f"data.decode_seconds: must be above 0, got {data.decode_seconds:g}")
    if not data.path:
        raise ConfigError("data.path is empty: give the folder made by `jepa data build`, e.g. data.path=data/digits")
    if min(data.image_size) < 1:
        raise ConfigError(f"data.image_size: both sides must be at least 1, got {data.image_size}")
    if not 0 < data.crop_scale[0] <= data.crop_scale[1] <= 1:
        raise ConfigError(f"data.crop_scale: need 0 < smallest <= largest <= 1, got {data.crop_scale}")
    if not 0 < data.crop_ratio[0] <= data.crop_ratio[1]:
        raise ConfigError(f"data.crop_ratio: need 0 < smallest <= largest, got {data.crop_ratio}")
    for name in ("hflip", "max_bad"):
        if not 0 <= getattr(data, name) <= 1:
            raise ConfigError(f"data.{name}: allowed are 0 to 1, got {getattr(data, name)}")
    if data.workers < 0 or data.prefetch < 1:
        raise ConfigError(
            f"data.workers={data.workers} must be at least 0 and data.prefetch={data.prefetch} at least 1"
        )
