"""An export is what it was read back as: files are opened as a stranger would, and their outputs compared with ours.

The error is the largest difference, in units of the root mean square of ours. Of weights in half precision it is the
root mean square of all differences, in the same units: single numbers of a deep model stray further.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from jepa.errors import CheckpointError

LIMITS = {"fp32": 1e-4, "fp16": 2e-2, "bf16": 1e-1}


@dataclass(frozen=True)
class Check:
    """One comparison that was passed."""

    what: str
    inputs: str
    error: float
    limit: float

    @property
    def line(self) -> str:
        """For people."""
        return f"{self.what}, {self.inputs}: error {self.error:.1e}, allowed {self.limit:.0e}"

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def compare(what: str, inputs: str, found: Tensor, wanted: Tensor, dtype: str = "fp32") -> Check:
    """Compare an export's output with ours.

    Raises:
        CheckpointError: another shape, numbers that are not finite, or too large an error.
    """
    found, wanted, limit = found.detach().float(), wanted.detach().float(), LIMITS[dtype]
    if found.shape != wanted.shape:
        raise CheckpointError(_failed(what, inputs, f"gives {tuple(found.shape)}, the model {tuple(wanted.shape)}"))
    scale = wanted.square().mean().sqrt().clamp(min=1e-12)
    difference = (found - wanted).abs()
    error = float((difference.max() if dtype == "fp32" else difference.square().mean().sqrt()) / scale)
    if not error <= limit:  # NaN too
        hint = " Weights of this model may not fit into half precision: use --dtype fp32" if dtype != "fp32" else ""
        raise CheckpointError(_failed(what, inputs, f"error {error:.1e}, allowed {limit:.0e}.{hint}"))
    return Check(what, inputs, error, limit)


def equal_bits(what: str, found: dict[str, Tensor], wanted: dict[str, Tensor]) -> Check:
    """Weights that went out and came back.

    Raises:
        CheckpointError: a name or a bit is another one.
    """
    if found.keys() != wanted.keys():
        names = sorted(found.keys() ^ wanted.keys())
        raise CheckpointError(_failed(what, "weights", f"{len(names)} names differ, e.g. {names[0]}"))
    changed = [name for name in wanted if not torch.equal(found[name], wanted[name])]
    if changed:
        raise CheckpointError(_failed(what, "weights", f"{len(changed)} weights differ, e.g. {changed[0]}"))
    return Check(what, "weights bit by bit", 0.0, 0.0)


def _failed(what: str, inputs: str, how: str) -> str:
    return f"the export is not the model ({what}, {inputs}): {how}. Nothing was written"


__all__ = ["LIMITS", "Check", "compare", "equal_bits"]
