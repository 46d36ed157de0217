"""Shards on the other end of a network: brought into a bounded folder on this machine as whole files, when needed.

Read through fsspec (extra `remote`): https://, http://, hf://, with the extra `s3` s3://, and with gcsfs gs://. The
folder is JEPA_CACHE (default ~/.cache/jepa/shards) and never holds more than JEPA_CACHE_GB (default 50); the shard that
was read longest ago goes first. It may be shared by any number of processes and runs: a lock for each shard lets one
process fetch it while the others wait, a lock for the folder guards the room in it, and locks end with their process. A
file is complete or absent.

A request that fails, stalls or breaks off is made again from the byte it had reached, a few times with growing waits;
what does not exist or is forbidden is not asked for twice. After that it is a `RemoteError`, which is a DataError that
ends a run: a storage that is away says nothing about a sample, so no other sample takes its place.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import math
import os
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from jepa.errors import ConfigError, DataError

T = TypeVar("T")
PROTOCOLS = ("https", "http", "s3", "gs", "hf")
WAITS = (0.5, 2.0, 5.0, 15.0)  # seconds before each further try
_STALL = 30.0  # seconds without a byte after which a request is given up
_CHUNK = 16_000_000  # bytes asked for at a time
_TOUCH = 5.0  # seconds between two notes that a shard is in use
_STATUS = (408, 425, 429)  # worth asking again, like everything from 500 on


class StorageError(DataError):
    """A shard is not what it was or cannot be had, which says nothing about the sample that was wanted of it."""


class RemoteError(StorageError):
    """A remote storage cannot be read."""


@dataclass(frozen=True)
class Url:
    """Where a shard lies."""

    text: str

    @property
    def name(self) -> str:
        """The file's own name."""
        return self.text.partition("?")[0].rstrip("/").rpartition("/")[2]

    def __str__(self) -> str:
        """For people: without what may be secret."""
        return re.sub(r"//[^/@]*@", "//", self.text.partition("?")[0])


Place = Path | Url


def is_url(text: str) -> bool:
    """Whether a name is that of something remote."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]+:", text) is not None or "::" in text


def place(root: Path, text: str) -> Place:
    """A shard as a manifest names it: a URL, or a path that is absolute or relative to the data set's folder."""
    return Url(text) if is_url(text) else root / text


def checked(text: str) -> Url:
    """A URL that may be read.

    Raises:
        ConfigError: a pipe, a chain, or a protocol that is not on the list.
    """
    protocol = text.partition("://")[0]
    if "::" in text or protocol not in PROTOCOLS:
        raise ConfigError(
            f"{text!r} is not read: allowed are files and {', '.join(f'{p}://' for p in PROTOCOLS)}, no pipes and no "
            "chains, which could run anything"
        )
    return Url(text)


def local(given: Place, size: int | None = None) -> Path:
    """A complete file on this machine: the path itself, or a copy in the cache, fetched if it is not there.

    Args:
        size: bytes it must have; None: as many as it has now.

    Raises:
        RemoteError: it cannot be fetched, or has another size.
        ConfigError: it is larger than the cache, or fsspec is not installed.
    """
    if isinstance(given, Path):
        return given
    folder, limit = _settings()
    size = size_of(given) if size is None else size
    where = _entry(folder, given, size)
    if not where.is_file():
        try:
            where.parent.mkdir(parents=True, exist_ok=True)
            _fetch(given, where, size, folder, limit)
        except OSError as error:
            raise RemoteError(
                f"{given} cannot be kept in {folder}: {error.strerror or error}. Name another folder as JEPA_CACHE"
            ) from None
    touch(where)
    return where


def read(url: Url, size: int, offset: int, length: int) -> bytes:
    """`length` bytes of a shard from `offset`; fewer where it ends earlier.

    Raises:
        RemoteError: as for `local`.
    """
    while True:
        path = local(url, size)
        try:
            with path.open("rb", buffering=0) as file:
                return os.pread(file.fileno(), length, offset)
        except FileNotFoundError:
            continue  # another process made room in this very moment


def cached(url: Url, size: int) -> bool:
    """Whether a shard is in the cache."""
    return _entry(_settings()[0], url, size).is_file()


def room() -> int:
    """Bytes that the cache may hold."""
    return _settings()[1]


