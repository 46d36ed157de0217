"""Keyed randomness: a number is a pure function of what it is for, never of what was drawn before.

Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011), vectorised over
samples in numpy. Every random choice in a run names its *stream* (what it is for), the seed, and its
indices (epoch, step, sample number g, attempt ...). Rank, worker and micro-batch never enter a key, so the
same samples, crops and masks come out on any number of processes, and resuming is arithmetic.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache

import numpy as np
import numpy.typing as npt

_M0, _M1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_W0, _W1 = 0x9E3779B9, 0xBB67AE85
_LOW, _SHIFT = np.uint64(0xFFFFFFFF), np.uint64(32)

Index = int | npt.NDArray[np.int64]


def philox4x32(counter: tuple[npt.NDArray[np.uint64], ...], key: tuple[int, int]) -> tuple[npt.NDArray[np.uint64], ...]:
    """Ten rounds of Philox4x32 on four broadcastable uint64 arrays holding 32-bit words."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        p0, p1 = _M0 * c0, _M1 * c2  # 32 x 32 -> 64 bits, never overflows uint64
        c0, c1, c2, c3 = (
            (p1 >> _SHIFT) ^ c1 ^ np.uint64(k0),
            p1 & _LOW,
            (p0 >> _SHIFT) ^ c3 ^ np.uint64(k1),
            p0 & _LOW,
        )
        k0, k1 = (k0 + _W0) & 0xFFFFFFFF, (k1 + _W1) & 0xFFFFFFFF
    return c0, c1, c2, c3


@lru_cache(maxsize=1024)
def key(stream: str, seed: int) -> tuple[int, int]:
    """The two words of Philox's key for a stream and a seed."""
    digest = hashlib.blake2b(f"{stream}\x00{seed}".encode(), digest_size=8).digest()
    return int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:], "little")


def words(stream: str, seed: int, index: Index, count: int, *, sub: Index = 0) -> npt.NDArray[np.uint64]:
    """Random 32-bit words (held in uint64) for each index; arguments as for `uniform`. Returns (B, count)."""
    flat = np.asarray(index, dtype=np.uint64).reshape(-1, 1)
    sub_flat = np.asarray(sub, dtype=np.uint64).reshape(-1, 1)
    block = np.arange(-(-count // 4), dtype=np.uint64).reshape(1, -1)
    parts = philox4x32((block, sub_flat, flat & _LOW, flat >> _SHIFT), key(stream, seed))
    return np.stack(parts, axis=-1).reshape(len(flat), -1)[:, :count]


def uniform(stream: str, seed: int, index: Index, draws: int, *, sub: Index = 0) -> npt.NDArray[np.float64]:
    """Uniform numbers in (0, 1) for each index.

    Args:
        stream: what the numbers are for, e.g. ``"crop"``; different names give independent numbers.
        seed: the run's seed.
        index: int64 scalar or array (B,), usually sample numbers g, a step or an epoch (0 <= index < 2**64).
        draws: how many numbers per index. Asking for more later does not change the first ones.
        sub: a second index below 2**32 (view, attempt), scalar or (B,).

    Returns:
        float64 of shape (draws,) for a scalar index, else (B, draws), on a grid of 2**-32.
    """
    out: npt.NDArray[np.float64] = np.add(words(stream, seed, index, draws, sub=sub), 0.5, dtype=np.float64) * 2.0**-32
    return out if np.ndim(index) else out[0]


def generator(stream: str, seed: int, *index: int) -> np.random.Generator:
    """A numpy generator for bulk draws (permutations) keyed by (stream, seed, indices)."""
    digest = hashlib.blake2b(repr((stream, seed, *index)).encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little")))


def again(seed: int, attempt: int) -> int:
    """The seed of a run, or of one of its sources, after its roll-back number `attempt` (0: before any)."""
    return int(words("attempt", seed, attempt, 1)[0, 0]) if attempt else seed
