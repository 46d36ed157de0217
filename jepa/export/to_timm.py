"""Folders for timm: a checkpoint for `timm.create_model`, and the configuration that makes the model and its transform.

    timm.create_model("local-dir:FOLDER", pretrained=True)
    timm.create_model(ARCHITECTURE, checkpoint_path="FOLDER/model.safetensors", **model_args of config.json)

Encoders of images alone: timm has no model of clips. Needs the extra `timm`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from jepa.data.augment import apply, centre_box
from jepa.errors import ConfigError
from jepa.export import keymaps
from jepa.export.extras import need
from jepa.export.graphs import DTYPES
from jepa.export.subject import Subject
from jepa.export.verify import Check, compare, equal_bits
from jepa.methods.base import resolve
from jepa.nn.vit import VisionTransformer

ARCHITECTURE = "vit_base_patch16_gap_224"  # without class token; everything else is said by model_args
_NEEDS = ("--format timm", "timm", "timm")


def unfit(subject: Subject) -> str | None:
    """Why timm has no model like this one; None: it has."""
    if type(subject.encoder) is not VisionTransformer:
        return "timm has models of images, such as I-JEPA's encoder"
    return None


def model_args(subject: Subject) -> dict[str, Any]:
    """What `timm.create_model` needs to make this encoder of `ARCHITECTURE`."""
    _, options = resolve(subject.config.method)
    width, depth, heads, ratio = options.encoder.resolved()
    return {
        "img_size": list(subject.size), "patch_size": list(options.encoder.patch), "embed_dim": width, "depth": depth,
        "num_heads": heads, "mlp_ratio": ratio, "num_classes": 0,
    }  # fmt: skip


def write(subject: Subject, folder: Path) -> list[Path]:
    """config.json and model.safetensors."""
    need(*_NEEDS)
    dtype = DTYPES[subject.asked.dtype]
    theirs = keymaps.TIMM.outward(subject.encoder.state_dict())
    save_file({name: tensor.to(dtype).contiguous() for name, tensor in theirs.items()}, folder / "model.safetensors")
    data, args = subject.config.data, model_args(subject)
    config = {
        "architecture": ARCHITECTURE,
        "num_classes": 0,
        "num_features": args["embed_dim"],
        "global_pool": "avg",
        "model_args": args,
        "pretrained_cfg": {
            "input_size": [3, *subject.size], "fixed_input_size": True, "interpolation": data.interpolation,
            "crop_pct": 1.0, "crop_mode": "center", "mean": list(data.mean), "std": list(data.std), "num_classes": 0,
            "pool_size": None, "first_conv": "patch_embed.proj", "classifier": "head",
        },
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return [folder / "config.json", folder / "model.safetensors"]


def check(subject: Subject, folder: Path, inputs: list[tuple[str, Tensor]]) -> list[Check]:
    """Load both ways that timm has, and compare weights, transform and tokens."""
    timm, dtype = need(*_NEEDS), subject.asked.dtype
    args = json.loads((folder / "config.json").read_text(encoding="utf-8"))["model_args"]
    file = folder / "model.safetensors"
    from_file = timm.create_model(ARCHITECTURE, checkpoint_path=str(file), **args).eval()
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    wanted = {name: tensor.to(DTYPES[dtype]) for name, tensor in subject.encoder.state_dict().items()}
    found = [equal_bits("names back to ours", keymaps.TIMM.inward(load_file(file)), wanted)]
    found += [equal_bits("both ways of loading", dict(from_file.state_dict()), dict(model.state_dict()))]
    found += _check_transform(subject, model, timm)
    for name, pixels in inputs:
        if tuple(pixels.shape[2:]) == subject.size:  # other sizes are timm's own affair (dynamic_img_size)
            with torch.no_grad():
                tokens = model.forward_features(subject.normalised(pixels))
            found.append(compare("tokens", name, tokens, subject.tokens(pixels), dtype))
    return found


def _check_transform(subject: Subject, model: Any, timm: Any) -> list[Check]:
    """A smooth picture of twice the size, through PIL as timm does it; PIL rounds differently by one step of 255."""
    height, width = subject.size
    rows, columns = torch.meshgrid(torch.linspace(0, 3, 2 * height), torch.linspace(0, 3, 2 * width), indexing="ij")
    waves = torch.stack([torch.sin(rows + columns), torch.cos(rows * 2), torch.sin(columns * 2)])
    picture = ((waves + 1) * 127.5).to(torch.uint8)
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)
    got = transform(Image.fromarray(picture.permute(1, 2, 0).numpy()))
    part = centre_box(2 * height, 2 * width, (height, width))
    ours = apply(picture, part, (height, width), subject.config.data.interpolation)
    std = torch.tensor(subject.config.data.std).view(3, 1, 1)
    found, wanted = (got * std).flatten(), (subject.normalised(ours.unsqueeze(0))[0] * std).flatten()
    step = float((found - wanted).abs().max()) * 255
    if not step <= 2.01:
        raise ConfigError(f"timm prepares pixels in another way: they differ by {step:.1f} of 255. Nothing was written")
    return [Check("transform", "a picture, in steps of 255", step, 2.01)]


__all__ = ["ARCHITECTURE", "check", "model_args", "unfit", "write"]
