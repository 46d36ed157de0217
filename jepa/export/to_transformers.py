"""Folders for transformers: `AutoModel` and `AutoImageProcessor` or `AutoVideoProcessor` load them as they are.

I-JEPA's encoder becomes an IJepaModel; V-JEPA 2's, with its predictor, a VJEPA2Model. Needs the extra `interop`.

Pixels are prepared as ours are: the largest centred part, resized with antialiasing. VJEPA2VideoProcessor always cuts
off a border (256 of 292 pixels), so a processor without a will of its own is named in the folder instead.

Shapes: B batch, T frames, H W image, N tokens, K of them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from jepa.data import Batch
from jepa.data.augment import apply, centre_box
from jepa.export import keymaps
from jepa.export.extras import need
from jepa.export.graphs import DTYPES
from jepa.export.subject import Subject
from jepa.export.to_torch import quiet
from jepa.export.verify import Check, compare, equal_bits
from jepa.masks import Masks
from jepa.methods.base import resolve
from jepa.nn.attention import NORM_EPS
from jepa.nn.video import VideoTransformer
from jepa.nn.vit import VisionTransformer

_FILTERS = {"bilinear": 2, "bicubic": 3}  # PIL's numbers
_NAMES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
_NEEDS = ("--format transformers", "interop", "transformers")


def unfit(subject: Subject) -> str | None:
    """Why transformers has no model like this one; None: it has."""
    encoder = subject.encoder
    if type(encoder) is VisionTransformer:
        return None
    if type(encoder) is not VideoTransformer:
        return "transformers has no model of this kind (it knows the encoders of I-JEPA and V-JEPA 2)"
    if encoder.tables is None:
        return "transformers' VJEPA2Model has rotary positions, this encoder fixed ones (method.position.kind)"
    if encoder.tables.layout != "tiled" or encoder.tables.base_grid is not None:
        return "transformers' VJEPA2Model has V-JEPA 2's rotary layout (method.position.layout=tiled, base_grid=null)"
    patch = encoder.config.patch
    if not subject.clips:
        return "transformers' VJEPA2Model takes clips; this encoder was built for images"
    if subject.size[-2] != subject.size[-1] or patch[0] != patch[1]:
        return "transformers' VJEPA2Model takes square frames of square patches"
    return None


def write(subject: Subject, folder: Path) -> list[Path]:
    """config.json, model.safetensors and the processor's settings."""
    need(*_NEEDS)
    dtype = DTYPES[subject.asked.dtype]
    theirs = {name: tensor.to(dtype).contiguous() for name, tensor in _outward(subject).items()}
    save_file(theirs, folder / "model.safetensors", {"format": "pt"})
    processor = "video_preprocessor_config.json" if subject.clips else "preprocessor_config.json"
    for name, values in (("config.json", _config(subject)), (processor, _processor(subject))):
        (folder / name).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    return [folder / "config.json", folder / "model.safetensors", folder / processor]


def weights(subject: Subject) -> dict[str, Tensor]:
    """Ours, as the table names them: the encoder's own names, or ``encoder.`` and ``predictor.`` of V-JEPA 2."""
    own = subject.encoder.state_dict()
    if not subject.clips:
        return own
    predictor = subject.method.get_submodule("predictor").state_dict()
    parts = {"encoder": own, "predictor": predictor}
    return {f"{part}.{name}": tensor for part, named in parts.items() for name, tensor in named.items()}


def key_map(subject: Subject) -> keymaps.KeyMap:
    """The table of names."""
    return keymaps.VJEPA2 if subject.clips else keymaps.IJEPA


def _outward(subject: Subject) -> dict[str, Tensor]:
    return key_map(subject).outward(weights(subject))


def _config(subject: Subject) -> dict[str, Any]:
    encoder: Any = subject.encoder
    _, options = resolve(subject.config.method)
    width, depth, heads, ratio = options.encoder.resolved()
    shared = {
        "hidden_size": width, "num_hidden_layers": depth, "num_attention_heads": heads, "layer_norm_eps": NORM_EPS,
        "hidden_act": "gelu", "qkv_bias": True, "attention_probs_dropout_prob": 0.0, "initializer_range": 0.02,
        "dtype": _NAMES[subject.asked.dtype], "transformers_version": need(*_NEEDS).__version__,
    }  # fmt: skip
    if not subject.clips:
        return {
            "architectures": ["IJepaModel"], "model_type": "ijepa", "image_size": _side(subject.size),
            "patch_size": _side(encoder.patch_embed.patch), "num_channels": 3, "hidden_dropout_prob": 0.0,
            "intermediate_size": int(width * ratio), "mlp_ratio": ratio, **shared,
        }  # fmt: skip
    predictor = options.predictor
    return {
        "architectures": ["VJEPA2Model"], "model_type": "vjepa2", "crop_size": subject.size[-1],
        "patch_size": encoder.config.patch[0], "tubelet_size": encoder.config.tubelet, "in_chans": 3,
        "frames_per_clip": subject.size[0], "mlp_ratio": ratio, "drop_path_rate": 0.0, "attention_dropout": 0.0,
        "pred_hidden_size": predictor.width, "pred_num_attention_heads": predictor.heads or heads,
        "pred_num_hidden_layers": predictor.depth, "pred_num_mask_tokens": predictor.mask_tokens,
        "pred_zero_init_mask_tokens": predictor.zero_init_mask_tokens, "pred_mlp_ratio": predictor.mlp_ratio, **shared,
    }  # fmt: skip


