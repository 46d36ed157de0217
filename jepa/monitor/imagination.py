"""How far a world model's imagination can be trusted: open-loop roll-outs against what really happened.

A window of an episode is T frames that the model sees and H frames that really followed, with the actions between all
of them. Step h of every course is held against the model's own latents of frame T + h:

    open loop   imagined from the T frames seen (of which some may be missing), with the true actions; errors add up
    one step    imagined one action ahead from the T newest frames: teacher-forced, what a step alone costs
    copy        the last frame seen, standing still: an imagination that is not better is worth nothing

Latents that are true are the encoder's, which saw those frames and all before them in the window: a belief over history
has all that it could know. Distances are between tokens: Euclidean, and one minus the cosine; their mean over tokens.

Shapes: B windows, T frames seen, H steps, S candidate plans, N tokens of a frame, D width, A numbers of one action,
P of proprioception.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from jepa.config import ClipConfig, DataConfig
from jepa.data import Batch, Split, eval_windows, window_starts
from jepa.methods.world import History, State, WorldModel
from jepa.nn.tokens import Normalise

WINDOWS = 16  # looked at while training
AHEAD = 5  # steps imagined then


@dataclass(frozen=True)
class Windows:
    """Pieces of episodes."""

    frames: Tensor  # (B, T + H, 3, h, w) normalised as in training
    actions: Tensor  # (B, T + H - 1, A): number t leads from frame t to t + 1
    proprio: Tensor | None  # (B, T + H, P)
    seen: int  # T
    view: Tensor | None = None  # (B, T, 3, h, w): what is seen of the first T where frames are missing; None: all
    last: Tensor | None = None  # (B,) the last frame of these that is not missing; None: T - 1

    def __post_init__(self) -> None:
        length = self.frames.shape[1]
        assert 1 <= self.seen < length, f"{self.seen} frames seen of {length}"
        assert self.actions.shape[1] == length - 1, f"{length} frames, but {self.actions.shape[1]} actions"

    @property
    def horizon(self) -> int:
        """H."""
        return self.frames.shape[1] - self.seen

    @property
    def begin(self) -> History:
        """What an open loop begins with: the frames seen, blank where they are missing."""
        found = self.history(0, self.seen)
        return found if self.view is None else replace(found, frames=self.view)

    @property
    def future(self) -> Tensor:
        """The true actions (B, H, A) after the last frame seen."""
        return self.actions[:, self.seen - 1 :]

    def history(self, start: int, stop: int) -> History:
        """Frames [start, stop) with the actions between them."""
        proprio = None if self.proprio is None else self.proprio[:, start:stop]
        return History(self.frames[:, start:stop], self.actions[:, start : stop - 1], proprio)

    def rows(self, start: int, stop: int) -> Windows:
        """Windows [start, stop)."""
        proprio = None if self.proprio is None else self.proprio[start:stop]
        view = None if self.view is None else self.view[start:stop]
        last = None if self.last is None else self.last[start:stop]
        return Windows(self.frames[start:stop], self.actions[start:stop], proprio, self.seen, view, last)


@dataclass(frozen=True)
class Courses:
    """What a model saw and imagined of windows."""

    true: Tensor  # (B, H, N, D) latents of the frames that followed
    copy: Tensor  # (B, 1, N, D) of the last frame seen
    one_step: Tensor  # (B, H, N, D)
    imagined: dict[str, Tensor]  # by name of the plan: (B, H, N, D); "open_loop" has the true actions
    uncertainty: Tensor | None  # (B, H) of the open loop; None: the model does not tell

    def every(self) -> dict[str, Tensor]:
        """All courses by name, (B, H, N, D) each."""
        return {"copy": self.copy.expand_as(self.true), "one_step": self.one_step} | self.imagined


def seen_latents(model: WorldModel, windows: Windows) -> Tensor:
    """The model's latents (B, T + H, N, D) of every frame, each with all frames before it in view."""
    length = windows.frames.shape[1]
    found: Tensor = model.readout(model.observe(windows.history(0, length)))
    if found.shape[1] == length:
        return found
    # a model that looks back less far gives the newest frames only: each frame in its turn is the newest
    each = [model.readout(model.observe(windows.history(0, stop)))[:, -1] for stop in range(1, length + 1)]
    return torch.stack(each, dim=1)


def one_step(model: WorldModel, windows: Windows) -> Tensor:
    """Latents (B, H, N, D), each imagined one action ahead from the T frames before it."""
    found = []
    for h in range(windows.horizon):
        state = model.observe(windows.history(h, h + windows.seen))
        last = windows.future[:, h]
        found.append(model.readout(model.imagine(state, last[:, None, None]))[:, 0, 0])
    return torch.stack(found, dim=1)


