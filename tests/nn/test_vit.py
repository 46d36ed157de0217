from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from jepa import config
from jepa.errors import ConfigError
from jepa.nn.predictor import Predictor, PredictorConfig, repeat_blocks
from jepa.nn.tokens import Normalise, PatchEmbed, gather_tokens, sincos_table, token_grid
from jepa.nn.vit import SIZES, EncoderConfig, VisionTransformer


def tiny(patch: int | list[int] = 4, image: tuple[int, int] = (16, 24)) -> VisionTransformer:
    torch.manual_seed(0)
    values = {"patch": patch, "width": 16, "depth": 2, "heads": 2}
    return VisionTransformer(config.build(EncoderConfig, values), image)


@pytest.mark.parametrize(
    ("size", "millions"),
    [("tiny", 5.5), ("small", 21.6), ("base", 85.7), ("large", 303.1), ("huge", 630.8), ("giant", 1011.4)],
)
def test_sizes_on_meta(size: str, millions: float) -> None:
    """Parameter counts without class token and head, at patch 14 for the two largest and 16 for the rest."""
    patch = 14 if size in ("huge", "giant") else 16
    with torch.device("meta"):
        vit = VisionTransformer(config.build(EncoderConfig, {"size": size, "patch": patch}), (224, 224))
    assert sum(p.numel() for p in vit.parameters()) / 1e6 == pytest.approx(millions, rel=0.005)
    assert len(vit.blocks) == SIZES[size][1]


@pytest.mark.parametrize(("patch", "image"), [(4, (16, 16)), (4, (16, 24)), ([2, 8], (16, 24)), (8, (8, 8))])
def test_any_patch_and_size_that_divide(patch: int | list[int], image: tuple[int, int]) -> None:
    vit = tiny(patch, image)
    ph, pw = (patch, patch) if isinstance(patch, int) else patch
    assert vit(torch.randn(2, 3, *image)).shape == (2, image[0] // ph * (image[1] // pw), 16)


def test_sizes_that_do_not_divide_are_named() -> None:
    with pytest.raises(ConfigError, match=r"height 20 .* 8.*\[16, 24\]"):
        token_grid((20, 16), (8, 8))
    with pytest.raises(ConfigError, match=r"takes \(16, 24\)"):
        tiny()(torch.randn(1, 3, 16, 16))
    with pytest.raises(ConfigError, match="not a multiple of heads"):
        config.build(EncoderConfig, {"width": 20, "heads": 3})


def test_patch_embedding_equals_the_convolution() -> None:
    torch.manual_seed(0)
    embed, images = PatchEmbed((2, 3), 5).double(), torch.randn(2, 3, 8, 9, dtype=torch.float64)
    want = embed.proj(images).flatten(2).transpose(1, 2)
    torch.testing.assert_close(embed(images), want, atol=1e-12, rtol=0)


def test_kept_tokens_see_only_each_other() -> None:
    vit = tiny().double()
    images = torch.randn(2, 3, 16, 24, dtype=torch.float64)
    keep = [torch.tensor([[0, 3, 7], [1, 2, 23]])]
    alone = vit(images, keep)
    other = images.clone()
    other[0, :, 12:, :] += 1  # patches 18..23: not kept in sample 0
    torch.testing.assert_close(vit(other, keep)[0], alone[0], atol=0, rtol=0)
    other[0, :, 0, 0] += 1  # patch 0: kept
    assert (vit(other, keep)[0] - alone[0]).abs().max() > 1e-6


def test_keeping_everything_equals_no_masks() -> None:
    vit, images = tiny().double(), torch.randn(2, 3, 16, 24, dtype=torch.float64)
    everything = torch.arange(24).expand(2, -1)
    torch.testing.assert_close(vit(images, [everything]), vit(images), atol=1e-12, rtol=0)


def test_gather_orders_index_set_by_index_set() -> None:
    tokens = torch.arange(12.0).view(2, 6, 1)
    got = gather_tokens(tokens, [torch.tensor([[0, 1], [2, 3]]), torch.tensor([[4, 5], [0, 5]])])
    assert got.squeeze(-1).tolist() == [[0, 1], [8, 9], [4, 5], [6, 11]]
    assert repeat_blocks(torch.arange(4).view(4, 1, 1), 2, 2).flatten().tolist() == [0, 1, 0, 1, 2, 3, 2, 3]


def test_position_table_is_row_major_columns_first() -> None:
    table = sincos_table(8, (2, 3))[0]
    torch.testing.assert_close(table[0, :4], table[3, :4])  # same column, other row: first half equal
    torch.testing.assert_close(table[0, 4:], table[2, 4:])  # same row: second half equal
    assert (table[0, :4] - table[1, :4]).abs().max() > 0.1


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_normalise(dtype: torch.dtype) -> None:
    pixels = torch.randint(0, 256, (2, 3, 4, 4), dtype=torch.uint8)
    given = pixels if dtype == torch.uint8 else pixels / 255
    got = Normalise((0.1, 0.2, 0.3), (0.5, 0.6, 0.7))(given)
    want = (pixels / 255 - torch.tensor([0.1, 0.2, 0.3]).view(1, 3, 1, 1)) / torch.tensor([0.5, 0.6, 0.7]).view(
        1, 3, 1, 1
    )
    torch.testing.assert_close(got, want, atol=1e-6, rtol=0)


def test_activation_checkpointing_changes_memory_not_numbers() -> None:
    vit, images = tiny().double(), torch.randn(2, 3, 16, 24, dtype=torch.float64)
    grads = []
    for on in (False, True):
        for block in vit.blocks:
            block.activation_checkpointing = on
        vit.zero_grad()
        vit(images).square().mean().backward()
        grads.append([p.grad.clone() for p in vit.parameters() if p.grad is not None])
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, atol=0, rtol=0)


def test_predictor_answers_depend_on_where_they_are_asked() -> None:
    torch.manual_seed(0)
    predictor = Predictor(config.build(PredictorConfig, {"depth": 1, "width": 8, "heads": 2}), 16, 2, (4, 6))
    context_at = [torch.tensor([[0, 1, 2]])]
    context = torch.randn(1, 3, 16)
    out = predictor(context, context_at, [torch.tensor([[5, 6]]), torch.tensor([[6, 5]])])
    assert out.shape == (2, 2, 16)
    torch.testing.assert_close(out[0], out[1].flip(0), atol=1e-6, rtol=0)
    assert F.mse_loss(out[0, 0], out[0, 1]) > 0
    with pytest.raises(ConfigError, match=r"predictor\.heads"):
        Predictor(config.build(PredictorConfig, {"width": 8}), 16, 3, (4, 6))
