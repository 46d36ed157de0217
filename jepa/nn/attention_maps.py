"""Where an encoder looks: the attention weights of one block, computed again from what went into it.

The fused attention that encoders run never holds its weights. A hook catches the block's input, with its rotary tables,
and the weights are computed for that block alone, in parts, so that long clips fit.

Shapes: B batch, N tokens, Q queries, D width, h heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from jepa.errors import ConfigError
from jepa.nn.attention import Attention

_ROOM = 2**25  # weights held at once


@dataclass(frozen=True)
class AttentionMaps:
    """Weights of one block; every map sums to 1 over the tokens, so 1 / N is an even share."""

    received: Tensor  # (B, h, N): what a token gets from all N tokens on average
    chosen: Tensor  # (B, h, Q, N): what each of the chosen tokens looks at


def attention_layers(encoder: nn.Module) -> list[Attention]:
    """The self-attention of every block, from the first to the last.

    Raises:
        ConfigError: an encoder that is not made of this package's blocks.
    """
    blocks: Any = getattr(encoder, "blocks", None)
    found = [getattr(block, "attn", None) for block in blocks] if isinstance(blocks, nn.ModuleList) else []
    layers = [layer for layer in found if isinstance(layer, Attention)]
    if not layers or len(layers) != len(found):
        raise ConfigError(
            f"{type(encoder).__name__} has no attention that can be read: it needs a list `blocks` of "
            "jepa.nn.attention.Block"
        )
    return layers


@torch.no_grad()
def attention_maps(encoder: nn.Module, x: Tensor, layer: int, queries: Sequence[int]) -> AttentionMaps:
    """Attention of block `layer` (0-based) for what the encoder takes: normalised images or clips (B, 3, [T,] H, W).

    Args:
        queries: places of the chosen tokens, Q of them.

    Raises:
        ConfigError: see `attention_layers`.
    """
    attention = attention_layers(encoder)[layer]
    caught: list[tuple[Any, ...]] = []
    hook = attention.register_forward_pre_hook(lambda module, inputs: caught.append(inputs))
    try:
        encoder(x)
    finally:
        hook.remove()
    ((tokens, *rest),) = caught
    rotary = rest[0] if rest else None
    batch, count = tokens.shape[:2]
    part = max(1, _ROOM // (batch * attention.heads * count))
    total = torch.zeros(batch, attention.heads, count, device=tokens.device, dtype=tokens.dtype)
    for places in torch.split(torch.arange(count, device=tokens.device), part):
        total += attention.weights(tokens, rotary, places).sum(dim=2)
    chosen = attention.weights(tokens, rotary, torch.tensor(list(queries), device=tokens.device, dtype=torch.int64))
    return AttentionMaps(total / count, chosen)
