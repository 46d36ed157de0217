"""The shipped configurations of world models over frozen encoders: their sizes, and what they need to build."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from jepa import config, resources
from jepa.checkpoint import frozen
from jepa.config import RunConfig
from jepa.errors import ConfigError
from jepa.methods import base
from jepa.methods.frozen import FrozenWorldModel

# name: (the encoder's own configuration; None: timm's, numbers of an action and of proprioception)
SHIPPED = {
    "ac-vit-g16": ("vjepa2-vit-g16", 7, 7),
    "dinowm-dinov2": (None, 10, 4),
    "dinowm-own-encoder": ("ijepa-vit-s16", 10, 4),
}


def build(name: str) -> tuple[RunConfig, FrozenWorldModel]:
    """At its real size, without memory."""
    encoder, action, proprio = SHIPPED[name]
    run = config.load(name)
    method: dict[str, Any] = {**run.method, "space": {"action": action, "proprio": proprio}}
    if encoder is None:
        pytest.importorskip("timm")
        method = frozen.resolve(method, run.data)
    else:
        source = config.load(encoder)
        method["encoder"] = {"spec": {"method": config.to_dict(source.method), "size": list(source.data.size)}}
    with torch.device("meta"):
        model = base.create(method, run.data.size)
    assert isinstance(model, FrozenWorldModel)
    return run, model.to("meta")


@pytest.mark.parametrize("name", SHIPPED)
def test_it_builds_at_real_size(name: str) -> None:
    run, model = build(name)
    assert run.data.steps is not None and run.data.clip is not None and run.data.path == ""
    assert model.encoder.grid == {"ac-vit-g16": (16, 16)}.get(name, (14, 14))
    assert model.encoder.tokens == model.encoder.grid[0] * model.encoder.grid[1]
    assert not any(p.requires_grad for p in model.encoder.parameters())


def test_ac_has_the_published_size() -> None:
    _, model = build("ac-vit-g16")
    width, depth, encoder = 1024, 24, 1408
    blocks = depth * (12 * width**2 + 13 * width)
    ends = encoder * width + width + 2 * (7 * width + width) + 2 * width + width * encoder + encoder
    assert sum(p.numel() for p in model.get_submodule("predictor").parameters()) == blocks + ends


def test_dinowm_has_the_published_size() -> None:
    """Six blocks of 16 heads of 64 over tokens of 384 + 10 + 10, norms with scale and shift, no bias before heads."""
    _, model = build("dinowm-dinov2")
    width, inner, hidden = 404, 1024, 2048
    block = 2 * 2 * width + 3 * inner * width + inner * width + width + 2 * width * hidden + hidden + width
    expected = 6 * block + 2 * width + 3 * 196 * width
    assert sum(p.numel() for p in model.get_submodule("predictor").parameters()) == expected


def test_an_encoder_must_be_named() -> None:
    for name in ("ac-vit-g16", "dinowm-own-encoder"):
        run = config.load(name)
        with pytest.raises(ConfigError, match=r"method\.encoder\.path"):
            frozen.resolve(run.method, run.data)
        with pytest.raises(ConfigError, match=r"method\.encoder\.path|method\.space\.action"):
            base.create(run.method, run.data.size)


def test_windows_end_with_their_episodes() -> None:
    """A clip starts over at a video's end unless told otherwise, and no action leads there."""
    shipped = [config.load(name) for name in resources.names("configs") if name != "debug"]
    worlds = [run for run in shipped if run.data.steps is not None]
    assert len(worlds) >= len(SHIPPED) + 3 and all(run.data.clip and run.data.clip.short != "loop" for run in worlds)
