"""What a world model takes over before its first step: the sizes of its data set's arrays and their statistics.

Sizes become part of the run's configuration, so that a checkpoint can be read without the data set; statistics become
buffers of the model, so that they travel with the weights.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import torch

from jepa import config as configuration
from jepa.config import DataConfig, RunConfig
from jepa.data import Manifest, TrainData
from jepa.errors import ConfigError
from jepa.methods import base
from jepa.methods.world import Space, WorldModel


def resolved(config: RunConfig) -> RunConfig:
    """The configuration with the method's `space` filled in from the data set, where it is not yet.

    Raises:
        ConfigError: no data.steps, arrays that the data set has not, or a space that is not theirs.
        DataError: the data set cannot be opened.
    """
    cls, options = base.resolve(config.method)
    if not issubclass(cls, WorldModel) or config.data.steps is None:
        return config
    if options.space.action:
        if config.data.steps.blank and not options.space.blank:
            raise ConfigError(
                f"data.steps.blank={config.data.steps.blank:g}, and this model was made for frames that are never "
                "missing (method.space.blank=false): leave method.space out, or set method.space.blank=true"
            )
        return config
    space = _space(config.data)
    method = {**config.method, "space": configuration.to_dict(space)}
    return dataclasses.replace(config, method=method)


def fit(method: base.Method, data: TrainData) -> None:
    """Give a new model the statistics of the training split.

    Raises:
        DataError: the data set has none, because it has no training split.
    """
    if not isinstance(method, WorldModel) or data.steps is None:
        return
    for key, scale in (("action", method.action_scale), ("proprio", method.proprio_scale)):
        if key in data.steps.arrays and not data.steps.arrays[key].discrete:  # choices go in one-hot
            scale.fit(*(torch.from_numpy(x.astype(np.float32)) for x in data.steps.scale(key)))


def _space(data: DataConfig) -> Space:
    assert data.steps is not None, "no data.steps"
    known = Manifest.open(data.path).arrays
    for key, name, kind in (("action", data.steps.action, "action"), ("proprio", data.steps.proprio, "frame")):
        if name is None:
            continue
        if name not in known:
            raise ConfigError(
                f"data.steps.{key}={name!r}: {data.path} has "
                f"{', '.join(known) if known else 'no arrays: build it from a source of episodes (docs/episodes.md)'}"
            )
        if known[name].kind != kind:
            raise ConfigError(
                f"data.steps.{key}={name!r} has a row for every {known[name].kind}; {key} needs one for every {kind}"
            )
    action = known[data.steps.action]
    proprio = known[data.steps.proprio].width if data.steps.proprio else 0
    return Space(
        action=_stride(data) * action.width, proprio=proprio, discrete=action.discrete, blank=data.steps.blank > 0
    )


def _stride(data: DataConfig) -> int:
    if data.clip is None or data.clip.stride is None:
        raise ConfigError(
            "data.steps goes with data.clip={frames: T, stride: K}: windows of T frames, K steps of the episode apart"
        )
    return data.clip.stride


__all__ = ["fit", "resolved"]
