"""Where images and videos come from. Each kind is one file with a `Config` dataclass and `open_source(config)`."""

from __future__ import annotations

import importlib
from typing import Any

from jepa import config
from jepa.data.sources.base import References, Source
from jepa.errors import ConfigError

KINDS = (
    *("archive", "bouncing_digits", "digits", "emoji", "folder", "gymnasium", "hdf5", "huggingface", "idx", "lerobot"),
    *("moving_digits", "npz", "rollouts", "segments", "swm", "videos", "webdataset"),
)


def configure(values: dict[str, Any]) -> tuple[str, Any]:
    """The kind and its validated Config from a recipe's ``source`` section.

    Raises:
        ConfigError: unknown kind or option.
    """
    options = dict(values)
    kind = options.pop("kind", None)
    if kind not in KINDS:
        raise ConfigError(f"source.kind: got {kind!r}, allowed: {', '.join(KINDS)}")
    return kind, config.build(importlib.import_module(f"jepa.data.sources.{kind}").Config, options, "source")


def open_source(kind: str, options: Any) -> Source | References:
    """Open a configured source. Raises DataError when there is nothing to read."""
    source: Source | References = importlib.import_module(f"jepa.data.sources.{kind}").open_source(options)
    return source


__all__ = ["KINDS", "References", "Source", "configure", "open_source"]
