"""Windows and whole episodes for evaluation: frames with their arrays, deterministic, nothing skipped.

Shapes: B windows, n windows in all, T frames, H W height and width.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from jepa.config import ClipConfig, StepsConfig
from jepa.data import augment
from jepa.data.arrays import Values
from jepa.data.batch import Batch
from jepa.data.clipdata import read_video
from jepa.data.manifest import Split
from jepa.data.steps import Steps
from jepa.data.video import clips
from jepa.data.video.choose import choose
from jepa.data.video.decode import decode
from jepa.data.video.pool import ClipDecoder, Row, decode_clips_in_order
from jepa.data.video.probe import probe
from jepa.errors import ConfigError

Int64 = npt.NDArray[np.int64]


def window_starts(split: Split, clip: ClipConfig) -> Int64:
    """Windows that lie wholly in an episode, (n, 2): episode and first frame.

    `clip.clips` of each episode, spread evenly over the places that there are (a single one in the middle) as clips
    are; fewer where there are fewer, none for an episode that is too short.
    """
    found = [
        (i, start)
        for i, room in enumerate(_room(split, clip).tolist())
        if room >= 0
        for start in np.unique(np.minimum((clips.evenly(clip.clips) * (room + 1)).astype(np.int64), room)).tolist()
    ]
    return np.array(found, dtype=np.int64).reshape(-1, 2)


def middle_windows(split: Split, clip: ClipConfig, indices: npt.ArrayLike | None = None) -> Int64:
    """The window in the middle of each episode, (n, 2); one that is too short begins with its first frame."""
    chosen = np.arange(len(split)) if indices is None else np.asarray(indices, dtype=np.int64)
    room = np.maximum(0, _room(split, clip)[chosen])
    return np.stack([chosen, np.minimum((room + 1) // 2, room)], axis=1)


def _room(split: Split, clip: ClipConfig) -> Int64:
    """The last frame (n,) that a whole window may begin with; below 0 for episodes that are too short."""
    assert clip.stride is not None, f"{clip} does not go by frames"
    return split.video[:, 0].astype(np.int64) - 1 - (clip.frames - 1) * clip.stride


class _Windows(ClipDecoder):
    """Windows of a list; number n is the n-th of it."""

    attempts = 0

    def __init__(
        self, steps: Steps, starts: Int64, image_size: tuple[int, int], decoder: str, how: augment.Interpolation
    ) -> None:
        self.steps, self.starts, self.image_size, self.decoder, self.how = steps, starts, image_size, decoder, how
        self.size = (steps.frames, *image_size)

    def start(self) -> None:
        choose(self.decoder)

    def index(self, number: int, attempt: int) -> int:
        return int(self.starts[number, 0])

    def place(self, index: int) -> str:
        return self.steps.split.place(index)

    def clip(self, out: Tensor, number: int, index: int) -> Row:
        split, first, steps = self.steps.split, int(self.starts[number, 1]), self.steps
        last = int(split.video[index, 0]) - 1
        wanted = np.minimum(first + steps.stride * np.arange(steps.frames), last)
        out.copy_(_frames(split, index, wanted, self.image_size, self.decoder, self.how).transpose(0, 1))
        return Row(int(split.labels[index]), steps=steps.read(index, first))


def eval_windows(
    split: Split,
    clip: ClipConfig,
    steps: StepsConfig,
    image_size: tuple[int, int],
    batch: int,
    starts: npt.ArrayLike | None = None,
    *,
    workers: int = 0,
    decoder: str = "auto",
    interpolation: augment.Interpolation = "bilinear",
    deadline: float = 60.0,
) -> Iterator[Batch]:
    """Windows of episodes with their arrays, in order; the largest centred box of each frame, resized.

    Args:
        clip: frames and stride of a window; `clip.clips` windows of each episode.
        starts: (n, 2) episode and first frame of each window; None: `window_starts`, which are whole. One that reaches
            behind an episode's end holds its last frame, and its actions are padded.
        batch: B, most windows of a batch.

    Returns:
        Batches with images uint8 (B, 3, T, H, W), `steps` as in training, `g` the window's place in `starts` and
        `index` its episode.

    Raises:
        ConfigError: the arrays or the clip do not fit, or a window that begins outside its episode.
        DataError: while iterating, when an episode cannot be read.
    """
    reader = Steps(split, clip if clip.short != "loop" else replace(clip, short="pad"), steps)
    chosen = window_starts(split, clip) if starts is None else np.asarray(starts, dtype=np.int64).reshape(-1, 2)
    for episode, first in chosen.tolist():
        if not 0 <= episode < len(split) or not 0 <= first < split.video[episode, 0]:
            there = f"{split.video[episode, 0]:.0f} frames" if 0 <= episode < len(split) else "not there"
            raise ConfigError(f"a window at frame {first} of episode {episode} of split {split.name!r}: {there}")
    numbers = np.arange(len(chosen))
    lists = [numbers[i : i + batch] for i in range(0, len(numbers), batch)]
    maker = _Windows(reader, chosen, image_size, decoder, interpolation)
    return _batches(maker, lists, batch, workers, deadline)


def _batches(maker: _Windows, lists: list[Int64], most: int, workers: int, deadline: float) -> Iterator[Batch]:
    for loaded, images in decode_clips_in_order(maker, lists, most=most, workers=workers, deadline=deadline):
        yield loaded.batch(images)


def read_episode(
    split: Split,
    i: int,
    image_size: tuple[int, int] | None = None,
    *,
    decoder: str = "auto",
    interpolation: augment.Interpolation = "bilinear",
) -> tuple[Tensor, dict[str, Values]]:
    """A whole episode.

    Args:
        image_size: (H, W): the largest centred box of that shape, resized; None: frames as they are stored.

    Returns:
        Frames uint8 (T, 3, H, W), and every array as it is stored: (T, size) of kind frame, (T - 1, size) of action.

    Raises:
        DataError: it cannot be read.
    """
    wanted = np.arange(int(split.video[i, 0]))
    frames = _frames(split, i, wanted, image_size, decoder, interpolation)
    return frames, {name: split.read_array(i, name) for name in split.arrays}


def _frames(
    split: Split, i: int, wanted: Int64, size: tuple[int, int] | None, decoder: str, how: augment.Interpolation
) -> Tensor:
    """uint8 (T, 3, H, W)."""
    video, known = read_video(split, i)
    facts = known or probe(video, strict=False)
    pixels = decode(video, wanted, backend=decoder, facts=facts).pixels
    if size is None:
        return pixels.contiguous(memory_format=torch.contiguous_format)
    box = augment.view_box(facts.height, facts.width, size, 0.5)  # as clips for evaluation are cut
    return clips.fit(pixels, box, size, how).transpose(0, 1)


__all__ = ["eval_windows", "middle_windows", "read_episode", "window_starts"]
