"""What official I-JEPA and V-JEPA checkpoints have in common, and the way from such a file to a run of ours.

Three layouts are understood, all with or without `module.`, `backbone.`, `_orig_mod.` in their names:

    {"encoder": {...}, "predictor": {...}, "target_encoder": {...}, "opt", "scaler", "epoch", "loss", ...}
    encoder.NAME, predictor.NAME, target.NAME      (safetensors)
    NAME                                           (the state dict of one encoder)

What differs between model families (names of settings, how the architecture shows in the tensors) is a `Family`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from jepa import checkpoint, config
from jepa.config import RunConfig
from jepa.errors import CheckpointError
from jepa.export import files, importer
from jepa.export.importer import Ledger
from jepa.export.whole import whole
from jepa.methods import base

Parts = dict[str, dict[str, Tensor]]  # "encoder" | "predictor" | "target" -> our name -> tensor

PARTS = {
    "encoder": "encoder",
    "predictor": "predictor",
    "target_encoder": "target",
    "ema_encoder": "target",
    "target": "target",
}
NOT_NEEDED = {
    "opt": "optimiser state: frozen features do not need it and a new run makes its own",
    "scaler": "loss scale of the mixed-precision run that made the file",
}
RECORDED = ("epoch", "loss", "batch_size", "world_size", "lr")  # kept as facts about the origin
ENCODER_MARK = "patch_embed.proj.weight"
_FRESH_SEED = 0  # of a predictor that the file does not hold


@dataclass(frozen=True)
class Family:
    """One layout of checkpoints: a value of ``jepa import --from``."""

    layout: str
    title: str  # as errors call it
    run_config: Callable[[Parts, Path, list[str], Ledger], RunConfig]  # parts, source, overrides
    predictor: Callable[[RunConfig], nn.Module]  # a new one, for files that hold none
    unwanted: Callable[[Mapping[str, Tensor]], dict[str, str]]  # tensors by plain name -> those to ignore, and why


def convert(family: Family, path: Path | str, out: Path | str, overrides: list[str] | None = None) -> dict[str, Any]:
    """Write a run folder with the weights of an official checkpoint; see the families' own `convert`."""
    empty_folder(Path(out))
    return convert_read(family, files.read(path), out, overrides)


def convert_read(
    family: Family,
    foreign: files.Foreign,
    out: Path | str,
    overrides: list[str] | None = None,
    left: Mapping[str, str] | None = None,
    notes: Sequence[str] = (),
    layout: str | None = None,
) -> dict[str, Any]:
    """The same of tensors that have been read and have the official names.

    Args:
        left: further keys of the file, which are not used, and why.
        notes: what a reader of the result should know.
        layout: recorded as `--from`; default: the family's.
    """
    folder, left = Path(out), left or {}
    empty_folder(folder)
    ledger = Ledger(foreign.path, frozenset(foreign.tensors) | frozenset(foreign.values) | frozenset(left))
    for key, reason in left.items():
        ledger.ignore([key], reason)
    ledger.notes.extend(notes)
    parts, origin = sort_keys(family, foreign, ledger)
    ledger.close()
    run = family.run_config(parts, foreign.path, overrides or [], ledger)
    with torch.device("meta"):  # the weights come from the file: drawing random ones first would take minutes
        method = base.create(run.method, run.data.size)
    for part, tensors in parts.items():
        wanted = method.get_submodule(part).state_dict()
        importer.match_weights(tensors, wanted, foreign.path, f"the {part} part" if len(parts) > 1 else "the encoder")
    _fill(family, parts, run, ledger)
    weights = {f"{part}.{name}": tensor.float() for part, named in parts.items() for name, tensor in named.items()}
    method.load_state_dict(weights, strict=True, assign=True)
    return write(layout or family.layout, folder, run, method, foreign, ledger, origin)


