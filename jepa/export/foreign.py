"""Says what a checkpoint is, wherever it was made, without reading its weights."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from torch import Tensor

from jepa import checkpoint
from jepa.errors import CheckpointError, JepaError
from jepa.export import files, folders, ijepa, importer, official, to_safetensors, vjepa2, vjepa2_ac


def describe(path: Path | str) -> dict[str, Any]:
    """What is in a run or checkpoint of ours, in an export, in a file or folder from elsewhere.

    Returns:
        Plain values. Of a ``.pth``/``.pth.tar``/``.safetensors`` file, from its directory of tensors alone: path,
        bytes, format, kind, parts {name: {tensors, parameters, dtypes}}, values (plain entries at the top), metadata,
        and for a known layout architecture and command (how to import it). Of a folder of transformers or timm the
        same but values. Of an export: see `_describe_export`. Of ours: see `jepa.checkpoint.describe`.

    Raises:
        CheckpointError: not readable, damaged, or refused as unsafe (see `files.read`).
    """
    folder = Path(path)
    if folder.is_dir() and to_safetensors.is_export(folder):
        return _describe_export(folder)
    if folder.is_dir():
        return _describe_folder(folder) if folders.is_foreign(folder) else checkpoint.describe(folder)
    foreign = files.read(path)
    facts: dict[str, Any] = {
        "path": str(foreign.path),
        "bytes": foreign.bytes,
        "format": foreign.format,
        "kind": "unknown layout",
        "parts": _parts(foreign.tensors),
        "values": {k: _short(v) for k, v in foreign.values.items() if "." not in k},
        "metadata": foreign.metadata,
    }
    family = _family(foreign)
    if family is not None:
        facts["kind"] = family.title
        facts["architecture"] = _architecture(family, foreign)
        facts["command"] = f"jepa import {foreign.path} --from {family.layout} --to RUN"
    return facts


def _describe_export(folder: Path) -> dict[str, Any]:
    """What `jepa export` wrote: format, model, size, types, how close it came to the model, and what it was made from.

    Raises:
        CheckpointError: a record that is not whole.
    """
    values = to_safetensors.record(folder)
    try:
        model, pixels, checks = values["model"], values["preprocessing"], values["checks"]
        compared = [check for check in checks if check["limit"]]
        worst = max(compared, key=lambda check: check["error"] / check["limit"], default=None)
        facts = {
            "path": str(folder),
            "bytes": sum(file.stat().st_size for file in folder.iterdir() if file.is_file()),
            "kind": f"an export for {values['format']}",
            "made from": f"run {values['name']!r}, step {model['step']}, {_part(model)}",
            "model": f"{model['architecture']} of method {model['method']['name']}",
            "takes": _sizes(pixels),
            "dtype": model["dtype"],
            "checked": f"{len(checks)} comparisons with the model" + ("" if worst is None else f"; {_closest(worst)}"),
            "programs": values["programs"],
            "versions": values["versions"],
        }
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(
            f"{folder / to_safetensors.RECORD} is not whole ({error!r}): export the run again"
        ) from None
    return {name: value for name, value in facts.items() if value not in ({}, None)}


def _part(model: dict[str, Any]) -> str:
    return "the whole world model" if model["part"] == "world" else f"its {model['which']} encoder"


def _sizes(pixels: dict[str, Any]) -> str:
    height, width = pixels["image_size"]
    frames = "" if pixels["frames"] is None else f"{pixels['frames']} frames of "
    where = "inside the programs" if pixels["inside"] else "as the files beside the weights say"
    return f"{frames}{height} x {width} pixels, mean {pixels['mean']}, std {pixels['std']}, normalised {where}"


def _closest(check: dict[str, Any]) -> str:
    return f"nearest to its limit: {check['what']}, {check['inputs']}, error {check['error']:.1e} of {check['limit']:g}"


def _describe_folder(folder: Path) -> dict[str, Any]:
    foreign, layout = folders.weights(folder), folders.layout(folder)
    facts = {
        "path": str(folder),
        "bytes": foreign.bytes,
        "format": foreign.format,
        "kind": f"a folder of {layout}" if layout else "a folder of weights with config.json, of no known model",
        "parts": _parts(foreign.tensors),
        "metadata": foreign.metadata,
    }
    return facts | ({"command": f"jepa import {folder} --from {layout} --to RUN"} if layout else {})


def _family(foreign: files.Foreign) -> official.Family | None:
    if vjepa2_ac.is_ac(foreign):
        return vjepa2_ac.FAMILY
    if vjepa2.is_vjepa(foreign):
        families = {family.layout: family for family in (vjepa2.VJEPA, vjepa2.VJEPA2, vjepa2.VJEPA21)}
        return families[vjepa2.layout_of(foreign)]
    return ijepa.FAMILY if ijepa.is_ijepa(foreign) else None


def _parts(tensors: dict[str, Tensor]) -> dict[str, dict[str, Any]]:
    parts: dict[str, dict[str, Any]] = {}
    for key, tensor in tensors.items():
        name = importer.plain_name(key).split(".")[0]
        part = parts.setdefault(name, {"tensors": 0, "parameters": 0, "dtypes": []})
        part["tensors"] += 1
        part["parameters"] += math.prod(tensor.shape)
        dtype = str(tensor.dtype).removeprefix("torch.")
        if dtype not in part["dtypes"]:
            part["dtypes"].append(dtype)
    return parts


def _architecture(family: official.Family, foreign: files.Foreign) -> dict[str, Any] | str:
    ledger = importer.Ledger(foreign.path, frozenset(foreign.tensors) | frozenset(foreign.values))
    try:
        parts, _ = official.sort_keys(family, foreign, ledger)
        encoder = parts.get("target") or parts["encoder"]
        shape = official.encoder_shape(encoder, foreign.path)
        shape["positions"] = encoder["pos_embed"].shape[1] if "pos_embed" in encoder else "rotary"
    except JepaError as error:  # a broken one is still worth describing
        return f"cannot be inferred: {error}"
    unknown = ledger.open_keys()
    return shape | ({"unknown keys": importer.listing(unknown)} if unknown else {})


def _short(value: Any) -> Any:
    text = repr(value)
    return value if isinstance(value, int | float | str | None) and len(text) <= 80 else text[:80]
