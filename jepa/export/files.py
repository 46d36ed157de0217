"""Reading checkpoint files made elsewhere, without ever running what is in them.

Two formats are read: safetensors, and the zip archives of ``torch.save`` (by ``torch.load`` with
``weights_only=True`` and memory mapping, so that optimiser state of tens of gigabytes costs nothing when it is
ignored). The format is told from the first bytes, not from the name: official files are called ``.pth.tar`` and
are neither.
"""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from jepa.errors import CheckpointError

Format = Literal["torch", "safetensors"]
_MAX_DEPTH = 32  # of nested containers; a checkpoint has about five


@dataclass(frozen=True)
class Foreign:
    """The contents of a checkpoint file, flattened: nested names are joined by dots.

    ``tensors`` are memory-mapped: their data is read when it is used. ``values`` holds everything else (numbers,
    texts, None). ``metadata`` is the text header of a safetensors file.
    """

    path: Path
    format: Format
    tensors: dict[str, Tensor]
    values: dict[str, Any] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)

    @property
    def bytes(self) -> int:
        """Of the file, or of all in the folder."""
        if self.path.is_file():
            return self.path.stat().st_size
        return sum(file.stat().st_size for file in self.path.iterdir() if file.is_file())


def read(path: Path | str) -> Foreign:
    """Open a safetensors file or a ``torch.save`` archive.

    Raises:
        CheckpointError: missing, empty, truncated, of another format, or holding anything that would need code
            to be run to load it.
    """
    file = Path(path)
    if file.is_dir():
        raise CheckpointError(f"{file} is a folder: give the checkpoint file inside it (.pth, .pth.tar, .safetensors)")
    try:
        with file.open("rb") as stream:
            head = stream.read(16)
    except OSError as error:
        raise CheckpointError(f"cannot read {file}: {error.strerror or error}") from None
    kind = _format(head, file)
    return _read_safetensors(file) if kind == "safetensors" else _read_torch(file)


def _format(head: bytes, file: Path) -> Format:
    if head.startswith(b"PK\x03\x04"):
        return "torch"
    if head[8:9] == b"{":
        return "safetensors"
    if not head:
        raise CheckpointError(f"{file} is empty (0 bytes): the download or copy failed, fetch it again")
    if head[:1] == b"\x80":
        raise CheckpointError(
            f"{file} is a bare pickle (torch.save before 1.6, or pickle.dump), which cannot be memory-mapped or "
            "checked before loading. Save it again where you trust it: "
            "torch.save(torch.load(OLD, weights_only=True), NEW)"
        )
    raise CheckpointError(
        f"{file} is neither a torch.save archive nor safetensors (it begins with {head[:8]!r}). "
        "Give the original .pth/.pth.tar or .safetensors file, unpacked"
    )


def _read_safetensors(file: Path) -> Foreign:
    try:
        with safe_open(str(file), framework="pt", device="cpu") as opened:
            tensors = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118 - not a mapping
            metadata = dict(opened.metadata() or {})
    except (SafetensorError, OSError, json.JSONDecodeError) as error:
        raise CheckpointError(
            f"{file} is a damaged or truncated safetensors file ({error}): fetch or copy it again"
        ) from None
    return Foreign(file, "safetensors", tensors, metadata=metadata)


def _read_torch(file: Path) -> Foreign:
    try:
        loaded = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(_refusal(file, str(error))) from None
    except (RuntimeError, OSError, EOFError, ValueError, KeyError, IndexError, AttributeError, TypeError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(
            f"{file} is damaged, truncated, or not made by torch.save ({first}): fetch or copy it again"
        ) from None
    if not isinstance(loaded, dict):
        raise CheckpointError(
            f"{file} holds a {type(loaded).__name__}, not a dictionary of tensors: save model.state_dict() instead"
        )
    tensors: dict[str, Tensor] = {}
    values: dict[str, Any] = {}
    for name, value in _flatten(loaded, file):
        if name in tensors or name in values:
            raise CheckpointError(f"{file}: two entries have the same flattened name {name!r}")
        if isinstance(value, Tensor):
            tensors[name] = value
        else:
            values[name] = value
    return Foreign(file, "torch", tensors, values)


def _refusal(file: Path, message: str) -> str:
    found = re.search(r"GLOBAL ([\w.]+)", message)
    what = f"it refers to {found.group(1)}" if found else (message.splitlines() or ["unreadable pickle"])[0]
    return (
        f"{file} is refused: {what}, and loading that could run code. Only tensors and plain values are read. "
        "Where you trust the file, load it yourself and save the state dict alone (safetensors, or torch.save)"
    )


def _flatten(value: Any, file: Path, prefix: str = "", depth: int = 0) -> Iterator[tuple[str, Any]]:
    if depth > _MAX_DEPTH:
        raise CheckpointError(f"{file}: containers nested more than {_MAX_DEPTH} deep at {prefix[:80]!r}")
    items: Any
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list | tuple):
        items = enumerate(value)
    else:
        yield prefix, value
        return
    for key, inner in items:
        yield from _flatten(inner, file, f"{prefix}.{key}" if prefix else str(key), depth + 1)
