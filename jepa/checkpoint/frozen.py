"""Frozen encoders of world models: what they are, written into the configuration, and their weights, once at the start.

config.method = frozen.resolve(config.method, config.data)   before a run is validated
frozen.load(method)                                           when a fresh run has built its method
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from jepa.checkpoint import folder, io
from jepa.checkpoint.encoder import load_encoder
from jepa.config import DataConfig, to_dict
from jepa.errors import CheckpointError, ConfigError
from jepa.methods import base
from jepa.methods.frozen import FrozenConfig, FrozenEncoder, pretrained
from jepa.nn import timm_model

_HASH = 16  # digits of the weights' SHA-256 that the configuration holds


def resolve(method: Mapping[str, Any], data: DataConfig) -> dict[str, Any]:
    """The ``method`` section with `encoder.spec` filled in, for methods with a frozen encoder; others as they are.

    A spec that is there already stays: it is that of a run which has started, whose encoder may be gone since.

    Args:
        data: of the run; its mean and std are what frames are normalised with.

    Raises:
        ConfigError: no encoder is named, or timm has no such model.
        CheckpointError: nothing usable at `encoder.path`.
    """
    _, options = base.resolve(dict(method))
    encoder = getattr(options, "encoder", None)
    if not isinstance(encoder, FrozenConfig) or encoder.spec:
        return dict(method)
    if encoder.timm is not None:
        spec = _of_timm(encoder.timm)
    elif encoder.path:
        spec = _of_run(encoder.path, encoder.which)
    else:
        raise ConfigError(
            "method.encoder says no encoder: set method.encoder.path to a run (official checkpoints: `jepa import`) "
            "or method.encoder.timm to a timm model"
        )
    spec |= {"data_mean": list(data.mean), "data_std": list(data.std)}
    return {**method, "encoder": {**to_dict(encoder), "spec": spec}}


def _of_timm(name: str) -> dict[str, Any]:
    settings = timm_model.settings(name)
    if settings is None:
        raise ConfigError(f"encoder.timm={name!r}: timm does not know how its images are normalised; use another model")
    return {"timm": name, "mean": list(settings.mean), "std": list(settings.std)}


def _of_run(path: str, which: str | None) -> dict[str, Any]:
    found = folder.resolve(path, files=(folder.CONFIG,))
    config = io.read_config(found)
    with torch.device("meta"):
        method = base.create(config.method, config.data.size)
    which = which or method.exported()
    if which not in method.encoders():
        raise ConfigError(f"encoder.which={which!r}: the run {path} has {', '.join(sorted(method.encoders()))}")
    weights = folder.manifest(found)["files"][folder.MODEL]["sha256"]
    return {
        "method": to_dict(config.method),
        "size": list(config.data.size),
        "which": which,
        "mean": list(config.data.mean),
        "std": list(config.data.std),
        "step": int(io.read_state(found)["step"]),
        "weights": weights[:_HASH],
    }


def load(method: torch.nn.Module) -> list[str]:
    """Fill the frozen encoders of a fresh method with their weights; once, for checkpoints hold them from then on.

    Returns:
        A sentence for each encoder that was filled.

    Raises:
        CheckpointError: nothing usable at `encoder.path`, or other weights than when the run was set up.
        ConfigError: a timm model's weights cannot be had.
    """
    notes = []
    for encoder in [m for m in method.modules() if isinstance(m, FrozenEncoder)]:
        if not encoder.awaits_weights:  # random by intent, loaded already, or inside one that was just filled
            continue
        if encoder.config.timm is not None:
            state, where = pretrained(encoder), f"timm's {encoder.config.timm}"
        else:
            state, where = _weights(encoder), encoder.config.path
        with torch.no_grad():
            encoder.encoder.load_state_dict(state)
            encoder.filled.fill_(1)
        notes.append(f"frozen encoder from {where}")
    return notes


def _weights(encoder: FrozenEncoder) -> dict[str, torch.Tensor]:
    """Of a run's encoder, its tables of positions made for frames of this size."""
    path, spec = encoder.config.path, encoder.config.spec
    found = folder.resolve(path, files=(folder.MODEL, folder.CONFIG))
    weights = folder.manifest(found)["files"][folder.MODEL]["sha256"][:_HASH]
    if spec.get("weights") not in (None, weights):
        raise CheckpointError(
            f"{found} holds other weights ({weights}) than the configuration says ({spec['weights']}): the run there "
            "has trained on since. Give one of its checkpoints as method.encoder.path, or start from a configuration "
            "without method.encoder.spec"
        )
    own = load_encoder(found, which=spec.get("which")).encoder
    resize = getattr(own, "resize", None)
    if resize is not None:
        resize((*spec["size"][:-2], *encoder.image_size))
    return own.state_dict()


__all__ = ["load", "resolve"]
