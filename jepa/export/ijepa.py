"""Official I-JEPA checkpoints to a run of ours; `jepa.export.official` says which layouts are understood.

The architecture is read from the tensors: width, patch, depth and MLP from their shapes, the token grid from the
position table. Heads leave no trace in any shape: the official sizes are looked up, anything else must be said.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from jepa import config
from jepa.config import RunConfig
from jepa.errors import CheckpointError
from jepa.export import files, official
from jepa.export.importer import Ledger
from jepa.export.official import Parts
from jepa.methods import base
from jepa.nn.predictor import Predictor, PredictorConfig
from jepa.nn.vit import SIZES, EncoderConfig


def is_ijepa(foreign: files.Foreign) -> bool:
    """Whether the names and the patch embedding look like one of the layouts; says nothing about completeness."""
    kernel = official.kernel(foreign)
    return kernel is not None and kernel.ndim != 5


def convert(path: Path | str, out: Path | str, overrides: list[str] | None = None) -> dict[str, Any]:
    """Write a run folder with the weights of an official I-JEPA checkpoint.

    Args:
        path: the file (.pth, .pth.tar, .safetensors).
        out: run folder to make; must not hold a run yet.
        overrides: ``key=value`` settings of the run, for what cannot be inferred: ``method.encoder.heads``,
            ``method.predictor.heads``, ``data.image_size``; also the normalisation (``data.mean``, ``data.std``)
            where it was not ImageNet's.

    Returns:
        What was imported: layout, file, origin, counts of keys with the reasons of ignored ones, what was filled.
        ``out/import.json`` holds the same and every key with what became of it.

    Raises:
        CheckpointError: unreadable or unsafe file, keys that are neither used nor ignorable, weights that do not
            fit, or an architecture that cannot be inferred (says which setting to give).
        ConfigError: an override that does not exist.
    """
    return official.convert(FAMILY, path, out, overrides)


def run_config(parts: Parts, source: Path, overrides: list[str], ledger: Ledger | None = None) -> RunConfig:
    """The run configuration that these weights need; `overrides` win and fill what shapes cannot tell."""
    given = config.override({}, overrides)
    encoder = parts.get("target") or parts["encoder"]
    shape = official.encoder_shape(encoder, source)
    if len(shape["patch"]) != 2:
        raise CheckpointError(f"{source}: this encoder takes clips, so it is no I-JEPA; try --from vjepa or vjepa2")
    method = given.get("method") or {}
    heads = official.heads(SIZES, shape["width"], shape["depth"], (method.get("encoder") or {}).get("heads"), source)
    patch = {"patch": shape["patch"]}
    inferred: dict[str, Any] = {
        "name": source.name.split(".")[0] or "imported",
        "method": {"name": "ijepa", "encoder": official.encoder_values(SIZES, shape, patch, heads)},
        "data": {"image_size": _image_size(encoder, shape, (given.get("data") or {}).get("image_size"), source)},
    }
    if "predictor" in parts:
        values = official.predictor_values(parts["predictor"], "predictor_embed.weight", shape["width"], source)
        inferred["method"]["predictor"] = values
    run = config.build(RunConfig, config.merge(inferred, given))
    base.resolve(run.method)  # a misspelt method.* override is reported here
    return run


def _image_size(encoder: Mapping[str, Tensor], shape: dict[str, Any], given: Any, source: Path) -> list[int]:
    table = official.tensor(encoder, "pos_embed", (3,), source)
    tokens, (ph, pw) = table.shape[1], shape["patch"]
    if given is not None:
        size = config.convert(given, tuple[int, int], "data.image_size")
        if (size[0] // ph) * (size[1] // pw) != tokens or size[0] % ph or size[1] % pw:
            raise CheckpointError(
                f"{source}: data.image_size={list(size)} has {size[0] / ph:g}x{size[1] / pw:g} patches of {ph}x{pw}, "
                f"but the position table has {tokens}"
            )
        return list(size)
    grids = [(h, tokens // h) for h in range(1, tokens + 1) if tokens % h == 0]
    fitting = [grid for grid in grids if _is_table_of(table[0], grid)]
    side = math.isqrt(tokens)
    if len(fitting) != 1:  # a learned or interpolated table: official grids are square
        fitting = [(side, side)] if side * side == tokens and not fitting else []
    if not fitting:
        raise CheckpointError(
            f"{source}: {tokens} positions, and the grid they lie on cannot be seen. Say it: "
            f"data.image_size=[HEIGHT,WIDTH] in pixels (patches are {ph}x{pw})"
        )
    return [fitting[0][0] * ph, fitting[0][1] * pw]


def _is_table_of(table: Tensor, grid: tuple[int, int]) -> bool:
    """Whether a position table (N, D) is a sine-cosine one on this grid: half of it repeats by row, half by column."""
    square = table.float().reshape(*grid, -1)
    by_column, by_row = square.chunk(2, dim=-1)
    return bool((by_column - by_column[:1]).abs().max() < 1e-3 and (by_row - by_row[:, :1]).abs().max() < 1e-3)


def _predictor(run: RunConfig) -> nn.Module:
    options = base.resolve(run.method)[1]
    encoder: EncoderConfig = options.encoder
    settings: PredictorConfig = options.predictor
    width, _, heads, _ = encoder.resolved()
    grid = (run.data.image_size[0] // encoder.patch[0], run.data.image_size[1] // encoder.patch[1])
    return Predictor(settings, width, heads, grid)


def _unwanted(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    return {}


FAMILY = official.Family("ijepa", "I-JEPA", run_config, _predictor, _unwanted)

__all__ = ["FAMILY", "convert", "is_ijepa", "run_config"]
