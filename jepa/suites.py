"""Reads evaluation suites: YAML files of eval/, or of one's own, for probes, roll-outs and plans alike."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

from jepa import config, resources
from jepa.errors import ConfigError

T = TypeVar("T")

_OWN = {"environment": "plan", "probes": "probe"}  # sections that only suites of one command have


def load(command: str, kind: type[T], protocol: str, name: str | Path | None, overrides: list[str] | None) -> T:
    """A suite from a file or a shipped name with ``key.subkey=value`` overrides; without a name the defaults.

    Args:
        command: which one reads it: plan, probe or rollout.
        kind: its dataclass, with a ``name``.
        protocol: the rules that this program measures by.

    Raises:
        ConfigError: no such suite, one of another command, an unknown key or wrong type, with its place, or another
            protocol.
    """
    path = None if name is None else resources.find("eval", name)
    start: dict[str, Any] = {} if path is None else config.read(path, kind="eval")
    values = config.override(start, overrides or [])
    where = f"{path}: " if path else ""
    if path is not None:
        values.setdefault("name", path.stem)
        _check_command(command, values, path)
    if values.get("protocol", protocol) != protocol:
        raise ConfigError(
            f"{where}protocol {values['protocol']!r} is not the one this program measures by, {protocol!r} (as text, "
            "in quotes). Use the program version that knows it"
        )
    try:
        return config.build(kind, values)
    except ConfigError as error:
        raise ConfigError(f"{where}{error}") from None


def _check_command(command: str, values: dict[str, Any], path: Path) -> None:
    """Raises ConfigError for a suite of another command."""
    for section, other in _OWN.items():
        if section in values and other != command:
            raise ConfigError(
                f"{path} has a section {section}, so it is none for `jepa {command}`: run it with `jepa {other} RUN "
                f"--suite {path.stem}`"
            )
    for section, own in _OWN.items():
        if section not in values and own == command:
            raise ConfigError(f"{path} has no section {section}, so it is none for `jepa {command}`")


__all__ = ["load"]