def courses(model: WorldModel, windows: Windows, others: dict[str, Tensor] | None = None) -> Courses:
    """Everything that is compared, without gradient.

    Args:
        model: in eval mode.
        others: further plans (B, H, A) by name, imagined beside the true actions from the same state.
    """
    plans = {"open_loop": windows.future} | (others or {})
    with torch.no_grad():
        state = model.observe(windows.begin)
        future: State = model.imagine(state, torch.stack(list(plans.values()), dim=1))
        imagined = model.readout(future)  # (B, S, H, N, D)
        doubt = model.uncertainty(future)
        latents = seen_latents(model, windows)
        rows = torch.arange(len(latents), device=latents.device)
        last = rows.new_full((len(latents),), windows.seen - 1) if windows.last is None else windows.last.to(rows)
        return Courses(
            latents[:, windows.seen :],
            latents[rows, last].unsqueeze(1),
            one_step(model, windows),
            {name: imagined[:, s] for s, name in enumerate(plans)},
            None if doubt is None else doubt[:, 0],
        )


def euclidean(first: Tensor, second: Tensor) -> Tensor:
    """Mean over tokens of the Euclidean distance: (..., N, D) to (...)."""
    return (first.double() - second.double()).square().sum(dim=-1).sqrt().mean(dim=-1)


def cosine(first: Tensor, second: Tensor) -> Tensor:
    """Mean over tokens of one minus the cosine: (..., N, D) to (...)."""
    return (1 - F.cosine_similarity(first.double(), second.double(), dim=-1)).mean(dim=-1)


def imagination_metrics(model: WorldModel, windows: Windows) -> dict[str, float]:
    """Health of a world model in training, from a few held-out windows of at least two episodes.

    Every module is left in the mode it was in; torch's generator is the caller's to keep (the monitor does).

    Returns:
        health/imagined_error        Euclidean error of the open loop at the last step
        health/imagined_over_copy    the same divided by that of the last frame seen: below 1 it is of use
        health/one_step_over_copy    error of one step alone, divided by that of the last frame, mean over steps
        health/shuffled_over_right   error with another window's actions, divided by that with the right ones, at the
                                     last step: 1 means that actions are ignored. Absent with a single window
    """
    others = {"shuffled": windows.future.roll(1, dims=0)} if len(windows.frames) > 1 else {}
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        found = courses(model, windows, others)
    finally:
        for module, mode in modes:  # one by one: a teacher is in eval mode inside a method in train mode
            module.training = mode
    error = {name: euclidean(course, found.true).mean(dim=0) for name, course in found.every().items()}  # (H,)
    least = torch.finfo(torch.float32).tiny
    metrics = {
        "health/imagined_error": float(error["open_loop"][-1]),
        "health/imagined_over_copy": float(error["open_loop"][-1] / error["copy"][-1].clamp_min(least)),
        "health/one_step_over_copy": float((error["one_step"] / error["copy"].clamp_min(least)).mean()),
    }
    if others:
        metrics["health/shuffled_over_right"] = float(error["shuffled"][-1] / error["open_loop"][-1].clamp_min(least))
    return {name: value for name, value in metrics.items() if value < float("inf")}


class HeldOut:
    """A few windows of held-out episodes, the same at every look, of a world model in training.

    Windows are the training's without their last frame, which the model sees, and `AHEAD` steps after them, fewer where
    no episode is so long.
    """

    def __init__(self, split: Split, data: DataConfig) -> None:
        assert data.clip is not None and data.steps is not None, "a world model trains on windows of episodes"
        self.split, self.data, self.steps, self.seen = split, data, data.steps, max(1, data.clip.frames - 1)
        self._kept: Batch | None = None

    def measure(self, model: WorldModel, normalise: Normalise, device: torch.device) -> dict[str, float]:
        """`imagination_metrics` of the windows; empty where no episode is long enough for a step."""
        batch = self._kept = self._kept or self._read(min(AHEAD, model.reach or AHEAD))
        if batch is None or batch.steps is None:
            return {}
        frames = normalise(batch.images.to(device)).transpose(1, 2)
        proprio = batch.steps.get("proprio") if model.space.proprio else None
        actions = batch.steps["action"].to(device)
        return imagination_metrics(
            model, Windows(frames, actions, None if proprio is None else proprio.to(device), self.seen)
        )

    def _read(self, horizon: int) -> Batch | None:
        data = self.data
        for ahead in range(horizon, 0, -1):
            clip = replace(data.clip or ClipConfig(stride=1), frames=self.seen + ahead, clips=1, short="pad")
            starts = window_starts(self.split, clip)
            if len(starts):
                some = starts[np.unique(np.linspace(0, len(starts) - 1, WINDOWS).round().astype(np.int64))]
                read = eval_windows(
                    self.split, clip, self.steps, data.image_size, WINDOWS, some, decoder=data.decoder,
                    interpolation=data.interpolation,
                )  # fmt: skip
                return next(iter(read))
        return None


__all__ = [
    "Courses", "HeldOut", "Windows", "cosine", "courses", "euclidean", "imagination_metrics", "one_step",
    "seen_latents",
]  # fmt: skip
