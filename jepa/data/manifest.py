"""A built dataset on disk: one small JSON file, memory-mapped arrays, and webdataset tars.

    DIR/manifest.json            names, classes, licence, recipe, shards, content hash
    DIR/SPLIT/NAME-000000.tar    the samples (or tars elsewhere, referenced in place)
    DIR/SPLIT/index.npy          (n, 4) int64: shard, byte offset, length, extension number
    DIR/SPLIT/labels.npy         (n,) int64, -1: none
    DIR/SPLIT/labels-X.npy       (n,) int64: the same for labels of kind X, where samples have labels of several kinds
    DIR/SPLIT/originals.npy      (n,) int64: samples made from the same original image share a number
    DIR/SPLIT/keys.npy           (n,) bytes: webdataset keys
    DIR/SPLIT/target-X.npy       (n,) float32: continuous target X
    DIR/SPLIT/video.npy          (n, 3) float64: frames, frames per second, seconds (videos only; 0: not known)
    DIR/SPLIT/facts.npy          (n, 2) int64: byte offset and length of the video's facts in its shard (0: none)
    DIR/SPLIT/map-X.npy          (n, 3) int64: byte offset, length and extension number of label map X
    DIR/SPLIT/array-X.npy        (n, 3) int64: byte offset, length and rows of array X of an episode
    DIR/facts/NAME.jsonl         the videos' facts of a tar that is read in place: offsets are into this file

Opening reads the JSON only; arrays are mapped, so a million samples open in milliseconds. Arrays are loaded with
``allow_pickle=False`` and images by an allow-list of extensions: data is never code.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from jepa import resources
from jepa.data import arrays, labelmap, remote, storage
from jepa.data.arrays import Array
from jepa.data.remote import Place, Url
from jepa.errors import DataError

FORMAT, VERSION, FILE = "jepa-dataset", 1, "manifest.json"
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
IMAGES = ("jpg", "jpeg", "png", "webp", "bmp")
VIDEOS = ("mp4", "m4v", "mov", "mkv", "webm", "avi", "mpg", "mpeg", "ts", "flv", "ogv", "wmv", "gif")
FEATURES = ("safetensors",)  # written by `jepa extract`
DECODED = IMAGES + VIDEOS  # what a source may hold
EXTENSIONS = DECODED + FEATURES  # order is part of the format: index.npy stores positions
SHARD, OFFSET, LENGTH, EXTENSION = range(4)  # columns of index.npy

Int64 = npt.NDArray[np.int64]
Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Shard:
    """One tar: where it is, its size in bytes, and how many samples of the split it holds."""

    path: Place
    size: int
    samples: int
    facts: tuple[Place, int]  # the file that holds the videos' facts and its size; the tar itself if it is our own

    @classmethod
    def of(cls, root: Path, values: dict[str, Any]) -> Shard:
        """From a line of the manifest."""
        path, size = remote.place(root, values["path"]), int(values["size"])
        if "\0" in str(path):
            raise ValueError(f"a shard at {values['path']!r}")
        facts = values.get("facts")
        return cls(
            path, size, int(values["samples"]), (root / facts["path"], int(facts["size"])) if facts else (path, size)
        )


class Split:
    """One split of a dataset. Picklable: worker processes map the arrays and open the shards themselves."""

    def __init__(self, root: Path, name: str, values: dict[str, Any]) -> None:
        self.root, self.name, self._values = root, name, values
        self.shards = [Shard.of(root, s) for s in values["shards"]]
        self.shard_sizes: Int64 = np.array([s.samples for s in self.shards], dtype=np.int64)  # samples per shard
        self.target_names: list[str] = list(values["targets"])
        self.maps = {str(k): labelmap.MapConfig(**v) for k, v in values.get("maps", {}).items()}
        self.arrays = {str(k): Array.of(v) for k, v in values.get("arrays", {}).items()}  # of episodes
        self._samples = int(values["samples"])
        if self._samples != int(self.shard_sizes.sum()):
            raise DataError(
                f"{root / FILE}: split {name!r} says {self._samples} samples but its shards hold "
                f"{int(self.shard_sizes.sum())}. The file was changed or damaged; build the dataset again"
            )

    def __len__(self) -> int:
        return self._samples

    def __getstate__(self) -> dict[str, Any]:
        return {"root": self.root, "name": self.name, "values": self._values}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["root"], state["name"], state["values"])  # type: ignore[misc]

    @cached_property
    def index(self) -> Int64:
        """(n, 4): shard, byte offset, length, extension number."""
        return cast(Int64, self._array("index", "int64", (self._samples, 4)))

    @cached_property
    def labels(self) -> Int64:
        """(n,) class numbers, -1 where there is none."""
        return cast(Int64, self._array("labels", "int64", (self._samples,)))

    def kind(self, name: str) -> Int64:
        """(n,) class numbers of one of the manifest's `kinds`, -1 where there is none."""
        return cast(Int64, self._array(f"labels-{name}", "int64", (self._samples,)))

    @cached_property
    def originals(self) -> Int64:
        """(n,) numbers of the original images; samples made from the same original share one."""
        return cast(Int64, self._array("originals", "int64", (self._samples,)))

    @cached_property
    def targets(self) -> dict[str, Float32]:
        """Continuous targets by name, each (n,)."""
        return {t: self._array(f"target-{t}", "float32", (self._samples,)) for t in self.target_names}

    @cached_property
    def video(self) -> npt.NDArray[np.float64]:
        """(n, 3): frames, frames per second and seconds of every video; 0 where it is not known."""
        return cast("npt.NDArray[np.float64]", self._array("video", "float64", (self._samples, 3)))

    @cached_property
    def _facts(self) -> Int64:
        return cast(Int64, self._array("facts", "int64", (self._samples, 2)))

    def facts(self, i: int) -> bytes | None:
        """What was found out about video i when the dataset was built, as JSON; None where nothing was kept.

        Raises:
            DataError, OSError: as `read`.
        """
        offset, length = self._facts[i].tolist()
        if not length:
            return None
        path, size = self.shards[int(self.index[i, SHARD])].facts
        return storage.read(path, size, offset, length)

    @property
    def map_names(self) -> list[str]:
        """Label maps that every sample has."""
        return list(self.maps)

    @cached_property
    def _map_places(self) -> dict[str, Int64]:
        return {name: self._array(f"map-{name}", "int64", (self._samples, 3)) for name in self.maps}

    def read_map(self, i: int, name: str) -> npt.NDArray[Any]:
        """Label map `name` of sample i, (H, W) in the aspect of its image: uint8 classes with 255 for none, or float32.

        Raises:
            DataError: it cannot be read as one, or the shard is not the one that was indexed.
            OSError: the storage fails.
        """
        offset, length, extension = self._map_places[name][i].tolist()
        where = self.shards[int(self.index[i, SHARD])]
        data = storage.read(where.path, where.size, offset, length)
        try:
            return labelmap.read(labelmap.LabelMap(name, data, labelmap.EXTENSIONS[extension], self.maps[name]))
        except DataError as error:
            raise DataError(f"{self.place(i)}: {error}") from None

    @cached_property
    def _array_places(self) -> dict[str, Int64]:
        return {name: self._array(f"array-{name}", "int64", (self._samples, 3)) for name in self.arrays}

    def read_array(self, i: int, name: str) -> npt.NDArray[Any]:
        """Array `name` of episode i as it is stored, (rows, size) in the type that `arrays` says; read-only.

        Raises:
            DataError: it is damaged, or the shard is not the one that was indexed.
            OSError: the storage fails.
        """
        offset, length, rows = self._array_places[name][i].tolist()
        where = self.shards[int(self.index[i, SHARD])]
        data = storage.read(where.path, where.size, offset, length)
        try:
            return arrays.from_npy(data, name, self.arrays[name], rows)
        except DataError as error:
            raise DataError(f"{self.place(i)}: {error}") from None

    @cached_property
    def _keys(self) -> npt.NDArray[np.bytes_]:
        return cast(npt.NDArray[np.bytes_], self._array("keys", "bytes", (self._samples,)))

    def key(self, i: int) -> str:
        """The webdataset key of sample i."""
        return bytes(self._keys[i]).decode("utf-8", "replace")

    def read(self, i: int) -> tuple[bytes, str]:
        """The encoded image of sample i and its extension.

        Raises:
            DataError: the shard is not the one that was indexed, or ends too early.
            OSError: the storage fails, after several tries (see `storage.read`).
        """
        where, offset, length, extension = self._row(i)
        return storage.read(where.path, where.size, offset, length), extension

    def place(self, i: int) -> str:
        """Where sample i lies, for messages."""
        where, offset, length, _ = self._row(i)
        return f"{self.key(i)} in {where.path} at byte {offset}, {length} bytes"

    def _row(self, i: int) -> tuple[Shard, int, int, str]:
        """Shard, offset, length and extension of sample i."""
        shard, offset, length, extension = self.index[i].tolist()
        if not (0 <= shard < len(self.shards) and 0 <= extension < len(EXTENSIONS)):
            path = self.root / self.name / "index.npy"
            raise DataError(f"{path} is damaged at sample {i}: {self.index[i].tolist()}. Build the dataset again")
        return self.shards[shard], offset, length, EXTENSIONS[extension]

    def check(self) -> None:
        """Compare every shard's size with the manifest; that of a remote one when it is fetched.

        Raises:
            DataError: a shard is missing, truncated or was replaced.
        """
        wrong = []
        for shard in self.shards:
            if isinstance(shard.path, Url):
                continue
            try:
                size = shard.path.stat().st_size
            except OSError as error:
                wrong.append(f"{shard.path}: {error.strerror}")
                continue
            if size != shard.size:
                wrong.append(f"{shard.path}: {size} bytes now, {shard.size} when it was built")
        if wrong:
            more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
            raise DataError(
                f"split {self.name!r} of {self.root}: {len(wrong)} of {len(self.shards)} shards cannot be used: "
                f"{'; '.join(wrong[:3])}{more}. Restore them, or build the dataset again"
            )

    def _array(self, name: str, kind: str, shape: tuple[int, ...]) -> Any:
        path = self.root / self.name / f"{name}.npy"
        try:
            array = np.load(path, mmap_mode="r" if self._samples else None, allow_pickle=False)
        except Exception as error:  # numpy's parser fails on damaged headers in every way there is
            raise DataError(f"cannot read {path}: {error}. Build the dataset again") from None
        right_kind = array.dtype.kind == "S" if kind == "bytes" else array.dtype == kind
        if array.shape != shape or not right_kind:
            raise DataError(f"{path} holds {array.dtype}{array.shape}, expected {kind}{shape}. Build the dataset again")
        return array


