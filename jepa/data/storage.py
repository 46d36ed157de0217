"""Positioned reads from shards, and files that are either complete or absent.

Reading uses ``pread``: no seek position, so one descriptor serves threads and forked workers alike.
"""

from __future__ import annotations

import errno
import json
import os
import time
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jepa.data import remote
from jepa.data.remote import Place, Url
from jepa.errors import DataError, TrainingError

# what network file systems and tired disks answer for a while; anything else will not get better by waiting
TRANSIENT = frozenset(
    {errno.EIO, errno.ESTALE, errno.EAGAIN, errno.EINTR, errno.ETIMEDOUT, errno.EBUSY, errno.ENETDOWN}
    | {errno.ENETUNREACH, errno.ECONNRESET, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENFILE, errno.EMFILE}
)
WAITS = (0.1, 0.5, 2.0, 5.0)  # seconds before each further try
_OPEN_SHARDS = 64  # descriptors kept open per process

_descriptors: OrderedDict[tuple[str, int], int] = OrderedDict()


def read(path: Place, size: int, offset: int, length: int, waits: tuple[float, ...] = WAITS) -> bytes:
    """`length` bytes of a shard from `offset`.

    Args:
        path: the shard; a remote one is read from the cache (see `remote`).
        size: its size in bytes when it was indexed; another size means another file.
        waits: seconds before each further try after a transient error.

    Raises:
        DataError: the shard has another size, or ends before offset + length; RemoteError: it cannot be fetched.
        OSError: the storage fails for good, or still after the last try.
    """
    if min(offset, length) < 0 or 0 < size < offset + length:  # before so much memory is asked for
        raise DataError(
            f"{path} has {size} bytes, the sample would lie at {offset} to {offset + length}: a damaged index"
        )
    for wait in (*waits, None):
        if isinstance(path, Url):  # not kept open: what the cache drops has to go from the disk
            data = remote.read(path, size, offset, length)
            break
        try:
            data = os.pread(_descriptor(path, size), length, offset)
            break
        except OSError as error:
            _forget(path, size)
            if error.errno not in TRANSIENT or wait is None:
                raise
            time.sleep(wait)
    if len(data) != length:
        raise DataError(f"{path} ends at byte {offset + len(data)}, the sample reaches to {offset + length}")
    return data


def _descriptor(path: Path, size: int) -> int:
    key = (str(path), size)
    found = _descriptors.get(key)
    if found is not None:
        _descriptors.move_to_end(key)
        return found
    descriptor = os.open(path, os.O_RDONLY)
    now = os.fstat(descriptor).st_size
    if now != size:
        os.close(descriptor)
        raise DataError(f"{path} has {now} bytes, {size} when it was indexed: truncated or replaced")
    _descriptors[key] = descriptor
    if len(_descriptors) > _OPEN_SHARDS:
        os.close(_descriptors.popitem(last=False)[1])
    return descriptor


def _forget(path: Path, size: int) -> None:
    descriptor = _descriptors.pop((str(path), size), None)
    if descriptor is not None:
        os.close(descriptor)


def sync_folder(folder: Path) -> None:
    """Make renames in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def check_writable(path: Path) -> None:
    """Before work whose result shall go to `path`; writes nothing.

    Raises:
        DataError: the folder that it would be in, or be made in, cannot be written by this user.
    """
    above = next((p for p in path.absolute().parents if p.exists()), Path("/"))
    if not (above.is_dir() and os.access(above, os.W_OK | os.X_OK)):
        raise DataError(
            f"cannot write {path}: {above} is read-only for this user, or no folder. Copy the run to a folder of your "
            "own (config.yaml and the newest of its checkpoints will do)"
        )


def write_atomic(path: Path, data: bytes) -> None:
    """A file with `data`, complete or not there at all, even after a power cut."""
    temporary = path.with_name(f".{path.name}.partial")  # one name: what a crash leaves is overwritten the next time
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """The same of a result, for people to read as well; its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, (json.dumps(values, indent=1, allow_nan=False) + "\n").encode())


def check_shared_memory(needed: int, advice: str) -> None:
    """Raises TrainingError with `advice` when /dev/shm has less than `needed` bytes free."""
    try:
        found = os.statvfs("/dev/shm")
    except (OSError, AttributeError):
        return  # not Linux: no such limit
    free = found.f_bavail * found.f_frsize
    if needed > free:
        raise TrainingError(
            f"decoding processes need {needed / 1e6:.0f} MB of shared memory, /dev/shm has {free / 1e6:.0f} MB free. "
            f"{advice}; in Docker, raise --shm-size"
        )
