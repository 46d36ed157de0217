"""Decoding with PyAV, which brings its own FFmpeg.

Only what a frame depends on is decoded: from the key frame before it up to it, leaving out on the way the frames that
nothing refers to (half of them in usual H.264), which changes no pixel of the others.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from typing import Literal

import av
import numpy as np
import numpy.typing as npt
import torch
from av.container import InputContainer
from av.filter import Graph
from av.packet import Packet
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame
from av.video.reformatter import Interpolation, VideoReformatter
from av.video.stream import VideoStream
from torch import Tensor

from jepa.data.video.backend import Int64, Unsuited
from jepa.data.video.probe import Facts
from jepa.data.video.source import Video, opened, reason

name = "pyav"
_Skip = Literal["DEFAULT", "NONREF"]
_BEGINNING = -(2**62)  # before every time stamp
# decoders that may be told for every packet to pass over frames that nothing refers to
_SKIPPING = ("h264", "hevc")
_PLAIN = ("yuv420p", "yuvj420p", "yuv444p")  # of 4:4:4 every pixel has its colour, so no mark says where it lies
_UNSEEKABLE = ("mpeg",)  # a program stream: seeking lands inside of frames


def versions() -> dict[str, str]:
    """Versions of the library and of the FFmpeg in it."""
    return {"av": av.__version__, "ffmpeg": av.ffmpeg_version_info}


def frames(video: Video, facts: Facts, indices: Int64) -> Tensor:
    """See backend.Backend."""
    with opened(video) as container:
        return read(container, facts, indices)


def read(container: InputContainer, facts: Facts, indices: Int64) -> Tensor:
    """`frames` of an open container."""
    stream = container.streams[facts.stream]
    assert isinstance(stream, VideoStream), f"stream {facts.stream} is no video: facts of another file?"
    if not stream.codec_context.is_open:
        stream.codec_context.thread_count = 1
    height, width = facts.stored_size
    out = np.empty((len(indices), height, width, 3), dtype=np.uint8)
    wanted = facts.timeline.ticks[indices]
    # the last key frame shown at or before each: frames shown before it may still need the one before
    groups = np.searchsorted(facts.key_ticks, wanted, side="right") - 1
    paint = _Painter(out, dict(zip(wanted.tolist(), range(len(wanted)), strict=True)), facts)
    skip: _Skip = "NONREF" if facts.codec in _SKIPPING else "DEFAULT"
    try:
        for group, members in groupby(zip(groups.tolist(), wanted.tolist(), strict=True), key=lambda pair: pair[0]):
            left, back = {tick for _, tick in members}, 0
            while left:
                # the key frames of a gradual refresh give no picture at once: then start from earlier ones
                packets = from_key(container, stream, facts, max(-1, group - back))
                _decode(packets, stream.codec_context, left, skip, paint)
                if left and group - back < 0:
                    raise Unsuited(f"{len(left)} frames never come out of the decoder")
                back = 2 * back + 1
    except (ArithmeticError, OSError, ValueError) as error:
        raise Unsuited(reason(error)) from None
    turned = np.rot90(out, facts.rotation // 90, (1, 2))
    return torch.from_numpy(np.ascontiguousarray(turned))


def from_key(container: InputContainer, stream: VideoStream, facts: Facts, group: int) -> Iterator[Packet[VideoStream]]:
    """The packets from key frame number `group` (of `facts.key_ticks`) on; from the first one for -1."""
    key = int(facts.key_ticks[group]) if group >= 0 else None
    seekable = key is not None and facts.container not in _UNSEEKABLE
    # seeking is approximate in some containers: when it lands behind the key frame, read from the beginning
    for place in (int(facts.key_seeks[group]) if seekable else _BEGINNING, _BEGINNING):
        container.seek(place, stream=stream, backward=True)
        for packet in container.demux(stream):
            if key is None or packet.pts == key:
                yield packet
                key = None
            elif packet.dts is not None and packet.dts > key:
                break
        if key is None:
            return


def _decode(
    packets: Iterator[Packet[VideoStream]], context: VideoCodecContext, wanted: set[int], skip: _Skip, paint: _Painter
) -> None:
    """Decode the frames with these times from `packets`; those that do come out are taken from `wanted`."""
    left = set(wanted)  # packets not yet met
    for packet in packets:
        context.skip_frame = skip if packet.pts is not None and packet.pts not in left else "DEFAULT"
        _paint(context.decode(packet if packet.size else None), wanted, paint)
        left.discard(packet.pts)
        if not left:
            break
    _paint(context.decode(None), wanted, paint)  # those it holds back to bring them into order


def _paint(frames: list[VideoFrame], wanted: set[int], paint: _Painter) -> None:
    for frame in frames:
        if frame.pts is not None and frame.pts in wanted:
            paint(frame, frame.pts)
            wanted.discard(frame.pts)


class _Painter:
    """Writes decoded frames to their places as RGB."""

    def __init__(self, out: npt.NDArray[np.uint8], places: dict[int, int], facts: Facts) -> None:
        self.out, self.places = out, places
        # the usual pictures are converted by a routine that looks at no marks
        self.unmark = facts.pixel_format not in _PLAIN or facts.height % 2 == 1 or facts.width % 2 == 1
        self.base = facts.timeline.base
        self.reformatter = VideoReformatter()
        self.graph: Graph | None = None

    def __call__(self, frame: VideoFrame, tick: int) -> None:
        place = self.out[self.places[tick]]
        if (frame.height, frame.width) != place.shape[:2]:
            raise Unsuited(
                f"the picture changes its size in the middle, from {place.shape[1]}x{place.shape[0]} to "
                f"{frame.width}x{frame.height}"
            )
        if self.unmark or frame.interlaced_frame:
            frame = self._unmarked(frame)
        rgb = self.reformatter.reformat(frame, format="rgb24", interpolation=Interpolation.BICUBIC, threads=1)
        plane = rgb.planes[0]
        pixels = np.frombuffer(plane, dtype=np.uint8)  # type: ignore[call-overload]  # a buffer, say what its stubs may
        pixels = pixels.reshape(place.shape[0], plane.line_size)
        place[:] = pixels[:, : 3 * place.shape[1]].reshape(place.shape)

    def _unmarked(self, frame: VideoFrame) -> VideoFrame:
        """The same picture, no longer marked as interlaced nor with the place of its chroma samples.

        FFmpeg 8 converts each half picture by itself and shifts the chroma for these marks; the FFmpegs of the other
        libraries do not.
        """
        if self.graph is None:
            self.graph = Graph()
            source = self.graph.add_buffer(
                width=frame.width, height=frame.height, format=frame.format, time_base=self.base
            )
            plain = self.graph.add("setparams", "chroma_location=unspecified:field_mode=prog")
            self.graph.link_nodes(source, plain, self.graph.add("buffersink"))
            self.graph.configure()
        self.graph.push(frame)
        unmarked = self.graph.pull()
        assert isinstance(unmarked, VideoFrame), f"the filter gave {unmarked!r}"
        return unmarked
