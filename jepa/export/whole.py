"""A folder that is made whole or not at all: beside its place, synced, and then renamed."""

from __future__ import annotations

import contextlib
import errno
import glob
import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import psutil
from safetensors import SafetensorError

from jepa.checkpoint.folder import complaint
from jepa.data import storage
from jepa.errors import CheckpointError, TrainingError

_TAKEN = (errno.ENOTEMPTY, errno.EEXIST)


@contextlib.contextmanager
def whole(folder: Path, what: str, replace: bool = False) -> Iterator[Path]:
    """A folder to fill, which then gets the name `folder`.

    Args:
        what: "the export", for messages.
        replace: whatever is there by then goes; else only an empty folder does.

    Raises:
        CheckpointError: a full disk, a place that may not be written to. Nothing half-written is left.
    """
    beside = f".tmp-{folder.name}-{socket.gethostname()}-"
    temporary = folder.with_name(f"{beside}{os.getpid()}")
    _sweep(folder.parent, beside)
    try:
        temporary.mkdir(parents=True)
        yield temporary
        _settle(temporary, folder, replace)
    except (OSError, SafetensorError, TrainingError) as error:
        if isinstance(error, TrainingError):  # of the checkpoint in it, to those who train
            reason = str(error).partition(". ")[0]
        elif isinstance(error, OSError) and error.errno in _TAKEN:
            reason = "something else was written there meanwhile"
        else:
            reason = complaint(error) or ""
        if not reason:
            raise
        raise CheckpointError(
            f"cannot write {what} to {folder}: {reason}. Nothing half-written was left there. Make room, or give "
            "another folder, then run the same command again"
        ) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _sweep(parent: Path, beside: str) -> None:
    """Remove what was left by processes of this machine that were killed."""
    for left in parent.glob(f"{glob.escape(beside)}*"):
        number = left.name.removeprefix(beside)
        if number.isdigit() and (int(number) == os.getpid() or not psutil.pid_exists(int(number))):
            shutil.rmtree(left, ignore_errors=True)


def _settle(made: Path, folder: Path, replace: bool) -> None:
    for path in [*(p for p in made.rglob("*") if p.is_file()), made]:
        storage.sync(path)
    old = made.with_name(f".old-{made.name}")
    if replace and folder.exists():
        folder.rename(old)
    try:
        made.rename(folder)
    except OSError:
        if old.exists() and not folder.exists():
            old.rename(folder)
        raise
    finally:
        shutil.rmtree(old, ignore_errors=True)
    storage.sync(folder.parent)


__all__ = ["whole"]