@dataclass(frozen=True)
class Manifest:
    """An opened dataset."""

    root: Path
    name: str
    classes: list[str]
    splits: dict[str, Split]
    licence: str
    recipe: dict[str, Any]  # as resolved when it was built
    hash: str  # of the content: equal for equal samples in equal order
    image: dict[str, Any]  # smallest and largest height and width, extensions
    media: str  # "image" or "video": what every sample is, or was made of
    notes: list[str]  # what the builder decided by itself, e.g. that it made a validation split
    bad: list[dict[str, str]]  # source images left out: source and reason (the first 1000)
    bad_count: int
    kinds: dict[str, list[str]]  # labels of several kinds: the classes of each; mostly empty
    arrays: dict[str, Array]  # of episodes: what they hold, and the statistics of the training split; mostly empty
    features: dict[str, Any] | None = None  # of samples that are an encoder's features: what they are, see jepa extract

    @classmethod
    def open(cls, folder: str | Path, *, features: bool = False) -> Manifest:
        """Open a folder made by `jepa data build`, or with `features` one made by `jepa extract`.

        Raises:
            DataError: no such folder, an unfinished build, not our file, damaged, of a newer version, or of the other
                kind.
        """
        root = Path(folder)
        values = _read(root)
        if (values.get("features") is not None) != features:
            raise DataError(
                f"{root} is a data set of images or videos, not features made by `jepa extract`"
                if features
                else f"{root} holds features made by `jepa extract`, not images or videos. Probe them with `jepa probe "
                f"{root} --suite NAME`; anything else needs the data set they were made of"
            )
        try:
            found = dict(values.get("arrays", {}))
            return cls(
                root=root,
                arrays={str(k): Array.of(v) for k, v in found.items()},
                name=str(values["name"]),
                classes=[str(c) for c in values["classes"]],
                splits={str(k): Split(root, str(k), v | {"arrays": found}) for k, v in values["splits"].items()},
                licence=str(values["licence"]),
                recipe=dict(values["recipe"]),
                hash=str(values["hash"]),
                image=dict(values["image"]),
                media=str(values.get("media", "image")),
                notes=[str(n) for n in values["notes"]],
                bad=[dict(b) for b in values["bad"]],
                bad_count=int(values["bad_count"]),
                features=dict(values["features"]) if features else None,
                kinds={str(k): [str(c) for c in v] for k, v in values.get("kinds", {}).items()},
            )
        except (KeyError, TypeError, ValueError, AttributeError, AssertionError, OverflowError) as error:
            raise DataError(
                f"{root / FILE} lacks or garbles {error}. It was changed or damaged; build the dataset again"
            ) from None

    def split(self, name: str) -> Split:
        """A split by name.

        Raises:
            DataError: there is none of that name; the message lists those there are.
        """
        if name not in self.splits:
            raise DataError(f"{self.root} has no split {name!r}; it has: {', '.join(self.splits) or 'none'}")
        return self.splits[name]


