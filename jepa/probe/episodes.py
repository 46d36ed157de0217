"""Windows of recorded episodes as a world model takes them.

Everything here counts in the model's own time: a recording holds every stride-th frame of an episode, and its actions
lead from one of those to the next. `Footage` reads recordings of a split; anything with its two methods will do.

Shapes: L frames of a recording, B windows, A numbers of one action, P of proprioception.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from jepa import keyed
from jepa.data import blank
from jepa.errors import DataError
from jepa.methods.world import History
from jepa.monitor.imagination import Windows
from jepa.nn.tokens import Normalise

Place = tuple[int, int]  # episode, and a frame of its recording


@dataclass(frozen=True)
class Recording:
    """One episode at the model's pace."""

    frames: Tensor  # (L, 3, h, w) uint8 of the size the model takes
    actions: Tensor  # (L - 1, A) float32
    proprio: Tensor | None  # (L, P) float32
    arrays: Mapping[str, Tensor]  # of frames: (L, size) float64


class Recordings(Protocol):
    """Episodes of a split."""

    @property
    def name(self) -> str:
        """Of the split, for messages."""
        ...

    @property
    def lengths(self) -> Sequence[int]:
        """L of each episode."""
        ...

    def actions(self, episode: int) -> Tensor:
        """Those of one episode alone (L - 1, A), without decoding its frames."""
        ...

    def read(self, episode: int) -> Recording:
        """One of them. Raises DataError when it cannot be read."""
        ...


def spread_places(lengths: Sequence[int], each: int, before: int, after: int) -> list[Place]:
    """At most `each` frames of every episode, evenly spread, with `before` frames up to and with it, `after` behind.

    Episodes that are too short for one are left out.
    """
    found = []
    for episode, length in enumerate(lengths):
        first, last = before - 1, length - 1 - after
        if first <= last:
            found += [(episode, int(f)) for f in np.unique(np.linspace(first, last, each).round().astype(np.int64))]
    return found


def some(count: int, most: int | None, seed: int) -> list[int]:
    """Episodes to look at: all, or `most` of them drawn by `seed`, rising."""
    if most is None or most >= count:
        return list(range(count))
    return sorted(keyed.generator("episodes", seed).permutation(count)[:most].tolist())


def by_episode(places: Iterable[Place]) -> dict[int, list[int]]:
    """Frames by episode, in order."""
    found: dict[int, list[int]] = {}
    for episode, frame in places:
        found.setdefault(episode, []).append(frame)
    return found


@dataclass(frozen=True)
class Batch:
    """Windows cut from recordings, frames as yet as they are shown."""

    frames: Tensor  # (B, T, 3, h, w) uint8
    actions: Tensor  # (B, T - 1, A)
    proprio: Tensor | None  # (B, T, P)
    arrays: dict[str, Tensor]  # (B, T, size) float64
    episode: list[int]
    place: list[int]  # the frame of its recording up to which a window was asked for, before what follows

    def there(self, frames: int, share: float) -> npt.NDArray[np.bool_]:
        """Which of the first `frames` are not blank (B, frames), by episode and place; the first one never is."""
        episode, place = (np.array(x, dtype=np.int64) for x in (self.episode, self.place))
        return blank.shown("blank.window", 0, episode, frames, share, sub=place)

    def blanked(self, there: npt.NDArray[np.bool_]) -> Batch:
        """The same with the frames black that are not there (B, T)."""
        return replace(self, frames=self.frames * torch.from_numpy(there)[..., None, None, None])

    def to(self, device: torch.device, normalise: Normalise, seen: int, share: float = 0.0) -> Windows:
        """For a roll-out from the first `seen` frames, of which a `share` is blank to the roll-out."""
        history = self.history(device, normalise)
        found = Windows(history.frames, history.actions, history.proprio, seen)
        if not share:
            return found
        there = self.there(seen, share)
        later = np.ones((len(there), self.frames.shape[1] - seen), dtype=bool)
        shown = self.blanked(np.concatenate([there, later], axis=1)).history(device, normalise)
        return replace(found, view=shown.frames[:, :seen], last=torch.from_numpy(seen - 1 - blank.since(there)[:, -1]))

    def history(self, device: torch.device, normalise: Normalise) -> History:
        """All frames as seen."""
        frames = normalise(self.frames.flatten(0, 1).to(device)).unflatten(0, self.frames.shape[:2])
        proprio = None if self.proprio is None else self.proprio.to(device)
        return History(frames, self.actions.to(device), proprio)


def batches(recordings: Recordings, places: Sequence[Place], before: int, after: int, size: int) -> Iterator[Batch]:
    """Windows around places, in their order, at most `size` at a time: `before` frames up to the place, `after` more.

    Raises:
        DataError: an episode that cannot be read, or whose numbers are not finite.
    """
    for episode, frames in by_episode(places).items():
        found = recordings.read(episode)
        _check(found, recordings.name, episode)
        for start in range(0, len(frames), size):
            spans = [slice(f + 1 - before, f + 1 + after) for f in frames[start : start + size]]
            inner = [slice(s.start, s.stop - 1) for s in spans]
            yield Batch(
                torch.stack([found.frames[s] for s in spans]),
                torch.stack([found.actions[s] for s in inner]),
                None if found.proprio is None else torch.stack([found.proprio[s] for s in spans]),
                {name: torch.stack([rows[s] for s in spans]) for name, rows in found.arrays.items()},
                [episode] * len(spans),
                frames[start : start + size],
            )


def _check(found: Recording, split: str, episode: int) -> None:
    for what, numbers in (("actions", found.actions), ("proprioception", found.proprio)):
        if numbers is not None and not bool(torch.isfinite(numbers).all()):
            raise DataError(f"episode {episode} of split {split!r}: its {what} are not all finite. Build it again")
