"""Folders of transformers and timm as runs: weights, architecture and preprocessing from the files beside each other.

    jepa import FOLDER --from transformers --to runs/vjepa2      IJepaModel, VJEPA2Model, with or without a head
    jepa import FOLDER --from timm --to runs/ijepa               a VisionTransformer without class token

What the folder says (heads, sizes, normalisation) becomes settings of the run, its weights get the official names
(`jepa.export.keymaps`), and the official layouts' importer does the rest, with the same books.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from jepa.errors import CheckpointError
from jepa.export import files, ijepa, importer, keymaps, official, vjepa2
from jepa.nn.attention import NORM_EPS

_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
_PROCESSORS = ("preprocessor_config.json", "video_preprocessor_config.json")
_FILTERS = {2: "bilinear", 3: "bicubic"}  # PIL's numbers
_HEAD = "of a head on top of the encoder, which is probed without it"
_WORLD = "the frozen model works as it is: jepa.load_encoder({0!r}), method.encoder.timm, baselines.timm"


@dataclass(frozen=True)
class _Kind:
    """A model class of transformers."""

    family: official.Family
    names: keymaps.KeyMap
    prefix: str  # of the model inside one with a head
    heads: tuple[str, ...]  # names that begin so are of the head


_KINDS = {  # config.json's model_type
    "ijepa": _Kind(ijepa.FAMILY, keymaps.IJEPA, "ijepa.", ("classifier.", "pooler.")),
    "vjepa2": _Kind(vjepa2.VJEPA2, keymaps.VJEPA2, "vjepa2.", ("classifier.", "pooler.")),
}


def convert_transformers(path: Path | str, out: Path | str, overrides: list[str] | None = None) -> dict[str, Any]:
    """Write a run folder from a folder of transformers (config.json, model.safetensors, the processor's settings).

    Args, returns: see `jepa.export.vjepa2.convert`.

    Raises:
        CheckpointError: no such folder, a model that is not I-JEPA's or V-JEPA 2's, settings that ours do not have,
            or weights that do not fit.
    """
    folder = _folder(path, "transformers", "model.save_pretrained(FOLDER)")
    values = _json(folder / "config.json")
    kind = _KINDS.get(str(values.get("model_type")))
    if kind is None:
        raise CheckpointError(
            f"{folder} holds a {values.get('model_type')!r}; a run can be made of {', '.join(_KINDS)}. Of others, "
            + _WORLD.format("timm:NAME")
        )
    read = weights(folder)
    left = {key: _HEAD for key in read.tensors if key.startswith(kind.heads)}
    theirs = {key: tensor for key, tensor in read.tensors.items() if key not in left}
    plain = {key.removeprefix(kind.prefix): tensor for key, tensor in theirs.items()}
    ours = kind.names.inward(plain)
    if kind.family is vjepa2.VJEPA2:  # what was exported is what is probed: the teacher
        ours = {name.replace("encoder.", "target.", 1) if name.startswith("encoder.") else name: t
                for name, t in ours.items()}  # fmt: skip
    notes = _eps(values, folder)
    settings = [*_architecture(values, kind, folder), *_preprocessing(folder)]
    renamed = replace(read, tensors=ours)
    return official.convert_read(
        kind.family, renamed, out, [*settings, *(overrides or [])], left, notes, "transformers"
    )


def convert_timm(path: Path | str, out: Path | str, overrides: list[str] | None = None) -> dict[str, Any]:
    """Write a run folder from a folder of timm (config.json, model.safetensors) or from a file of weights alone.

    A file alone does not say its heads or its normalisation: `method.encoder.heads`, `data.mean`, `data.std`.

    Args, returns: see `jepa.export.vjepa2.convert`.

    Raises:
        CheckpointError: nothing there, a model with class or register tokens or layer scales, or weights that do not
            fit.
    """
    if not Path(path).is_dir():
        return _timm(files.read(path), out, [], overrides or [])
    folder = _folder(path, "timm", "timm.models.save_for_hf(model, FOLDER)")
    values = _json(folder / "config.json")
    args, told = values.get("model_args") or {}, values.get("pretrained_cfg") or {}
    settings = [f"method.encoder.heads={args['num_heads']}"] if "num_heads" in args else []
    settings += [f"data.{name}={json.dumps(list(told[name]))}" for name in ("mean", "std") if name in told]
    if told.get("interpolation") in _FILTERS.values():
        settings.append(f"data.interpolation={told['interpolation']}")
    return _timm(weights(folder), out, settings, overrides or [], str(values.get("architecture", "NAME")))


def _timm(
    read: files.Foreign, out: Path | str, settings: list[str], overrides: list[str], name: str = "NAME"
) -> dict[str, Any]:
    left = {key: _HEAD for key in read.tensors if key.startswith(("head.", "fc_norm.", "attn_pool."))}
    foreign = [key for key in read.tensors if key in ("cls_token", "reg_token") or ".ls1." in key or ".ls2." in key]
    if foreign or "norm.weight" not in read.tensors:
        what = f"has {importer.listing(foreign)}" if foreign else "has no norm after its last block"
        raise CheckpointError(
            f"{read.path}: this model of timm {what}, which our encoders do not have. Nothing was written; "
            + _WORLD.format(f"timm:{name}")
        )
    kept = replace(read, tensors={key: t for key, t in read.tensors.items() if key not in left})
    return official.convert_read(ijepa.FAMILY, kept, out, [*settings, *overrides], left, layout="timm")


# --- what stands beside the weights -------------------------------------------------------------------------------


def is_foreign(path: Path) -> bool:
    """Whether it is a folder as transformers and timm write it, not one of our runs."""
    return (path / "config.json").is_file() and not (path / "config.yaml").is_file()


def layout(path: Path) -> str | None:
    """`--from` of such a folder; None: neither."""
    values = _json(path / "config.json")
    if values.get("model_type") in _KINDS:
        return "transformers"
    return "timm" if "architecture" in values else None


def weights(folder: Path) -> files.Foreign:
    """The tensors of a folder, from one file or from several that an index lists.

    Raises:
        CheckpointError: no weights, or parts of them missing.
    """
    for name in _WEIGHTS:
        if (folder / name).is_file():
            return replace(files.read(folder / name), path=folder)
        index = folder / f"{name}.index.json"
        if index.is_file():
            return _together(folder, _json(index).get("weight_map"))
    raise CheckpointError(f"{folder} has no weights: none of {', '.join(_WEIGHTS)}, whole or with an index")


def _together(folder: Path, listed: Any) -> files.Foreign:
    if not isinstance(listed, Mapping) or not all(isinstance(v, str) and Path(v).name == v for v in listed.values()):
        raise CheckpointError(f"{folder}: the index of the weights has no weight_map from names to files beside it")
    parts = [files.read(folder / name) for name in sorted(set(listed.values()))]
    tensors: dict[str, Tensor] = {}
    for part in parts:
        tensors |= part.tensors
    if missing := sorted(set(listed) - set(tensors)):
        raise CheckpointError(f"{folder}: weights that the index lists are missing: {importer.listing(missing)}")
    return files.Foreign(folder, parts[0].format, tensors)


def _folder(path: Path | str, wanted: str, made: str) -> Path:
    folder = Path(path)
    if not folder.is_dir() or not (folder / "config.json").is_file():
        raise CheckpointError(
            f"{folder} is no folder of {wanted}: give one with config.json and model.safetensors, as {made} writes it "
            "(a model of the hub: download it once, then give its folder)"
        )
    if (own := layout(folder)) not in (None, wanted):
        raise CheckpointError(f"{folder} is a folder of {own}: import it with --from {own}. Nothing was written")
    return folder


def _json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"cannot read {path}: {error}") from None
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} holds a {type(values).__name__}, not settings by name")
    return values


def _architecture(values: Mapping[str, Any], kind: _Kind, folder: Path) -> Iterable[str]:
    """Settings that leave no trace in the weights.

    Raises:
        CheckpointError: what our encoders do not have.
    """
    odd = {"hidden_act": "gelu", "qkv_bias": True}
    for name, wanted in odd.items():
        if values.get(name, wanted) != wanted:
            raise CheckpointError(
                f"{folder}: {name}={values[name]!r}; our encoders have {wanted!r}. Nothing was written"
            )
    found = [f"method.encoder.heads={values['num_attention_heads']}"] if "num_attention_heads" in values else []
    if kind.family is not vjepa2.VJEPA2:
        return [*found, *_pixels(values.get("image_size"))]
    found += (
        [f"method.predictor.heads={values['pred_num_attention_heads']}"] if "pred_num_attention_heads" in values else []
    )
    found += _pixels(values.get("crop_size"))
    if "frames_per_clip" in values:
        found.append(f"data.clip.frames={values['frames_per_clip']}")
    return found


def _pixels(side: Any) -> list[str]:
    return [] if side is None else [f"data.image_size={json.dumps(side)}"]


def _eps(values: Mapping[str, Any], folder: Path) -> list[str]:
    eps = values.get("layer_norm_eps", NORM_EPS)
    if eps == NORM_EPS:
        return []
    return [f"layer_norm_eps is {eps:g} in {folder.name}, {NORM_EPS:g} here: features differ in the last digits"]


def _preprocessing(folder: Path) -> list[str]:
    """Normalisation and filter of the processor."""
    for name in _PROCESSORS:
        if (folder / name).is_file():
            values = _json(folder / name)
            found = [
                f"data.{ours}={json.dumps(list(values[theirs]))}"
                for ours, theirs in (("mean", "image_mean"), ("std", "image_std"))
                if isinstance(values.get(theirs), list)
            ]
            filtering = _FILTERS.get(values.get("resample", 0))
            return [*found, *([f"data.interpolation={filtering}"] if filtering else [])]
    return []


__all__ = ["convert_timm", "convert_transformers", "is_foreign", "layout", "weights"]
