"""Positioned reads from shards, and files that are either complete or absent.

Reading uses ``pread``: no seek position, so one descriptor serves threads and forked workers alike.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import sys
import time
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from jepa.data import remote
from jepa.data.remote import Place, StorageError, Url
from jepa.errors import DataError, TrainingError

# what network file systems and tired disks answer for a while; anything else will not get better by waiting
TRANSIENT = frozenset(
    {errno.EIO, errno.ESTALE, errno.EAGAIN, errno.EINTR, errno.ETIMEDOUT, errno.EBUSY, errno.ENETDOWN}
    | {errno.ENETUNREACH, errno.ECONNRESET, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENFILE, errno.EMFILE}
)
FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})  # no more bytes go onto this storage
CLOSED = frozenset({errno.EROFS, errno.EACCES, errno.EPERM})  # nothing may be written there
WAITS = (0.1, 0.5, 2.0, 5.0)  # seconds before each further try
_OPEN_SHARDS = 64  # descriptors kept open per process

_MEND = "Bring back the shard that was indexed, then continue (a run with --resume), or build the data set again"
_descriptors: OrderedDict[tuple[str, int], int] = OrderedDict()


def read(path: Place, size: int, offset: int, length: int, waits: tuple[float, ...] = WAITS) -> bytes:
    """`length` bytes of a shard from `offset`.

    Args:
        path: the shard; a remote one is read from the cache (see `remote`).
        size: its size in bytes when it was indexed; another size means another file.
        waits: seconds before each further try after a transient error.

    Raises:
        DataError: a sample that no shard of this size can hold.
        StorageError: the shard was truncated or replaced, or cannot be fetched. It says nothing about the sample.
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
        said = f"{path} ends at byte {offset + len(data)}, the sample reaches to {offset + length}"
        if size:  # it was longer when it was opened
            raise StorageError(f"{said}: truncated or replaced meanwhile. {_MEND}")
        raise DataError(said)
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
        raise StorageError(f"{path} has {now} bytes, {size} when it was indexed: truncated or replaced. {_MEND}")
    _descriptors[key] = descriptor
    if len(_descriptors) > _OPEN_SHARDS:
        os.close(_descriptors.popitem(last=False)[1])
    return descriptor


def _forget(path: Path, size: int) -> None:
    descriptor = _descriptors.pop((str(path), size), None)
    if descriptor is not None:
        os.close(descriptor)


def sync(path: Path) -> None:
    """Make a file's content, or a folder's renames, outlast a power cut."""
    if sys.platform == "win32" and path.is_dir():  # there is no handle to a folder that can be synced
        return
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
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
    """A file with `data`, complete or not there at all, even after a power cut. Of several writers the last one wins.

    Raises:
        OSError: it names the file, also where the system does not (a full disk).
    """
    temporary = path.with_name(f".{path.name}.partial")  # one name: what a crash leaves is overwritten the next time
    try:
        with _mine(temporary) as file:
            try:
                file.truncate(0)  # of what a crash left
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
                temporary.replace(path)
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise
        sync(path.parent)
    except OSError as error:
        raise OSError(error.errno, error.strerror, error.filename or str(path)) from None


@contextlib.contextmanager
def _mine(path: Path) -> Iterator[IO[bytes]]:
    """A file that no other process writes at the same time; whoever comes later waits and makes a new one."""
    while True:
        with path.open("ab") as file:
            if _lock(file, wait=True) and not _is(path, file):
                continue  # it was renamed or removed while we waited for it
            yield file
            return


def _is(path: Path, file: IO[bytes]) -> bool:
    try:
        return path.stat().st_ino == os.fstat(file.fileno()).st_ino
    except FileNotFoundError:
        return False


def _lock(file: IO[bytes], wait: bool) -> bool:
    """Hold a file until it is closed or the process ends; False where the system has no such locks.

    Raises:
        BlockingIOError: another process holds it, and `wait` is false.
    """
    if sys.platform == "win32":  # several processes in one folder are the user's own care there
        return False
    import fcntl

    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        raise
    except OSError:  # a file system without locks: going on is better than doing nothing at all
        return False
    return True


def claim(path: Path) -> IO[bytes]:
    """A lock file, held until it is closed or this process ends, however it ends.

    Raises:
        BlockingIOError: another process holds it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.open("ab")
    try:
        _lock(file, wait=False)
    except BlockingIOError:
        file.close()
        raise
    return file


@contextlib.contextmanager
def written_to(folder: Path, then: str = "Run the same command again: what was finished is kept") -> Iterator[None]:
    """A full disk, or a folder that may not be written to, in words.

    Raises:
        DataError: what is the matter, and what to do; `then` after that.
    """
    try:
        yield
    except OSError as error:
        where = error.filename or folder
        if error.errno in FULL:
            raise DataError(
                f"the disk is full ({error.strerror}) while writing to {where}. Make room. {then}"
            ) from None
        if error.errno in CLOSED and (error.filename is None or Path(error.filename).is_relative_to(folder)):
            raise DataError(
                f"cannot write to {where}: {error.strerror}. Allow it, or name another folder with --out. {then}"
            ) from None
        raise


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
