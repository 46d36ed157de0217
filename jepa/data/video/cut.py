"""A part of a video as a video of its own: its packets as they are, where they can be decoded without the rest."""

from __future__ import annotations

import io

import av
import numpy as np

from jepa.data.video.probe import Facts
from jepa.data.video.source import Video, opened
from jepa.data.video.timeline import Timeline
from jepa.data.video.with_pyav import from_key
from jepa.errors import DataError


def frames_of(line: Timeline, span: tuple[float, float]) -> tuple[int, int]:
    """The first frame of a span, and the one behind its last.

    Args:
        span: presentation times in seconds, as the file has them. They are met within half the usual distance of two
            frames, as they come from sums of rounded durations.

    Raises:
        DataError: the span is empty, or reaches beyond the video.
    """
    start, stop = (seconds - line.start for seconds in span)
    first, end = (int(i) for i in np.searchsorted(line.times + line.gap / 2, [start, stop], side="right"))
    if start < -line.gap / 2 or stop > line.duration + line.gap / 2 or first >= end:
        raise DataError(
            f"it should lie from {span[0]:.2f} to {span[1]:.2f} s of a video that goes from {line.start:.2f} to "
            f"{line.start + line.duration:.2f} s: the file is truncated, or the data set's times are wrong"
        )
    return first, end


def copied(video: Video, facts: Facts, first: int, end: int) -> bytes | None:
    """An mp4 of the frames from `first` to before `end`, not coded anew; None where that cannot be.

    It can if a key frame opens it and another one opens what follows, no frame refers over a key frame, and the picture
    is not turned, as the mark of that would be lost.
    """
    ticks, keys = facts.timeline.ticks, set(facts.keys.tolist())
    if facts.open_groups or facts.rotation or first not in keys or not (end == len(facts) or end in keys):
        return None
    left, shift = set(ticks[first:end].tolist()), int(ticks[first])
    group = int(np.searchsorted(facts.key_ticks, shift))
    out = io.BytesIO()
    try:
        with opened(video) as source, av.open(out, "w", format="mp4") as file:
            stream = source.streams.video[[s.index for s in source.streams.video].index(facts.stream)]
            made = file.add_stream_from_template(
                stream, opaque=True
            )  # else it asks for an encoder of the decoder's name
            for packet in from_key(source, stream, facts, group):
                pts, dts = packet.pts, packet.dts
                if pts in left and pts is not None and dts is not None:
                    left.discard(pts)
                    packet.pts, packet.dts = pts - shift, dts - shift
                    packet.stream = made
                    file.mux(packet)
                if not left:
                    break
    except (ArithmeticError, OSError, ValueError):  # PyAV's errors are OSErrors
        return None  # a codec that an mp4 does not take, for example
    return None if left else out.getvalue()


__all__ = ["copied", "frames_of"]
