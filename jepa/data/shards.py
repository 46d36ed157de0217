"""Writing shards: webdataset tars with the same bytes for the same samples, and the arrays that index them."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from jepa.data import arrays, labelmap, storage
from jepa.data.encode import Encoded
from jepa.data.manifest import EXTENSIONS


@dataclass
class Part:
    """The samples of one split in one shard: columns of equal length n."""

    keys: list[str]
    offsets: list[int]
    lengths: list[int]
    extensions: list[int]
    labels: list[int]
    originals: list[int]
    targets: list[tuple[float, ...]]
    sizes: list[tuple[int, int]]  # height, width; (0, 0) where it is not known
    videos: list[tuple[float, float, float]]  # frames, frames per second, seconds; zeros for images
    facts: list[tuple[int, int]]  # byte offset and length of a video's facts; (0, 0): none
    maps: list[tuple[tuple[int, int, int], ...]]  # byte offset, length and extension number of each label map
    kinds: list[tuple[int, ...]]  # class numbers of labels of several kinds
    steps: list[tuple[tuple[int, int, int], ...]]  # byte offset, length and rows of each array of an episode

    @classmethod
    def empty(cls) -> Part:
        """A part without samples."""
        return cls([], [], [], [], [], [], [], [], [], [], [], [], [])

    def arrays(self, targets: int, maps: int = 0) -> dict[str, npt.NDArray[Any]]:
        """As arrays, ready for np.savez; `targets` and `maps` are the numbers of targets and label maps of a sample."""
        n = len(self.keys)
        return {
            "keys": np.array([k.encode() for k in self.keys], dtype=np.bytes_),
            "place": np.array([self.offsets, self.lengths, self.extensions], dtype=np.int64).reshape(3, n).T,
            "labels": np.array(self.labels, dtype=np.int64),
            "originals": np.array(self.originals, dtype=np.int64),
            "targets": np.array(self.targets, dtype=np.float32).reshape(n, targets),
            "sizes": np.array(self.sizes, dtype=np.int64).reshape(n, 2),
            "video": np.array(self.videos, dtype=np.float64).reshape(n, 3),
            "facts": np.array(self.facts, dtype=np.int64).reshape(n, 2),
            "maps": np.array(self.maps, dtype=np.int64).reshape(n, maps, 3),
            "kinds": np.array(self.kinds, dtype=np.int64).reshape(n, len(self.kinds[0]) if n else 0),
            "steps": np.array(self.steps, dtype=np.int64).reshape(n, len(self.steps[0]) if n else 0, 3),
        }


@dataclass(frozen=True)
class Written:
    """A finished tar."""

    size: int
    sha256: str
    part: Part


class ShardWriter:
    """One tar, written under a temporary name, synced, then renamed: a shard is complete or absent."""

    def __init__(self, path: Path, targets: list[str]) -> None:
        self.path, self.targets = path, targets
        self._temporary = path.with_name(f".{path.name}.partial")
        self._file = self._temporary.open("wb")
        self._tar = tarfile.open(fileobj=self._file, mode="w", format=tarfile.USTAR_FORMAT)  # noqa: SIM115
        self.part = Part.empty()

    def add(self, key: str, encoded: Encoded) -> None:
        """Append a sample: KEY.jpg (or png, mp4 ...), KEY.cls where there is a label, KEY.json, KEY.NAME.png of maps.

        A video's KEY.facts.json tells where its frames lie, so that nobody has to search it again; arrays of an episode
        are KEY.NAME.npy.
        """
        sample, part = encoded.sample, self.part
        part.keys.append(key)
        part.offsets.append(self._member(f"{key}.{encoded.extension}", encoded.data))
        part.lengths.append(len(encoded.data))
        part.extensions.append(EXTENSIONS.index(encoded.extension))
        part.labels.append(sample.label)
        part.originals.append(sample.original)
        part.targets.append(sample.targets)
        part.sizes.append((encoded.height, encoded.width))
        part.videos.append(encoded.video)
        part.kinds.append(sample.kinds)
        known = encoded.facts
        part.facts.append((self._member(f"{key}.facts.json", known), len(known)) if known else (0, 0))
        part.maps.append(
            tuple(
                (self._member(f"{key}.{m.name}.{m.extension}", m.data), len(m.data),
                 labelmap.EXTENSIONS.index(m.extension))
                for m in sample.maps
            )
        )  # fmt: skip
        packed = {name: arrays.to_npy(values) for name, values in encoded.arrays.items()}
        part.steps.append(
            tuple(
                (self._member(f"{key}.{name}.npy", data), len(data), len(encoded.arrays[name]))
                for name, data in packed.items()
            )
        )
        facts = {
            "source": sample.source,
            "original": sample.original,
            **dict(zip(self.targets, sample.targets, strict=True)),
        }
        if sample.label >= 0:
            facts["label"] = sample.label
            self._member(f"{key}.cls", str(sample.label).encode())
        self._member(f"{key}.json", json.dumps(facts, sort_keys=True).encode())

    @property
    def written(self) -> int:
        """Bytes written so far."""
        return self._tar.offset

    def close(self) -> Written:
        """Finish the tar and give it its name."""
        self._tar.close()
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        with self._temporary.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        size = self._temporary.stat().st_size
        self._temporary.replace(self.path)
        storage.sync(self.path.parent)
        return Written(size, digest, self.part)

    def abandon(self) -> None:
        """Drop the unfinished tar."""
        try:
            self._file.close()  # on a full disk this fails too
        finally:
            self._temporary.unlink(missing_ok=True)

    def _member(self, name: str, data: bytes) -> int:
        """Append a file; its byte offset. No time, owner or machine is recorded, so equal samples give equal tars."""
        info = tarfile.TarInfo(name)
        info.size, info.mode = len(data), 0o644
        self._tar.addfile(info, io.BytesIO(data))
        return self._tar.offset - -(-len(data) // 512) * 512
