"""Where a video's bytes are, what container they are in, and what can be wrong with them.

Data is not code: FFmpeg also "plays" playlists that name other files and addresses. So the container is told by the
first bytes, never by the name, only the ones listed here are opened, and nothing but the file itself may be read.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from jepa.data.decode import MAX_PIXELS
from jepa.errors import ConfigError, DataError

if TYPE_CHECKING:
    from av.container import InputContainer

Video = bytes | Path  # an encoded video, or the file that holds one

Kind = Literal[
    "missing",  # no such file
    "empty",  # zero bytes
    "foreign",  # no video container that is read here
    "truncated",  # ends before its own index does
    "silent-picture",  # sound only: no video stream
    "no-frames",  # a video stream without a frame
    "no-times",  # nothing says when its frames are shown
    "lying",  # its header claims another length than its packets have
    "large",  # more pixels or frames than are decoded
    "broken",  # the decoder cannot make sense of it
    "short",  # shorter than the clip that was asked for
]


class VideoError(DataError):
    """A video that cannot be used; `kind` says why in one word, for counting."""

    def __init__(self, message: str, kind: Kind = "broken") -> None:
        super().__init__(message)
        self.kind: Kind = kind


# FFmpeg's name of the container, by what stands at an offset
_MAGIC: tuple[tuple[int, bytes, str], ...] = (
    (4, b"ftyp", "mp4"),
    (4, b"moov", "mp4"),
    (4, b"mdat", "mp4"),
    (4, b"free", "mp4"),
    (4, b"skip", "mp4"),
    (4, b"wide", "mp4"),
    (0, b"\x1aE\xdf\xa3", "matroska"),
    (8, b"AVI ", "avi"),
    (0, b"FLV\x01", "flv"),
    (0, b"OggS", "ogg"),
    (0, b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", "asf"),
    (0, b"\x00\x00\x01\xba", "mpeg"),
    (0, b"GIF8", "gif"),
)
_RAW = "a raw stream without a container, so nothing says when its frames are shown (no fps)"
# what people mistake for a video, to be named in the message
_OTHERS: tuple[tuple[int, bytes, str], ...] = (
    (0, b"\xff\xd8", "a JPEG picture"),
    (0, b"\x89PNG", "a PNG picture"),
    (8, b"WEBP", "a WebP picture"),
    (8, b"WAVE", "a WAV sound"),
    (0, b"ID3", "an MP3 sound"),
    (0, b"\xff\xfb", "an MP3 sound"),
    (0, b"fLaC", "a FLAC sound"),
    (0, b"PK\x03\x04", "a zip archive"),
    (0, b"\x1f\x8b", "a gzip archive"),
    (0, b"<", "a web page or XML"),
    (0, b"#EXTM3U", "a playlist"),
    (0, b"version https://git-lfs", "a Git LFS pointer, not the file itself"),
    (0, b"\x00\x00\x00\x01", _RAW),
    (0, b"\x00\x00\x01", _RAW),
)
CONTAINERS = ("mp4/mov", "matroska/webm", "avi", "mpeg-ts", "mpeg-ps", "flv", "ogg", "asf/wmv", "gif")
_HEAD = 400  # bytes looked at: two packets of a transport stream with time codes


def container_of(video: Video) -> str:
    """FFmpeg's name of the container, from the first bytes.

    Raises:
        VideoError: no such file, zero bytes, or nothing that is read here.
        OSError: the storage fails.
    """
    head = video[:_HEAD] if isinstance(video, bytes) else _head(video)
    if not head:
        raise VideoError("the video is empty (0 bytes): fetch it again, or leave it out", "empty")
    for offset, magic, name in _MAGIC:
        if head[offset : offset + len(magic)] == magic:
            return name
    for first, length in ((0, 188), (4, 192)):  # transport streams, without and with time codes
        if head[first : first + 1] == head[first + length : first + length + 1] == b"G":
            return "mpegts"
    known = next((name for at, magic, name in _OTHERS if head[at : at + len(magic)] == magic), None)
    what = f"is {known}" if known else f"starts with {head[:8]!r}"
    raise VideoError(
        f"not a video: it {what}. Read are {', '.join(CONTAINERS)}, told by content; leave it out, or convert it with "
        "ffmpeg -i IN OUT.mp4",
        "no-times" if known == _RAW else "foreign",
    )


def is_video(data: bytes) -> bool:
    """Whether the first bytes are those of a container that is read here."""
    try:
        container_of(data)
    except VideoError:
        return False
    return True


def _head(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_HEAD)
    except FileNotFoundError:
        raise VideoError(f"no such file: {path}", "missing") from None
    except IsADirectoryError:
        raise VideoError(f"{path} is a folder, not a video", "missing") from None


def address(path: Path) -> str:
    """A path as FFmpeg takes it: a name like `concat:a` stays a name."""
    return f"file:{path.absolute()}"


@contextlib.contextmanager
def opened(video: Video) -> Iterator[InputContainer]:
    """The container, opened by PyAV.

    Raises:
        ConfigError: PyAV is not installed.
        VideoError: it cannot be opened.
    """
    try:
        import av
    except ImportError as error:
        raise ConfigError(
            f"videos need PyAV, which does not import here ({error}): pip install 'jepa[video]'"
        ) from None
    name = container_of(video)
    try:
        container = av.open(
            address(video) if isinstance(video, Path) else io.BytesIO(video),
            mode="r",
            format=name,
            metadata_errors="replace",
            buffer_size=1 << 18,
            options={
                "protocol_whitelist": "file",  # a container may refer to others
                "max_pixels": str(MAX_PIXELS),  # opening it already decodes a little
            },
        )
    except (av.error.FFmpegError, ValueError, MemoryError) as error:
        raise _unopened(error, name, video) from None
    try:
        yield container
    finally:
        container.close()


def _unopened(error: Exception, container: str, video: Video) -> VideoError:
    size = len(video) if isinstance(video, bytes) else video.stat().st_size
    if container == "mp4":
        return VideoError(
            f"the mp4 video cannot be opened ({size} bytes): its index (moov) is missing or damaged, mostly because "
            "the file is truncated or was never finished. Fetch it again, or leave it out",
            "truncated",
        )
    return VideoError(f"the {container} video cannot be opened ({size} bytes): {reason(error)}", "broken")


def reason(error: BaseException) -> str:
    """What a decoder says, in one short line."""
    said = getattr(error, "strerror", None) or str(error).strip()
    return (said.splitlines() or [type(error).__name__])[0][:200]
