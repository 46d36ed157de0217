"""Runs with random weights of tiny instances of shipped configurations, to export."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from jepa import checkpoint, config
from jepa.checkpoint import frozen
from jepa.config import RunConfig
from jepa.methods import base
from jepa.methods.world import WorldModel

SIDE, FRAMES = 32, 4
_OWN = {  # the frozen encoder of world models, in place of a run
    "method": {
        "name": "ijepa",
        "encoder": {"patch": 16, "width": 24, "depth": 1, "heads": 2},
        "predictor": {"width": 24, "depth": 1, "heads": 2},
    },
    "size": [SIDE, SIDE],
}
_SPACE = {"action": 4, "proprio": 3}
_SMALL: dict[str, dict[str, Any]] = {  # what makes each method's own parts tiny
    "ac": {
        "encoder": {"spec": _OWN},
        "predictor": {"depth": 1, "width": 24, "heads": 2},
        "space": {"action": 7, "proprio": 7},
    },
    "dinowm": {
        "encoder": {"spec": _OWN},
        "predictor": {"depth": 1, "heads": 2, "head_width": 8, "hidden": 32},
        "space": _SPACE,
    },
    "lewm": {
        "encoder": {"patch": 16, "width": 24, "depth": 1, "heads": 2},
        "latent": 16,
        "hidden": 32,
        "predictor": {"depth": 1, "width": 24, "heads": 2, "head_width": 8, "hidden": 32},
        "space": {"action": 4},
    },
    "rssm": {
        "encoder": {"spec": _OWN},
        "grid": 2,
        "belief": {"width": 16, "hidden": 16, "groups": 4},
        "hidden": 16,
        "space": {"action": 4},
    },
}


def settings(name: str, *overrides: str) -> RunConfig:
    """A shipped configuration, shrunk: one block, 32 pixels, 4 frames."""
    plain = config.load(name)
    method = plain.method["name"]
    values = config.to_dict(plain)
    if method in _SMALL:
        if plain.method.get("encoder", {}).get("timm"):
            small = _SMALL[method] | {"encoder": {"timm": "test_vit.r160_in1k", "pretrained": False}}
        else:
            small = _SMALL[method]
        values["method"] = config.merge(values["method"], small)
    else:
        encoder = {"width": 24, "depth": 2, "heads": 2, "mlp_ratio": 2.0, "patch": 16}
        predictor: dict[str, Any] = {"width": 24, "depth": 1, "heads": 2, "mlp_ratio": 2.0}
        if method != "ijepa":
            predictor["mask_tokens"] = 2
        values["method"] = config.merge(values["method"], {"encoder": encoder, "predictor": predictor})
    values["data"] |= {"image_size": SIDE, "workers": 0}
    if plain.data.clip is not None:
        values["data"]["clip"] = values["data"]["clip"] | {"frames": FRAMES}
    values |= {"phases": {}, "mix": {}}
    run = config.build(RunConfig, config.override(values, list(overrides)))
    if method in _SMALL:
        run.method.update(frozen.resolve(run.method, run.data))
    return run


def make(folder: Path, name: str, *overrides: str, seed: int = 0) -> Path:
    """A run folder with a checkpoint whose every weight is away from its special start."""
    return save(folder, settings(name, *overrides), seed)


def save(folder: Path, run: RunConfig, seed: int = 0) -> Path:
    """The same of a configuration."""
    torch.manual_seed(seed)
    method = base.create(run.method, run.data.size)
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
        if isinstance(method, WorldModel):
            for scale in (method.action_scale, method.proprio_scale):
                scale.fit(torch.randn_like(scale.mean), torch.rand_like(scale.std) + 0.5)
        for name, buffer in method.named_buffers():
            if name.endswith("filled"):
                buffer.fill_(1)
    folder.mkdir(parents=True)
    checkpoint.save(folder, 7, method, None, {"g": 0}, run)
    (folder / "config.yaml").write_text(config.to_yaml(run), encoding="utf-8")
    return folder
