"""DINO-WM's predictor, with its embeddings of action and proprioception, as a run of `dinowm`.

    jepa import dino_wm.safetensors --from dinowm --to runs/dinowm-pusht

The official files hold whole Python objects, which only their own code may load. Where that is trusted, save the state
dicts alone, and this reads them:

    m = torch.load("model_latest.pth")
    torch.save({k: m[k].state_dict() for k in ("predictor", "action_encoder", "proprio_encoder")}, "dino_wm.pt")

The frozen encoder comes from where it did: timm's DINOv2 (downloaded once), or `method.encoder.path`/`.timm`. Actions
and proprioception are normalised by the data set there, so the run's scales are the identity. Frames are taken with
mean and std 0.5, which go to DINOv2 as they are, as in the official code.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from jepa import checkpoint, config
from jepa.checkpoint import frozen
from jepa.config import RunConfig
from jepa.errors import CheckpointError
from jepa.export import files, importer, keymaps, official
from jepa.export.importer import Ledger
from jepa.methods import base

_ENCODER = "vit_small_patch14_dinov2.lvd142m"
_INNER, _HEADS = 1024, 16  # published: heads of 64
_DATA: dict[str, Any] = {
    "image_size": 196, "clip": {"frames": 4, "stride": 5, "short": "skip"}, "mean": [0.5] * 3, "std": [0.5] * 3,
    "crop_scale": [1.0, 1.0], "crop_ratio": [1.0, 1.0],
}  # fmt: skip
_SPARE = {
    "decoder": "a decoder for pictures; nothing here is trained or planned with pixels",
    "encoder": "a copy of the frozen encoder, which comes from where it was published",
    **{
        f"{part}_optimizer": official.NOT_NEEDED["opt"]
        for part in ("predictor", "action_encoder", "encoder", "decoder")
    },
}
_EMBEDDED = {"action_embed": "action_encoder.patch_embed", "proprio_embed": "proprio_encoder.patch_embed"}


def convert(path: Path | str, out: Path | str, overrides: list[str] | None = None) -> dict[str, Any]:
    """Write a run folder with the weights of a DINO-WM predictor.

    Args:
        overrides: ``key=value`` settings: `method.encoder` of another encoder, `data.image_size`, `data.clip.stride`
            (environment steps of an action), `method.predictor.heads` for sizes that were not published.

    Returns:
        What was imported; see `jepa.export.vjepa2.convert`.

    Raises:
        CheckpointError: unreadable or unsafe file, keys that are neither used nor ignorable, or weights that do not
            fit.
        ConfigError: an override that does not exist, or an encoder whose weights cannot be had.
    """
    folder = Path(out)
    official.empty_folder(folder)
    foreign = files.read(path)
    ledger = Ledger(foreign.path, frozenset(foreign.tensors) | frozenset(foreign.values))
    weights = _weights(foreign, ledger)
    run = _run_config(weights, foreign.path, overrides or [])
    method = checkpoint.create(run)
    wanted = {name: t for name, t in method.state_dict().items() if name.split(".")[0] in (*_EMBEDDED, "predictor")}
    importer.match_weights(weights, wanted, foreign.path, "the file")
    notes = frozen.load(method)
    method.load_state_dict({name: t.float() for name, t in weights.items()}, strict=False)  # matched above
    ledger.notes += [*notes, "actions and proprioception go in as the official data set normalises them"]
    return official.write("dinowm", folder, run, method, foreign, ledger, {})


def _weights(foreign: files.Foreign, ledger: Ledger) -> dict[str, Tensor]:
    """Under our names; every key accounted for."""
    found: dict[str, Tensor] = {}
    names = importer.plain_names(foreign.tensors, foreign.path)
    if not any(name.startswith("predictor.transformer.") for name in names):
        raise CheckpointError(
            f"{foreign.path} holds no DINO-WM predictor (no predictor.transformer.*). Save the state dicts of "
            "predictor, action_encoder and proprio_encoder under these names; see docs/import.md"
        )
    for name, key in names.items():
        part, tensor = name.split(".")[0], foreign.tensors[key]
        if part in _SPARE:
            ledger.ignore([key], _SPARE[part])
            continue
        if part == "predictor":
            ours = f"predictor.{next(iter(keymaps.DINOWM.inward({name.removeprefix('predictor.'): tensor})))}"
        else:
            prefix = next((p for p in _EMBEDDED.items() if name.startswith(f"{p[1]}.")), None)
            if prefix is None:
                continue
            ours = name.replace(prefix[1], prefix[0], 1)
            tensor = tensor.squeeze(-1) if tensor.ndim == 3 else tensor  # a convolution over one step
        found[ours] = tensor
        ledger.use(key, ours)
    for key in ledger.open_keys():
        section = key.split(".")[0]
        if section in _SPARE or section in official.RECORDED:
            ledger.ignore([key], _SPARE.get(section, "a fact about the training"))
    ledger.close()
    return found


def _run_config(weights: dict[str, Tensor], source: Path, overrides: list[str]) -> RunConfig:
    given = config.override({}, overrides)
    asked = given.get("method") or {}
    table = official.tensor(weights, "predictor.positions", (3,), source)
    action, proprio = (weights.get(f"{name}.weight") for name in _EMBEDDED)
    if action is None:
        raise CheckpointError(f"{source} has no action_encoder.patch_embed: the predictor cannot be used without it")
    depth = importer.depth([n.removeprefix("predictor.") for n in weights], "blocks", source)
    inner = official.tensor(weights, "predictor.blocks.0.attn.qkv.weight", (2,), source).shape[0] // 3
    heads = (asked.get("predictor") or {}).get("heads", _HEADS if inner == _INNER else None)
    if heads is None:
        raise CheckpointError(
            f"{source}: attention is {inner} wide, not the published {_INNER}, and the number of heads cannot be seen "
            "in the weights. Say it: method.predictor.heads=N"
        )
    predictor = {
        "depth": depth, "heads": heads, "head_width": inner // int(heads),
        "hidden": official.tensor(weights, "predictor.blocks.0.mlp.fc1.weight", (2,), source).shape[0],
    }  # fmt: skip
    method: dict[str, Any] = {
        "name": "dinowm",
        "encoder": {} if "encoder" in asked else {"timm": _ENCODER},
        "predictor": predictor,
        "space": {"action": action.shape[1], "proprio": 0 if proprio is None else proprio.shape[1]},
        "action_width": action.shape[0],
        **({} if proprio is None else {"proprio_width": proprio.shape[0]}),
    }
    steps = {"steps": {"action": "action", "proprio": None if proprio is None else "proprio"}}
    values = {"name": source.name.split(".")[0] or "imported", "method": method, "data": _DATA | steps}
    run = config.build(RunConfig, config.merge(values, given))
    run.method.update(frozen.resolve(run.method, run.data))
    spec = run.method["encoder"]["spec"]
    if "timm" in spec:  # as official: frames go to the encoder normalised as they are here
        spec |= {"mean": list(run.data.mean), "std": list(run.data.std)}
    tokens = _tokens(run)
    if table.shape[1] % tokens:
        raise CheckpointError(
            f"{source}: {table.shape[1]} positions, but a frame of {run.data.image_size} is {tokens} tokens of this "
            "encoder: give data.image_size, or method.encoder.path or .timm of the encoder it was trained with"
        )
    run.method["history"] = table.shape[1] // tokens
    weights["predictor.positions"] = table.view(1, -1, tokens, table.shape[2])
    base.resolve(run.method)  # a misspelt method.* override is reported here
    return run


def _tokens(run: RunConfig) -> int:
    with torch.device("meta"):
        method: Any = base.create(run.method, run.data.size)
    return int(method.encoder.tokens)


__all__ = ["convert"]
