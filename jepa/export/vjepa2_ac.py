"""Official V-JEPA 2-AC checkpoints as runs of `ac`: the frozen encoder and the action-conditioned predictor.

    jepa import vjepa2-ac-vitg.pt --from vjepa2-ac --to runs/vjepa2-ac

The predictor's names are the official ones; the encoder's go under `encoder.encoder`. Actions and states are not
normalised there, so the run's scales are the identity. Heads leave no trace in the weights: the published sizes are
looked up, others must be said (`method.encoder.spec.method.encoder.heads=N`, `method.predictor.heads=N`).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor

from jepa import config
from jepa.config import RunConfig
from jepa.errors import CheckpointError
from jepa.export import files, importer, official
from jepa.export.importer import Ledger
from jepa.export.official import Parts
from jepa.export.vjepa2 import VJEPA2
from jepa.methods import base

_HEADS = {1024: 16}  # of the published predictor, by width
_CLIP: dict[str, Any] = {"image_size": 256, "clip": {"frames": 8, "stride": 1}}  # published; 4 frames a second
_SPEC = "method.encoder.spec."  # where overrides of the encoder's own run stand
_POSE = 7


def is_ac(foreign: files.Foreign) -> bool:
    """Whether the file holds an action-conditioned predictor beside its encoder."""
    names = {importer.plain_name(key) for key in foreign.tensors}
    return "predictor.action_encoder.weight" in names and official.kernel(foreign) is not None


def convert(path: Path | str, out: Path | str, overrides: list[str] | None = None) -> dict[str, Any]:
    """Write a run folder with the weights of an official V-JEPA 2-AC checkpoint.

    Args:
        path: the file (.pt, .pth.tar, .safetensors).
        out: run folder to make; must not hold a run yet.
        overrides: ``key=value`` settings of the run, for what cannot be inferred (heads, sizes of clips).

    Returns:
        What was imported; see `jepa.export.vjepa2.convert`.

    Raises:
        CheckpointError: unreadable or unsafe file, keys that are neither used nor ignorable, weights that do not
            fit, or an architecture that cannot be inferred (says which setting to give).
        ConfigError: an override that does not exist.
    """
    folder = Path(out)
    official.empty_folder(folder)
    foreign = files.read(path)
    ledger = Ledger(foreign.path, frozenset(foreign.tensors) | frozenset(foreign.values))
    parts, origin = official.sort_keys(FAMILY, foreign, ledger)
    ledger.close()
    run = FAMILY.run_config(parts, foreign.path, overrides or [], ledger)
    with torch.device("meta"):
        method = base.create(run.method, run.data.size)
    method.to("meta")  # tables that are made from numpy
    weights: dict[str, Tensor] = {}
    for part, tensors in (("encoder.encoder", _encoder(parts)), ("predictor", parts["predictor"])):
        wanted = method.get_submodule(part).state_dict()
        importer.match_weights(tensors, wanted, foreign.path, f"the {part.split('.')[0]} part")
        weights |= {f"{part}.{name}": tensor.float() for name, tensor in tensors.items()}
    for name, value in method.state_dict().items():
        if name.endswith(("_scale.mean", "_scale.std")):
            weights[name] = torch.full(value.shape, float(name.endswith("std")))
    weights["encoder.filled"] = torch.ones(1, dtype=torch.uint8)
    method.load_state_dict(weights, strict=True, assign=True)
    return official.write(FAMILY.layout, folder, run, method, foreign, ledger, origin)


def _encoder(parts: Parts) -> dict[str, Tensor]:
    return parts.get("target") or parts["encoder"]


def _unwanted(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """A second copy of the encoder, position tables, and the camera's token, which the published model does not use."""
    found = {n: "a camera's pose, which the model was not trained with" for n in tensors if "extrinsics_encoder" in n}
    tables = "a fixed position table; this model has rotary positions, the official code does not load it either"
    found |= {n: tables for n in tensors if n.rsplit(".", 1)[-1] in ("pos_embed", "predictor_pos_embed")}
    if any(name.startswith("target_encoder.") for name in tensors):
        copy = "a copy of the frozen encoder; the target encoder is the one that the predictor was trained with"
        found |= {name: copy for name in tensors if name.startswith("encoder.") and name not in found}
    return found


def _run_config(parts: Parts, source: Path, overrides: list[str], ledger: Ledger) -> RunConfig:
    predictor, encoder = parts.get("predictor", {}), _encoder(parts)
    if "action_encoder.weight" not in predictor:
        raise CheckpointError(
            f"{source} holds no action-conditioned predictor: import it with --from vjepa2 and train one with "
            "`jepa train ac-vit-g16 method.encoder.path=RUN`"
        )
    inner = [text.removeprefix(_SPEC) for text in overrides if text.startswith(_SPEC)]
    given = config.override({}, [text for text in overrides if not text.startswith(_SPEC)])
    data = config.merge(_CLIP, given.get("data") or {})
    rows, columns = config.convert(data["image_size"], tuple[int, int], "data.image_size")
    inner += [f"data.image_size=[{rows},{columns}]", "data.clip.frames=64", "data.clip.fps=4"]
    frozen = VJEPA2.run_config({"target": encoder}, source, inner, ledger)
    width = official.tensor(encoder, official.ENCODER_MARK, (4, 5), source).shape[0]
    sizes = official.predictor_values(predictor, "predictor_embed.weight", width, source)
    asked = (given.get("method") or {}).get("predictor") or {}
    if sizes["width"] in _HEADS:
        sizes["heads"] = _HEADS[sizes["width"]]
    elif "heads" not in asked:
        raise CheckpointError(
            f"{source}: the predictor has width {sizes['width']}, not the published one, and the number of its heads "
            "cannot be seen in the weights. Say it: method.predictor.heads=N"
        )
    action, state = (
        official.tensor(predictor, f"{name}_encoder.weight", (2,), source).shape[1] for name in ("action", "state")
    )
    normalisation = {"mean": list(frozen.data.mean), "std": list(frozen.data.std)}
    spec = {"method": frozen.method, "size": list(frozen.data.size), "which": "target", **normalisation}
    method = {
        "name": "ac",
        "encoder": {"spec": spec},
        "predictor": sizes,
        "space": {"action": action, "proprio": state},
        "motion": "pose" if action == state == _POSE else "hold",
    }
    steps = {"steps": {"action": "action", "proprio": "state"}}
    name = source.name.split(".")[0] or "imported"
    run = config.build(RunConfig, config.merge({"name": name, "method": method, "data": data | steps}, given))
    given_spec = {f"data_{of}": list(getattr(run.data, of)) for of in ("mean", "std")}
    run.method["encoder"]["spec"] |= given_spec
    base.resolve(run.method)  # a misspelt method.* override is reported here
    return run


def _predictor(run: RunConfig) -> NoReturn:
    raise AssertionError("a file without a predictor is refused when its configuration is made")


FAMILY = official.Family("vjepa2-ac", "V-JEPA 2-AC", _run_config, _predictor, _unwanted)

__all__ = ["FAMILY", "convert", "is_ac"]