def _read(root: Path) -> dict[str, Any]:
    path = root / FILE
    try:
        there = path.is_file()
    except OSError as error:  # a folder above that this user may not enter
        raise DataError(f"cannot read {path}: {error.strerror or error}") from None
    if not there:
        if (root / ".build").is_dir():
            raise DataError(f"{root} is an unfinished build. Run the same `jepa data build` command again to finish it")
        state = f"{root} has no {FILE}" if root.is_dir() else f"{resources.shown(root)} is not a folder"
        raise DataError(
            f"{state}. Give a folder made by `jepa data build datasets/NAME.yaml --out DIR`; data.path=DIR says where "
            "that of a run is now"
        )
    try:
        text = path.read_text(encoding="utf-8")
        values = json.loads(text)
        if _SURROGATE.search(text):  # one without its other half goes into no path and onto no terminal
            json.dumps(values, ensure_ascii=False).encode()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not valid JSON ({error}). It is truncated or not ours; build again") from None
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        raise DataError(f"{path} is not a manifest of `jepa data build` (no format: {FORMAT!r})")
    if values.get("version") != VERSION:
        raise DataError(
            f"{path} has version {values.get('version')!r}, this program reads {VERSION}. "
            "Use the program version that made it, or build the dataset again"
        )
    return values
