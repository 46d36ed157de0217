"""Checkpoints: written whole or not at all, strictly loaded, and able to say what they are.

    RUN/checkpoints/step-N/
        model.safetensors   every parameter and buffer under the method's own names
        optim.safetensors   optimiser state by parameter name: exp_avg.NAME, exp_avg_sq.NAME, step.NAME
        state.json          what the loop needs to go on (step, g, precision, data set, loss scale ...)
        config.yaml         the resolved run configuration
        checkpoint.json     format version, size and SHA-256 of each file, normalisation, versions
        COMPLETE            SHA-256 of checkpoint.json, written last

Nothing here is pickled, and nothing pickled is ever loaded.
"""

from __future__ import annotations

from jepa.checkpoint import frozen
from jepa.checkpoint.encoder import Encoder, create, load_encoder, random_encoder, random_method
from jepa.checkpoint.folder import find, latest, problem, prune, resolve, steps
from jepa.checkpoint.io import describe, load_model, load_optim, read_config, read_state, save, write
from jepa.checkpoint.snapshot import Snapshot, Staging, dropped, on_host, take

__all__ = [
    "Encoder",
    "Snapshot",
    "Staging",
    "create",
    "describe",
    "dropped",
    "find",
    "frozen",
    "latest",
    "load_encoder",
    "load_model",
    "load_optim",
    "on_host",
    "problem",
    "prune",
    "random_encoder",
    "random_method",
    "read_config",
    "read_state",
    "resolve",
    "save",
    "steps",
    "take",
    "write",
]
