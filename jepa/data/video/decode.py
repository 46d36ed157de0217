"""One decoding call over three libraries: frames by number or by time, as uint8 RGB.

The times are computed from the file's packets, so they are the same whatever library decodes. A library that cannot
give a file's frames exactly (decord: AV1, edit lists, open groups of pictures; torchcodec: AVI, transport and program
streams) hands it to PyAV, which reads them all.

Shapes: T frames, H W height and width as displayed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from jepa.data.video.backend import Backend, Unsuited
from jepa.data.video.choose import choose, load
from jepa.data.video.probe import Facts, probe
from jepa.data.video.source import Video, VideoError
from jepa.errors import DataError

Int64 = npt.NDArray[np.int64]
Float64 = npt.NDArray[np.float64]
MAX_BYTES = 4 << 30  # decoded frames of one call


@dataclass(frozen=True, eq=False)
class Frames:
    """Decoded frames."""

    pixels: Tensor  # uint8 (T, 3, H, W) RGB, stored height-width-channel, which the resize likes best
    times: Float64  # (T,) seconds from the first frame of the video
    indices: Int64  # (T,) their numbers in the video
    backend: str  # the library that decoded them

    def __len__(self) -> int:
        return len(self.indices)


def grid(start: float, fps: float, frames: int) -> Float64:
    """Times of `frames` frames at `fps` frames per second from `start` seconds on, (frames,)."""
    return start + np.arange(frames) / fps


def decode(
    video: Video,
    indices: Sequence[int] | Int64 | None = None,
    *,
    times: Sequence[float] | Float64 | None = None,
    backend: Backend | str = "auto",
    facts: Facts | None = None,
) -> Frames:
    """Frames of a video, in the order asked for; the same one may be asked for more than once.

    Args:
        video: its bytes, or the file.
        indices: numbers of frames (T,), counted from 0 as they are shown.
        times: instead of numbers, seconds from the first frame (T,); each gives the frame shown then.
            `grid` makes them from a start, a rate and a count.
        backend: a library from `choose`, or its name.
        facts: what `probe` said of this video; without it that is found out first.

    Raises:
        VideoError: it cannot be used or decoded; `kind` says why.
        DataError: a frame that it has not, or too many pixels at once.
        ConfigError: the library does not work here.
        OSError: the storage fails.
    """
    chosen = choose(backend) if isinstance(backend, str) else backend
    known = facts or probe(video, strict=False)
    wanted = _wanted(known, indices, times)
    unique, inverse = np.unique(wanted, return_inverse=True)
    needed = len(wanted) * known.height * known.width * 3
    if needed > MAX_BYTES:
        size = f"{len(wanted)} frames of {known.width}x{known.height}"
        raise VideoError(f"{size} are {needed / 1e9:.1f} GB, at most {MAX_BYTES / 1e9:.1f} GB are decoded", "large")
    for library in dict.fromkeys((chosen.name, "pyav")):
        user = chosen if library == chosen.name else load(library)
        try:
            pixels = _checked(user.frames(video, known, unique), known)
        except Unsuited as error:
            problem = str(error)
            continue
        if len(unique) < len(wanted) or (wanted[1:] < wanted[:-1]).any():
            pixels = pixels[torch.from_numpy(inverse)]
        return Frames(pixels.permute(0, 3, 1, 2), known.timeline.times[wanted], wanted, library)
    raise VideoError(f"the {known.codec} video cannot be decoded: {problem}. Leave it out, or code it anew", "broken")


def _wanted(facts: Facts, indices: Sequence[int] | Int64 | None, times: Sequence[float] | Float64 | None) -> Int64:
    """The numbers of the frames asked for, (T,)."""
    if times is not None and indices is None:
        found: Int64 = facts.timeline.at(times)
    elif indices is not None and times is None:
        found = np.asarray(indices, dtype=np.int64)
    else:
        raise DataError("give either the numbers of the frames or their times")
    if not len(found):
        raise DataError("no frames are asked for")
    if found.min() < 0 or found.max() >= len(facts):
        wrong = int(found.max() if found.max() >= len(facts) else found.min())
        raise DataError(f"frame {wrong} is asked for, the video has frames 0 to {len(facts) - 1}")
    return found


def _checked(pixels: Tensor, facts: Facts) -> Tensor:
    """(T, H, W, 3) as it came, if its size is right."""
    if tuple(pixels.shape[1:3]) != (facts.height, facts.width):
        found, first = f"{pixels.shape[2]}x{pixels.shape[1]}", f"{facts.width}x{facts.height}"
        raise Unsuited(f"the frames have {found} pixels, the first one had {first}")
    return pixels
