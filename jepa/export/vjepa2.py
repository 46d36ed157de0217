"""Official V-JEPA, V-JEPA 2 and V-JEPA 2.1 checkpoints to a run of ours.

`jepa.export.official` says which layouts are understood. Width, patch, tubelet, depth and MLP are read from shapes,
the number of mask tokens from their names. Heads leave no trace: the official sizes are looked up, anything else must
be said. The size of the clips shows in V-JEPA's position tables only; rotary models go with every size, so theirs is
what they were published for unless it is said.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from jepa import config
from jepa.config import RunConfig
from jepa.errors import CheckpointError
from jepa.export import files, importer, official
from jepa.export.importer import Ledger
from jepa.export.official import Parts
from jepa.methods import base
from jepa.nn.dense import DensePredictor, supervised_levels
from jepa.nn.tokens import sincos_table_3d
from jepa.nn.video import SIZES, VideoTransformer
from jepa.nn.video_predictor import VideoPredictor, VideoPredictorConfig

_TABLES = ("pos_embed", "predictor_pos_embed")
_OFFICIAL_HEADS = {384: 12}  # of V-JEPA 2's and 2.1's predictors, by width


def is_vjepa(foreign: files.Foreign) -> bool:
    """Whether the names and the patch embedding look like one of the layouts; says nothing about completeness."""
    kernel = official.kernel(foreign)
    return kernel is not None and kernel.ndim == 5


def layout_of(foreign: files.Foreign) -> str:
    """The likely family of a file that `is_vjepa`."""
    names = {importer.plain_name(key) for key in foreign.tensors}
    if any("norms_block." in name for name in names):
        return "vjepa21"
    tables = any(name.rsplit(".", 1)[-1] in _TABLES for name in names)  # V-JEPA 2's may carry them too, unused
    return "vjepa" if tables and sum("mask_tokens." in name for name in names) <= 2 else "vjepa2"


def convert_vjepa(path: Path | str, out: Path | str, overrides: list[str] | None = None) -> dict[str, Any]:
    """Write a run folder with the weights of an official V-JEPA checkpoint; see `convert`."""
    return official.convert(VJEPA, path, out, overrides)


def convert(path: Path | str, out: Path | str, overrides: list[str] | None = None) -> dict[str, Any]:
    """Write a run folder with the weights of an official V-JEPA 2 checkpoint.

    Args:
        path: the file (.pt, .pth.tar, .safetensors).
        out: run folder to make; must not hold a run yet.
        overrides: ``key=value`` settings of the run, for what cannot be inferred: ``method.encoder.heads``,
            ``method.predictor.heads``, ``data.image_size``, ``data.clip``; also the normalisation (``data.mean``,
            ``data.std``) where it was not ImageNet's.

    Returns:
        What was imported: layout, file, origin, counts of keys with the reasons of ignored ones, what was filled.
        ``out/import.json`` holds the same and every key with what became of it.

    Raises:
        CheckpointError: unreadable or unsafe file, keys that are neither used nor ignorable, weights that do not
            fit, or an architecture that cannot be inferred (says which setting to give).
        ConfigError: an override that does not exist.
    """
    return official.convert(VJEPA2, path, out, overrides)


def convert_vjepa21(path: Path | str, out: Path | str, overrides: list[str] | None = None) -> dict[str, Any]:
    """Write a run folder with the weights of an official V-JEPA 2.1 checkpoint; see `convert`."""
    return official.convert(VJEPA21, path, out, overrides)


# --- keys ---------------------------------------------------------------------------------------------------------


def _nothing(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    return {}


def _not_of_vjepa2(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Position tables, which rotary models of clips carry along unused, and predictors of other methods."""
    reason = "a fixed position table; this model has rotary positions, the official code does not load it either"
    clips = any(t.ndim == 5 for name, t in tensors.items() if name.endswith(official.ENCODER_MARK))
    found = {name: reason for name in tensors if clips and name.rsplit(".", 1)[-1] in _TABLES}
    if any(name.startswith("predictor.action_encoder.") for name in tensors):
        reason = "an action-conditioned predictor (V-JEPA 2-AC), which is another method's"
        found |= {name: reason for name in tensors if name.startswith("predictor.")}
    return found


