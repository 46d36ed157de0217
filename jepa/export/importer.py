"""The importer's core: every key of a foreign checkpoint is accounted for.

A key is *used* (it becomes a weight of ours), *ignored* for a stated reason, or an error that names it; a weight of
ours is *loaded* or *filled* for a stated reason, or an error. So a half-loaded model cannot pass for a whole one.
A layout (`jepa.export.ijepa`, ...) says what each key means; this file keeps the books.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from jepa.errors import CheckpointError

WRAPPERS = ("module", "backbone", "_orig_mod")  # left in names by DistributedDataParallel, probes, torch.compile
_SHOWN = 8  # names listed in an error before it only counts


@dataclass
class Ledger:
    """The books of one import. `source` names the file in errors."""

    source: Path
    keys: frozenset[str]
    used: dict[str, str] = field(default_factory=dict)  # foreign key -> our name
    ignored: dict[str, str] = field(default_factory=dict)  # foreign key -> reason
    filled: dict[str, str] = field(default_factory=dict)  # our name or part -> where its weights come from instead
    notes: list[str] = field(default_factory=list)  # what a reader of the result should know

    def use(self, key: str, name: str) -> None:
        """The tensor `key` becomes our weight `name`."""
        self._open(key)
        self.used[key] = name

    def ignore(self, keys: Iterable[str], reason: str) -> None:
        """The keys are not needed, because of `reason`."""
        for key in keys:
            self._open(key)
            self.ignored[key] = reason

    def _open(self, key: str) -> None:
        assert key in self.keys, f"{key!r} is not in {self.source}"
        assert key not in self.used and key not in self.ignored, f"{key!r} is accounted for twice"

    def open_keys(self) -> list[str]:
        """Keys that nothing has been said about yet."""
        return sorted(self.keys - self.used.keys() - self.ignored.keys())

    def close(self) -> None:
        """Raises CheckpointError naming every key that is neither used nor ignored."""
        unknown = self.open_keys()
        if unknown:
            raise CheckpointError(
                f"{self.source}: {len(unknown)} key(s) that this importer does not know: {listing(unknown)}. "
                "Nothing was written. Either the file is of another model family or version, or it holds more than "
                "one model: save the encoder's state dict alone and import that"
            )

    def summary(self) -> dict[str, object]:
        """Counts and reasons as plain values, for the run's import record."""
        reasons: dict[str, int] = {}
        for reason in self.ignored.values():
            reasons[reason] = reasons.get(reason, 0) + 1
        return {
            "keys": len(self.keys),
            "used": len(self.used),
            "ignored": reasons,
            "filled": dict(self.filled),
            "notes": list(self.notes),
        }


def listing(names: Iterable[str]) -> str:
    """Names for an error message: the first few, then a count."""
    all_names = list(names)
    shown = ", ".join(all_names[:_SHOWN])
    return shown if len(all_names) <= _SHOWN else f"{shown}, and {len(all_names) - _SHOWN} more"


def plain_name(key: str) -> str:
    """`key` without the name parts that wrappers leave behind, wherever they stand."""
    return ".".join(part for part in key.split(".") if part not in WRAPPERS)


def plain_names(keys: Iterable[str], source: Path) -> dict[str, str]:
    """Plain name -> key as stored.

    Raises:
        CheckpointError: two keys have the same plain name (a file with a wrapped and an unwrapped copy).
    """
    out: dict[str, str] = {}
    for key in keys:
        name = plain_name(key)
        if name in out:
            raise CheckpointError(f"{source}: {out[name]!r} and {key!r} both mean {name!r}; which one is unclear")
        out[name] = key
    return out


def depth(names: Iterable[str], prefix: str, source: Path) -> int:
    """Number of blocks named ``{prefix}.0 ... {prefix}.{n-1}`` (0: none).

    Raises:
        CheckpointError: a block in the middle is missing.
    """
    pattern = re.compile(rf"{re.escape(prefix)}\.(\d+)\.")
    found = {int(match.group(1)) for name in names if (match := pattern.match(name))}
    missing = sorted(set(range(max(found, default=-1) + 1)) - found)
    if missing:
        raise CheckpointError(f"{source}: block(s) {listing(f'{prefix}.{i}' for i in missing)} are missing")
    return len(found)


def match_weights(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor], source: Path, part: str) -> None:
    """Check that the file's tensors of a part are exactly the weights of ours: same names, same shapes, finite.

    Raises:
        CheckpointError: the names missing or left over, the first shapes that differ, or tensors with NaN or inf.
    """
    missing, extra = sorted(wanted.keys() - found.keys()), sorted(found.keys() - wanted.keys())
    if missing:
        raise CheckpointError(f"{source}: {part} lacks {len(missing)} weight(s): {listing(missing)}")
    if extra:
        raise CheckpointError(f"{source}: {part} has {len(extra)} key(s) our model does not have: {listing(extra)}")
    shapes = [
        f"{name} is {tuple(found[name].shape)}, our model needs {tuple(wanted[name].shape)}"
        for name in sorted(wanted)
        if found[name].shape != wanted[name].shape
    ]
    if shapes:
        raise CheckpointError(f"{source}: {part} has other shapes: {listing(shapes)}")
    wrong = [name for name in sorted(found) if not found[name].is_floating_point()]
    if wrong:
        raise CheckpointError(f"{source}: {part} has weights that are not floating point: {listing(wrong)}")
    broken = [name for name in sorted(found) if not bool(torch.isfinite(found[name]).all())]
    if broken:
        raise CheckpointError(f"{source}: {part} has NaN or infinite values in {listing(broken)}")