def empty_folder(folder: Path) -> None:
    """Raises CheckpointError when something is there already."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise CheckpointError(f"{folder} exists and is not an empty folder: give another one to write the run to")


def sort_keys(family: Family, foreign: files.Foreign, ledger: Ledger) -> tuple[Parts, dict[str, Any]]:
    """Every key to its part, to the facts about the origin, or to the ignored ones; the rest stays open."""
    names = importer.plain_names(foreign.tensors, foreign.path)
    sections = {name.split(".")[0] for name in names}
    targets = sorted(s for s in sections if PARTS.get(s) == "target")
    if len(targets) > 1:
        raise CheckpointError(
            f"{foreign.path}: has both {targets[0]!r} and {targets[1]!r}; which one is meant is unclear"
        )
    for name, reason in family.unwanted({name: foreign.tensors[key] for name, key in names.items()}).items():
        ledger.ignore([names.pop(name)], reason)
    parts: Parts = {}
    one_encoder = ENCODER_MARK in names
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
            f"{foreign.path} holds no {family.title} encoder (no {ENCODER_MARK!r}, bare or under encoder. or "
            f"target_encoder.). Its names begin with: {importer.listing(sorted(sections)) or 'nothing, it is empty'}"
        )
    if one_encoder:
        ledger.notes.append("the file holds one encoder; it is taken for the target encoder, which is what is probed")
    return parts, origin


# --- architecture, as far as shapes tell it -------------------------------------------------------------------------


def kernel(foreign: files.Foreign) -> Tensor | None:
    """The patch embedding's weight, wherever it stands; None: no encoder of these families."""
    names = {importer.plain_name(key): key for key in foreign.tensors}
    for prefix in ("", *(f"{section}." for section in PARTS if section != "predictor")):
        if f"{prefix}{ENCODER_MARK}" in names:
            return foreign.tensors[names[f"{prefix}{ENCODER_MARK}"]]
    return None


def encoder_shape(encoder: Mapping[str, Tensor], source: Path) -> dict[str, Any]:
    """{"patch": (h, w) or (t, h, w), "width", "depth", "hidden"} from an encoder's tensors."""
    weight = tensor(encoder, ENCODER_MARK, (4, 5), source)
    depth = importer.depth(encoder, "blocks", source)
    if not depth:
        raise CheckpointError(f"{source}: the encoder has no blocks (blocks.0. ... ): the file is incomplete")
    if weight.shape[1] != 3:
        raise CheckpointError(f"{source}: {ENCODER_MARK} takes {weight.shape[1]} channels; colour images have 3")
    hidden = tensor(encoder, "blocks.0.mlp.fc1.weight", (2,), source).shape[0]
    return {"patch": list(weight.shape[2:]), "width": weight.shape[0], "depth": depth, "hidden": hidden}


def tensor(tensors: Mapping[str, Tensor], name: str, ndims: tuple[int, ...], source: Path) -> Tensor:
    """The tensor of that name, which must have one of these numbers of dimensions."""
    if name not in tensors:
        raise CheckpointError(f"{source}: {name} is missing, so the architecture cannot be inferred")
    if tensors[name].ndim not in ndims:
        wanted = " or ".join(map(str, ndims))
        raise CheckpointError(f"{source}: {name} has shape {tuple(tensors[name].shape)}, expected {wanted} dimensions")
    return tensors[name]


def heads(
    sizes: Mapping[str, tuple[int, int, int, float]], width: int, depth: int, given: Any, source: Path
) -> int | None:
    """Attention heads of an official size; None where the override `given` says it.

    Raises:
        CheckpointError: no official size, and heads leave no trace in any shape.
    """
    if given is not None:
        return None
    known = {(w, d): count for w, d, count, _ in sizes.values()}
    if (width, depth) in known:
        return known[width, depth]
    near = sorted({count for w, _, count, _ in sizes.values() if w == width})
    hint = f" (official models of this width have {near[0]})" if near else ""
    raise CheckpointError(
        f"{source}: {depth} blocks of width {width} are no official size, and the number of attention heads cannot "
        f"be seen in the weights. Say it: method.encoder.heads=N{hint}"
    )


