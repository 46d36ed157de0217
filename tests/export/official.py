"""Writes checkpoints in the official layouts, from the golden weights or from models of ours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tests import golden_set

IDENTITY = ["data.mean=[0,0,0]", "data.std=[1,1,1]"]  # golden images are stored normalised


def golden_parts() -> dict[str, dict[str, Tensor]]:
    """The golden encoder, predictor and (different) target encoder."""
    given = golden_set.tensors("ijepa_forward")
    return {name: golden_set.part(given, name) for name in ("encoder", "predictor", "target")}


def golden_settings() -> list[str]:
    """What no shape can tell about the golden models."""
    model = golden_set.facts("ijepa_forward")["config"]["model"]
    return [f"method.encoder.heads={model['heads']}", f"method.predictor.heads={model['pred_heads']}", *IDENTITY]


def video_parts() -> dict[str, dict[str, Tensor]]:
    """The golden parts of V-JEPA 2."""
    given = golden_set.tensors("vjepa2_forward")
    return {name: golden_set.part(given, f"{name}.backbone") for name in ("encoder", "predictor", "target")}


def video_settings() -> list[str]:
    """What no shape can tell about them."""
    model = golden_set.facts("vjepa2_forward")["config"]["model"]
    return [
        f"method.encoder.heads={model['heads']}",
        f"method.predictor.heads={model['pred_heads']}",
        f"data.image_size={model['img']}",
        f"data.clip.frames={model['frames']}",
        *IDENTITY,
    ]


def training_checkpoint(parts: dict[str, dict[str, Tensor]], wrapper: str = "module.") -> dict[str, Any]:
    """The dictionary that official training writes, with a real optimiser state."""
    parameters = [nn.Parameter(t.clone()) for name in ("encoder", "predictor") for t in parts[name].values()]
    optimizer = torch.optim.AdamW(parameters)
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    return {
        "encoder": {f"{wrapper}{k}": v for k, v in parts["encoder"].items()},
        "predictor": {f"{wrapper}{k}": v for k, v in parts["predictor"].items()},
        "target_encoder": {f"{wrapper}{k}": v for k, v in parts["target"].items()},
        "opt": optimizer.state_dict(),
        "scaler": torch.amp.GradScaler("cpu").state_dict(),
        "epoch": 300,
        "loss": float("nan"),  # a meter that saw no step
        "batch_size": 128,
        "world_size": 16,
        "lr": 1e-3,
    }


def write_golden(path: Path) -> Path:
    """An official training checkpoint with the golden weights."""
    torch.save(training_checkpoint(golden_parts()), path)
    return path
