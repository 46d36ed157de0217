"""Losses as pure tensor functions.

Shapes: M prediction blocks (targets x contexts x batch), B batch, N tokens of a grid, K tokens, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def normalise_targets(tokens: Tensor) -> Tensor:
    """Layer norm without scale and shift over the feature axis (eps 1e-5), as I-JEPA and V-JEPA do with targets."""
    return F.layer_norm(tokens, tokens.shape[-1:])


def normalise_levels(tokens: Tensor, levels: int) -> Tensor:
    """`normalise_targets` for each of the chunks that make up the feature axis (V-JEPA 2.1)."""
    return normalise_targets(tokens.unflatten(-1, (levels, -1))).flatten(-2)  # type: ignore[no-untyped-call]


def centre_targets(tokens: Tensor, empty: Tensor) -> Tensor:
    """Teacher tokens (B, N, D) less those of an empty image (1, N, D), then less their mean over the image (or clip).

    No sample depends on another one. data2vec (arXiv 2202.03555, section 3.2) normalises targets over the sequence
    to the same end; there the variance is set to one too, here the layer norm that follows does that per token.
    """
    tokens = tokens - empty
    return tokens - tokens.mean(dim=1, keepdim=True)


def motion_targets(tokens: Tensor, empty: Tensor, steps: int) -> Tensor:
    """What of teacher tokens (B, N, D) changes over a clip of so many time steps (time first in N).

    Less the answer to an empty clip (1, N, D), then less the mean over time at each place. What is left is divided by
    its root mean square over the clip and not normalised by token, so that places where nothing moves ask for zero and
    weigh little; in a clip where less than a hundredth of all variance moves, it is not blown up further. Ours; no
    sample depends on another one.
    """
    content = (tokens - empty).unflatten(1, (steps, -1))  # type: ignore[no-untyped-call]
    moved = content - content.mean(dim=1, keepdim=True)
    whole = content - content.mean(dim=(1, 2), keepdim=True)
    energy, floor = (x.square().mean(dim=(1, 2, 3), keepdim=True) for x in (moved, whole))
    scaled: Tensor = moved * energy.clamp(min=0.01 * floor + 1e-12).rsqrt()
    return scaled.flatten(1, 2)


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


def power_loss(predicted: Tensor, target: Tensor, kind: str, weight: Tensor | None = None) -> Tensor:
    """V-JEPA's loss: mean |predicted - target|^p / p with p = 1 ("l1") or 2 ("l2"); or "smooth_l1" (beta 1).

    Args:
        weight: (B, K), multiplies every feature of a token.

    Returns:
        0-d; the mean is over all of (B, K, D).
    """
    if weight is None and kind != "l2":
        return latent_loss(predicted, target, kind)
    each = F.smooth_l1_loss(predicted, target, reduction="none") if kind == "smooth_l1" else (predicted - target).abs()
    each = each.square() / 2 if kind == "l2" else each
    return each.mean() if weight is None else (each.mean(dim=-1) * weight).mean()


def distance_to(chosen: Tensor, grid: tuple[int, int, int]) -> Tensor:
    """Euclidean distance of every token of a grid (time, rows, columns) to the nearest chosen one, in tokens.

    The exact distance transform, one axis after the other: work grows with N times the grid's sides, not with the
    number of pairs.

    Args:
        chosen: token indices (B, K).

    Returns:
        (B, N) float32; 0 at the chosen tokens.
    """
    batch, count = len(chosen), grid[0] * grid[1] * grid[2]
    squared = torch.full((batch, count), float(sum(side**2 for side in grid)), device=chosen.device)
    squared = squared.scatter(1, chosen, 0.0).view(batch, *grid)
    for axis, side in enumerate(grid, start=1):
        place = torch.arange(side, device=chosen.device, dtype=squared.dtype)
        steps = (place[:, None] - place).square()  # from each place to every other
        squared = (squared.movedim(axis, -1).unsqueeze(-2) + steps).amin(dim=-1).movedim(-1, axis)
    return squared.sqrt().view(batch, count)


def curvature(z: Tensor) -> Tensor:
    """Mean of 1 - cos(z_t+1 - z_t, z_t+2 - z_t+1) over paths (B, T, D), T at least 3; 0-d, in float32.

    Straight paths make Euclidean distance to a goal a good cost for planners (arXiv 2603.12231).
    """
    steps = (z[:, 1:] - z[:, :-1]).float()
    return 1 - F.cosine_similarity(steps[:, 1:], steps[:, :-1], dim=-1).mean()
