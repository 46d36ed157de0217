"""Official I-JEPA checkpoints to a run of ours.

Three layouts are understood, all with or without `module.`, `backbone.`, `_orig_mod.` in their names:

    {"encoder": {...}, "predictor": {...}, "target_encoder": {...}, "opt", "scaler", "epoch", "loss", ...}
    encoder.NAME, predictor.NAME, target.NAME      (safetensors)
    NAME                                           (the state dict of one encoder)

The architecture is read from the tensors: width, patch, depth and MLP from their shapes, the token grid from the
position table. Heads leave no trace in any shape: the official sizes are looked up, anything else must be said.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from jepa import checkpoint, config
from jepa.config import RunConfig
from jepa.errors import CheckpointError
from jepa.export import files, importer
from jepa.export.importer import Ledger
from jepa.methods import base
from jepa.nn.predictor import Predictor, PredictorConfig
from jepa.nn.vit import SIZES, EncoderConfig

PARTS = {"encoder": "encoder", "predictor": "predictor", "target_encoder": "target", "target": "target"}
NOT_NEEDED = {
    "opt": "optimiser state: frozen features do not need it and a new run makes its own",
    "scaler": "loss scale of the mixed-precision run that made the file",
}
RECORDED = ("epoch", "loss", "batch_size", "world_size", "lr")  # kept as facts about the origin
_ENCODER_MARK = "patch_embed.proj.weight"
_FRESH_SEED = 0  # of a predictor that the file does not hold

Parts = dict[str, dict[str, Tensor]]  # "encoder" | "predictor" | "target" -> our name -> tensor


def is_ijepa(foreign: files.Foreign) -> bool:
    """Whether the names look like one of the three layouts; says nothing about completeness."""
    names = {importer.plain_name(key) for key in foreign.tensors}
    return any(f"{prefix}{_ENCODER_MARK}" in names for prefix in ("", "encoder.", "target_encoder.", "target."))


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
    folder = Path(out)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise CheckpointError(f"{folder} exists and is not an empty folder: give another one to write the run to")
    foreign = files.read(path)
    ledger = Ledger(foreign.path, frozenset(foreign.tensors) | frozenset(foreign.values))
    parts, origin = sort_keys(foreign, ledger)
    ledger.close()
    run = run_config(parts, foreign.path, overrides or [])
    method = _method(run)
    _check(parts, method, foreign.path)
    _fill(parts, method, run, ledger)
    weights = {f"{part}.{name}": tensor.float() for part, named in parts.items() for name, tensor in named.items()}
    method.load_state_dict(weights, strict=True, assign=True)
    return _write(folder, run, method, foreign, ledger, origin)


def sort_keys(foreign: files.Foreign, ledger: Ledger) -> tuple[Parts, dict[str, Any]]:
    """Every key to its part, to the facts about the origin, or to the ignored ones; the rest stays open."""
    names = importer.plain_names(foreign.tensors, foreign.path)
    sections = {name.split(".")[0] for name in names}
    if {"target_encoder", "target"} <= sections:
        raise CheckpointError(f"{foreign.path}: has both 'target_encoder' and 'target'; which one is meant is unclear")
    parts: Parts = {}
    one_encoder = _ENCODER_MARK in names
    for name, key in names.items():
        section, _, rest = name.partition(".")
        if one_encoder and section not in NOT_NEEDED:
            part, rest = "target", name
        elif section in PARTS and rest:
            part = PARTS[section]
        else:
            continue
        parts.setdefault(part, {})[rest] = foreign.tensors[key]
        ledger.use(key, f"{part}.{rest}")
    for section, reason in NOT_NEEDED.items():
        ledger.ignore([k for k in ledger.open_keys() if k == section or k.startswith(f"{section}.")], reason)
    origin = {}
    for key in RECORDED:
        if key in foreign.values:
            origin[key] = _plain(foreign.values[key])
            ledger.use(key, "import record")
    if not {"encoder", "target"} & parts.keys():
        raise CheckpointError(
            f"{foreign.path} holds no I-JEPA encoder (no {_ENCODER_MARK!r}, bare or under encoder. or "
            f"target_encoder.). Its names begin with: {importer.listing(sorted(sections)) or 'nothing, it is empty'}"
        )
    if one_encoder:
        ledger.notes.append("the file holds one encoder; it is taken for the target encoder, which is what is probed")
    return parts, origin


# --- architecture -------------------------------------------------------------------------------------------------


def run_config(parts: Parts, source: Path, overrides: list[str]) -> RunConfig:
    """The run configuration that these weights need; `overrides` win and fill what shapes cannot tell."""
    given = config.override({}, overrides)
    encoder = parts.get("target") or parts["encoder"]
    shape = encoder_shape(encoder, source)
    method = given.get("method") or {}
    heads = _heads(shape["width"], shape["depth"], (method.get("encoder") or {}).get("heads"), source)
    inferred: dict[str, Any] = {
        "name": source.name.split(".")[0] or "imported",
        "method": {"name": "ijepa", "encoder": _encoder_values(shape, heads)},
        "data": {"image_size": _image_size(encoder, shape, (given.get("data") or {}).get("image_size"), source)},
    }
    if "predictor" in parts:
        inferred["method"]["predictor"] = _predictor_values(parts["predictor"], shape["width"], source)
    run = config.build(RunConfig, config.merge(inferred, given))
    base.resolve(run.method)  # a misspelt method.* override is reported here
    return run


def encoder_shape(encoder: Mapping[str, Tensor], source: Path) -> dict[str, Any]:
    """{"patch": (h, w), "width", "depth", "hidden"} from an encoder's tensors."""
    kernel = _tensor(encoder, _ENCODER_MARK, 4, source)
    depth = importer.depth(encoder, "blocks", source)
    if not depth:
        raise CheckpointError(f"{source}: the encoder has no blocks (blocks.0. ... ): the file is incomplete")
    if kernel.shape[1] != 3:
        raise CheckpointError(f"{source}: {_ENCODER_MARK} takes {kernel.shape[1]} channels; colour images have 3")
    hidden = _tensor(encoder, "blocks.0.mlp.fc1.weight", 2, source).shape[0]
    return {"patch": list(kernel.shape[2:]), "width": kernel.shape[0], "depth": depth, "hidden": hidden}


