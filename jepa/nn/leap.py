"""Frame-causal predictions over several actions at once (variable-length world models, arXiv 2606.21775).

The newest frame is told a chunk of up to K actions in place of its own; the frames before it are told single ones. So
imagining H steps takes H / K predictions in a row.

Shapes: B batch, S plans, R = B * S rows, T frames, H imagined steps, N tokens of a frame, D width, A numbers of an
action, K longest chunk, E width of what stands for an action.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from jepa.nn import noise
from jepa.nn.causal import ChunkEncoder
from jepa.nn.frame_causal import Past
from jepa.nn.rollout import Ahead, Frames


@dataclass(frozen=True)
class Chunk:
    """What one frame of each of B rows is told in place of its action."""

    told: Tensor  # (B, 1, E)
    actions: Tensor  # (B, L, A) scaled, L at least as many as count
    length: Tensor  # (B,): how many of them it covers


class Leaper(Protocol):
    """A predictor that can be told chunks."""

    def embedded(self, actions: Tensor) -> Tensor:
        """What stands for single scaled actions, (..., A) to (..., E)."""
        ...

    def ahead(self, frames: Frames, past: Past | None = None, last: bool = False, chunk: Chunk | None = None) -> Ahead:
        """As of `jepa.nn.rollout.Predictor`; `chunk`: what the only frame is told."""
        ...

    def distance(self, found: Ahead, wanted: Frames) -> Tensor:
        """Mean distance, 0-d."""
        ...


def leap_error(model: Leaper, encoder: ChunkEncoder, seen: Frames, past: Past, g: Tensor, seed: int) -> Tensor:
    """Mean distance of predictions over 2 .. K actions: one length for each frame, keyed by sample number.

    Args:
        seen: T frames; the last one's action is not read.
        past: of the first of them, told single actions; frames behind it are not predicted from.
        g: sample numbers (B,).
    """
    chunks = encoder(model.embedded(seen.actions), seen.actions)  # (B, T, K, E)
    starts = range(min(seen.count - 2, past.frames))  # frames that two actions or more follow
    drawn, rows = noise.uniform("chunk", seed, g, len(starts)), torch.arange(len(g), device=g.device)
    errors = []
    for at in starts:
        most = min(encoder.most, seen.count - 1 - at)
        length = 2 + (drawn[:, at] * (most - 1)).long()
        told = Chunk(chunks[rows, at, length - 1].unsqueeze(1), seen.actions[:, at : at + most], length)
        found = model.ahead(seen.part(at, at + 1), past.first(at), last=True, chunk=told)
        proprio = None if seen.proprio is None else seen.proprio[rows, at + length].unsqueeze(1)
        wanted = Frames(seen.latents[rows, at + length].unsqueeze(1), proprio, seen.actions[:, :1])
        errors.append(model.distance(found, wanted))
    return torch.stack(errors).mean()


def leap_out(
    model: Leaper, encoder: ChunkEncoder, seen: Frames, actions: Tensor, window: int
) -> tuple[Tensor, Tensor | None]:
    """`roll_out` by rounds of up to K predictions, each from the last frame of the round before.

    Args:
        seen: T frames; the last one's action is not read.
        actions: (B, S, H, A).
        window: most frames that the predictor looks at.

    Returns:
        Latents (B, S, H, N, D) and proprioception (B, S, H, ...).
    """
    batch, plans, horizon, _ = actions.shape
    steps, before = actions.flatten(0, 1), seen.count
    chunks = encoder(model.embedded(steps), steps, every=encoder.most)  # (R, rounds, K, E)
    known = _repeat(seen, plans)
    follow = torch.cat([known.actions[:, :-1], steps, torch.zeros_like(steps[:, :1])], dim=1)
    for number in range(chunks.shape[1]):
        count, done = known.count, number * encoder.most
        left = min(encoder.most, horizon - done)
        known = replace(known, actions=follow[:, :count])
        first = max(0, count - window)
        past = None
        if first < count - 1:
            past = model.ahead(known.part(first, count - 1), last=True).past.repeat(left)
        lengths = torch.arange(1, left + 1, device=steps.device).repeat(len(steps))
        covered = steps[:, done : done + left].repeat_interleave(left, dim=0)
        told = chunks[:, number, :left].flatten(0, 1).unsqueeze(1)
        newest = _repeat(known.part(count - 1, count), left)
        found = model.ahead(newest, past, last=True, chunk=Chunk(told, covered, lengths))
        proprio = None if found.proprio is None else _rounds(found.proprio, left)
        known = known.join(Frames(_rounds(found.latents, left), proprio, follow[:, count : count + left]))
    ahead = known.part(before, known.count)
    latents = ahead.latents.unflatten(0, (batch, plans))  # type: ignore[no-untyped-call]
    proprio = ahead.proprio
    return latents, None if proprio is None else proprio.unflatten(0, (batch, plans))  # type: ignore[no-untyped-call]


def _rounds(x: Tensor, left: int) -> Tensor:
    """(R * left, 1, ...) to (R, left, ...)."""
    return x.reshape(-1, left, *x.shape[2:])


def _repeat(frames: Frames, times: int) -> Frames:
    proprio = None if frames.proprio is None else frames.proprio.repeat_interleave(times, dim=0)
    latents, actions = (x.repeat_interleave(times, dim=0) for x in (frames.latents, frames.actions))
    return Frames(latents, proprio, actions)


__all__ = ["Chunk", "Leaper", "leap_error", "leap_out"]
