"""jepa: joint-embedding predictive architectures, from shards to frozen encoders.

Importing the package is cheap; torch is imported when something that needs it is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["__version__", "load_encoder"]

if TYPE_CHECKING:
    from jepa.export.load import load_encoder


def __getattr__(name: str) -> Any:
    if name == "load_encoder":
        from jepa.export.load import load_encoder

        return load_encoder
    raise AttributeError(f"module 'jepa' has no attribute {name!r}")
