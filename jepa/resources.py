"""Finds the YAML folders (configs, datasets, eval, slurm), the same way from a checkout and from a wheel."""

from __future__ import annotations

import difflib
from pathlib import Path

from jepa.errors import ConfigError

_PACKAGE = Path(__file__).resolve().parent
KINDS = ("configs", "datasets", "eval", "slurm")


def folder(kind: str) -> Path:
    """The folder of shipped YAML files of a kind; a checkout's own folder wins over the wheel's copy."""
    assert kind in KINDS, f"kind {kind!r} is not one of {KINDS}"
    checkout = _PACKAGE.parent / kind
    if (_PACKAGE.parent / "pyproject.toml").is_file() and checkout.is_dir():
        return checkout
    return _PACKAGE / "_share" / kind


def names(kind: str) -> list[str]:
    """Names of the shipped YAML files of a kind, without the ending."""
    return sorted(path.stem for path in folder(kind).glob("*.yaml"))


def shown(path: Path) -> str:
    """A path that was not found, for a message: of a relative one also where it was looked for."""
    return str(path) if path.is_absolute() else f"{path} (in {Path.cwd()})"


def find(kind: str, name: str | Path) -> Path:
    """Path of a YAML file given as a path, or as the name of a shipped one ('ijepa-vit-s16').

    A path that exists wins; ``eval/x.yaml`` also finds the shipped file when run from another folder.

    Raises:
        ConfigError: neither exists; the message names the nearest shipped one.
    """
    path = Path(name)
    if path.is_file():
        return path
    shipped = folder(kind) / f"{path.stem if path.suffix == '.yaml' else path.name}.yaml"
    if shipped.is_file() and path.parent in (Path(), Path(kind)):
        return shipped
    known = names(kind)
    near = difflib.get_close_matches(path.stem, known, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise ConfigError(
        f"no such {kind} file: {str(name)!r}.{hint} Give a path to a YAML file or one of: {', '.join(known)}"
    )
