"""What a source of images is: lists of tasks per split, and a function that makes a sample of a task.

Tasks are small and picklable, and making a sample is a pure function of its task, so samples can be made in any
process, in any order, and again after an interruption, always with the same bytes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from jepa.data.arrays import ArrayConfig
from jepa.data.labelmap import LabelMap, MapConfig
from jepa.data.remote import Place, Url


@dataclass(frozen=True)
class Span:
    """A part of a video, in seconds."""

    start: float
    stop: float
    whole: bool = True  # must lie in the video, at presentation times; else what there is of it, from the first frame


@dataclass(frozen=True)
class Sample:
    """One image or video before it is written."""

    # encoded, or pixels (H, W), (H, W, 3), or a video's (T, H, W, 3); or the file of a video, to take `span` of it
    image: bytes | npt.NDArray[np.uint8] | Path
    label: int  # -1: none
    original: int  # samples made from the same original image share this number
    source: str  # where it came from, for people
    targets: tuple[float, ...] = ()  # continuous targets, in the order of the source's `targets`
    fps: float = 0.0  # of a video given as pixels
    span: Span | None = None  # seconds of an encoded video that are the sample; None: all of it
    media: Literal["", "image", "video"] = ""  # what it must be; "": told by its content
    maps: tuple[LabelMap, ...] = ()  # in the order of the source's `maps`
    kinds: tuple[int, ...] = ()  # class numbers by the source's `kinds`, -1: none
    arrays: dict[str, npt.NDArray[Any]] = field(default_factory=dict)  # of an episode: (rows, numbers) each


class Maker(Protocol):
    """Makes samples; sent once to every worker process.

    One whose source has a deadline may have a method `start()`: it is called in every worker before the first task, to
    import what takes long.
    """

    def __call__(self, task: Any, /) -> Sample | list[Sample]:
        """The sample of a task, or all of its samples. Raises DataError when the source image cannot be used."""
        ...


@dataclass
class Source:
    """An opened source."""

    splits: dict[str, Sequence[Any]]  # tasks by split; a single "" entry: not split yet
    maker: Maker
    classes: list[str]
    targets: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)  # what was decided without being told
    unusable: list[tuple[str, str]] = field(default_factory=list)  # found while listing: source and reason
    identity: Callable[[Any], str] = str  # a task's name, which decides its split
    maps: dict[str, MapConfig] = field(default_factory=dict)  # label maps that every sample has
    sequential: bool = False  # tasks are cheap only in their order, so they are not mixed before they are packed
    kinds: dict[str, list[str]] = field(default_factory=dict)  # labels of several kinds: the classes of each
    together: bool = False  # neighbouring tasks share work, so the order of tasks is kept
    at_once: int = 32  # tasks sent to a worker together; few where a task takes seconds
    arrays: dict[str, ArrayConfig] = field(default_factory=dict)  # arrays of episodes that every sample has
    deadline: float | None = None  # seconds for a task that may hang: it is stopped then, and left out

    def fingerprint(self) -> str:
        """Changes when the list of tasks changes."""
        known = (self.classes, self.targets, *self.kinds.items(), *self.arrays.items())
        digest = hashlib.sha256(repr(known).encode())
        for name, tasks in self.splits.items():
            digest.update(repr((name, len(tasks))).encode())
            if not isinstance(tasks, range):
                for task in tasks:
                    digest.update(repr(task).encode())
        return digest.hexdigest()


@dataclass(frozen=True)
class TarSample:
    """One sample in a tar that is read in place."""

    key: str
    offset: int  # of the image, in bytes
    length: int
    extension: int  # position in manifest.EXTENSIONS
    label: int
    original: int
    targets: tuple[float, ...]
    size: tuple[int, int]  # height, width; (0, 0): not known
    name: str  # tar and key
    video: tuple[float, float, float] = (0.0, 0.0, 0.0)  # frames, frames per second, seconds; zeros for an image
    facts: bytes = b""  # JSON of a video's `Facts`
    maps: tuple[tuple[int, int, int], ...] = ()  # offset, length, position in labelmap.EXTENSIONS of each label map


class TarIndexer(Protocol):
    """Lists the samples of a tar; (source, reason) for one that cannot be used."""

    def __call__(self, path: Path, /) -> Iterator[TarSample | tuple[str, str]]:
        """Raises DataError when the tar cannot be used at all."""
        ...


@dataclass
class References:
    """Tars that stay where they are."""

    tars: dict[str, list[Place]]  # by split; a single "" entry: not split yet
    index: TarIndexer
    classes: list[str] | None  # None: the label numbers
    targets: list[str]
    notes: list[str] = field(default_factory=list)
    maps: dict[str, MapConfig] = field(default_factory=dict)  # label maps that every sample has

    def fingerprint(self) -> str:
        """Changes when a tar is added, removed, or (on a local disk) has another size."""
        listed = [
            (split, p.text, -1) if isinstance(p, Url) else (split, str(p), p.stat().st_size)
            for split, paths in self.tars.items()
            for p in paths
        ]
        return hashlib.sha256(repr(listed).encode()).hexdigest()


def hashed(*key: Any) -> int:
    """A number in [0, 2**63) that depends on the key alone."""
    digest = hashlib.blake2b("\x00".join(map(str, key)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def share(*key: Any) -> float:
    """A number in [0, 1) that depends on the key alone."""
    return hashed(*key) / 2.0**63