def encoder_values(
    sizes: Mapping[str, tuple[int, int, int, float]], shape: dict[str, Any], patch: dict[str, Any], count: int | None
) -> dict[str, Any]:
    """The ``method.encoder`` section: a size's name, or every number of it. `patch`: settings besides the size."""
    width, depth, hidden = shape["width"], shape["depth"], shape["hidden"]
    for name, (w, d, _, size_ratio) in sizes.items():
        if (w, d, int(w * size_ratio)) == (width, depth, hidden):
            return {"size": name, **patch}
    values = {**patch, "width": width, "depth": depth, "mlp_ratio": ratio(hidden, width)}
    return values if count is None else values | {"heads": count}


def predictor_values(predictor: Mapping[str, Tensor], enter: str, encoder_width: int, source: Path) -> dict[str, Any]:
    """Width, depth and MLP ratio of a predictor whose last entrance map is called `enter`."""
    weight = tensor(predictor, enter, (2,), source)
    width, depth = weight.shape[0], importer.depth(predictor, "predictor_blocks", source)
    if weight.shape[1] != encoder_width:
        raise CheckpointError(
            f"{source}: the predictor takes embeddings of width {weight.shape[1]}, the encoder gives {encoder_width}"
        )
    hidden = tensor(predictor, "predictor_blocks.0.mlp.fc1.weight", (2,), source).shape[0]
    return {"width": width, "depth": depth, "mlp_ratio": ratio(hidden, width)}  # heads: the encoder's, as official


def ratio(hidden: int, width: int) -> float:
    """The ratio r with int(width * r) == hidden, whatever the rounding."""
    value = hidden / width
    return value if int(width * value) == hidden else math.nextafter(value, math.inf)


# --- weights and files ----------------------------------------------------------------------------------------------


def _fill(family: Family, parts: Parts, run: RunConfig, ledger: Ledger) -> None:
    """Give the parts that the file lacks their weights, and say so."""
    for part, other in (("encoder", "target"), ("target", "encoder")):
        if part not in parts:
            parts[part] = {name: tensor.clone() for name, tensor in parts[other].items()}
            ledger.filled[part] = f"a copy of the {other} part: the file has only that one"
    if "predictor" not in parts:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(_FRESH_SEED)
            parts["predictor"] = dict(family.predictor(run).state_dict())
        ledger.filled["predictor"] = "fresh random weights (seed 0): the file has none. Probing does not use it"


def write(
    layout: str,
    folder: Path,
    run: RunConfig,
    method: base.Method,
    foreign: files.Foreign,
    ledger: Ledger,
    origin: dict[str, Any],
) -> dict[str, Any]:
    """Write a run folder with a method's weights and what became of the file's keys; gives the import record."""
    used = [key for key in ledger.used if key in foreign.tensors]
    summary = {
        "layout": layout,
        "file": foreign.path.name,
        "bytes": foreign.bytes,
        "format": foreign.format,
        "dtypes": sorted({str(foreign.tensors[k].dtype).removeprefix("torch.") for k in used}),
        "origin": origin,
        **ledger.summary(),
    }
    record = summary | {"used_keys": ledger.used, "ignored_keys": ledger.ignored}
    text = json.dumps(record, indent=1, allow_nan=False)
    with whole(folder, "the run") as temporary:
        # step 0: the file counts epochs of unknown length; what it says is kept under "origin"
        checkpoint.save(temporary, 0, method, None, {"imported": summary}, run)
        (temporary / "config.yaml").write_text(config.to_yaml(run), encoding="utf-8")
        (temporary / "import.json").write_text(text + "\n", encoding="utf-8")
    return summary


def _plain(value: Any) -> Any:
    """A value as JSON can hold it (NaN and other types as text)."""
    if isinstance(value, bool | int | str) or value is None or (isinstance(value, float) and math.isfinite(value)):
        return value
    return repr(value)
