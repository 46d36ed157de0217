"""Tokens of many samples, kept where they fit: in memory, in a file that is read row by row, or nowhere.

Pooled features of a data set are small, its tokens are not: a hundred and more vectors a sample. They are rounded to
half precision and held in memory up to `memory_gib`; above that in a file of RUN/probes/cache up to `disk_gib`; above
that they are not kept, and the encoder runs again each time they are wanted. A probe sees the same numbers in each
case, up to what an encoder's arithmetic changes with the batch it sees a sample in.

Shapes: n samples, V views of a sample, N tokens, D width, L levels (the output, then layers).
"""

from __future__ import annotations

import math
import os
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from jepa.errors import ConfigError, DataError

Ints = npt.NDArray[np.int64]
_DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
_RAW = {"fp16": np.float16, "bf16": np.int16, "fp32": np.float32}  # numpy knows no bfloat16: its bits as integers


@dataclass(frozen=True)
class TokensConfig:
    """How the tokens of attentive and dense probes are kept."""

    dtype: Literal["fp16", "bf16", "fp32"] = "fp16"  # they are rounded to it
    memory_gib: float = 4.0  # of one encoder's tokens held in memory; more go to a file
    disk_gib: float = 64.0  # of one encoder's tokens in that file; more are not kept but computed for every epoch
    keep: bool = False  # leave them in RUN/probes/cache for the next probe of the same encoder and data
    layers: tuple[int, ...] = ()  # layers whose tokens are taken, one after the other; empty: the encoder's output

    def __post_init__(self) -> None:
        if self.memory_gib < 0 or self.disk_gib < 0:
            raise ConfigError(f"memory_gib={self.memory_gib}, disk_gib={self.disk_gib}: allowed: 0 or more")

    def place(self, numbers: int, disk: bool) -> Literal["memory", "disk", "nowhere"]:
        """Where that many numbers go; `disk`: whether there is a folder for files."""
        gib = numbers * _DTYPES[self.dtype].itemsize / 2**30
        if gib <= self.memory_gib:
            return "memory"
        return "disk" if disk and gib <= self.disk_gib else "nowhere"

    def round(self, tokens: Tensor, name: str) -> Tensor:
        """Tokens in the kept precision, on the CPU.

        Raises:
            DataError: values that are not finite, or too large for float16; names the encoder.
        """
        kept = tokens.to("cpu", _DTYPES[self.dtype])
        if not bool(torch.isfinite(kept).all()):
            if bool(torch.isfinite(tokens).all()):
                raise DataError(
                    f"{name}: tokens reach {float(tokens.abs().max()):.3g}, more than float16 holds. Set "
                    "features.tokens.dtype=bf16"
                )
            raise DataError(
                f"{name}: some tokens are NaN or infinite. The weights are broken; look at the run's loss, or probe an "
                "earlier checkpoint"
            )
        return kept


class Tokens(ABC):
    """Tokens (n, V, N, D) of n samples, read in any order."""

    shape: tuple[int, int, int, int]  # (n, V, N, D)
    where: str  # "memory", "disk" or "nowhere", for the result file

    def __len__(self) -> int:
        return self.shape[0]

    @abstractmethod
    def walk(self, lists: Sequence[Ints]) -> Iterator[Tensor]:
        """Tokens (b, V, N, D) of each list of places in [0, n), on the CPU in the kept precision."""

    def at(self, places: Ints) -> Tokens:
        """The same tokens, of some of the samples only."""
        return self if len(places) == len(self) else _Part(self, places)

    def close(self) -> None:  # noqa: B027 - most have nothing to give back
        """Give back files that are not kept."""


class Held(Tokens):
    """In memory."""

    def __init__(self, tokens: Tensor) -> None:
        assert tokens.ndim == 4, f"tokens have shape {tuple(tokens.shape)}, expected (n, V, N, D)"
        n, v, t, d = tokens.shape
        self.tokens, self.shape, self.where = tokens, (n, v, t, d), "memory"

    def walk(self, lists: Sequence[Ints]) -> Iterator[Tensor]:
        for places in lists:
            yield self.tokens[torch.from_numpy(places)]


class Filed(Tokens):
    """In a .npy file, of which only the wanted rows are read."""

    def __init__(self, path: Path, dtype: str, keep: bool) -> None:
        """Raises OSError or ValueError when the file cannot be used."""
        self._path, self._keep, self._dtype = path, keep, dtype
        self._rows: npt.NDArray[np.generic] | None = np.load(path, mmap_mode="r", allow_pickle=False)
        if self._rows.ndim != 4 or self._rows.dtype != _RAW[dtype]:
            raise ValueError(f"{path} holds {self._rows.dtype} {self._rows.shape}")
        n, v, t, d = self._rows.shape
        self.shape, self.where = (n, v, t, d), "disk"

    def walk(self, lists: Sequence[Ints]) -> Iterator[Tensor]:
        for places in lists:
            assert self._rows is not None, "tokens were closed"
            yield torch.from_numpy(self._rows[places]).view(_DTYPES[self._dtype])

    def close(self) -> None:
        self._rows = None
        if not self._keep:
            with suppress(OSError):
                self._path.unlink(missing_ok=True)


