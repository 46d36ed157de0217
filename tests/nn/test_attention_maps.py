"""Attention that is computed again equals attention written out by hand, positions and all."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from jepa import config
from jepa.errors import ConfigError
from jepa.nn import attention_maps as module
from jepa.nn.attention import Attention
from jepa.nn.attention_maps import attention_layers, attention_maps
from jepa.nn.dense import MultiLevelTransformer
from jepa.nn.positions import PositionConfig
from jepa.nn.video import VideoEncoderConfig, VideoTransformer
from jepa.nn.vit import EncoderConfig, VisionTransformer
from tests.nn.test_video import brute_rotation

CLIP, IMAGE, HEADS = (4, 8, 12), (8, 12), 2
GRID = (2, 2, 3)  # of clips with patches of 4 and tubelets of 2
VIDEO: dict[str, Any] = {"patch": 4, "tubelet": 2, "width": 32, "depth": 3, "heads": HEADS}


def encoder_of(kind: str) -> nn.Module:
    torch.manual_seed(0)
    made: nn.Module
    if kind == "image":
        values = {k: v for k, v in VIDEO.items() if k != "tubelet"}
        made = VisionTransformer(config.build(EncoderConfig, values), IMAGE)
    else:
        settings = config.build(VideoEncoderConfig, VIDEO)
        if kind == "levels":
            made = MultiLevelTransformer(settings, CLIP, PositionConfig(layout="paired", base_grid=16), (0, 2))
        else:
            position = PositionConfig(kind="sincos") if kind == "sincos" else PositionConfig(layout=kind)  # type: ignore[arg-type]
            made = VideoTransformer(settings, CLIP, position)
    made = made.double().eval()
    with torch.no_grad():  # away from initialisation, so that attention is far from even
        for name, parameter in made.named_parameters():
            if "qkv.weight" in name:
                parameter.mul_(20)
    return made


@torch.no_grad()
def by_hand(attention: Attention, tokens: Tensor, kind: str, grid: tuple[int, int, int]) -> Tensor:
    """softmax(q k^T / sqrt(d)) of tokens (N, D), number by number: (h, N, N)."""
    count, width = tokens.shape
    d = width // HEADS
    qkv = tokens @ attention.qkv.weight.T + attention.qkv.bias
    scale = [1.0, *(15 / max(1, side - 1) for side in grid[1:])] if kind == "levels" else [1.0, 1.0, 1.0]
    layout = "paired" if kind == "levels" else kind
    out = torch.zeros(HEADS, count, count, dtype=torch.float64)
    for head in range(HEADS):
        q, k = (qkv[:, part * width + head * d : part * width + (head + 1) * d].clone() for part in (0, 1))
        if layout in ("tiled", "paired"):
            for n, place in enumerate(np.ndindex(*grid)):
                at = tuple(float(p) * s for p, s in zip(place, scale, strict=True))
                q[n], k[n] = (brute_rotation(x[n], at, layout) for x in (q, k))  # type: ignore[arg-type]
        for i in range(count):
            scores = torch.stack([(q[i] * k[j]).sum() / math.sqrt(d) for j in range(count)])
            out[head, i] = scores.exp() / scores.exp().sum()
    return out


@pytest.mark.parametrize("room", [module._ROOM, 1])
@pytest.mark.parametrize("kind", ["image", "sincos", "tiled", "paired", "levels"])
def test_weights_are_those_written_out_by_hand(kind: str, room: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_ROOM", room)  # 1: one query at a time
    encoder = encoder_of(kind)
    size, grid = (IMAGE, (1, *GRID[1:])) if kind == "image" else (CLIP, GRID)
    x, layer, count = torch.randn(2, 3, *size, dtype=torch.float64), 1, math.prod(grid)
    maps = attention_maps(encoder, x, layer, [0, count - 1])
    went_in: list[Tensor] = []
    attention = attention_layers(encoder)[layer]
    hook = attention.register_forward_pre_hook(lambda _, inputs: went_in.append(inputs[0].detach()))
    encoder(x)
    hook.remove()
    assert len(went_in) == 1 and not attention._forward_pre_hooks  # the maps' own hook is gone
    for sample in range(2):
        want = by_hand(attention, went_in[0][sample], kind, grid)
        assert float(want.std(dim=2).mean()) > 0.01  # far from even, or nothing would be tested
        torch.testing.assert_close(maps.received[sample], want.mean(dim=1), atol=1e-12, rtol=0)
        torch.testing.assert_close(maps.chosen[sample], want[:, [0, count - 1]], atol=1e-12, rtol=0)


@pytest.mark.parametrize("kind", ["image", "tiled"])
def test_weights_mix_values_as_the_fused_attention_does(kind: str) -> None:
    encoder = encoder_of(kind)
    attention = attention_layers(encoder)[0]
    caught: list[Any] = []
    hook = attention.register_forward_hook(lambda _, inputs, output: caught.extend([inputs, output]))
    encoder(torch.randn(2, 3, *(IMAGE if kind == "image" else CLIP), dtype=torch.float64))
    hook.remove()
    (tokens, *rest), output = caught
    values = F.linear(tokens, attention.qkv.weight, attention.qkv.bias).view(*tokens.shape[:2], 3, HEADS, -1)[:, :, 2]
    mixed = torch.einsum("bhqn,bnhd->bqhd", attention.weights(tokens, *rest[:1]), values).flatten(2)
    torch.testing.assert_close(attention.proj(mixed), output, atol=1e-12, rtol=0)


def test_an_encoder_of_clips_has_maps_of_images_too() -> None:
    maps = attention_maps(encoder_of("tiled"), torch.randn(1, 3, *IMAGE, dtype=torch.float64), 2, [4])
    assert maps.received.shape == (1, HEADS, 6) and maps.chosen.shape == (1, HEADS, 1, 6)
    torch.testing.assert_close(maps.received.sum(dim=2), torch.ones(1, HEADS, dtype=torch.float64))


def test_other_encoders_are_told_what_is_missing() -> None:
    with pytest.raises(ConfigError, match=r"Conv2d has no attention .* jepa.nn.attention.Block"):
        attention_layers(nn.Conv2d(3, 3, 1))
    odd = nn.Module()
    odd.blocks = nn.ModuleList([nn.Linear(2, 2)])
    with pytest.raises(ConfigError, match="no attention that can be read"):
        attention_maps(odd, torch.zeros(1, 2), 0, [])
