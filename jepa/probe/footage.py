"""Episodes of a built data set at the pace and in the size that a run takes them.

Shapes: L frames of a recording (every stride-th of the episode), A numbers of one action, P of proprioception.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from jepa.config import ClipConfig, DataConfig, StepsConfig
from jepa.data import Manifest, Split, read_episode
from jepa.data.episode import merged
from jepa.data.steps import Steps
from jepa.errors import ConfigError
from jepa.probe.episodes import Recording


@dataclass(frozen=True)
class Footage:
    """The episodes of one split; see `jepa.probe.episodes.Recordings`."""

    manifest: Manifest
    split: Split
    data: DataConfig
    steps: StepsConfig
    stride: int
    lengths: Sequence[int]

    @property
    def name(self) -> str:
        """Of the split."""
        return self.split.name

    @classmethod
    def open(cls, manifest: Manifest, name: str, data: DataConfig) -> Footage:
        """A split of a data set of episodes, read as the run's `data` section says.

        Raises:
            ConfigError: no such split, no episodes, a clip that goes by seconds, an array that there is not.
        """
        where = manifest.root
        if name not in manifest.splits:
            raise ConfigError(
                f"data set {where} has no split {name!r}; it has: {', '.join(sorted(manifest.splits))}. Name others "
                "under splits, or build the data set with train, val and test"
            )
        split = manifest.splits[name]
        if not split.arrays:
            raise ConfigError(
                f"data set {where} holds no episodes (frames with actions and state). Give one that does with "
                "dataset=FOLDER; `jepa data build tworoom --out FOLDER` makes one"
            )
        steps, stride = data.steps or StepsConfig(), data.clip.stride if data.clip else 1
        if stride is None:
            raise ConfigError(
                "data.clip goes by seconds, and actions go from frame to frame: the run needs data.clip.stride"
            )
        clip = replace(data.clip or ClipConfig(stride=1), short="pad")
        Steps(split, clip, steps, "this run's data")  # says what is wrong with names
        whole = np.asarray(split.video)[:, 0].astype(np.int64)
        return cls(manifest, split, data, steps, stride, [(n - 1) // stride + 1 for n in whole.tolist()])

    def actions(self, episode: int) -> Tensor:
        """Those of one episode (L - 1, A), without decoding its frames."""
        about = self.split.arrays[self.steps.action]
        kept = (self.lengths[episode] - 1) * self.stride
        rows = about.numbers(self.split.read_array(episode, self.steps.action))[:kept]
        joined = merged(rows, self.stride, replace(about, chunk="join"))
        return torch.from_numpy(np.ascontiguousarray(joined))

    def read(self, episode: int) -> Recording:
        """One episode.

        Raises:
            DataError: it cannot be read.
        """
        data, stride = self.data, self.stride
        frames, values = read_episode(
            self.split, episode, data.image_size, decoder=data.decoder, interpolation=data.interpolation
        )
        found = {
            name: torch.from_numpy(values[name][::stride].astype(np.float64))
            for name, about in self.split.arrays.items()
            if about.kind == "frame"
        }
        proprio = None
        if self.steps.proprio is not None:
            proprio = found[self.steps.proprio].float()
        return Recording(frames[::stride].contiguous(), self.actions(episode), proprio, found)
