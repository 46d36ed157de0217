"""Tokens of inner layers are those of the blocks, through the final norm."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from jepa.checkpoint import Encoder, layers, random_encoder
from jepa.errors import ConfigError
from tests.tiny import run_config


@pytest.fixture(scope="module")
def encoder(tiny_data: Path) -> Encoder:
    return random_encoder(run_config(tiny_data, "method.encoder.depth=3"), 0)


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randint(0, 256, (2, 3, 20, 20), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_layers_are_the_blocks_outputs_normed(encoder, images):
    vit = encoder.encoder
    with torch.no_grad():
        x = vit.patch_embed(encoder.normalise(images)) + vit.pos_embed
        want = []
        for block in vit.blocks:
            x = block(x)
            want.append(vit.norm(x))
    output, first, last, again = layers.levels(encoder, (0, -1, 0))(images)
    torch.testing.assert_close(first, want[0])
    torch.testing.assert_close(output, want[2])
    assert torch.equal(last, output) and torch.equal(again, first)
    assert not any(block._forward_hooks for block in vit.blocks)
    (alone,) = layers.levels(encoder, ())(images)
    assert torch.equal(alone, encoder(images))


def test_hooks_are_taken_back_after_an_error(encoder):
    with pytest.raises(ConfigError):
        layers.levels(encoder, (1,))(torch.zeros(1, 3, 8, 8))
    assert not any(block._forward_hooks for block in encoder.encoder.blocks)


def test_an_encoders_own_levels_are_used(encoder, images, monkeypatch):
    asked: list[list[int]] = []

    def own(x, after):
        asked.append(list(after))
        return [torch.full((len(x), 1, 1), float(i)) for i in after]

    monkeypatch.setattr(encoder.encoder, "levels", own, raising=False)
    output, second, first = layers.levels(encoder, (1, 0))(images)
    assert asked == [[0, 1, 2]]
    assert [float(x[0, 0, 0]) for x in (output, second, first)] == [2.0, 1.0, 0.0]


def test_grid_and_depth(encoder):
    assert layers.grid(encoder) == (5, 5) and layers.depth(encoder) == 3
    assert layers.resolve(encoder, (-1, 0, -3)) == [2, 0, 0]


def test_layers_that_are_not_there(encoder, monkeypatch):
    with pytest.raises(ConfigError, match=r"layers \[3\]: this encoder has layers 0 to 2, or -3 to -1 from the end"):
        layers.levels(encoder, (0, 3))
    monkeypatch.setattr(encoder, "encoder", nn.Linear(2, 2))
    assert layers.grid(encoder) is None and layers.levels(encoder, ()) is not None
    with pytest.raises(ConfigError, match="Linear has no list of blocks"):
        layers.resolve(encoder, (0,))