def _side(size: tuple[int, ...]) -> int | list[int]:
    return size[0] if size[0] == size[1] else list(size)


def _processor(subject: Subject) -> dict[str, Any]:
    height, width = subject.size[-2:]
    square = height == width  # "shortest_edge" covers squares alone; others are resized as a whole
    data = subject.config.data
    values: dict[str, Any] = {
        "do_resize": True, "size": {"shortest_edge": height} if square else {"height": height, "width": width},
        "resample": _FILTERS[data.interpolation], "do_center_crop": square,
        "crop_size": {"height": height, "width": width}, "do_rescale": True, "rescale_factor": 1 / 255,
        "do_normalize": True, "image_mean": list(data.mean), "image_std": list(data.std), "do_convert_rgb": True,
    }  # fmt: skip
    if not subject.clips:
        return {"image_processor_type": "ViTImageProcessor", **values}
    return {"video_processor_type": "LlavaNextVideoVideoProcessor", "do_sample_frames": False, **values}


# --- reading it back ----------------------------------------------------------------------------------------------


def check(subject: Subject, folder: Path, inputs: list[tuple[str, Tensor]], raw: Batch | None) -> list[Check]:
    """Load the folder as transformers does, and compare weights, processor, tokens and the predictor's answers."""
    transformers, dtype = need(*_NEEDS), subject.asked.dtype
    with quiet():
        transformers.utils.logging.disable_progress_bar()
        model = transformers.AutoModel.from_pretrained(folder, dtype=DTYPES[dtype]).eval()
    wanted = {name: tensor.to(DTYPES[dtype]) for name, tensor in weights(subject).items()}
    found = [equal_bits("names back to ours", key_map(subject).inward(load_file(folder / "model.safetensors")), wanted)]
    found += _check_processor(subject, folder, transformers)
    for name, pixels in inputs:
        if tuple(pixels.shape[2:]) != subject.size and not subject.clips:
            continue  # its own interpolation is another one (bicubic), see docs/export.md
        given = subject.normalised(pixels)
        with torch.no_grad():
            tokens = _forward(model, given.to(DTYPES[dtype]), subject.clips)
        found.append(compare("tokens", name, tokens, subject.tokens(pixels), dtype))
    return [*found, *([_check_predictor(subject, model, inputs[0][1])] if subject.clips else [])]


def _forward(model: Any, given: Tensor, clips: bool) -> Tensor:
    if clips:
        out: Tensor = model.get_vision_features(given.transpose(1, 2))
        return out
    return torch.as_tensor(model(given).last_hidden_state)


def _check_predictor(subject: Subject, model: Any, pixels: Tensor) -> Check:
    """Answers for the second half of the tokens from the first half."""
    tokens, encoder, batch = subject.tokens(pixels), subject.encoder, len(pixels)
    half = tokens.shape[1] // 2
    places = torch.arange(tokens.shape[1]).expand(batch, -1)
    context, target = places[:, :half].contiguous(), places[:, half:].contiguous()
    predictor: Any = subject.method.get_submodule("predictor")
    assert isinstance(encoder, VideoTransformer), f"{type(encoder).__name__} has no grid of clips"
    with torch.no_grad():
        ours = predictor([tokens[:, :half]], Masks([context], [target]), encoder.grid, [1])[0]
        given = subject.normalised(pixels).transpose(1, 2).to(DTYPES[subject.asked.dtype])
        theirs = model(given, context_mask=[context], target_mask=[target]).predictor_output.last_hidden_state
    return compare("predictor", "random clips", theirs, ours, subject.asked.dtype)


def _check_processor(subject: Subject, folder: Path, transformers: Any) -> list[Check]:
    """uint8 pictures of twice the size, of the same shape: what comes out is what ours get."""
    height, width = subject.size[-2:]
    generator = torch.Generator().manual_seed(0)
    frames = subject.size[0] if subject.clips else 1
    shape = (frames, 3, 2 * height, 2 * width)
    pictures = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    wanted = torch.stack([_prepared(subject, picture) for picture in pictures])
    if subject.clips:
        loaded = transformers.AutoVideoProcessor.from_pretrained(folder)
        got = loaded(pictures, return_tensors="pt")["pixel_values_videos"][0]
    else:
        loaded = transformers.AutoImageProcessor.from_pretrained(folder)
        got = loaded(list(pictures), return_tensors="pt")["pixel_values"]
    return [compare("processor", "random pictures", got, wanted)]


def _prepared(subject: Subject, picture: Tensor) -> Tensor:
    size = (subject.size[-2], subject.size[-1])
    part = centre_box(picture.shape[1], picture.shape[2], size)
    return subject.normalised(apply(picture, part, size, subject.config.data.interpolation).unsqueeze(0))[0]


__all__ = ["check", "key_map", "unfit", "weights", "write"]