def _tensor(tensors: Mapping[str, Tensor], name: str, ndim: int, source: Path) -> Tensor:
    if name not in tensors:
        raise CheckpointError(f"{source}: {name} is missing, so the architecture cannot be inferred")
    if tensors[name].ndim != ndim:
        raise CheckpointError(f"{source}: {name} has shape {tuple(tensors[name].shape)}, expected {ndim} dimensions")
    return tensors[name]


def _heads(width: int, depth: int, given: Any, source: Path) -> int | None:
    if given is not None:
        return None  # the override says it
    known = {(w, d): heads for w, d, heads, _ in SIZES.values()}
    if (width, depth) in known:
        return known[width, depth]
    near = sorted({heads for w, _, heads, _ in SIZES.values() if w == width})
    hint = f" (official models of this width have {near[0]})" if near else ""
    raise CheckpointError(
        f"{source}: {depth} blocks of width {width} are no official size, and the number of attention heads cannot "
        f"be seen in the weights. Say it: method.encoder.heads=N{hint}"
    )


def _encoder_values(shape: dict[str, Any], heads: int | None) -> dict[str, Any]:
    width, depth, hidden = shape["width"], shape["depth"], shape["hidden"]
    for name, (w, d, _, ratio) in SIZES.items():
        if (w, d, int(w * ratio)) == (width, depth, hidden):
            return {"size": name, "patch": shape["patch"]}
    values = {"patch": shape["patch"], "width": width, "depth": depth, "mlp_ratio": _ratio(hidden, width)}
    return values if heads is None else values | {"heads": heads}


