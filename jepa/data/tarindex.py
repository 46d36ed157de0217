"""Where the samples lie in a webdataset tar that somebody else wrote, without unpacking it.

A sample is a run of neighbouring files whose names agree up to the first dot. Of the files, only the image's place
and the small label files are read; everything else, pickles above all, is left alone.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from jepa.errors import DataError

_COMPRESSED = {b"\x1f\x8b": ("gzip", "gunzip"), b"BZh": ("bzip2", "bunzip2"), b"\xfd7zXZ": ("xz", "unxz")}
_COMPRESSED |= {b"\x28\xb5\x2f\xfd": ("zstd", "zstd -d")}
_MOST_TEXT = 1_000_000  # bytes of a label file; a larger one is no label


@dataclass
class Group:
    """The files of one sample: extension -> (byte offset, length)."""

    key: str
    files: dict[str, tuple[int, int]] = field(default_factory=dict)


class Tar:
    """An uncompressed tar, opened for positioned reading."""

    def __init__(self, path: Path) -> None:
        """
        Raises:
            DataError: missing, unreadable, compressed, or not a tar.
        """
        self.path = path
        try:
            self.size = path.stat().st_size
            self._file: IO[bytes] = path.open("rb")
        except OSError as error:
            raise DataError(f"cannot read {path}: {error.strerror or error}") from None
        self.broken: str | None = None  # why `groups` stopped early
        start = self._file.read(6)
        for magic, (name, tool) in _COMPRESSED.items():
            if start.startswith(magic):
                self._file.close()
                raise DataError(
                    f"{path} is compressed with {name}. Samples are read by byte offset, which compression hides, "
                    f"and JPEGs do not get smaller by it anyway: unpack it once with `{tool} {path.name}`"
                )

    def groups(self) -> Iterator[Group]:
        """The complete samples, in order. Sets `broken` when the tar is cut off; its last sample is then dropped."""
        group: Group | None = None
        for name, offset, size in self.members():
            key, extension = split_name(name)
            if not key or not extension:
                continue
            if group is None or group.key != key:
                if group is not None:
                    yield group
                group = Group(key)
            group.files[extension] = (offset, size)
        if self.broken is not None:
            if group is None:
                raise DataError(f"{self.path} is not a tar, or damaged from its first file on ({self.broken})")
            self.broken += f"; samples from {group.key!r} on are lost"
        elif group is not None:
            yield group

    def members(self, start: int = 0) -> Iterator[tuple[str, int, int]]:
        """Name, byte offset and length of every plain file. Sets `broken` when the tar is cut off.

        Args:
            start: byte at which the tar begins; not 0 for one inside of this one.
        """
        self.broken = None
        self._file.seek(start)
        try:
            tar = tarfile.open(fileobj=self._file, mode="r:")  # noqa: SIM115 - closed with the file
            while (member := tar.next()) is not None:
                tar.members = []  # type: ignore[attr-defined]  # it would remember every member of the tar
                if member.isreg() and member.sparse is None:
                    yield member.name, member.offset_data, member.size
            self._file.seek(tar.offset)
            if self._file.read(512).strip(b"\0"):  # tarfile takes a damaged header for the end
                self.broken = f"cut off or damaged at byte {tar.offset}"
        except (tarfile.TarError, EOFError, ValueError, OverflowError) as error:
            self.broken = f"cut off or damaged ({error})"

    def read(self, place: tuple[int, int]) -> bytes:
        """The bytes at (offset, length)."""
        self._file.seek(place[0])
        data = self._file.read(place[1])
        if len(data) != place[1]:
            raise DataError(f"{self.path} ends inside the file at byte {place[0]}")
        return data

    def text(self, place: tuple[int, int]) -> str:
        """A small text file at (offset, length)."""
        if place[1] > _MOST_TEXT:
            raise DataError(f"a label file of {place[1]} bytes is too large")
        try:
            return self.read(place).decode("utf-8")
        except UnicodeDecodeError:
            raise DataError("a label file is not UTF-8 text") from None

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def split_name(name: str) -> tuple[str, str]:
    """Key and lower-case extension of a member: the name is cut at the first dot after the last slash."""
    folder, slash, last = name.rpartition("/")
    stem, _, extension = last.partition(".")
    return (folder + slash + stem if stem else "", extension.lower())


def json_value(text: str, key: str) -> Any:
    """A value out of a JSON file by dotted key.

    Raises:
        DataError: not JSON, or no such key.
    """
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"the json file cannot be read ({error})") from None
    for part in key.split("."):
        if not isinstance(value, dict) or part not in value:
            raise DataError(f"the json file has no key {key!r}")
        value = value[part]
    return value
