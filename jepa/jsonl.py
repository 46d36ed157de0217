"""Files of JSON lines, read by whatever is whole in them. Imports nothing heavy: `jepa watch` starts with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def read(path: Path) -> list[dict[str, Any]]:
    """The objects in a file, in order; damaged lines are left out, a file that cannot be read has none."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    rows = []
    for line in lines:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            rows.append(row)
    return rows


__all__ = ["read"]