def _predictor_values(predictor: Mapping[str, Tensor], encoder_width: int, source: Path) -> dict[str, Any]:
    enter = _tensor(predictor, "predictor_embed.weight", 2, source)
    width, depth = enter.shape[0], importer.depth(predictor, "predictor_blocks", source)
    if enter.shape[1] != encoder_width:
        raise CheckpointError(
            f"{source}: the predictor takes embeddings of width {enter.shape[1]}, the encoder gives {encoder_width}"
        )
    hidden = _tensor(predictor, "predictor_blocks.0.mlp.fc1.weight", 2, source).shape[0]
    return {"width": width, "depth": depth, "mlp_ratio": _ratio(hidden, width)}  # heads: the encoder's, as official


def _ratio(hidden: int, width: int) -> float:
    """The ratio r with int(width * r) == hidden, whatever the rounding."""
    ratio = hidden / width
    return ratio if int(width * ratio) == hidden else math.nextafter(ratio, math.inf)


def _image_size(encoder: Mapping[str, Tensor], shape: dict[str, Any], given: Any, source: Path) -> list[int]:
    table = _tensor(encoder, "pos_embed", 3, source)
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


# --- weights ------------------------------------------------------------------------------------------------------


def _method(run: RunConfig) -> base.Method:
    with torch.device("meta"):  # the weights come from the file: drawing random ones first would take minutes
        return base.create(run.method, run.data.image_size)


def _check(parts: Parts, method: nn.Module, source: Path) -> None:
    for part, tensors in parts.items():
        wanted = method.get_submodule(part).state_dict()
        importer.match_weights(tensors, wanted, source, f"the {part} part" if len(parts) > 1 else "the encoder")


def _fill(parts: Parts, method: nn.Module, run: RunConfig, ledger: Ledger) -> None:
    """Give the parts that the file lacks their weights, and say so."""
    for part, other in (("encoder", "target"), ("target", "encoder")):
        if part not in parts:
            parts[part] = {name: tensor.clone() for name, tensor in parts[other].items()}
            ledger.filled[part] = f"a copy of the {other} part: the file has only that one"
    if "predictor" not in parts:
        options = base.resolve(run.method)[1]
        encoder: EncoderConfig = options.encoder
        settings: PredictorConfig = options.predictor
        width, _, heads, _ = encoder.resolved()
        grid = (run.data.image_size[0] // encoder.patch[0], run.data.image_size[1] // encoder.patch[1])
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(_FRESH_SEED)
            parts["predictor"] = dict(Predictor(settings, width, heads, grid).state_dict())
        ledger.filled["predictor"] = "fresh random weights (seed 0): the file has none. Probing does not use it"


def _write(
    folder: Path, run: RunConfig, method: base.Method, foreign: files.Foreign, ledger: Ledger, origin: dict[str, Any]
) -> dict[str, Any]:
    summary = {
        "layout": "ijepa",
        "file": foreign.path.name,
        "bytes": foreign.path.stat().st_size,
        "format": foreign.format,
        "dtypes": sorted({str(foreign.tensors[k].dtype).removeprefix("torch.") for k in _weights(foreign, ledger)}),
        "origin": origin,
        **ledger.summary(),
    }
    folder.mkdir(parents=True, exist_ok=True)
    # step 0: the file counts epochs of unknown length; what it says is kept under "origin"
    checkpoint.save(folder, 0, method, None, {"imported": summary}, run)
    (folder / "config.yaml").write_text(config.to_yaml(run), encoding="utf-8")
    record = summary | {"used_keys": ledger.used, "ignored_keys": ledger.ignored}
    text = json.dumps(record, indent=1, allow_nan=False)
    (folder / "import.json").write_text(text + "\n", encoding="utf-8")
    return summary


def _weights(foreign: files.Foreign, ledger: Ledger) -> list[str]:
    return [key for key in ledger.used if key in foreign.tensors]


def _plain(value: Any) -> Any:
    """A value as JSON can hold it (NaN and other types as text)."""
    if isinstance(value, bool | int | str) or value is None or (isinstance(value, float) and math.isfinite(value)):
        return value
    return repr(value)


__all__ = ["convert", "encoder_shape", "is_ijepa", "run_config", "sort_keys"]
