"""Features that `jepa extract` wrote: what they are, and reading them.

    DIR/manifest.json             as of any data set, and under "features" what `About` says
    DIR/SPLIT/NAME-000000.tar     KEY.safetensors, KEY.cls where there is a label, KEY.json, KEY.NAME.npy of episodes
    DIR/SPLIT/*.npy               index, labels, originals, keys, targets: those of the data set they were made of

Sample i of a split is sample i of the same split of the source. Every KEY.safetensors holds the same tensors:
``pooled``, the mean over tokens of the encoder's output, ``pooled.layer3`` that of layer 3, and where tokens are kept
``tokens`` and ``tokens.layer3``. Of images they are (D,) and (N, D), of videos (C, V, D) and (C, V, N, D).

Arrays of an episode come whole, as in the source (`manifest.splits[split].read_array(i, name)`), and with them
``clip_frames`` (C, T): row t of an array of kind `frame` belongs to frame t, and clip c shows frames clip_frames[c].

Shapes: n samples, C clips of a video, T frames of a clip, V views of a clip, N tokens, D width.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from jepa import config as configuration
from jepa.config import ClipConfig, RunConfig
from jepa.data import Manifest, Split, manifest, storage
from jepa.data.manifest import FEATURES
from jepa.errors import ConfigError, DataError

Ints = npt.NDArray[np.int64]
Dtype = Literal["fp32", "fp16", "bf16"]
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
POOLED, TOKENS = "pooled", "tokens"
(EXTENSION,) = FEATURES
CLIP_FRAMES = "clip_frames"  # array of an episode beside its own: the frames that each clip shows, (C, T)
UNFINISHED = ".extract"  # folder that is there until the last shard is
_CODES = {"fp32": "F32", "fp16": "F16", "bf16": "BF16"}  # of safetensors
_MOST_HEADER = 1 << 20  # bytes; of ours it has a few hundred


def tensor_name(kind: str, layer: int | None = None) -> str:
    """What a tensor is called: of the output, or of a layer counted from 0."""
    return kind if layer is None else f"{kind}.layer{layer}"


@dataclass(frozen=True)
class Origin:
    """The data set that features were made of."""

    name: str
    hash: str  # of its content
    path: str  # where it was
    media: Literal["image", "video"]


@dataclass(frozen=True)
class About:
    """What features are: everything that decides their numbers."""

    run: str  # checkpoint, as it was given
    weights: str  # sha256 of its model.safetensors
    which: str  # encoder of the method
    step: int  # training steps behind it
    width: int  # D
    depth: int  # layers it has
    image_size: tuple[int, int]  # (H, W) it sees
    grid: tuple[int, int] | None  # rows and columns of the tokens of one image
    mean: tuple[float, float, float]  # normalisation of the input, of red, green and blue in 0..1
    std: tuple[float, float, float]
    interpolation: Literal["bilinear", "bicubic"]
    source: Origin
    clip: ClipConfig | None  # what of a video was looked at; null for images
    views: dict[str, int]  # of a clip, by split
    decoder: str | None  # library that decoded the videos
    layers: tuple[int, ...]  # beside the output
    tokens: bool  # whether tokens are kept, or only their means
    pool: Literal["mean"]  # tokens to one vector
    dtype: Dtype  # of the numbers in the shards
    precision: Literal["fp32", "bf16"]  # of the encoder's arithmetic
    shapes: dict[str, dict[str, tuple[int, ...]]]  # by split and tensor, of one sample
    shard_samples: int  # in a shard
    config: dict[str, Any]  # the run's configuration
    jepa: str  # version that made them

    def identity(self) -> dict[str, Any]:
        """What must agree for features to be of one kind: all but where things were."""
        values: dict[str, Any] = configuration.to_dict(self)
        values["source"].pop("path")
        return {k: v for k, v in values.items() if k not in ("run", "config")}

    def run_config(self) -> RunConfig:
        """The configuration of the run.

        Raises:
            ConfigError: written by a version whose configurations this one cannot read.
        """
        return configuration.build(RunConfig, self.config, "features.config")


def is_features(path: Path | str) -> bool:
    """Whether a path looks like a folder made by `jepa extract`, finished or not."""
    return (Path(path) / manifest.FILE).is_file() or (Path(path) / UNFINISHED).is_dir()


class FeatureSet:
    """An opened folder of features.

    Attributes:
        root: the folder.
        manifest: labels, targets, originals and keys; its name, hash and media are those of the source data set.
        about: what the features are.
    """

    def __init__(self, root: Path, found: Manifest, about: About) -> None:
        self.root, self.manifest, self.about = root, found, about
        self._rows: dict[str, Rows] = {}

    @classmethod
    def open(cls, folder: str | Path) -> FeatureSet:
        """Open a folder made by `jepa extract`.

        Raises:
            DataError: not such a folder, not finished, or damaged.
        """
        root = Path(folder)
        if not (root / manifest.FILE).is_file():
            if (root / UNFINISHED).is_dir():
                raise DataError(
                    f"{root} holds features that are not finished. Run the same `jepa extract` command again (with "
                    "every --shard-of, if there were several) to go on"
                )
            raise DataError(f"{root} holds no features: give a folder made by `jepa extract RUN DATA --out {root}`")
        found = Manifest.open(root, features=True)
        try:
            about = configuration.build(About, found.features)
        except ConfigError as error:
            raise DataError(
                f"{root / manifest.FILE} does not describe features of this version ({error}). Use the program "
                "version that made it, or extract again"
            ) from None
        for split in found.splits.values():
            split.check()
        return cls(root, _of_source(found, about.source), about)

    def rows(self, split: str) -> Rows:
        """The tensors of a split.

        Raises:
            DataError: no such split.
        """
        if split not in self._rows:
            found = self.manifest.split(split)
            self._rows[split] = Rows(found, self.about.shapes[split], self.about.dtype)
        return self._rows[split]

    def tensor(self, split: str, name: str = POOLED, index: Ints | None = None) -> Tensor:
        """One tensor of all samples of a split, or of some: (n, ...), on the CPU, as precise as it is kept.

        Raises:
            DataError: no such split or tensor, or shards that cannot be read.
        """
        rows = self.rows(split)
        return rows.read(name, np.arange(len(rows)) if index is None else index)


def _of_source(found: Manifest, source: Origin) -> Manifest:
    """Results say which data set they are on, not where its features lie."""
    return Manifest(**{**found.__dict__, "name": source.name, "hash": source.hash, "media": source.media})


class Rows:
    """The tensors of one split, sample by sample; only the bytes that are wanted are read."""

    def __init__(self, split: Split, shapes: dict[str, tuple[int, ...]], dtype: str) -> None:
        self.split, self.shapes, self.dtype = split, shapes, dtype

    def __len__(self) -> int:
        return len(self.split)

    def read(self, name: str, places: Ints) -> Tensor:
        """A tensor of the samples at `places` (n,): (n, ...).

        Raises:
            DataError: no such tensor, or shards that cannot be read.
        """
        if name not in self.shapes:
            raise DataError(f"{self.split.root} holds no tensor {name!r}; it holds {', '.join(self.shapes)}")
        header, ends = self._layout
        begin, end = ends[name]
        out = np.empty((len(places), end - begin), dtype=np.uint8)
        for slot, i in enumerate(places.tolist()):
            data = self._bytes(i, len(header) + end)
            if not data.startswith(header):
                raise self._damaged(i)
            out[slot] = np.frombuffer(data, np.uint8, end - begin, len(header) + begin)
        return torch.from_numpy(out).view(DTYPES[self.dtype]).view(len(places), *self.shapes[name])

    @cached_property
    def _layout(self) -> tuple[bytes, dict[str, tuple[int, int]]]:
        """The first sample's header, which all share, and where its tensors begin and end behind it.

        A safetensors file is 8 bytes with the length of a JSON text, that text, and the numbers.
        """
        start = self._bytes(0, 8)
        size = int.from_bytes(start, "little")
        if not 0 < size < _MOST_HEADER:
            raise self._damaged(0)
        header = self._bytes(0, 8 + size)
        try:
            known = json.loads(header[8:])
            wanted = {name: (_CODES[self.dtype], list(shape)) for name, shape in self.shapes.items()}
            if {name: (known[name]["dtype"], known[name]["shape"]) for name in wanted} != wanted:
                raise self._damaged(0)
            return header, {
                name: (int(known[name]["data_offsets"][0]), int(known[name]["data_offsets"][1])) for name in wanted
            }
        except (ValueError, KeyError, TypeError, IndexError):
            raise self._damaged(0) from None

    def _bytes(self, i: int, length: int) -> bytes:
        shard, offset, size, _ = self.split.index[i].tolist()
        where = self.split.shards[shard]
        if length > size:
            raise self._damaged(i)
        return storage.read(where.path, where.size, offset, length)

    def _damaged(self, i: int) -> DataError:
        return DataError(
            f"sample {self.split.place(i)} does not hold the tensors that {manifest.FILE} says. The shard was changed "
            "or damaged; extract again"
        )