def size_of(url: Url) -> int:
    """Bytes of a remote file.

    Raises:
        RemoteError: it is not there, or its server does not say.
    """
    found = _tried(url, lambda fs: fs.info(url.text).get("size"))
    if not isinstance(found, int):
        raise RemoteError(f"{url}: its server does not say how long it is, so it cannot be fetched in parts")
    return found


def listed(pattern: str) -> list[Url]:
    """What a pattern with * names on a storage that can list.

    Raises:
        ConfigError: http cannot.
        RemoteError: nothing matches, or the storage cannot be read.
    """
    url = checked(pattern)
    protocol = pattern.partition("://")[0]
    if protocol in ("http", "https"):
        raise ConfigError(f"{pattern!r}: a web server does not list its files. Write braces, as in x-{{000..099}}.tar")
    found = sorted(f"{protocol}://{name}" for name in _tried(url, lambda fs: fs.glob(url.text)))
    if not found:
        raise RemoteError(f"{url}: nothing of that name")
    return [Url(name) for name in found]


def touch(path: Path) -> None:
    """Note that a file of the cache is in use."""
    now = time.monotonic()
    if now - _touched.get(path, -_TOUCH) >= _TOUCH:
        _touched[path] = now
        with contextlib.suppress(OSError):
            os.utime(path)


_touched: dict[Path, float] = {}
_failed: dict[Url, tuple[float, str]] = {}  # when, and what was said


def _settings() -> tuple[Path, int]:
    """The cache's folder, and how many bytes it may hold."""
    folder = os.environ.get("JEPA_CACHE") or "~/.cache/jepa/shards"
    given = os.environ.get("JEPA_CACHE_GB") or "50"
    try:
        limit = float(given)
        assert limit > 0
    except (ValueError, AssertionError):
        raise ConfigError(f"JEPA_CACHE_GB={given!r} is not a number of gigabytes above 0") from None
    return Path(folder).expanduser(), int(limit * 1e9)


def _entry(folder: Path, url: Url, size: int) -> Path:
    key = hashlib.blake2b(f"{url.text}\0{size}".encode(), digest_size=12).hexdigest()
    return folder / key / (url.name or "shard")


def _fetch(url: Url, where: Path, size: int, folder: Path, limit: int) -> None:
    """Fetch a shard, or wait for the process that is at it."""
    if size > limit:
        raise ConfigError(f"{url} has {size} bytes, the cache only room for {limit}: raise JEPA_CACHE_GB")
    with _locked(where.parent / "lock"):
        if where.is_file():
            return
        now = size_of(url)
        if now != size:
            raise RemoteError(f"{url} has {now} bytes, {size} when it was indexed: replaced. Build the data set again")
        partial = where.parent / "partial"
        _make_room(folder, partial, size, limit)
        try:
            with partial.open("r+b") as file:
                _download(url, file, size)
                os.fsync(file.fileno())  # its size was right from the start: after a power cut nobody could tell
            partial.replace(where)
        finally:
            partial.unlink(missing_ok=True)


def _make_room(folder: Path, partial: Path, size: int, limit: int) -> None:
    """Reserve `size` bytes for `partial`, removing what was read longest ago."""
    while True:
        with _locked(folder / "lock"):
            files: list[tuple[float, int, Path]] = []
            for path in folder.glob("*/*"):
                with contextlib.suppress(FileNotFoundError):
                    if path.name == "lock" or (path.name == "partial" and _abandoned(path)):
                        continue
                    files.append((path.stat().st_mtime, path.stat().st_size, path))
            used = sum(length for _, length, _ in files)
            for _, length, path in sorted(files):
                if used + size <= limit:
                    break
                if path.name != "partial":
                    path.unlink(missing_ok=True)
                    used -= length
            if used + size <= limit:
                with partial.open("wb") as file:
                    file.truncate(size)  # counts from now on
                return
        time.sleep(0.2)  # others are fetching: some of theirs can go when they are done


def _abandoned(partial: Path) -> bool:
    """Whether nobody is fetching this any more; it is removed then."""
    with contextlib.suppress(BlockingIOError), _locked(partial.parent / "lock", wait=False):
        partial.unlink(missing_ok=True)
        return True
    return False


def _download(url: Url, file: Any, size: int) -> None:
    at = 0
    while at < size:
        end = min(at + _CHUNK, size)
        data = _tried(url, functools.partial(_part, url=url, start=at, end=end, size=size))
        file.write(data)
        at += len(data)


