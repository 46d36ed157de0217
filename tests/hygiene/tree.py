"""The files of the repository, for the tests of this folder."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "jepa"
LEFT_OUT = {".venv", "runs", "data", "build", "dist"}  # folders at the root that are not part of it


def modules(package: Path) -> Iterator[tuple[str, str]]:
    """(path inside the package with forward slashes, source) of every Python file."""
    for path in sorted(package.rglob("*.py")):
        yield path.relative_to(package).as_posix(), path.read_text(encoding="utf-8")


def files() -> list[Path]:
    """Files that belong to the repository: what git tracks or would track, or all of them without git."""
    if (ROOT / ".git").exists():
        command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
        return sorted(path for name in listed.split("\0") if name and (path := ROOT / name).is_file())
    return sorted(p for p in ROOT.rglob("*") if p.is_file() and p.relative_to(ROOT).parts[0] not in LEFT_OUT)


def texts() -> Iterator[tuple[str, str]]:
    """(path from the root, text) of every file that is UTF-8 text."""
    for path in files():
        try:
            yield path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
