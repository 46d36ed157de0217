"""Losses as pure tensor functions.

Shapes: M prediction blocks (targets x contexts x batch), K tokens, D width.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def normalise_targets(tokens: Tensor) -> Tensor:
    """Layer norm without scale and shift over the feature axis (eps 1e-5), as I-JEPA and V-JEPA do with targets."""
    return F.layer_norm(tokens, tokens.shape[-1:])


def centre_targets(tokens: Tensor, empty: Tensor) -> Tensor:
    """Teacher tokens (B, N, D) less those of an empty image (1, N, D), then less their mean over the image.

    No sample depends on another one. data2vec (arXiv 2202.03555, section 3.2) normalises targets over the sequence
    to the same end; there the variance is set to one too, here the layer norm that follows does that per token.
    """
    tokens = tokens - empty
    return tokens - tokens.mean(dim=1, keepdim=True)


def latent_loss(predicted: Tensor, target: Tensor, kind: str = "smooth_l1") -> Tensor:
    """Mean distance of predicted and target embeddings (M, K, D), as a 0-d tensor.

    kind: "smooth_l1" (I-JEPA, beta 1), "l1" (V-JEPA) or "l2" (mean squared error, the paper's text).
    """
    if kind == "smooth_l1":
        return F.smooth_l1_loss(predicted, target)
    if kind == "l1":
        return F.l1_loss(predicted, target)
    assert kind == "l2", f"unknown loss {kind!r}, expected smooth_l1, l1 or l2"
    return F.mse_loss(predicted, target)