def _part(fs: Any, url: Url, start: int, end: int, size: int) -> bytes:
    data: bytes = fs.cat_file(url.text, start=start, end=end)
    if len(data) == end - start or (start == 0 and len(data) == size):  # a server without ranges sends all of it
        return data
    raise ConnectionError(f"{len(data)} of {end - start} bytes came")


def _tried(url: Url, ask: Callable[[Any], T]) -> T:
    """What a request gives, made again after failures that may pass.

    After the last failure, as much time as was waited has to pass before the same file is asked for again: whoever
    wants many samples of it fails at once.

    Raises:
        RemoteError: with the last failure.
    """
    began = time.monotonic()
    when, message = _failed.get(url, (-math.inf, ""))
    if began - when < sum(WAITS):
        raise RemoteError(message)
    fs = _filesystem(url)
    for tries, wait in enumerate((*WAITS, None), 1):
        try:
            return ask(fs)
        except RemoteError:
            raise
        except Exception as error:  # those of aiohttp, botocore and others have no common base
            passing, said = _meaning(error)
            if not passing or wait is None:
                after = f" after {tries} tries in {time.monotonic() - began:.0f} s" if tries > 1 else ""
                message = (
                    f"{url} cannot be read: {said}{after}. Check the address, the network and the server; a run that "
                    "was stopped goes on with --resume"
                )
                _failed[url] = (time.monotonic(), message)
                raise RemoteError(message) from None
            time.sleep(wait)
    raise AssertionError("the last try returns or raises")


def _meaning(error: BaseException) -> tuple[bool, str]:
    """Whether a failure may pass, and what it is in words."""
    cause: BaseException | None = error
    while cause is not None:  # fsspec tells many failures as FileNotFoundError
        status = getattr(cause, "status", None)
        if isinstance(status, int) and status:
            return status in _STATUS or status >= 500, f"the server answers {status} {getattr(cause, 'message', '')}"
        if isinstance(cause, TimeoutError):
            return True, f"no byte came for {_STALL:g} s"
        cause = cause.__cause__
    if type(error).__name__ == "NoCredentialsError":  # botocore's
        return False, "there are no credentials (a public bucket is read with FSSPEC_S3_ANON=true)"
    if isinstance(error, FileNotFoundError):
        cause = error.__cause__
        passing = isinstance(cause, OSError) and not isinstance(cause, FileNotFoundError)
        return passing, str(cause) if passing else "there is no such file"
    if isinstance(error, PermissionError):
        return False, f"it may not be read ({error})"
    known = isinstance(error, OSError) or type(error).__module__.partition(".")[0] in ("aiohttp", "botocore")
    return known, str(error) or type(error).__name__


def _filesystem(url: Url) -> Any:
    protocol = checked(url.text).text.partition("://")[0]
    try:
        import fsspec

        options: dict[str, Any] = {}
        if protocol in ("http", "https"):
            import aiohttp

            timeout = aiohttp.ClientTimeout(total=None, sock_connect=_STALL, sock_read=_STALL)
            options["client_kwargs"] = {"timeout": timeout, "trust_env": True}
        elif protocol == "s3":
            options["config_kwargs"] = {"connect_timeout": _STALL, "read_timeout": _STALL}
        if protocol in ("s3", "gs", "hf"):
            options["use_listings_cache"] = False  # what was listed may have been replaced since
        return fsspec.filesystem(protocol, **options)
    except ImportError as error:
        extra = "s3" if protocol == "s3" else "remote"
        more = {"gs": " gcsfs", "hf": " huggingface_hub"}.get(protocol, "")
        raise ConfigError(f"{url}: {error}. Install it with: pip install 'jepa[{extra}]'{more}") from None


@contextlib.contextmanager
def _locked(path: Path, wait: bool = True) -> Iterator[None]:
    """Hold a file's lock, among processes and threads alike.

    Raises:
        BlockingIOError: somebody else holds it, and `wait` is false.
    """
    import fcntl

    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield


__all__ = [
    "PROTOCOLS", "Place", "RemoteError", "StorageError", "Url", "cached", "checked", "is_url", "listed", "local",
    "place", "read", "room", "size_of", "touch",
]  # fmt: skip
