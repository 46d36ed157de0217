"""Rolling a frame-causal predictor out, with what does not depend on a plan computed once.

Of S plans from one state only the newest frame's action differs at first: the frames before it go through the predictor
once for all plans, and are handed on as keys and values. Each imagined frame then goes through once, until the window
is full. From there on the oldest frame falls out at every step and all positions shift, so that the frames in the
window are computed anew (those before the first candidate action still once for all plans).

Shapes: B batch, S candidate plans, T frames seen, H imagined steps, N tokens of a frame, D width, A numbers of an
action. Proprioception is as the predictor takes it: numbers of a frame, or an embedding beside each of its tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from jepa.nn.frame_causal import Past


@dataclass(frozen=True)
class Frames:
    """Frames with the actions that follow them."""

    latents: Tensor  # (B, T, N, D)
    proprio: Tensor | None  # (B, T, ...)
    actions: Tensor  # (B, T, A): t leads from frame t to t + 1

    @property
    def count(self) -> int:
        """T."""
        return self.latents.shape[1]

    def part(self, begin: int, end: int) -> Frames:
        """Frames [begin, end)."""
        proprio = None if self.proprio is None else self.proprio[:, begin:end]
        return Frames(self.latents[:, begin:end], proprio, self.actions[:, begin:end])

    def join(self, other: Frames) -> Frames:
        """These, then the other ones."""
        proprio = None
        if self.proprio is not None and other.proprio is not None:
            proprio = torch.cat([self.proprio, other.proprio], dim=1)
        latents, actions = (torch.cat([getattr(self, n), getattr(other, n)], dim=1) for n in ("latents", "actions"))
        return Frames(latents, proprio, actions)


@dataclass(frozen=True)
class Ahead:
    """What follows each frame."""

    latents: Tensor  # (B, T, N, D), or (B, 1, N, D) of the newest frame alone
    proprio: Tensor | None  # likewise (B, T, ...)
    past: Past


class Predictor(Protocol):
    """A frame-causal predictor as roll-outs need it."""

    def ahead(self, frames: Frames, past: Past | None = None, last: bool = False) -> Ahead:
        """What follows each of these frames; `last`: what follows the newest one. `past`: of frames before them."""
        ...


def roll_out(predictor: Predictor, seen: Frames, actions: Tensor, window: int) -> tuple[Tensor, Tensor | None]:
    """Follow S plans from each of B states, under autograd or without.

    Args:
        seen: T frames; the last one's action is not read.
        actions: (B, S, H, A).
        window: most frames that the predictor looks at.

    Returns:
        Latents (B, S, H, N, D) and proprioception (B, S, H, ...).
    """
    batch, plans, horizon, _ = actions.shape
    steps = actions.flatten(0, 1)  # (B * S, H, A)
    seen = seen.part(max(0, seen.count - window), seen.count)
    known = seen.count - 1  # frames whose action is known: the same for all plans
    newest = seen.part(known, known + 1)
    own = Frames(_repeat(newest.latents, plans), _repeat(newest.proprio, plans), steps[:, :1])
    found: list[Ahead] = []
    past: Past | None = None
    for step in range(horizon):
        end = seen.count + step
        begin = max(0, end - window)
        if step == 0 or begin > 0:  # the first frame's position is that of `begin`
            past = None
            if begin < known:
                past = predictor.ahead(seen.part(begin, known), last=True).past.repeat(plans)
            entering = own.part(max(begin - known, 0), own.count)
        else:
            entering = own.part(own.count - 1, own.count)
        ahead = predictor.ahead(entering, past, last=True)
        found.append(ahead)
        past = ahead.past
        if step + 1 < horizon:
            own = own.join(Frames(ahead.latents, ahead.proprio, steps[:, step + 1 : step + 2]))
    latents = torch.cat([a.latents for a in found], dim=1).unflatten(0, (batch, plans))  # type: ignore[no-untyped-call]
    if seen.proprio is None:
        return latents, None
    ahead_of = [a.proprio for a in found if a.proprio is not None]
    return latents, torch.cat(ahead_of, dim=1).unflatten(0, (batch, plans))  # type: ignore[no-untyped-call]


def _repeat(x: Tensor | None, times: int) -> Any:
    return None if x is None else x.repeat_interleave(times, dim=0)


__all__ = ["Ahead", "Frames", "Predictor", "roll_out"]
