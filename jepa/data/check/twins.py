"""Which samples are the same picture: exactly, by digest, or nearly, by perceptual hash.

Near pairs are found without comparing all with all: hashes that differ in at most d bits agree in at least one of d + 1
bands of bits, so only hashes that share a band are compared. n samples, D = 16 digest bytes, P pattern bytes.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from jepa.data.check.look import BITS

Int64 = npt.NDArray[np.int64]
Bytes = npt.NDArray[np.uint8]
_CROWD = 512  # hashes that share a band and are all compared with each other; of more, neighbours in sorted order only


def exact(digests: Bytes) -> Int64:
    """(n,) the number of the first sample with the same digest (n, D); an all-zero digest is like no other."""
    count = len(digests)
    _, first, inverse = np.unique(_words(digests), axis=0, return_index=True, return_inverse=True)
    found = first[inverse.reshape(-1)] if count else np.empty(0, dtype=np.int64)
    unknown = ~digests.any(1)
    found[unknown] = np.flatnonzero(unknown)
    return found.astype(np.int64)


def near(patterns: Bytes, most: int) -> Int64:
    """(n,) the number of the first sample of each one's group: hashes (n, P) linked by at most `most` differing bits.

    An all-zero hash is like no other.
    """
    groups = _Groups(len(patterns))
    seen = np.flatnonzero(patterns.any(1))
    if not len(seen) or most < 0:
        return groups.roots()
    different, first, inverse = np.unique(_words(patterns[seen]), axis=0, return_index=True, return_inverse=True)
    groups.join(seen[first[inverse.reshape(-1)]], seen)
    bits = np.unpackbits(patterns[seen[first]], axis=1)[:, :BITS]
    for band in np.array_split(np.arange(BITS), most + 1):
        value = bits[:, band].astype(np.int64) @ (1 << np.arange(len(band), dtype=np.int64))
        order = np.argsort(value, kind="stable")
        edges = np.concatenate([[0], np.flatnonzero(np.diff(value[order])) + 1, [len(order)]])
        for place in np.flatnonzero(np.diff(edges) > 1).tolist():
            for left, right in _pairs(order[edges[place] : edges[place + 1]]):
                apart = np.bitwise_count(different[left] ^ different[right]).sum(1)
                close = apart <= most
                groups.join(seen[first[left[close]]], seen[first[right[close]]])
    return groups.roots()


def _pairs(bucket: Int64) -> list[tuple[Int64, Int64]]:
    if len(bucket) <= _CROWD:
        left, right = np.triu_indices(len(bucket), 1)
        return [(bucket[left], bucket[right])]
    return [(bucket[:-step], bucket[step:]) for step in (1, 2, 3)]


def _words(rows: Bytes) -> npt.NDArray[np.uint64]:
    return np.ascontiguousarray(rows).view(np.uint64)


class _Groups:
    """Union-find."""

    def __init__(self, count: int) -> None:
        self.parent: Int64 = np.arange(count)

    def join(self, left: Int64, right: Int64) -> None:
        for a, b in zip(left.tolist(), right.tolist(), strict=True):
            a, b = self._root(a), self._root(b)
            self.parent[max(a, b)] = min(a, b)

    def roots(self) -> Int64:
        while (self.parent[self.parent] != self.parent).any():
            self.parent = self.parent[self.parent]
        return self.parent

    def _root(self, i: int) -> int:
        parent = self.parent
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = int(parent[i])
        return i


__all__ = ["exact", "near"]