class Made(Tokens):
    """Computed whenever they are wanted: `make` gives batches of any size for places in the order given."""

    def __init__(self, shape: tuple[int, int, int, int], make: Callable[[Ints], Iterator[Tensor]]) -> None:
        self.shape, self._make, self.where = shape, make, "nowhere"

    def walk(self, lists: Sequence[Ints]) -> Iterator[Tensor]:
        if not lists:
            return
        batches = self._make(np.concatenate(lists))
        have = next(batches)
        for places in lists:
            while len(have) < len(places):
                have = torch.cat([have, next(batches)])
            yield have[: len(places)]
            have = have[len(places) :]


class _Part(Tokens):
    def __init__(self, whole: Tokens, places: Ints) -> None:
        self._whole, self._places = whole, places
        self.shape, self.where = (len(places), *whole.shape[1:]), whole.where

    def walk(self, lists: Sequence[Ints]) -> Iterator[Tensor]:
        return self._whole.walk([self._places[places] for places in lists])


class Sink:
    """Takes tokens (b, V, N, D) in order and ends as `Tokens`.

    Args:
        where: "memory" or "disk".
        file: for "disk", the file; it appears whole or not at all.
    """

    def __init__(self, count: int, where: Literal["memory", "disk"], config: TokensConfig, file: Path | None) -> None:
        assert where == "memory" or file is not None, "tokens on disk need a file"
        self._count, self._where, self._config, self._file = count, where, config, file
        self._done, self._held = 0, torch.empty(0)
        self._map: np.memmap[Any, Any] | None = None
        self._temporary = file.with_name(f".{file.name}.{os.getpid()}") if file else Path()

    def add(self, tokens: Tensor) -> None:
        """The next samples' tokens, already rounded."""
        if not self._done:
            self._open((self._count, *tokens.shape[1:]))
        rows = slice(self._done, self._done + len(tokens))
        if self._map is None:
            self._held[rows] = tokens
        else:
            self._map[rows] = tokens.view(torch.int16).numpy() if tokens.dtype == torch.bfloat16 else tokens.numpy()
        self._done += len(tokens)

    def end(self) -> Tokens:
        """All tokens. Files are kept where the configuration says so."""
        assert self._done == self._count, f"{self._done} tokens of {self._count} samples"
        if self._map is None:
            if self._config.keep and self._file:
                self._save()
            return Held(self._held)
        assert self._file is not None
        self._map.flush()
        self._map = None
        self._temporary.replace(self._file)
        return Filed(self._file, self._config.dtype, self._config.keep)

    def drop(self) -> None:
        """Forget what was added, after an error."""
        self._map = None
        if self._file:
            with suppress(OSError):
                self._temporary.unlink(missing_ok=True)

    def _open(self, shape: tuple[int, ...]) -> None:
        if self._where == "memory":
            self._held = torch.empty(shape, dtype=_DTYPES[self._config.dtype])
            return
        size = math.prod(shape) * _DTYPES[self._config.dtype].itemsize
        try:
            self._temporary.parent.mkdir(parents=True, exist_ok=True)
            self._map = np.lib.format.open_memmap(
                self._temporary, mode="w+", dtype=_RAW[self._config.dtype], shape=shape
            )
            if hasattr(os, "posix_fallocate"):  # a full disk is an error now and not a crash while writing
                with self._temporary.open("r+b") as stream:
                    os.posix_fallocate(stream.fileno(), 0, size)
        except OSError as error:
            self.drop()
            raise DataError(
                f"tokens of {self._count} samples take {size / 2**30:.1f} GiB and cannot be written to "
                f"{self._temporary.parent}: {error.strerror or error}. Make room, or set features.tokens.disk_gib=0: "
                "the encoder then runs again in every epoch"
            ) from None

    def _save(self) -> None:
        assert self._file is not None
        raw = self._held.view(torch.int16) if self._held.dtype == torch.bfloat16 else self._held
        try:
            self._temporary.parent.mkdir(parents=True, exist_ok=True)
            with self._temporary.open("wb") as stream:
                np.save(stream, raw.numpy(), allow_pickle=False)
                stream.flush()
                os.fsync(stream.fileno())
            self._temporary.replace(self._file)
        except OSError as error:
            with suppress(OSError):
                self._temporary.unlink(missing_ok=True)
            warnings.warn(f"tokens could not be cached in {self._file.parent}: {error}", stacklevel=2)


def read(file: Path | None, count: int, config: TokensConfig, memory: bool) -> Tokens | None:
    """Kept tokens of `count` samples, or None when the file is not there or cannot be used."""
    if file is None:
        return None
    try:
        found = Filed(file, config.dtype, config.keep)
    except (OSError, ValueError, EOFError):
        return None
    if len(found) != count:
        return None
    if not memory:
        return found
    (held,) = found.walk([np.arange(count)])
    return Held(held)
