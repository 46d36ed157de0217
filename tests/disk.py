"""File systems that are full soon, or that nothing may be written to."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def small(folder: Path, size: str) -> Iterator[Path]:
    """A file system of that size ("400k") at a folder, which is made; a plain folder where mounting is not allowed."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    mounted = subprocess.run(command, capture_output=True).returncode == 0
    try:
        yield folder
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", str(folder)], check=True)


def needed(folder: Path) -> None:
    """Skip a test where `small` could not mount."""
    if not folder.is_mount():
        pytest.skip("this machine does not let us mount a small file system")


def remount(folder: Path, options: str) -> None:
    """Change a file system that `small` made: "size=2m", "ro", "rw"."""
    subprocess.run(["mount", "-o", f"remount,{options}", str(folder)], check=True)


@contextmanager
def read_only(folder: Path) -> Iterator[Path]:
    """A folder that is made, may be filled, and then closed with `close`: by a mount for root, by its mode else."""
    with small(folder, "64m"):
        try:
            yield folder
        finally:
            if not folder.is_mount():
                for path in (folder, *folder.rglob("*")):
                    if path.is_dir() and not path.is_symlink():
                        path.chmod(0o755)


def close(folder: Path) -> None:
    """Nothing may be written to a folder of `read_only` any more."""
    if folder.is_mount():
        return remount(folder, "ro")
    if os.geteuid() == 0:
        pytest.skip("root may write anywhere, and this machine does not let us mount")
    for path in (*folder.rglob("*"), folder):
        if path.is_dir() and not path.is_symlink():
            path.chmod(0o555)
