"""IDX files, the format of MNIST and its kin; plain or gzipped."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from jepa.data.sources.base import Sample, Source, hashed
from jepa.errors import ConfigError, DataError

_MOST_BYTES = 16_000_000_000  # a larger claim is taken for damage
_USUAL = {
    "train": {"images": "train-images-idx3-ubyte", "labels": "train-labels-idx1-ubyte"},
    "test": {"images": "t10k-images-idx3-ubyte", "labels": "t10k-labels-idx1-ubyte"},
}


@dataclass(frozen=True)
class Config:
    """Where the files are. Each is looked for as it is, with .gz, and with . instead of - before idx."""

    path: str = ""  # the folder; give it as source.path=/my/mnist
    splits: dict[str, dict[str, str]] = field(
        default_factory=lambda: {k: dict(v) for k, v in _USUAL.items()}
    )  # files of each split
    classes: list[str] | None = None  # names; null: the numbers themselves

    def __post_init__(self) -> None:
        for split, files in self.splits.items():
            if "images" not in files or not set(files) <= {"images", "labels"}:
                raise ConfigError(f"splits.{split}: give images and, if there are any, labels; got {files}")
        if not self.splits:
            raise ConfigError("splits: give at least one, e.g. {train: {images: FILE, labels: FILE}}")


def open_source(config: Config) -> Source:
    """The source; tasks are (split, number).

    Raises:
        ConfigError: no path given.
        DataError: files are missing, damaged, or do not belong together.
    """
    if not config.path:
        raise ConfigError("source.path is empty: say which folder holds the IDX files, e.g. source.path=/my/mnist")
    root = Path(config.path).expanduser()
    if not root.is_dir():
        raise DataError(f"source.path={config.path!r} is not a folder. Give the one that holds the IDX files")
    files = {s: {kind: _find(root, name) for kind, name in f.items()} for s, f in config.splits.items()}
    maker = Maker(files)
    most = -1
    for split in files:
        images, labels = maker.arrays[split]
        if labels is not None and len(labels) != len(images):
            raise DataError(
                f"{files[split]['images']} holds {len(images)} images but {files[split]['labels']} {len(labels)} "
                "labels. They do not belong together"
            )
        if labels is not None and len(labels):
            most = max(most, int(labels.max()))
    classes = config.classes if config.classes is not None else [str(i) for i in range(most + 1)]
    if most >= len(classes):
        raise DataError(f"source.classes names {len(classes)} classes, but the labels reach {most}")
    splits = {split: [(split, i) for i in range(len(maker.arrays[split][0]))] for split in files}
    return Source(splits=dict(splits), maker=maker, classes=classes)


def _find(root: Path, name: str) -> Path:
    names = [name, name.replace("-idx", ".idx")]
    tried = [root / f"{n}{ending}" for n in names for ending in ("", ".gz")]
    for path in tried:
        if path.is_file():
            return path
    raise DataError(f"no file {root / name} (nor {', '.join(p.name for p in tried[1:])}). Check source.path and splits")


def read_idx(path: Path) -> npt.NDArray[np.uint8]:
    """The array in an IDX file of unsigned bytes.

    Raises:
        DataError: not IDX, other numbers than bytes, truncated, or longer than it says.
    """
    try:
        with path.open("rb") as plain:
            zipped = plain.read(2) == b"\x1f\x8b"
        with gzip.open(path, "rb") if zipped else path.open("rb") as file:
            return _parse(file, path)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"cannot read {path}: {error}. It is damaged or truncated; fetch it again") from None


def _parse(file: IO[bytes] | gzip.GzipFile, path: Path) -> npt.NDArray[np.uint8]:
    head = file.read(4)
    if len(head) < 4 or head[:2] != b"\0\0" or not 1 <= head[3] <= 4:
        raise DataError(f"{path} is not an IDX file (it starts with {head!r})")
    if head[2] != 0x08:
        raise DataError(
            f"{path} holds numbers of type 0x{head[2]:02x}; only unsigned bytes (0x08) are images or labels"
        )
    sizes = file.read(4 * head[3])
    if len(sizes) < 4 * head[3]:
        raise DataError(f"{path} is truncated inside its header")
    shape = struct.unpack(f">{head[3]}I", sizes)
    length = math.prod(shape)
    if length > _MOST_BYTES:
        raise DataError(f"{path} claims {length} bytes of shape {shape}; at most {_MOST_BYTES} are read")
    data = file.read(length + 1)
    if len(data) != length:
        state = "more" if len(data) > length else f"only {len(data)}"
        raise DataError(f"{path} should hold {length} bytes of shape {shape}, it holds {state}. Fetch it again")
    return np.frombuffer(data, dtype=np.uint8).reshape(shape)


class Maker:
    """Cuts single images out of the arrays, which every process reads once."""

    def __init__(self, files: dict[str, dict[str, Path]]) -> None:
        self.files = files

    def __getstate__(self) -> dict[str, Any]:
        return {"files": self.files}

    @cached_property
    def arrays(self) -> dict[str, tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8] | None]]:
        """Images (n, H, W) or (n, H, W, 3), and labels (n,) or None, by split."""
        found = {}
        for split, files in self.files.items():
            images = read_idx(files["images"])
            labels = read_idx(files["labels"]) if "labels" in files else None
            if images.ndim not in (3, 4) or (images.ndim == 4 and images.shape[3] != 3) or 0 in images.shape[1:]:
                raise DataError(f"{files['images']} has shape {images.shape}; images are (n, H, W) or (n, H, W, 3)")
            if labels is not None and labels.ndim != 1:
                raise DataError(f"{files['labels']} has shape {labels.shape}; labels are (n,)")
            found[split] = (images, labels)
        return found

    def __call__(self, task: tuple[str, int]) -> Sample:
        split, number = task
        images, labels = self.arrays[split]
        label = -1 if labels is None else int(labels[number])
        return Sample(images[number], label, hashed("original", split, number), f"{split}/{number}")
