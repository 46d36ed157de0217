"""Facts of a video, without decoding more than one frame of it.

Every packet is looked at, because headers lie: the number of frames, their exact presentation times and the key
frames come from the packets. One packet is in memory at a time and only its numbers are kept (some 25 bytes for a
frame), so ten hours of video cost seconds, not memory. The first frame is decoded for what only a decoder knows: the
real size, the pixel format, the rotation, and whether it decodes at all.

Shapes: N frames, K key frames.
"""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from jepa.data.decode import MAX_PIXELS
from jepa.data.video.source import Video, VideoError, opened, reason
from jepa.data.video.timeline import MAX_FRAMES, Timeline
from jepa.errors import DataError

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.packet import Packet
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

Int64 = npt.NDArray[np.int64]
_COVER = 0x400  # FFmpeg's mark of a cover picture, which is no video
_PATIENCE = 256  # packets offered to the decoder for a first frame
_CHUNK = 4096  # packets whose numbers are Python objects at once
_NONE = -(2**63)  # FFmpeg's mark of a missing time stamp
_CLAIMLESS = ("mpeg", "mpegts", "gif")  # their headers claim no length; what FFmpeg gives is its estimate
_TOLERANCE = 0.05  # share of its length by which a header may be wrong


@dataclass(frozen=True, eq=False)
class Facts:
    """What is known of a video."""

    container: str  # FFmpeg's names, e.g. "mov,mp4,m4a,3gp,3g2,mj2"
    codec: str  # e.g. "h264"
    stream: int  # number of the video stream in the file
    height: int  # as displayed, after the rotation
    width: int
    rotation: int  # degrees counter-clockwise that turn the stored picture into the displayed one: 0, 90, 180, 270
    pixel_format: str  # e.g. "yuv420p10le"
    bits: int  # per colour component
    full_range: bool  # luma 0..255 instead of 16..235
    matrix: str  # "bt709", "bt601", "bt2020" or "rgb"; what is unmarked counts as bt601, as FFmpeg has it
    interlaced: bool
    open_groups: bool  # some frames are shown before a key frame but stored after it, and need the one before as well
    aspect: Fraction  # width of a pixel over its height; pixels are never resampled for it
    timeline: Timeline  # when the frames are shown
    keys: Int64  # (K,) frames that can be decoded without others, in shown order
    key_ticks: Int64  # (K',) presentation times of all key packets, hidden ones before an edit included
    key_seeks: Int64  # (K',) and where to seek for them (decoding time stamps)
    claimed: float  # seconds that the header claims; 0: it claims nothing
    declared_fps: float  # frames per second in the header; 0: none

    def __len__(self) -> int:
        return len(self.timeline)

    @property
    def stored_size(self) -> tuple[int, int]:
        """(height, width) of the picture before the rotation."""
        return (self.width, self.height) if self.rotation in (90, 270) else (self.height, self.width)

    @property
    def numbers(self) -> tuple[float, float, float]:
        """Frames, frames per second, seconds: a row of video.npy."""
        return float(len(self)), float(self.timeline.fps), float(self.timeline.duration)

    def contradiction(self) -> str:
        """Why the header's claim about the length cannot be true; empty if it can."""
        found = self.timeline.duration
        # less than there is comes from writers that count frames instead of time, so it takes more to be a lie
        least = self.claimed - max(_TOLERANCE * self.claimed, 2 * self.timeline.gap)
        if not self.claimed or least <= found <= 1.5 * self.claimed + 1:
            return ""
        return f"its header claims {self.claimed:.2f} s, its {len(self)} frames last {found:.2f} s"

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; `from_dict` gives the same facts again."""
        plain = {k: v for k, v in self.__dict__.items() if isinstance(v, str | int | float)}
        return plain | {
            "aspect": [self.aspect.numerator, self.aspect.denominator],
            "timeline": self.timeline.to_dict(),
            "keys": self.keys.tolist(),
            "key_ticks": self.key_ticks.tolist(),
            "key_seeks": self.key_seeks.tolist(),
        }

    def to_json(self) -> bytes:
        """`to_dict` on one line, always the same for the same facts."""
        return json.dumps(self.to_dict(), separators=(",", ":"), sort_keys=True).encode()

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Facts:
        """What `to_dict` gave.

        Raises:
            DataError: the values are no facts of a video.
        """
        try:
            arrays = {k: np.asarray(values[k], dtype=np.int64) for k in ("keys", "key_ticks", "key_seeks")}
            odd = {"aspect": Fraction(*values["aspect"]), "timeline": Timeline.from_dict(values["timeline"])}
            return cls(**(values | arrays | odd))
        except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
            raise DataError(f"not the facts of a video ({error}): build the dataset again") from None


def probe(video: Video, strict: bool = True) -> Facts:
    """Facts of a video.

    Args:
        video: its bytes, or the file.
        strict: also refuse a video whose header claims another length than its packets have.

    Raises:
        VideoError: it is missing, empty, no video, without a picture, frame or time stamp, truncated, too large or
            broken, or lies about its length; `kind` says which.
        ConfigError: PyAV is not installed.
        OSError: the storage fails.
    """
    with opened(video) as container:
        return examine(container, strict)


def examine(container: InputContainer, strict: bool = False) -> Facts:
    """`probe` of an open container, which is left somewhere inside.

    Raises:
        VideoError: as for `probe`.
    """
    stream = _stream(container)
    packets = _Packets(container, stream)
    timeline, key_ticks, key_seeks = packets.timeline()
    frame = _first_frame(container, stream, int(key_seeks[0]) if len(key_seeks) else None)
    rotation = round(frame.rotation / 90) * 90 % 360
    height, width = (frame.width, frame.height) if rotation in (90, 270) else (frame.height, frame.width)
    if height * width > MAX_PIXELS:
        raise VideoError(f"its frames have {width}x{height} pixels, at most {MAX_PIXELS} are decoded", "large")
    base = timeline.base
    if container.format.name in _CLAIMLESS:
        claimed = 0.0
    else:
        claimed = float(stream.duration * base) if stream.duration else packets.claimed(container)
    facts = Facts(
        container=container.format.name,
        codec=stream.codec_context.codec.canonical_name,
        stream=stream.index,
        height=height,
        width=width,
        rotation=rotation,
        pixel_format=frame.format.name,
        bits=max((c.bits for c in frame.format.components), default=8),
        full_range=int(frame.color_range) == 2 or frame.format.name.startswith("yuvj"),
        matrix=_matrix(frame),
        interlaced=bool(frame.interlaced_frame),
        open_groups=packets.open_groups(),
        aspect=Fraction(stream.sample_aspect_ratio or 1) or Fraction(1),
        timeline=timeline,
        keys=np.flatnonzero(np.isin(timeline.ticks, key_ticks)).astype(np.int64),
        key_ticks=key_ticks,
        key_seeks=key_seeks,
        claimed=claimed,
        declared_fps=float(stream.average_rate or 0),
    )
    if strict:
        packets.check_complete(container)
        wrong = facts.contradiction()
        if wrong:
            raise VideoError(
                f"{wrong}: it is truncated, or its header lies. Fetch it again, or copy what there is into a new file "
                "with ffmpeg -i IN -c copy OUT.mp4",
                "lying",
            )
    return facts


def _stream(container: InputContainer) -> VideoStream:
    pictures = [s for s in container.streams.video if not int(s.disposition) & _COVER]
    if not pictures:
        there = ", ".join(sorted({s.type for s in container.streams})) or "nothing"
        raise VideoError(f"the {container.format.name} file has no video stream (it holds {there}): leave it out",
                         "silent-picture")  # fmt: skip
    best = container.streams.best("video")
    return best if best in pictures else pictures[0]


def _numbers(packet: Packet[Any]) -> tuple[int, ...]:
    pts, dts = packet.pts, packet.dts
    return (
        packet.stream_index,
        _NONE if pts is None else pts,
        _NONE if dts is None else dts,
        packet.duration or 0,
        packet.is_keyframe,
        packet.is_discard,
        packet.is_corrupt,
        packet.size,
    )


class _Packets:
    """The numbers of all packets of a video stream, read once, a chunk at a time."""

    def __init__(self, container: InputContainer, stream: VideoStream) -> None:
        self.stream = stream
        self.other_end = 0.0  # seconds at which the last packet of the other streams ends
        chunks: list[Int64] = []
        # where the header gives one length for all streams, the sound may be what is that long
        demuxed = container.demux([stream] if stream.duration else list(container.streams))
        try:
            while rows := list(map(_numbers, itertools.islice(demuxed, _CHUNK))):
                chunks.append(self._own(np.array(rows, dtype=np.int64), container))
                if sum(map(len, chunks)) > MAX_FRAMES:
                    raise VideoError(f"it has more than {MAX_FRAMES} frames: cut it into parts", "large")
        except (ArithmeticError, OSError) as error:  # PyAV's errors are OSErrors
            there = f"the container is damaged after {sum(map(len, chunks))} packets"
            raise VideoError(f"{there}: {reason(error)}", "truncated") from None
        table = np.concatenate(chunks) if chunks else np.empty((0, 8), np.int64)
        self.count = len(table)
        self.damaged = bool(self.count and table[-1, 6])  # the last packet is cut
        _, self.pts, self.dts, self.durations = table[:, :4].T
        self.stamped, self.key, self.hidden = self.pts != _NONE, table[:, 4] == 1, table[:, 5] == 1

    def _own(self, table: Int64, container: InputContainer) -> Int64:
        """The rows of the video stream; notes where the others end. Packets without content mark the stream's end."""
        own = table[:, 0] == self.stream.index
        for other in np.unique(table[~own, 0]).tolist():
            rows = table[(table[:, 0] == other) & (table[:, 1] != _NONE)]
            base = container.streams[other].time_base
            if len(rows) and base:
                self.other_end = max(self.other_end, float(int((rows[:, 1] + rows[:, 3]).max()) * base))
        kept: Int64 = table[own & (table[:, 7] > 0)]
        return kept

    def timeline(self) -> tuple[Timeline, Int64, Int64]:
        """The timeline, and the key packets' presentation times (K',) and where to seek for them (K',), sorted."""
        if not self.count:
            raise VideoError("its video stream has no frames: leave it out", "no-frames")
        base = self.stream.time_base
        if base is None or 2 * np.count_nonzero(self.stamped) < self.count or self._guessed():
            raise VideoError(
                "nothing in the file says when its frames are shown (no time stamps, so no fps): write it anew, for "
                "example with ffmpeg -r 25 -i IN -c:v libx264 OUT.mp4 for 25 frames per second",
                "no-times",
            )
        shown = self.stamped & ~self.hidden
        if not shown.any():
            raise VideoError("its header hides every frame (edit list): leave it out", "no-frames")
        ticks, first = np.unique(self.pts[shown], return_index=True)
        last = int(self.durations[shown][first[-1]])
        if last <= 0 and len(ticks) > 1:
            last = int(np.median(np.diff(ticks)))
        if last <= 0 and self.stream.average_rate:
            last = round(1 / (self.stream.average_rate * base))
        keys = self.stamped & self.key
        pts = self.pts[keys]
        seeks = np.where(self.dts[keys] == _NONE, pts, np.minimum(pts, self.dts[keys]))
        order = np.argsort(pts, kind="stable")
        return Timeline(ticks, base, max(0, last)), pts[order], seeks[order]

    def _guessed(self) -> bool:
        """Whether the times are FFmpeg's guess: AVI has none where frames are stored in another order than shown."""
        context = self.stream.codec_context
        unordered = self.stream.container.format.name == "avi" and context.name in ("h264", "hevc")
        return unordered and bool(context.has_b_frames) and bool((np.diff(self.pts[self.stamped]) > 0).all())

    def open_groups(self) -> bool:
        """Whether a frame is shown before a key frame that is stored before it."""
        newest = np.maximum.accumulate(np.where(self.key & self.stamped, self.pts, _NONE))
        return bool((self.stamped & (self.pts < newest)).any())

    def claimed(self, container: InputContainer) -> float:
        """Seconds that the header claims for the video stream, as far as it can be told from the whole file's."""
        if not container.duration:
            return 0.0
        whole = container.duration / 1_000_000
        begin = (container.start_time or 0) / 1_000_000
        # the longest stream makes the file's length; when that is another one, nothing is said about this one
        return 0.0 if self.other_end - begin > whole * (1 - _TOLERANCE) else whole

    def check_complete(self, container: InputContainer) -> None:
        """Raise if the file ends before its own index does."""
        beyond = 0
        if "mp4" in container.format.name and container.size > 0:
            beyond = sum(1 for e in self.stream.index_entries if e.pos + e.size > container.size)
        if beyond or self.damaged:
            rest = f"{beyond} frames of its index lie behind its end" if beyond else "its last frame is cut"
            raise VideoError(f"the file is truncated: {rest}. Fetch it again, or leave it out", "truncated")


