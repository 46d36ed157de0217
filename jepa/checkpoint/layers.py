"""Tokens of an encoder's inner layers beside its output, in one pass.

A layer is a transformer block, numbered from 0; negative numbers count from the end. Its tokens go through the
encoder's final norm, as in V-JEPA's and DINOv2's probes, so that the last layer is the output itself. An encoder that
has norms of its own for its layers says so by a method ``levels(x, after) -> list of tokens`` (see
jepa/nn/video.py), which is then used.

Shapes: B batch, N tokens, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from jepa.errors import ConfigError

if TYPE_CHECKING:
    from jepa.checkpoint.encoder import Encoder

Levels = Callable[[Tensor], list[Tensor]]  # images to tokens (B, N, D): the output, then each layer


def depth(encoder: Encoder) -> int:
    """Number of layers, 0 when the encoder does not show them."""
    blocks = getattr(encoder.encoder, "blocks", None)
    return len(blocks) if isinstance(blocks, nn.ModuleList) else 0


def grid(encoder: Encoder) -> tuple[int, int] | None:
    """Rows and columns of the tokens of one image; None where the encoder does not say."""
    found = getattr(encoder.encoder, "grid", None)
    if not isinstance(found, tuple) or len(found) not in (2, 3):
        return None
    return int(found[-2]), int(found[-1])


def resolve(encoder: Encoder, layers: Sequence[int]) -> list[int]:
    """Layers counted from 0.

    Raises:
        ConfigError: a layer that is not there, or an encoder without blocks.
    """
    count = depth(encoder)
    if layers and not count:
        raise ConfigError(
            f"layers {list(layers)} are asked for, but {type(encoder.encoder).__name__} has no list of blocks called "
            "`blocks`. Leave layers out of the suite"
        )
    wrong = [layer for layer in layers if not -count <= layer < count]
    if wrong:
        raise ConfigError(f"layers {wrong}: this encoder has layers 0 to {count - 1}, or {-count} to -1 from the end")
    return [layer % count for layer in layers]


def levels(encoder: Encoder, layers: Sequence[int]) -> Levels:
    """A function from images, as `Encoder` takes them, to tokens of the output and of each layer.

    Raises:
        ConfigError: see `resolve`.
    """
    wanted = resolve(encoder, layers)
    if not wanted:
        return lambda images: [encoder(images)]
    own: Any = getattr(encoder.encoder, "levels", None)
    if own is not None:
        after = sorted({*wanted, depth(encoder) - 1})

        def asked(images: Tensor) -> list[Tensor]:
            with torch.no_grad():
                found = dict(zip(after, own(encoder.normalised(images), after), strict=True))
            return [found[after[-1]], *(found[i] for i in wanted)]

        return asked
    norm = getattr(encoder.encoder, "norm", None)
    blocks: Any = encoder.encoder.blocks

    def caught(images: Tensor) -> list[Tensor]:
        found: dict[int, Tensor] = {}

        def keep(number: int, module: nn.Module, inputs: Any, output: Tensor) -> None:
            found[number] = output

        hooks = [blocks[i].register_forward_hook(partial(keep, i)) for i in dict.fromkeys(wanted)]
        try:
            output = encoder(images)
        finally:
            for hook in hooks:
                hook.remove()
        with torch.no_grad():
            inner = {i: norm(x) if isinstance(norm, nn.Module) else x for i, x in found.items()}
        return [output, *(inner[i] for i in wanted)]

    return caught
