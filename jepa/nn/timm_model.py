"""What differs between timm's models: where their patch tokens are.

Shapes: B batch, N tokens, D width.
"""

from __future__ import annotations

from torch import Tensor, nn


def patch_tokens(model: nn.Module, features: Tensor) -> Tensor:
    """Patch tokens, or the positions of a feature map, row by row: (B, N, D).

    Args:
        model: a timm model.
        features: what its `forward_features` gives: tokens with class and register tokens first, or a feature map.
    """
    if features.ndim == 3:
        return features[:, getattr(model, "num_prefix_tokens", 0) :]
    assert features.ndim == 4, f"features have shape {tuple(features.shape)}, expected 3 or 4 axes"
    channels_last = getattr(model, "output_fmt", "NCHW") == "NHWC"
    return features.flatten(1, 2) if channels_last else features.flatten(2).transpose(1, 2)


__all__ = ["patch_tokens"]
