"""Tiny windows of episodes for world models: a bright square that actions push over a dark ground."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from jepa.data import Batch
from jepa.methods import base
from jepa.methods.world import History, WorldModel

SIZE = (4, 16, 16)  # frames, height, width
ENCODER = {"patch": 4, "width": 32, "depth": 1, "heads": 2, "init": "fan_in"}
PREDICTOR = {"depth": 2, "width": 32, "heads": 2, "head_width": 16, "hidden": 64, "dropout": 0.0}
LEWM: dict[str, Any] = {
    "name": "lewm",
    "space": {"action": 2},
    "encoder": ENCODER,
    "latent": 32,
    "hidden": 64,
    "predictor": PREDICTOR,
    "sigreg": {"directions": 64},
}


def squares(count: int, frames: int = SIZE[0], seed: int = 0, size: int = SIZE[1]) -> tuple[Tensor, Tensor, Tensor]:
    """Clips (B, 3, T, H, W) around zero, actions (B, T - 1, 2) in pixels, and places (B, T, 2)."""
    g = torch.Generator().manual_seed(seed)
    actions = torch.randint(-3, 4, (count, frames - 1, 2), generator=g).float()
    place = torch.randint(0, size - 3, (count, 2), generator=g).float()
    places = [place]
    for t in range(frames - 1):
        places.append((places[-1] + actions[:, t]).clamp(0, size - 4))
    where = torch.stack(places, 1)
    rows = torch.arange(size).view(1, 1, size)
    inside = [(rows >= where[..., i, None]) & (rows < where[..., i, None] + 4) for i in (0, 1)]
    picture = (inside[0].unsqueeze(-1) & inside[1].unsqueeze(-2)).float() * 3 - 0.3
    return picture.unsqueeze(1).expand(-1, 3, -1, -1, -1).contiguous(), actions, where


def make(values: dict[str, Any], seed: int = 0, size: tuple[int, ...] = SIZE) -> WorldModel:
    """A world model whose gates are open: those of AdaLN begin at zero, and then nothing could be told apart."""
    torch.manual_seed(seed)
    model = base.create(values, size)
    assert isinstance(model, WorldModel)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "modulation" in name:
                parameter.normal_(std=0.3)
    return model


def batch_of(actions: Tensor, step: int = 0, **more: Tensor) -> Batch:
    """A training batch around these actions."""
    none = torch.zeros(len(actions), dtype=torch.int64)
    g = step * len(actions) + torch.arange(len(actions))
    return Batch(none, none, g, none, step=step, steps={"action": actions, **more})


def loss_of(model: WorldModel, x: Tensor, actions: Tensor, step: int = 0, **more: Tensor) -> base.Output:
    """One training forward."""
    schedule = {name: torch.tensor(value) for name, value in model.schedule(step, 100).items()}
    return model(x, None, schedule, batch=batch_of(actions, step, **more))


def history_of(x: Tensor, actions: Tensor, frames: int) -> History:
    """What is seen of a clip after its first frames."""
    return History(x.transpose(1, 2)[:, :frames], actions[:, : frames - 1])


def train(model: WorldModel, steps: int, batch: int = 64, lr: float = 2e-3, frames: int = SIZE[0]) -> None:
    """A short training run on fresh squares; the rate ends at zero, so that batch norm's running statistics fit."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    model.train()
    for step in range(steps):
        x, actions, _ = squares(batch, frames, seed=1000 + step)
        optimizer.param_groups[0]["lr"] = lr * min(1.0, (step + 1) / 20) * (1 - step / steps)
        optimizer.zero_grad()
        loss_of(model, x, actions, step).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        model.after_step(model.schedule(step, steps))
    model.eval()


ENCODER_RUN: dict[str, Any] = {
    "name": "ijepa",
    "encoder": {"patch": 4, "width": 16, "depth": 1, "heads": 2, "init": "fan_in"},
    "predictor": {"width": 16, "depth": 1, "heads": 2},
}
RSSM: dict[str, Any] = {
    "name": "rssm",
    "space": {"action": 2},
    "encoder": {"spec": {"method": ENCODER_RUN, "size": list(SIZE[1:])}},
    "belief": {"width": 64, "hidden": 128, "groups": 8, "classes": 8},
    "hidden": 256,
}
