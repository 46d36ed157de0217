"""From pixels to tokens and back: normalisation, patch embedding, position tables, gathering.

Shapes: B batch, T frames, H W image, t h w token grid, N = t * h * w tokens, K kept tokens, S packed rows, D width.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from jepa.errors import ConfigError


class Normalise(nn.Module):
    """uint8 or float images or clips to normalised floats, on whatever device they are."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, [T,] H, W) uint8 in 0..255 or float in 0..1, to floats with the given mean and std per channel."""
        mean, std = (x.unsqueeze(2) if images.ndim == 5 else x for x in (self.mean, self.std))
        if images.dtype == torch.uint8:
            return torch.addcmul(-mean / std, images.to(mean.dtype), 1 / (255 * std))
        return (images.to(mean.dtype) - mean) / std


def token_grid(image_size: tuple[int, int], patch: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of tokens.

    Raises:
        ConfigError: the patch does not divide the image; names the nearest sizes that work.
    """
    for side, step, name in zip(image_size, patch, ("height", "width"), strict=True):
        if step < 1 or side < step or side % step:
            near = sorted({max(step, side // step * step), (side // step + 1) * step}) if step >= 1 else []
            raise ConfigError(
                f"image {name} {side} is not a multiple of the patch {name} {step}; "
                f"set data.image_size to one of {near} or change method.encoder.patch"
            )
    return image_size[0] // patch[0], image_size[1] // patch[1]


class PatchEmbed(nn.Module):
    """Non-overlapping patches, each through one linear map (stored as a convolution's weight)."""

    def __init__(self, patch: tuple[int, int], width: int, channels: int = 3) -> None:
        super().__init__()
        self.patch = patch
        self.proj = nn.Conv2d(channels, width, kernel_size=patch, stride=patch)

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) to tokens (B, N, D), row-major."""
        return self.project(self.unfold(images))

    def unfold(self, images: Tensor) -> Tensor:
        """(B, C, H, W) to the pixels of each patch (B, N, C * h * w), row-major."""
        batch, channels, height, width = images.shape
        ph, pw = self.patch
        patches = images.reshape(batch, channels, height // ph, ph, width // pw, pw)
        return patches.permute(0, 2, 4, 1, 3, 5).reshape(batch, -1, channels * ph * pw)

    def project(self, patches: Tensor) -> Tensor:
        """(B, N, C * h * w) to (B, N, D): the same sums as the convolution, without its layout conversions."""
        return F.linear(patches, self.proj.weight.flatten(1), self.proj.bias)


class TubeletEmbed(nn.Module):
    """Non-overlapping tubelets of a clip, each through one linear map (stored as a 3D convolution's weight)."""

    def __init__(self, patch: tuple[int, int, int], width: int, channels: int = 3) -> None:
        super().__init__()
        self.patch = patch
        self.proj = nn.Conv3d(channels, width, kernel_size=patch, stride=patch)

    def forward(self, clips: Tensor) -> Tensor:
        """(B, C, T, H, W) to tokens (B, N, D), time first, then row-major."""
        return self.project(self.unfold(clips))

    def unfold(self, clips: Tensor) -> Tensor:
        """(B, C, T, H, W) to the pixels of each tubelet (B, N, C * t * h * w), time first, then row-major."""
        batch, channels, frames, height, width = clips.shape
        pt, ph, pw = self.patch
        cut = clips.reshape(batch, channels, frames // pt, pt, height // ph, ph, width // pw, pw)
        return cut.permute(0, 2, 4, 6, 1, 3, 5, 7).reshape(batch, -1, channels * pt * ph * pw)

    def project(self, tubelets: Tensor) -> Tensor:
        """(..., C * t * h * w) to (..., D): the same sums as the convolution, without its layout conversions."""
        return F.linear(tubelets, self.proj.weight.flatten(1), self.proj.bias)


def sincos_table(width: int, grid: tuple[int, int]) -> Tensor:
    """Fixed 2D sine-cosine positions (1, N, D), row-major: the first half encodes the column, the second the row.

    Each half is [sin, cos] over frequencies 10000^(-i / (D / 4)), built in float64 and rounded to float32 once.
    """
    if width % 4:
        raise ConfigError(f"width {width} cannot carry 2D sine-cosine positions: it must be a multiple of 4")
    omega = 1.0 / 10000 ** (np.arange(width // 4, dtype=np.float64) / (width / 4.0))

    def line(length: int) -> np.ndarray:
        angles = np.outer(np.arange(length, dtype=np.float64), omega)
        return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)

    rows, columns = line(grid[0]), line(grid[1])
    table = np.concatenate([np.tile(columns, (grid[0], 1)), np.repeat(rows, grid[1], axis=0)], axis=1)
    return torch.from_numpy(table).float().unsqueeze(0)


def sincos_table_3d(width: int, grid: tuple[int, int, int], uniform: bool = True) -> Tensor:
    """Fixed 3D sine-cosine positions (1, N, D), time first, then row-major: features for time, row, column.

    uniform: the three share the width equally (each ceil(D / 6) * 2, the last cut off at D); else time has half of it,
    row and column a quarter each. Each part is [sin, cos] as in `sincos_table`.
    """
    if not uniform and width % 8:
        raise ConfigError(f"width {width} cannot carry 3D sine-cosine positions with position.uniform=false: use 8 n")
    widths = (-(-width // 6) * 2,) * 3 if uniform else (width // 2, width // 4, width // 4)
    parts = []
    for axis, (length, part) in enumerate(zip(grid, widths, strict=True)):
        omega = 1.0 / 10000 ** (np.arange(part // 2, dtype=np.float64) / (part / 2.0))
        angles = np.outer(np.arange(length, dtype=np.float64), omega)
        line = np.concatenate([np.sin(angles), np.cos(angles)], axis=1)
        shape = [1, 1, 1, part]
        shape[axis] = length
        parts.append(np.broadcast_to(line.reshape(shape), (*grid, part)))
    table = np.concatenate(parts, axis=-1)[..., :width].reshape(1, -1, width)
    return torch.from_numpy(table).float()


def coarse(tokens: Tensor, grid: tuple[int, int], onto: tuple[int, int]) -> Tensor:
    """Tokens (..., N, D) of a grid, averaged onto fewer rows and columns, (..., n, D)."""
    if grid == onto:
        return tokens
    places = tokens.flatten(0, -3).transpose(1, 2).unflatten(2, grid)  # type: ignore[no-untyped-call]
    pooled = F.adaptive_avg_pool2d(places, onto).flatten(2).transpose(1, 2)
    return pooled.reshape(*tokens.shape[:-2], *pooled.shape[1:])


def gather_tokens(tokens: Tensor, indices: list[Tensor]) -> Tensor:
    """Kept tokens for each of M index sets (B, K): (B, N, D) to (M * B, K, D), index set by index set."""
    stacked = torch.stack(indices)  # (M, B, K): one gather instead of M
    count, batch, kept = stacked.shape
    if tokens.shape[0] == 1:  # a table shared by the batch
        return tokens[0][stacked.reshape(count * batch, kept)]
    rows = torch.arange(batch, device=tokens.device).view(1, batch, 1)
    return tokens[rows, stacked].reshape(count * batch, kept, tokens.shape[-1])


def gather_packed(tokens: Tensor, indices: list[Tensor]) -> Tensor:
    """Kept tokens for index sets (B, K_i) of any length: (B, N, D) to rows (S, D), index set by index set."""
    picked = torch.cat([index.flatten() for index in indices])
    if tokens.shape[0] == 1:  # a table shared by the batch
        return tokens[0][picked]
    rows = torch.arange(len(tokens), device=tokens.device)
    return tokens[torch.cat([rows.repeat_interleave(index.shape[1]) for index in indices]), picked]


def zero_of(parameters: Iterable[Tensor]) -> Tensor | float:
    """Zero that depends on parameters a forward pass has no use for, so that they get gradients (of zero)."""
    return sum((p.sum() for p in parameters), start=0.0) * 0.0