def _not_of_vjepa21(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """The predictor of a distilled model: it answers in the features of the teacher it was distilled from."""
    out, norm = tensors.get("predictor.predictor_proj.weight"), tensors.get(_last_norm(tensors))
    if out is None or norm is None or out.shape[0] in (norm.shape[0] * k for k in (1, 4)):
        return {}
    reason = f"the predictor of a distilled model: it answers in a teacher's features, {out.shape[0]} wide"
    return {name: reason for name in tensors if name.startswith("predictor.")}


def _last_norm(tensors: Mapping[str, Tensor]) -> str:
    return max((name for name in tensors if "norms_block." in name and name.endswith(".weight")), default="")


# --- architecture -------------------------------------------------------------------------------------------------


def _configurer(
    method: str, settings: Callable[[Parts, Path], dict[str, Any]], data: dict[str, Any]
) -> Callable[[Parts, Path, list[str], Ledger], RunConfig]:
    """`Family.run_config` of a method: `settings` besides the sizes, and what its clips were when it was published."""

    def run_config(parts: Parts, source: Path, overrides: list[str], ledger: Ledger) -> RunConfig:
        given = config.override({}, overrides)
        encoder = parts.get("target") or parts["encoder"]
        shape = official.encoder_shape(encoder, source)
        rotary = settings(parts, source)["position"].get("kind") == "rope"
        if rotary and len(shape["patch"]) == 2 and "pos_embed" in encoder:
            raise CheckpointError(
                f"{source}: an encoder of images with a table of positions, as I-JEPA's; V-JEPA 2's are rotary. Try "
                "--from ijepa"
            )
        asked = (given.get("method") or {}).get("encoder") or {}
        heads = official.heads(SIZES, shape["width"], shape["depth"], asked.get("heads"), source)
        cut: dict[str, Any] = {"patch": shape["patch"][-2:]}
        if len(shape["patch"]) == 3:
            cut["tubelet"] = shape["patch"][0]
        inferred: dict[str, Any] = {"name": method, "encoder": official.encoder_values(SIZES, shape, cut, heads)}
        if "predictor" in parts:
            inferred["predictor"] = _predictor_values(method, parts["predictor"], shape["width"], source)
        elif not {"width", "heads"} & ((given.get("method") or {}).get("predictor") or {}).keys():
            # fresh, of the published size, which the heads of some encoders do not divide
            inferred["predictor"] = {"heads": _OFFICIAL_HEADS[VideoPredictorConfig().width]}
        inferred |= settings(parts, source)
        seen = data if len(shape["patch"]) == 3 else {"image_size": data["image_size"]}
        wanted = given.get("data") or {}
        if "pos_embed" in encoder:
            seen = config.merge(seen, _seen_size(encoder["pos_embed"], inferred, wanted, cut, source))
        elif not {"image_size", "clip"} <= wanted.keys():
            frames = f", {seen['clip']['frames']} frames" if "clip" in seen else ""
            ledger.notes.append(
                f"rotary positions go with every size: taken for {seen['image_size']} px{frames}; data.image_size and "
                "data.clip change that"
            )
        name = source.name.split(".")[0] or "imported"
        run = config.build(RunConfig, config.merge({"name": name, "method": inferred, "data": seen}, given))
        base.resolve(run.method)  # a misspelt method.* override is reported here
        return run

    return run_config


def _predictor_values(method: str, predictor: Mapping[str, Tensor], width: int, source: Path) -> dict[str, Any]:
    enter = "predictor_embed.weight" if "predictor_embed.weight" in predictor else "predictor_embed.2.weight"
    values = official.predictor_values(predictor, enter, width, source)
    values["mask_tokens"] = max(1, len([name for name in predictor if name.startswith("mask_tokens.")]))
    if method == "vjepa21" or "predictor_pos_embed" not in predictor:
        values |= {"heads": _OFFICIAL_HEADS[values["width"]]} if values["width"] in _OFFICIAL_HEADS else {}
    return values


def _seen_size(
    table: Tensor, method: dict[str, Any], wanted: dict[str, Any], cut: dict[str, Any], source: Path
) -> dict[str, Any]:
    """``data`` settings, as far as a position table (1, N, D) shows them; also puts `uniform` into `method`."""
    (ph, pw), tubelet, tokens = cut["patch"], cut.get("tubelet", 1), table.shape[1]
    sides = [side for side in range(1, math.isqrt(tokens) + 1) if tokens % side**2 == 0]
    grids = [(tokens // side**2, side, side) for side in sides]
    if "image_size" in wanted and ("clip" in wanted or tubelet == 1):
        height, width = config.convert(wanted["image_size"], tuple[int, int], "data.image_size")
        frames = int((wanted.get("clip") or {}).get("frames", tubelet))
        grids = [(frames // tubelet, height // ph, width // pw)]
    for grid in grids:
        for uniform in (True, False):
            if math.prod(grid) == tokens and _is_table_of(table[0], grid, uniform):
                method["position"] = {**method["position"], "uniform": uniform}
                size = {"image_size": [grid[1] * ph, grid[2] * pw]}
                return size | ({"clip": {"frames": grid[0] * tubelet}} if "tubelet" in cut else {})
    raise CheckpointError(
        f"{source}: {tokens} positions, and the grid they lie on cannot be seen. Say it: "
        f"data.image_size=[HEIGHT,WIDTH] in pixels, data.clip.frames=FRAMES (a token is {tubelet} frames of {ph}x{pw})"
    )


def _is_table_of(table: Tensor, grid: tuple[int, int, int], uniform: bool) -> bool:
    if not uniform and table.shape[1] % 8:
        return False
    return bool((sincos_table_3d(table.shape[1], grid, uniform)[0] - table.float()).abs().max() < 1e-3)


def _of_vjepa(parts: Parts, source: Path) -> dict[str, Any]:
    return {"position": {"kind": "sincos"}, "mask_token": "mask"}


def _of_vjepa2(parts: Parts, source: Path) -> dict[str, Any]:
    return {"position": {"kind": "rope", "layout": "tiled"}, "mask_token": "source"}


def _of_vjepa21(parts: Parts, source: Path) -> dict[str, Any]:
    encoder = parts.get("target") or parts["encoder"]
    patch = official.tensor(encoder, official.ENCODER_MARK, (5,), source).shape[-1]
    supervised = supervised_levels(importer.depth(encoder, "blocks", source), None)
    norms = importer.depth(encoder, "norms_block", source)
    if norms != len(supervised):
        raise CheckpointError(f"{source}: {norms} level norms, a model of this depth has {len(supervised)}")
    return {"position": {"layout": "paired", "base_grid": 252 // 14 if patch == 14 else 256 // patch}}


# --- a predictor for files that hold none ---------------------------------------------------------------------------


def _predictor(run: RunConfig) -> nn.Module:
    options = base.resolve(run.method)[1]
    with torch.device("meta"):
        encoder = base.create(run.method, run.data.size).get_submodule("encoder")
    assert isinstance(encoder, VideoTransformer), f"{type(encoder).__name__} is no VideoTransformer"
    width, depth, heads, _ = options.encoder.resolved()
    if run.method["name"] == "vjepa":
        return VideoPredictor(options.predictor, width, heads, encoder.grid, options.position)
    levels = len(supervised_levels(depth, options.levels))
    return DensePredictor(options.predictor, width, heads, encoder.grid, options.position, levels)


_CLIP_V1: dict[str, Any] = {"image_size": 224, "clip": {"frames": 16, "stride": 4}}
_CLIP_V2: dict[str, Any] = {"image_size": 256, "clip": {"frames": 64, "fps": 4.0}}
_CLIP_V21: dict[str, Any] = {"image_size": 384, "clip": {"frames": 64, "fps": 4.0}}
VJEPA = official.Family("vjepa", "V-JEPA", _configurer("vjepa", _of_vjepa, _CLIP_V1), _predictor, _nothing)
VJEPA2 = official.Family("vjepa2", "V-JEPA 2", _configurer("vjepa", _of_vjepa2, _CLIP_V2), _predictor, _not_of_vjepa2)
VJEPA21 = official.Family(
    "vjepa21", "V-JEPA 2.1", _configurer("vjepa21", _of_vjepa21, _CLIP_V21), _predictor, _not_of_vjepa21
)

__all__ = ["VJEPA", "VJEPA2", "VJEPA21", "convert", "convert_vjepa", "convert_vjepa21", "is_vjepa", "layout_of"]
