"""The samples a suite probes on, checked before anything is computed.

Shapes: n samples of a split, T targets.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from jepa import keyed
from jepa.config import unknown_key
from jepa.data import Manifest, Split
from jepa.errors import ConfigError, DataError
from jepa.probe.maps import Maps
from jepa.probe.suite import Suite

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Part:
    """Chosen samples of one split."""

    use: str  # "train", "val" or "test"
    split: Split
    index: Ints  # (n,) into the split, rising
    labels: Tensor  # (n,) int64, -1: none
    targets: Tensor  # (n, T) float64
    originals: Ints  # (n,)

    def labelled(self) -> Tensor:
        """Places (of n) of the samples with a label."""
        return torch.nonzero(self.labels >= 0).flatten()


@dataclass(frozen=True)
class ProbeData:
    """Train, validation and test samples."""

    manifest: Manifest
    parts: tuple[Part, Part, Part]
    targets: tuple[str, ...]  # names of the T continuous targets
    classes: int  # 0: no probe needs labels
    ridge: tuple[str, ...] = ()  # of the targets, those that the ridge probe reads

    @classmethod
    def open(cls, suite: Suite, own: str | Manifest) -> ProbeData:
        """Open and check the suite's data set; `own` is the run's, used when the suite names none, or an opened one.

        Raises:
            ConfigError: no data set, a split that is not there, no labels or targets for a probe that needs them.
            DataError: labels or targets that cannot be probed (one class, classes missing from train, ...).
        """
        folder = own.root if isinstance(own, Manifest) else suite.dataset or own
        if not folder:
            raise ConfigError(
                "the run names no data set (data.path is empty) and neither does the suite: give dataset=FOLDER, a "
                "folder made by `jepa data build`"
            )
        manifest = own if isinstance(own, Manifest) else Manifest.open(folder)
        _check_media(suite, manifest)
        for use, name in (("train", suite.splits.train), ("val", suite.splits.val), ("test", suite.splits.test)):
            if name not in manifest.splits:
                raise ConfigError(
                    f"splits.{use}={name!r}: data set {folder} has no such split; it has: "
                    f"{', '.join(sorted(manifest.splits))}. Settings are chosen on val and reported on test, so all "
                    "three are needed: name others in the suite, or build the data set with them"
                )
        ridge = _ridge_names(suite, manifest)
        names = _target_names(suite, manifest, ridge)
        parts = (
            _part("train", manifest.splits[suite.splits.train], names, suite.splits.max_train),
            _part("val", manifest.splits[suite.splits.val], names),
            _part("test", manifest.splits[suite.splits.test], names),
        )
        classes = 0
        if _asking_for_labels(suite):
            classes = _check_labels(suite, manifest, parts)
        _check_maps(suite, parts)
        return cls(manifest, parts, names, classes, ridge)

    def wanted(self) -> list[tuple[Split, Ints]]:
        """What to extract features of."""
        return [(part.split, part.index) for part in self.parts]

    def facts(self) -> dict[str, Any]:
        """For the result file."""
        splits = {
            part.use: {
                "split": part.split.name,
                "n": len(part.index),
                "labelled": len(part.labelled()),
                "originals": len(np.unique(part.originals)),
            }
            for part in self.parts
        }
        return {
            "name": self.manifest.name, "path": str(self.manifest.root), "hash": self.manifest.hash,
            "classes": self.classes, "targets": list(self.targets), "splits": splits,
        }  # fmt: skip


def _check_media(suite: Suite, manifest: Manifest) -> None:
    """Images are probed by suites for images, videos by suites that say which clips."""
    clips, video = suite.features.clips is not None, manifest.media == "video"
    if clips and not video:
        raise ConfigError(
            f"features.clips asks for clips of videos, and data set {manifest.root} holds images. Probe them with "
            "features.clips=null, or give a data set of videos with dataset=FOLDER"
        )
    if video and not clips:
        raise ConfigError(
            f"data set {manifest.root} holds videos: say in features.clips which clips are looked at, e.g. "
            "features.clips={frames: 16, stride: 4, clips: 2}"
        )


def _asking_for_labels(suite: Suite) -> list[str]:
    probes = suite.probes
    asked = [name for name in ("knn", "linear") if getattr(probes, name)]
    return asked + (["attentive"] if probes.attentive and probes.attentive.classify else [])


def _ridge_names(suite: Suite, manifest: Manifest) -> tuple[str, ...]:
    if suite.probes.ridge is None:
        return ()
    wanted = suite.probes.ridge.targets or tuple(manifest.splits[suite.splits.train].target_names)
    if not wanted:
        raise ConfigError(
            f"the ridge probe needs continuous targets, and data set {manifest.root} has none. Leave it out: "
            "probes.ridge=null"
        )
    return wanted


def _target_names(suite: Suite, manifest: Manifest, ridge: tuple[str, ...]) -> tuple[str, ...]:
    """Every continuous target that a probe asks for: the ridge probe's, then others of the attentive probe."""
    known = manifest.splits[suite.splits.train].target_names
    attentive = suite.probes.attentive.targets if suite.probes.attentive else ()
    for place, names in (("ridge", ridge), ("attentive", attentive)):
        for name in names:
            if name not in known:
                raise ConfigError(f"probes.{place}.targets: {unknown_key(name, name, known)}")
    return tuple(dict.fromkeys([*ridge, *attentive]))


