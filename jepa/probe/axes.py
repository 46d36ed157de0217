"""Standardised features on their principal axes: the common ground of the linear and the ridge probe.

Standardising (mean 0, standard deviation 1 over the training split, like a batch norm without affine) makes probe
settings mean the same for every encoder. The rotation to principal axes changes no distance, no linear function and
no L2 penalty, but in it the features are uncorrelated: ridge regression is solved for every penalty at once, and a
first-order optimiser converges as if it knew the curvature.

With fewer samples than dimensions only the directions that the samples span get an axis: no probe fitted on them can
say anything about the others.

Shapes: n samples, D width, R axes: D, or the rank of the training features where n <= D.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from jepa.errors import DataError

_DEAD = 1e-6  # a dimension whose std is below this share of the features' RMS carries rounding noise only
_NUMBERS = 1 << 24  # numbers handled at once (64 MiB in float32)


@dataclass(frozen=True)
class Axes:
    """Where the features of one encoder are put: x -> ((x - mean) * scale) @ basis."""

    mean: Tensor  # (D,) float64
    scale: Tensor  # (D,) float64: 1 / std, 0 for a dimension that does not vary
    basis: Tensor  # (D, R) float64, columns are the axes, by rising variance
    variance: Tensor  # (R,) float64 along each axis, >= 0; sums to the number of living dimensions

    @classmethod
    def fit(cls, train: Tensor, name: str = "features", device: torch.device | str = "cpu") -> Axes:
        """From training features (n, D), all sums in float64 on `device` (which must know float64: not MPS).

        Raises:
            DataError: fewer than two samples, or features that are not finite; names the encoder, `name`.
        """
        if len(train) < 2:
            raise DataError(f"{name}: a probe needs at least 2 training samples, got {len(train)}")
        check_finite(train, name)
        mean = _sum(train, device, lambda x: x.sum(dim=0)) / len(train)
        variance = _sum(train, device, lambda x: (x - mean).square().sum(dim=0)) / len(train)
        floor = _DEAD * (variance + mean.square()).mean().sqrt()
        std = variance.sqrt()
        scale = torch.where(std > floor, 1 / std, torch.zeros_like(std))

        def standard(x: Tensor) -> Tensor:
            return (x - mean) * scale

        if len(train) <= train.shape[1]:
            x = standard(train.to(device, torch.float64))
            variance, inner = torch.linalg.eigh(x @ x.T / len(x))
            spanned = variance > 1e-12 * variance.max()
            spanned[-1] = True  # one axis at least: features that do not vary at all are a collapsed encoder's
            variance = variance[spanned].clamp(min=0)
            return cls(mean, scale, x.T @ inner[:, spanned] / (len(x) * variance).clamp(min=1e-30).sqrt(), variance)
        gram = _sum(train, device, lambda x: standard(x).T @ standard(x))
        variance, basis = torch.linalg.eigh(gram / len(train))
        return cls(mean, scale, basis, variance.clamp(min=0))

    def apply(self, features: Tensor) -> Tensor:
        """Features (n, D) on the axes: (n, R) float32, on the device where `features` are."""
        device, basis = self.mean.device, self.basis.float()
        out = torch.empty(len(features), basis.shape[1], dtype=torch.float32, device=features.device)
        done = 0
        for part in rows(features):
            standard = (part.to(device, torch.float64) - self.mean) * self.scale
            out[done : done + len(part)] = (standard.float() @ basis).to(out.device)
            done += len(part)
        return out


def rows(features: Tensor, size: int = 0) -> Iterator[Tensor]:
    """Views of `size` consecutive rows; 0: as many as keep one array of them small."""
    size = size or max(1, _NUMBERS // max(features.shape[1], 1))
    for start in range(0, len(features), size):
        yield features[start : start + size]


def check_finite(features: Tensor, name: str) -> None:
    """Raise DataError, naming the encoder, if any feature is NaN or infinite."""
    bad = sum(int((~torch.isfinite(part)).any(dim=1).sum()) for part in rows(features))
    if bad:
        raise DataError(
            f"{name}: {bad} of {len(features)} samples have features that are NaN or infinite. The weights are broken; "
            "look at the run's loss, or probe an earlier checkpoint"
        )


def _sum(features: Tensor, device: torch.device | str, of: Callable[[Tensor], Tensor]) -> Tensor:
    parts = (of(part.to(device, torch.float64)) for part in rows(features))
    total = next(parts)
    for part in parts:
        total += part
    return total
