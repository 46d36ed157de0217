"""A grid of runs from lists on the command line: ``optim.lr=1e-3,3e-4 seed=0,1`` are four.

Commas inside brackets, braces or quotes belong to one value: ``optim.betas=[0.9,0.95]`` is no sweep,
``optim.betas=[0.9,0.95],[0.9,0.99]`` is one of two.
"""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass

from jepa.errors import ConfigError

_CLOSING = {"[": "]", "{": "}", "(": ")"}
_MOST = 1000  # runs; SLURM's own limit for an array, MaxArraySize, is 1001 unless somebody raised it


@dataclass(frozen=True)
class Point:
    """One run of a grid."""

    name: str  # of its folder; empty when the grid is this one run
    overrides: tuple[str, ...]


def split(text: str) -> list[str]:
    """A value at its outer commas.

    Raises:
        ConfigError: brackets or quotes that are not closed.
    """
    parts, waiting, quote, start = [], [], "", 0
    for i, letter in enumerate(text):
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "\"'" and text[start:i].rstrip()[-1:] in ("", *"[{(,:"):  # an apostrophe inside a word is none
            quote = letter
        elif letter in _CLOSING:
            waiting.append(_CLOSING[letter])
        elif waiting and letter == waiting[-1]:
            waiting.pop()
        elif letter == "," and not waiting:
            parts.append(text[start:i])
            start = i + 1
    if waiting or quote:
        raise ConfigError(f"{text!r}: {(waiting or [quote])[-1]} is missing")
    return [part.strip() for part in [*parts, text[start:]]]


def grid(overrides: list[str], seeds: int | None = None) -> list[Point]:
    """Every run that the overrides ask for, the last list running fastest.

    Args:
        seeds: also with seeds 0 to seeds - 1.

    Raises:
        ConfigError: an empty or repeated value, a key given twice, or more runs than one array holds.
    """
    axes: list[list[str]] = []
    swept: list[str] = []
    for override in overrides:
        key, sign, text = override.partition("=")
        values = split(text) if sign else [text]
        if len(values) == 1:
            axes.append([override])
            continue
        if "" in values:
            raise ConfigError(
                f"{override!r}: a value of the list is empty. Write KEY=A,B,C, and one that holds commas in quotes"
            )
        if len(set(values)) < len(values):
            raise ConfigError(f"{override!r}: a value is given twice; two runs would be the same")
        swept.append(key.strip())
        axes.append([f"{key}={value}" for value in values])
    if seeds is not None:
        if seeds < 1:
            raise ConfigError(f"--seeds {seeds}: give how many, at least 1")
        if any(override.partition("=")[0].strip() == "seed" for override in overrides):
            raise ConfigError(f"--seeds {seeds} and seed=...: give only one of them")
        swept.append("seed")
        axes.append([f"seed={n}" for n in range(seeds)])
    keys = [override.partition("=")[0].strip() for override in overrides]
    twice = [key for key in swept if keys.count(key) > 1]
    if twice:
        raise ConfigError(f"{twice[0]} is a list and is given once more: give it once")
    points = [tuple(point) for point in itertools.product(*axes)]
    if len(points) > _MOST:
        raise ConfigError(f"these lists make {len(points)} runs, and an array holds {_MOST} at most: sweep over less")
    names = _distinct([_name(point, swept) for point in points])
    return [Point(name, point) for name, point in zip(names, points, strict=True)]


def _name(point: tuple[str, ...], swept: list[str]) -> str:
    """`lr=0.001_seed=0`: the last part of each key that is swept over, where that says which one it is."""
    short = [key.split(".")[-1] for key in swept]
    words = []
    for override in point:
        key, _, value = override.partition("=")
        if key.strip() in swept:
            last = key.strip().split(".")[-1]
            shown = last if short.count(last) == 1 else key.strip()
            words.append(f"{shown}={re.sub(r'[^A-Za-z0-9.+-]+', '-', value.strip()).strip('-') or 'none'}")
    return "_".join(words)[:120]


def _distinct(names: list[str]) -> list[str]:
    """Values that differ only in signs that no folder name should have get a number."""
    seen: dict[str, int] = {}
    out = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        out.append(name if seen[name] == 1 else f"{name}-{seen[name]}")
    return out


__all__ = ["Point", "grid", "split"]
