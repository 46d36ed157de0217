"""Encoders as torch.export and ONNX see them: pixels in, normalisation inside, tokens out, for any size where possible.

Positions of another size are those that `resize` gives: fixed tables interpolated, rotary ones computed in the graph.

Shapes: B batch, T frames, H W image, t h w token grid, N = t * h * w tokens, D width, d features of a head.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.nn import functional as F

from jepa.export.programs import Program
from jepa.export.subject import Subject
from jepa.nn.rope import Rotary, RotaryTables
from jepa.nn.tokens import Normalise
from jepa.nn.video import VideoTransformer
from jepa.nn.vit import VisionTransformer

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
_MOST = 512  # tokens along an axis of a dynamic size


class EncoderGraph(nn.Module):
    """Pixels (B, 3, [T,] H, W) in 0..1 to tokens (B, N, D), their mean (B, D), and tokens of layers, all float32."""

    def __init__(self, subject: Subject, any_size: bool) -> None:
        super().__init__()
        self.normalise = Normalise(subject.config.data.mean, subject.config.data.std)
        self.dtype = DTYPES[subject.asked.dtype]
        self.encoder: Any = copy.deepcopy(subject.encoder).to(self.dtype)
        self.layers, self.known = subject.layers, isinstance(subject.encoder, VisionTransformer | VideoTransformer)
        self.positions = _positions(subject.encoder) if any_size else None
        self.eval().requires_grad_(False)

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        x = self.normalise(pixels).to(self.dtype)
        if not self.known:
            tokens = self.encoder(x).float()
            return tokens, tokens.mean(dim=1)
        hidden, rotary = self._enter(x)
        found = {}
        last = len(self.encoder.blocks) - 1
        for number, block in enumerate(self.encoder.blocks):
            hidden = block(hidden, rotary)
            if number == last or number in self.layers:
                found[number] = self._normed(hidden, number).float()
        return found[last], found[last].mean(dim=1), *(found[number] for number in self.layers)

    def _enter(self, x: Tensor) -> tuple[Tensor, Rotary | None]:
        encoder = self.encoder
        if isinstance(encoder, VisionTransformer):
            patches = encoder.patch_embed(x)
            return patches + (encoder.pos_embed if self.positions is None else self.positions(x)), None
        if self.positions is None:
            hidden, rotary, _ = encoder._enter(x, None)
            return hidden, rotary
        image = x.ndim == 4
        hidden, found = encoder._project(encoder._unfold(x, image), image), self.positions(x)
        return (hidden, found) if isinstance(found, tuple) else (hidden + found, None)

    def _normed(self, hidden: Tensor, number: int) -> Tensor:
        encoder = self.encoder
        out: Tensor = (
            encoder.norm(hidden) if isinstance(encoder, VisionTransformer) else encoder._normed(hidden, number)
        )
        return out


class TablePositions(nn.Module):
    """A fixed table for images of any size; the number of frames stays."""

    table: Tensor

    def __init__(self, table: Tensor, grid: tuple[int, int, int], patch: tuple[int, int]) -> None:
        super().__init__()
        self.patch = patch
        self.register_buffer("table", table[0].reshape(*grid, -1).permute(0, 3, 1, 2).contiguous())  # (t, D, h, w)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, [T,] H, W) to positions (1, N, D)."""
        size = (x.shape[-2] // self.patch[0], x.shape[-1] // self.patch[1])
        found = F.interpolate(self.table, size=size, mode="bilinear")  # the same numbers where the size is its own
        return found.flatten(2).transpose(1, 2).reshape(1, -1, found.shape[1]).to(x.dtype)


class RotaryPositions(nn.Module):
    """Rotary tables for inputs of any size, computed in float64 as in `jepa.nn.rope`."""

    frequencies: Tensor
    sign: Tensor

    def __init__(self, tables: RotaryTables, patch: tuple[int, ...]) -> None:
        super().__init__()
        self.patch, self.base_grid = patch, tables.base_grid
        part = tables.head_width // 3 // 2 * 2
        frequencies = 10000.0 ** (-torch.arange(part // 2, dtype=torch.float64) / (part / 2))
        tiled = tables.layout == "tiled"
        self.register_buffer("frequencies", frequencies.repeat(2) if tiled else frequencies.repeat_interleave(2))
        self.unturned = tables.head_width // 2 * 2 - 3 * part
        sign = torch.tensor([-1.0, 1.0], dtype=torch.float64).repeat(tables.head_width // 2)
        self.register_buffer("sign", sign)

    def forward(self, x: Tensor) -> Rotary:
        """(B, 3, [T,] H, W) to cosines and sines, each (N, 1, 1, d)."""
        rows, columns = (x.shape[-2] // self.patch[-2], x.shape[-1] // self.patch[-1])
        times = x.shape[2] // self.patch[0] if x.ndim == 5 else 1
        grid = (times, rows, columns)
        angles = []
        for axis, count in enumerate(grid):
            place = torch.arange(count, dtype=torch.float64, device=x.device)
            if self.base_grid is not None and axis:
                place = place * (self.base_grid - 1) / place[-1].clamp(min=1)
            shape = [1, 1, 1, -1]
            shape[axis] = count
            angles.append((place[:, None] * self.frequencies).reshape(shape).expand(*grid, -1))
        angle = F.pad(torch.cat(angles, dim=-1).flatten(0, 2), (0, self.unturned))
        cosine, sine = angle.cos().to(x.dtype), (angle.sin() * self.sign).to(x.dtype)
        return cosine[:, None, None], sine[:, None, None]


def _positions(encoder: nn.Module) -> nn.Module | None:
    if isinstance(encoder, VisionTransformer):
        return TablePositions(encoder.pos_embed, (1, *encoder.grid), encoder.patch_embed.patch)
    assert isinstance(encoder, VideoTransformer), f"{type(encoder).__name__} has no positions that can be computed"
    if encoder.tables is None:
        return TablePositions(encoder.pos_embed, encoder.grid, encoder.config.patch)
    return RotaryPositions(encoder.tables, (encoder.config.tubelet, *encoder.config.patch))


def can_resize(subject: Subject) -> bool:
    """Whether the graph may take inputs of any size."""
    return isinstance(subject.encoder, VisionTransformer | VideoTransformer)


def encoder_program(subject: Subject) -> Program:
    """The encoder as one program, of any size where that was asked for and can be."""
    any_size = subject.asked.any_size and can_resize(subject)
    graph = EncoderGraph(subject, any_size)
    axes: dict[int, Any] = {0: Dim("batch", min=1, max=4096)}
    if any_size:
        patch = patch_of(subject.encoder)
        first = 3 if subject.clips else 2
        axes |= {
            first: patch[-2] * Dim("rows", min=1, max=_MOST),
            first + 1: patch[-1] * Dim("columns", min=1, max=_MOST),
        }
        if isinstance(subject.encoder, VideoTransformer) and subject.clips and subject.encoder.tables is not None:
            axes[2] = patch[0] * Dim("times", min=1, max=_MOST)
    outputs = ("tokens", "pooled", *(f"layer_{number}" for number in subject.layers))
    example = torch.rand(2, 3, *_large(subject.size, axes, subject.encoder), generator=torch.Generator().manual_seed(0))
    return Program("encoder", graph, (example,), ("pixels",), outputs, (axes,), down_to_one=True)


def patch_of(encoder: nn.Module) -> tuple[int, ...]:
    """([frames,] height, width) of a token."""
    if isinstance(encoder, VisionTransformer):
        return encoder.patch_embed.patch
    assert isinstance(encoder, VideoTransformer), f"patches of {type(encoder).__name__} are not known"
    return (encoder.config.tubelet, *encoder.config.patch)


def _large(size: tuple[int, ...], axes: dict[int, Any], encoder: nn.Module) -> tuple[int, ...]:
    """An example of `size`, but with two tokens or more along each dynamic axis: tracing takes a 1 for fixed."""
    if len(axes) == 1:
        return size
    patch, first = patch_of(encoder)[-len(size) :], 2
    return tuple(max(n, 2 * patch[i]) if first + i in axes else n for i, n in enumerate(size))


__all__ = ["DTYPES", "EncoderGraph", "can_resize", "encoder_program", "patch_of"]
