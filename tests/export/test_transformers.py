"""A second opinion: transformers' independent port of I-JEPA agrees with ours at the same weights."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers import IJepaConfig, IJepaModel

from jepa.nn.vit import EncoderConfig, VisionTransformer


def to_transformers(ours: dict[str, Tensor]) -> dict[str, Tensor]:
    """Our names to those of IJepaModel; the fused query-key-value map is cut in three."""
    out = {
        "embeddings.position_embeddings": ours["pos_embed"],
        "embeddings.patch_embeddings.projection.weight": ours["patch_embed.proj.weight"],
        "embeddings.patch_embeddings.projection.bias": ours["patch_embed.proj.bias"],
        "layernorm.weight": ours["norm.weight"],
        "layernorm.bias": ours["norm.bias"],
    }
    renamed = {
        "norm1": "layernorm_before",
        "norm2": "layernorm_after",
        "attn.proj": "attention.o_proj",
        "mlp.fc1": "mlp.fc1",
        "mlp.fc2": "mlp.fc2",
    }
    depth = 1 + max(int(name.split(".")[1]) for name in ours if name.startswith("blocks."))
    for block in range(depth):
        for kind in ("weight", "bias"):
            for mine, theirs in renamed.items():
                out[f"layers.{block}.{theirs}.{kind}"] = ours[f"blocks.{block}.{mine}.{kind}"]
            for letter, piece in zip("qkv", ours[f"blocks.{block}.attn.qkv.{kind}"].chunk(3), strict=True):
                out[f"layers.{block}.attention.{letter}_proj.{kind}"] = piece
    return out


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_transformers_agrees(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    ours = VisionTransformer(EncoderConfig(patch=(8, 8), width=48, depth=3, heads=4), (40, 40))
    with torch.no_grad():  # far from initialisation, so that every part matters
        for parameter in ours.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    ours = ours.to(dtype).eval()
    settings = IJepaConfig(
        hidden_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=192,
        image_size=40,
        patch_size=8,
        layer_norm_eps=1e-6,
        attn_implementation="sdpa",
    )
    theirs = IJepaModel(settings, add_pooling_layer=False).to(dtype).eval()
    theirs.load_state_dict(to_transformers(dict(ours.state_dict())), strict=True)
    images = torch.randn(2, 3, 40, 40, dtype=dtype)
    with torch.no_grad():
        mine, reference = ours(images), theirs(images).last_hidden_state
    assert mine.std() > 0.1
    tolerance = 2e-5 if dtype == torch.float32 else 1e-12
    torch.testing.assert_close(mine, reference, atol=tolerance, rtol=1e-5 if dtype == torch.float32 else 0)
