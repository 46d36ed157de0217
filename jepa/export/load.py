"""A frozen encoder from wherever it is: a run, a checkpoint, an export, a folder of transformers or timm, timm's name.

    jepa.load_encoder("runs/ijepa")                                    a run, or one of its checkpoints
    jepa.load_encoder("exports/ijepa-timm")                            a folder that `jepa export` made
    jepa.load_encoder("models/vjepa2-vitl")                            a folder of transformers or timm
    jepa.load_encoder("timm:vit_small_patch14_dinov2.lvd142m")         a model of timm, its weights from the network

All give a `jepa.checkpoint.Encoder`: the same calls, the same pixels in, tokens out.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from jepa import checkpoint, config
from jepa.checkpoint import Encoder
from jepa.config import DataConfig, RunConfig
from jepa.errors import CheckpointError, ConfigError
from jepa.export import folders, to_safetensors
from jepa.nn import timm_model

_TIMM = "timm:"


def load_encoder(
    source: Path | str,
    device: str | torch.device = "cpu",
    which: str | None = None,
    *,
    dtype: torch.dtype | None = None,
    compile: bool = False,
    image_size: tuple[int, int] | None = None,
) -> Encoder:
    """The frozen encoder of a run, a checkpoint, an export, a foreign folder or a timm model, ready for use.

    Args:
        source: a folder, or ``timm:NAME`` (extra `timm`; its weights are downloaded once).
        which: "target" or "context" of a run; None takes the one the method exports.
        dtype: of weights and arithmetic, such as torch.bfloat16; pixels are normalised in float32 all the same.
        compile: by torch.compile, on first use.
        image_size: of timm models, (height, width); None: what the model was made for.

    Raises:
        CheckpointError: nothing there, damaged, of another architecture, or a pickle.
        ConfigError: no such timm model, its weights cannot be had, or a setting that does not go with the source.
    """
    name = str(source)
    if image_size is not None and not name.startswith(_TIMM):
        raise ConfigError("image_size goes with timm:NAME; the other encoders take frames of the size they have")
    if name.startswith(_TIMM):
        found = _timm(name.removeprefix(_TIMM), image_size)
    elif to_safetensors.is_export(Path(source)):
        found = _export(Path(source))
    elif folders.is_foreign(Path(source)):
        found = _foreign(Path(source), which)
    else:
        found = checkpoint.load_encoder(source, which=which)
    found.encoder.to(dtype)
    if compile:
        found.encoder.compile()
    return found.to(device)


def _export(folder: Path) -> Encoder:
    """Of a folder with export.json: those with weights under names of ours, of timm's or of transformers'."""
    values = to_safetensors.record(folder)
    if values["format"] in ("transformers", "timm"):
        return _foreign(folder, None)
    if values["format"] != "safetensors" or values["model"]["part"] == "world":
        raise CheckpointError(
            f"{folder} holds {values['format']} for other programs to run; load the run it was made from, or an export "
            "of --format safetensors, transformers or timm"
        )
    model, pixels = values["model"], values["preprocessing"]
    data = {k: pixels[k] for k in ("image_size", "clip", "mean", "std", "interpolation")}
    run = config.build(RunConfig, {"method": model["method"], "data": data})
    return Encoder(to_safetensors.read(folder), run, tuple(model["size"]), model["which"])


def _foreign(folder: Path, which: str | None) -> Encoder:
    """By way of a run, so that every key is accounted for."""
    layout = folders.layout(folder)
    if layout is None:
        raise CheckpointError(
            f"{folder} has a config.json of no model that is known here (I-JEPA's and V-JEPA 2's of transformers, a "
            "VisionTransformer of timm)"
        )
    convert = folders.convert_transformers if layout == "transformers" else folders.convert_timm
    with tempfile.TemporaryDirectory() as scratch:
        convert(folder, Path(scratch) / "run")
        return checkpoint.load_encoder(Path(scratch) / "run", which=which)


class _Timm(nn.Module):
    """Normalised images (B, 3, H, W) to patch tokens (B, N, D)."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        model: Any = self.model
        return timm_model.patch_tokens(self.model, torch.as_tensor(model.forward_features(x)))


def _timm(name: str, image_size: tuple[int, int] | None) -> Encoder:
    size = image_size or timm_model.own_size(name)
    model = timm_model.create(name, size, pretrained=True)
    timm_model.check(model, name, size)
    told: Any = model.pretrained_cfg
    data = DataConfig(image_size=size, mean=tuple(told["mean"]), std=tuple(told["std"]), interpolation="bicubic")
    return Encoder(_Timm(model), RunConfig(name=name, method={"name": f"timm:{name}"}, data=data), size)


__all__ = ["load_encoder"]