def _check_maps(suite: Suite, parts: tuple[Part, Part, Part]) -> None:
    for probe in (suite.probes.segmentation, suite.probes.depth):
        if probe is not None:
            for part in parts:
                Maps(part.split, part.index, probe.map, (1, 1))  # raises where there is none of that name


def _part(use: str, split: Split, names: tuple[str, ...], most: int | None = None) -> Part:
    index = np.arange(len(split), dtype=np.int64)
    if most is not None and most < len(index):
        index = np.sort(keyed.generator("probe.train", 0).permutation(index)[:most])
    missing = [name for name in names if name not in split.target_names]
    if missing:
        raise DataError(f"split {split.name!r} of {split.root} has no target {', '.join(missing)}")
    columns = [np.asarray(split.targets[name])[index].astype(np.float64) for name in names]
    for name, column in zip(names, columns, strict=True):
        if not np.isfinite(column).all() or len(column) < 2 or column.min() == column.max():
            raise DataError(
                f"target {name!r} in split {split.name!r} of {split.root} cannot be predicted: it must be finite "
                f"everywhere and vary ({len(column)} samples). Take it out of the probes' targets"
            )
    return Part(
        use, split, index,
        torch.from_numpy(np.asarray(split.labels)[index].astype(np.int64)),
        torch.from_numpy(np.stack(columns, axis=1)) if columns else torch.empty(len(index), 0, dtype=torch.float64),
        np.asarray(split.originals)[index],
    )  # fmt: skip


def _check_labels(suite: Suite, manifest: Manifest, parts: tuple[Part, Part, Part]) -> int:
    """The number of classes, after making sure that they can be told apart and are all known from training."""
    asked = _asking_for_labels(suite)
    without = [part.split.name for part in parts if not len(part.labelled())]
    if without:
        plain = " ".join(f"probes.{name}=null" for name in asked)
        words = " and ".join([", ".join(asked[:-1]), asked[-1]] if len(asked) > 1 else asked)
        raise ConfigError(
            f"the probes {words} need labels, and data set {manifest.root} has none in its split "
            f"{', '.join(without)}. Leave them out ({plain}; ridge needs continuous targets instead), or give another "
            "data set with dataset=FOLDER"
        )
    counts = [Counter(part.labels[part.labelled()].tolist()) for part in parts]
    if len(counts[0]) < 2:
        only = _named(manifest, next(iter(counts[0])))
        raise DataError(
            f"all labelled samples of split {parts[0].split.name!r} of {manifest.root} are of one class, {only}: there "
            "is nothing to tell apart. Give a data set with at least two classes"
        )
    for part, count in zip(parts[1:], counts[1:], strict=True):
        strange = sorted(count.keys() - counts[0].keys())
        if strange:
            shown = ", ".join(_named(manifest, label) for label in strange[:10])
            more = ", ..." if len(strange) > 10 else ""
            hint = " or raise splits.max_train" if suite.splits.max_train else ""
            raise DataError(
                f"{len(strange)} class(es) of split {part.split.name!r} have no training sample in split "
                f"{parts[0].split.name!r}: {shown}{more}. No probe can know them: build the data set with splits that "
                f"share their classes{hint}"
            )
    return int(max(counts[0])) + 1


def _named(manifest: Manifest, label: int) -> str:
    return repr(manifest.classes[label]) if label < len(manifest.classes) else f"number {label}"
