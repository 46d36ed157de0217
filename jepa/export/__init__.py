"""Checkpoints from elsewhere: what they are, and how they become runs of ours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jepa.config import unknown_key
from jepa.errors import ConfigError
from jepa.export import dinowm, folders, ijepa, vjepa2, vjepa2_ac
from jepa.export.foreign import describe

LAYOUTS = {  # --from NAME
    "ijepa": ijepa.convert,
    "vjepa": vjepa2.convert_vjepa,
    "vjepa2": vjepa2.convert,
    "vjepa21": vjepa2.convert_vjepa21,
    "vjepa2-ac": vjepa2_ac.convert,
    "dinowm": dinowm.convert,
    "transformers": folders.convert_transformers,
    "timm": folders.convert_timm,
}


def import_checkpoint(
    path: Path | str, source: str, out: Path | str, overrides: list[str] | None = None
) -> dict[str, Any]:
    """Make the run folder `out` from the checkpoint file `path` of layout `source` (a key of `LAYOUTS`).

    Args:
        overrides: ``key=value`` settings of the run for what the file does not tell (``method.encoder.heads=6``).

    Returns:
        The import record: file, counts of keys, used and ignored keys with reasons, what was filled, notes.

    Raises:
        ConfigError: unknown layout or setting.
        CheckpointError: see the layout's `convert`.
    """
    if source not in LAYOUTS:
        raise ConfigError(unknown_key(f"--from {source}", source, list(LAYOUTS)).replace("key", "layout", 1))
    return LAYOUTS[source](path, out, overrides)


__all__ = ["LAYOUTS", "describe", "import_checkpoint"]
