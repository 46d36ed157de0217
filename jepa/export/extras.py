"""Packages that exports need and the core does without."""

from __future__ import annotations

import importlib
from typing import Any

from jepa.errors import ConfigError


def need(option: str, extra: str, *packages: str) -> Any:
    """The first of the packages, all of which `option` needs.

    Raises:
        ConfigError: one is not installed; names the extra that brings it.
    """
    try:
        first, *_ = map(importlib.import_module, packages)
        return first
    except ImportError as error:
        missing = error.name or packages[0]
        raise ConfigError(f"{option} needs {missing}: pip install 'jepa[{extra}]'") from None


__all__ = ["need"]
