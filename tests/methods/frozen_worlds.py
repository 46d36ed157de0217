"""Tiny world models over a frozen encoder with random weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from jepa import config
from jepa.data import Batch
from jepa.methods import base
from jepa.methods.frozen import FrozenWorldModel
from jepa.methods.world import History

SMALL = {"width": 24, "depth": 1, "heads": 2}  # of the encoder's own run, thrown away
IMAGES: dict[str, Any] = {
    "name": "ijepa",
    "encoder": {"patch": 4, "width": 24, "depth": 1, "heads": 2},
    "predictor": SMALL,
}
VIDEO: dict[str, Any] = {
    "name": "vjepa",
    "encoder": {"patch": 4, "width": 24, "depth": 1, "heads": 2},
    "predictor": SMALL,
}
SPECS = {"images": {"method": IMAGES, "size": [12, 12]}, "video": {"method": VIDEO, "size": [4, 12, 12]}}
PREDICTORS: dict[str, dict[str, Any]] = {
    "ac": {"depth": 2, "width": 24, "heads": 2},
    "dinowm": {"depth": 2, "heads": 2, "head_width": 8, "hidden": 32, "dropout": 0.0},
}
FRAMES, SIDE, ACTION, PROPRIO = 5, 12, 4, 3


def values(name: str, encoder: str = "images", **more: Any) -> dict[str, Any]:
    """The method section of a tiny world model."""
    start = {
        "name": name,
        "encoder": {"spec": SPECS[encoder]},
        "predictor": PREDICTORS[name],
        "space": {"action": ACTION, "proprio": PROPRIO},
        "rollout": 2,
    }
    return config.merge(start, more)


def make(name: str, encoder: str = "images", *, frames: int = FRAMES, seed: int = 0, **more: Any) -> FrozenWorldModel:
    """It, in float64, with no weight at a special value."""
    torch.manual_seed(seed)
    model = base.create(values(name, encoder, **more), (frames, SIDE, SIDE)).double()
    assert isinstance(model, FrozenWorldModel)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    for scale in (model.action_scale, model.proprio_scale):
        scale.fit(torch.randn_like(scale.mean), torch.rand_like(scale.std) + 0.5)
    return model


def example(model: FrozenWorldModel, batch: int = 2, frames: int = FRAMES, seed: int = 1) -> History:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    proprio = draw(batch, frames, model.space.proprio) if model.space.proprio else None
    return History(draw(batch, frames, 3, SIDE, SIDE), draw(batch, frames - 1, model.space.action), proprio)


def step_on_meta(name: str, **more: Any) -> None:
    """One step of it forward and back, without memory, as operations are counted."""
    with torch.device("meta"):
        model = base.create(values(name, **more), (FRAMES, SIDE, SIDE)).to("meta").train()
    assert isinstance(model, FrozenWorldModel)
    steps = {n: torch.empty(2, *shape, device="meta") for n, shape in model.needs().items()}
    none = torch.empty(2, dtype=torch.int64)
    x = torch.empty(2, 3, FRAMES, SIDE, SIDE, device="meta")
    model(x, None, {}, batch=Batch(x, none, none, none, steps=steps)).loss.backward()