def _first_frame(container: InputContainer, stream: VideoStream, seek: int | None) -> VideoFrame:
    """The first frame that the decoder gives; nothing else is decoded."""
    context = stream.codec_context
    context.thread_count = 1
    if context.width * context.height > MAX_PIXELS:
        size = f"{context.width}x{context.height}"
        raise VideoError(f"it claims frames of {size} pixels, at most {MAX_PIXELS} are decoded", "large")
    try:
        # the first packet alone makes a frame, unless an edit hides it: then the packets after it have to follow
        for most in (1, _PATIENCE):
            container.seek(0 if seek is None else seek, stream=stream, backward=True)
            for packet in itertools.islice(container.demux(stream), most):
                frames = [*context.decode(packet), *(context.decode(None) if most == 1 else [])]
                if frames:
                    return frames[0]
            context.flush_buffers()
    except (ArithmeticError, OSError, ValueError) as error:
        raise VideoError(f"its first frame cannot be decoded: {reason(error)}", "broken") from None
    raise VideoError(f"the {context.name} decoder makes no frame of its first packets: leave it out", "broken")


def _matrix(frame: VideoFrame) -> str:
    if frame.format.is_rgb:
        return "rgb"
    return {1: "bt709", 9: "bt2020", 10: "bt2020"}.get(int(frame.colorspace), "bt601")
