"""What samples say only together: duplicates, leaks between splits, labels that contradict, classes, sizes.

Shapes: n samples.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from jepa.data.check import twins
from jepa.data.check.columns import Columns

Int64 = npt.NDArray[np.int64]
_FIRST = ("test", "val")  # of a picture that is in several splits, the one kept is here; last of all comes train


@dataclass(frozen=True)
class Known:
    """What is known without looking."""

    splits: list[str]
    split: npt.NDArray[Any]  # (n,) position in `splits`
    classes: list[str]
    originals: Int64 | None  # (n,) samples made of one original share a number; None: not known

    def of(self, number: int) -> str:
        """The split of a sample."""
        return self.splits[int(self.split[number])]


@dataclass(frozen=True)
class Seen:
    """What was found out by looking at all of them."""

    spare: npt.NDArray[np.bool_]  # (n,) equal, byte by byte, to another one that is kept
    near_spare: npt.NDArray[np.bool_]  # (n,) looks like another one that is kept, without being equal to one
    groups: list[list[int]]  # samples that are equal; the one that is kept comes first
    near_groups: list[list[int]]  # samples that look alike, one of each group of equal ones
    leaks: list[dict[str, Any]]  # pairs of splits that share pictures
    contradictions: int  # groups of equal samples with different labels


def look(columns: Columns, known: Known, bits: int) -> Seen:
    """Compare all samples that can be used.

    Args:
        bits: by which hashes of pictures that look alike may differ; -1: not compared.
    """
    order = [*_FIRST, *(s for s in known.splits if s not in (*_FIRST, "train")), "train"]
    rank = np.array([order.index(name) for name in known.splits], dtype=np.int64)[known.split]
    equal = twins.exact(columns.digest)
    groups, spare = _groups(equal, rank)
    patterns = columns.pattern.copy()
    patterns[spare] = 0  # they are represented by the one that is kept
    alike = twins.near(patterns, bits)
    near_groups, near_spare = _groups(alike, rank)
    together = alike[_keeper(len(columns), groups)]  # equal samples are in the group of the one that is kept
    contradictions = sum(len(set(columns.label[group].tolist()) - {-1}) > 1 for group in groups)
    return Seen(spare, near_spare, groups, near_groups, _leaks(known, equal, together), contradictions)


def _groups(first: Int64, rank: Int64) -> tuple[list[list[int]], npt.NDArray[np.bool_]]:
    """Groups of more than one with the member of the lowest rank first, and which samples are not that one."""
    spare = np.zeros(len(first), dtype=bool)
    counts = np.bincount(first, minlength=len(first)) if len(first) else first
    many = np.flatnonzero(counts[first] > 1) if len(first) else first
    many = many[np.lexsort((many, rank[many], first[many]))]
    edges = np.flatnonzero(np.diff(first[many])) + 1
    groups = [group.tolist() for group in np.split(many, edges) if len(group)]
    for group in groups:
        spare[group[1:]] = True
    return groups, spare


def _keeper(count: int, groups: list[list[int]]) -> Int64:
    keeper = np.arange(count)
    for group in groups:
        keeper[group] = group[0]
    return keeper


def _leaks(known: Known, equal: Int64, alike: Int64) -> list[dict[str, Any]]:
    """For every pair of splits: pictures in both, pictures that look alike in both, originals in both."""
    found = []
    for a, b in itertools.combinations(range(len(known.splits)), 2):
        left, right = known.split == a, known.split == b
        counts = {}
        for kind, numbers in (("same", equal), ("near", alike), ("originals", known.originals)):
            counts[kind] = 0 if numbers is None else len(np.intersect1d(numbers[left], numbers[right]))
        counts["near"] = max(0, counts["near"] - counts["same"])  # equal ones look alike too
        found.append({"splits": [known.splits[a], known.splits[b]], **counts})
    return found


def balance(columns: Columns, known: Known) -> dict[str, Any]:
    """Samples of every class in every split, those without a label, and how uneven the classes are."""
    counts: dict[str, dict[str, int]] = {}
    for place, split in enumerate(known.splits):
        labels = columns.label[(known.split == place) & (columns.height > 0)]  # those that decode
        numbers, sizes = np.unique(labels, return_counts=True)
        counts[split] = {
            ("no label" if n < 0 else known.classes[n] if n < len(known.classes) else str(n)): c
            for n, c in zip(numbers.tolist(), sizes.tolist(), strict=True)
        }
    whole = np.bincount(columns.label[columns.label >= 0], minlength=len(known.classes))
    filled = whole[whole > 0]
    return {
        "count": len(known.classes),
        "empty": [name for name, n in zip(known.classes, whole.tolist(), strict=False) if not n],
        "largest_over_smallest": float(filled.max() / filled.min()) if len(filled) else None,
        "samples": counts,
    }


def sizes(columns: Columns) -> dict[str, Any]:
    """Quantiles of what is measured of the samples that decode."""
    good = columns.height > 0
    found: dict[str, Any] = {}
    for name in ("height", "width", "bytes", "frames", "seconds"):
        values = getattr(columns, name)[good]
        if len(values) and values.max() > 0:
            low, first, middle, third, high = np.quantile(values, [0, 0.05, 0.5, 0.95, 1]).tolist()
            found[name] = {"min": low, "p5": first, "median": middle, "p95": third, "max": high}
    found["total_bytes"] = int(columns.bytes.sum())
    if columns.seconds.any():
        found["hours"] = float(columns.seconds.sum(dtype=np.float64) / 3600)
    return found


__all__ = ["Known", "Seen", "balance", "look", "sizes"]
