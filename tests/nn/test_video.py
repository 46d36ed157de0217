"""Clips to tokens: tubelets, positions, rotary attention without sorting, packing, sizes that are refused."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from jepa import config
from jepa.errors import ConfigError
from jepa.masks import Masks
from jepa.nn.attention import Attention
from jepa.nn.positions import PositionConfig, table_for
from jepa.nn.rope import RotaryTables, turned
from jepa.nn.tokens import Normalise, TubeletEmbed, gather_packed, sincos_table_3d
from jepa.nn.video import SIZES, VideoEncoderConfig, VideoTransformer
from jepa.nn.video_predictor import VideoPredictor, VideoPredictorConfig

ROPE, SINCOS = PositionConfig(), PositionConfig(kind="sincos")
SIZE = (4, 16, 24)


def tiny(position: PositionConfig = ROPE, size: tuple[int, ...] = SIZE, **changes: object) -> VideoTransformer:
    torch.manual_seed(0)
    values = {"patch": 4, "tubelet": 2, "width": 48, "depth": 2, "heads": 3} | changes
    encoder = VideoTransformer(config.build(VideoEncoderConfig, values), size, position).double()
    with torch.no_grad():  # away from initialisation, so that attention is not uniform
        for name, parameter in encoder.named_parameters():
            if "qkv" in name:
                parameter.mul_(20)
    return encoder


def clips(*size: int, batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, *(size or SIZE), dtype=torch.float64)


def subsets(n: int, *counts: int, batch: int = 2) -> list[Tensor]:
    return [torch.stack([torch.randperm(n)[:k].sort()[0] for _ in range(batch)]) for k in counts]


# --- patches ------------------------------------------------------------------------------------------------------


def test_tubelets_equal_the_convolution() -> None:
    embed, x = TubeletEmbed((2, 4, 3), 5).double(), torch.randn(2, 3, 6, 8, 9, dtype=torch.float64)
    want = embed.proj(x).flatten(2).transpose(1, 2)
    torch.testing.assert_close(embed(x), want, atol=1e-12, rtol=0)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_clips_are_normalised_frame_by_frame(dtype: torch.dtype) -> None:
    pixels = torch.randint(0, 256, (2, 3, 5, 4, 6), dtype=torch.uint8)
    x = pixels if dtype == torch.uint8 else pixels / 255
    normalise = Normalise((0.1, 0.2, 0.3), (0.5, 0.6, 0.7))
    want = torch.stack([normalise(frame) for frame in x.unbind(2)], dim=2)
    torch.testing.assert_close(normalise(x), want, atol=0, rtol=0)


def test_packed_gathering_orders_set_by_set() -> None:
    tokens = torch.arange(12.0).view(2, 6, 1)
    got = gather_packed(tokens, [torch.tensor([[0, 1], [2, 3]]), torch.tensor([[4], [5]])])
    assert got.flatten().tolist() == [0, 1, 8, 9, 4, 11]
    assert gather_packed(tokens[:1], [torch.tensor([[1], [2]])]).flatten().tolist() == [1, 2]


# --- positions ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("uniform", [True, False])
def test_sincos_table_places_time_rows_columns(uniform: bool) -> None:
    grid, width = (3, 4, 5), 32
    table = sincos_table_3d(width, grid, uniform).view(*grid, width)
    parts = (12, 12, 8) if uniform else (16, 8, 8)  # the last one cut off at the width
    for axis, features in enumerate(table.split(parts, dim=-1)):
        others = [a for a in range(3) if a != axis]
        assert (features - features.select(others[0], 0).unsqueeze(others[0])).abs().max() == 0
        moved = features.select(axis, 0) - features.select(axis, 1)
        assert moved.abs().max() > 0.1
    assert table[0, 0, 0, 0] == 0 and table[1, 0, 0, 0] == pytest.approx(math.sin(1.0))


def test_tables_for_other_grids_are_cut_or_interpolated() -> None:
    table = sincos_table_3d(24, (4, 4, 4))
    torch.testing.assert_close(table_for(table, (4, 4, 4), (2, 4, 4)), sincos_table_3d(24, (2, 4, 4)))
    larger = table_for(table, (4, 4, 4), (4, 8, 8)).view(4, 8, 8, 24)
    near = sincos_table_3d(24, (4, 4, 4)).view(4, 4, 4, 24)
    mean_of_four = larger[1, 2:4, 2:4].mean(dim=(0, 1))  # around the old place (1, 1)
    assert (mean_of_four - near[1, 1, 1]).abs().max() < 0.15
    encoder = tiny(SINCOS)
    assert encoder(clips(4, 32, 24)).shape == (2, 96, 48) and "pos_embed" in encoder.state_dict()
    assert "pos_embed" not in tiny().state_dict()


def rotate(x: Tensor, head_width: int, layout: str, grid: tuple[int, int, int]) -> Tensor:
    """Queries (N, D) of one head turned."""
    tables = RotaryTables(head_width, layout).of(grid, x)  # type: ignore[arg-type]
    qkv = torch.stack([x, 2 * x, 3 * x], dim=1).unsqueeze(2)  # (N, 3, 1, D)
    q, k, v = turned(qkv, (tables[0][:, None, None], tables[1][:, None, None]))
    torch.testing.assert_close(k, 2 * q, atol=1e-12, rtol=0)
    torch.testing.assert_close(v[:, 0], 3 * x, atol=0, rtol=0)
    return q[:, 0]


def brute_rotation(x: Tensor, place: tuple[float, float, float], layout: str) -> Tensor:
    """One head's feature vector turned feature by feature, as the formula reads."""
    out, part = x.clone(), len(x) // 3 // 2 * 2
    for axis in range(3):
        for pair in range(part // 2):
            a = axis * part + 2 * pair
            if layout == "paired":
                exponents = (pair, pair)
            else:
                exponents = ((2 * pair) % (part // 2), (2 * pair + 1) % (part // 2))
            turn = [place[axis] * 10000 ** (-e / (part / 2)) for e in exponents]
            out[a] = x[a] * math.cos(turn[0]) - x[a + 1] * math.sin(turn[0])
            out[a + 1] = x[a + 1] * math.cos(turn[1]) + x[a] * math.sin(turn[1])
    return out


@pytest.mark.parametrize("layout", ["tiled", "paired"])
@pytest.mark.parametrize("head_width", [16, 18, 32, 6, 15])
def test_rotation_against_the_formula(head_width: int, layout: str) -> None:
    grid, x = (2, 3, 4), torch.randn(24, head_width, dtype=torch.float64)
    got = rotate(x, head_width, layout, grid)
    for n, place in enumerate(np.ndindex(*grid)):
        want = brute_rotation(x[n], tuple(map(float, place)), layout)  # type: ignore[arg-type]
        torch.testing.assert_close(got[n], want, atol=1e-12, rtol=0)


@pytest.mark.parametrize("head_width", [6, 15])
def test_gradient_of_the_rotation(head_width: int) -> None:
    cosine, sine = RotaryTables(head_width, "tiled").of((1, 2, 2), torch.zeros(1, dtype=torch.float64))
    qkv = torch.randn(2, 4, 3, 2, head_width, dtype=torch.float64, requires_grad=True)
    whole = (cosine[:, None, None], sine[:, None, None])
    assert torch.autograd.gradcheck(lambda x: turned(x, whole), (qkv,))
    packed = tuple(table[torch.tensor([3, 0, 1])][:, None, None] for table in (cosine, sine))
    rows = torch.randn(3, 3, 2, head_width, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: turned(x, packed), (rows,))


def test_only_the_paired_layout_is_a_rotation() -> None:
    x = torch.randn(24, 36, dtype=torch.float64)
    for layout, kept in (("paired", True), ("tiled", False)):
        change = rotate(x, 36, layout, (2, 3, 4)).norm(dim=-1) - x.norm(dim=-1)
        assert (change.abs().max() < 1e-12) == kept


def test_rescaled_positions_end_where_the_base_grid_ends() -> None:
    like = torch.zeros(1, dtype=torch.float64)
    wide, _ = RotaryTables(12, "paired", 16).of((2, 24, 31), like)
    base, _ = RotaryTables(12, "paired").of((2, 16, 16), like)
    corners = wide.view(2, 24, 31, -1)[:, ::23, ::30]
    torch.testing.assert_close(corners, base.view(2, 16, 16, -1)[:, ::15, ::15], atol=1e-12, rtol=0)
    assert torch.isfinite(RotaryTables(12, "paired", 16).of((1, 1, 1), like)[0]).all()


def test_tables_are_made_once_per_grid_and_type() -> None:
    tables, x = RotaryTables(12, "tiled"), torch.zeros(1)
    assert tables.of((2, 3, 4), x)[0] is tables.of((2, 3, 4), x)[0]
    assert tables.of((2, 3, 4), x)[0].dtype == torch.float32
    assert tables.of((2, 3, 4), x.double())[0].dtype == torch.float64
    with torch.autocast("cpu", torch.bfloat16):
        assert tables.of((2, 3, 4), x)[0].dtype == torch.bfloat16
    exact = tables.of((2, 30, 4), x.double())[0]
    torch.testing.assert_close(tables.of((2, 30, 4), x)[0], exact.float(), atol=0, rtol=0)  # rounded, not recomputed


def test_attention_depends_on_differences_of_positions_only() -> None:
    """What rotary positions are for; the tiled layout of V-JEPA 2 breaks it."""
    torch.manual_seed(0)
    attention = Attention(36, 2).double()
    nn.init.normal_(attention.qkv.weight)
    x = torch.randn(1, 12, 36, dtype=torch.float64)
    grid = (4, 6, 7)
    at = torch.cartesian_prod(torch.arange(2), torch.arange(2), torch.arange(3))  # a 2 x 2 x 3 block ...
    for layout, same in (("paired", True), ("tiled", False)):
        tables = RotaryTables(18, layout).of(grid, x)  # type: ignore[arg-type]
        outs = []
        for shift in ((0, 0, 0), (2, 3, 4)):  # ... here and there
            t, h, w = (at + torch.tensor(shift)).unbind(1)
            rows = (t * grid[1] + h) * grid[2] + w
            outs.append(attention(x, tuple(table[rows][:, None, None] for table in tables)))
        assert ((outs[0] - outs[1]).abs().max() < 1e-10) == same


# --- kept tokens --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("position", [ROPE, SINCOS, PositionConfig(layout="paired", base_grid=16)])
def test_kept_tokens_in_one_packed_pass_equal_one_pass_each(position: PositionConfig) -> None:
    encoder, x = tiny(position), clips()
    keep = subsets(48, 10, 7, 10)
    packed = encoder(x, keep)
    for index, tokens in zip(keep, packed, strict=True):
        assert tokens.shape == (*index.shape, 48)
        torch.testing.assert_close(tokens, encoder(x, [index])[0], atol=1e-12, rtol=0)
        for b in range(2):
            torch.testing.assert_close(tokens[b], encoder(x[b : b + 1], [index[b : b + 1]])[0][0], atol=1e-12, rtol=0)
    everything = torch.arange(48).expand(2, -1)
    torch.testing.assert_close(encoder(x, [everything])[0], encoder(x), atol=1e-12, rtol=0)


def test_order_of_kept_tokens_does_not_matter() -> None:
    encoder, x = tiny(), clips()
    (index,) = subsets(48, 12)
    shuffled = index[:, torch.randperm(12)]
    straight, mixed = encoder(x, [index])[0], encoder(x, [shuffled])[0]
    back = shuffled.argsort(dim=1)
    torch.testing.assert_close(mixed[torch.arange(2)[:, None], back], straight, atol=1e-11, rtol=0)


def test_dropped_pixels_have_no_influence() -> None:
    encoder, x = tiny(), clips()
    keep = [torch.tensor([[0, 5, 30]]).expand(2, -1)]
    other = x.clone()
    other[:, :, 2:, 4:] += 1  # time step 1, from the second row on: tokens 30 and later but for row 0
    first, second = encoder(x, keep)[0], encoder(other, keep)[0]
    assert (first - second).abs().max() > 1e-6
    early = [torch.tensor([[0, 5, 24]]).expand(2, -1)]
    torch.testing.assert_close(encoder(x, early)[0], encoder(other, early)[0], atol=0, rtol=0)


def test_an_image_is_a_still_tubelet() -> None:
    encoder, image = tiny(), torch.randn(2, 3, 16, 24, dtype=torch.float64)
    still = image.unsqueeze(2).expand(-1, -1, 2, -1, -1)
    torch.testing.assert_close(encoder(image), encoder(still), atol=0, rtol=0)
    flat = tiny(size=(16, 24))
    assert flat(image).shape == (2, 24, 48) and flat.patch_embed.proj.weight.ndim == 4
    with pytest.raises(ConfigError, match="takes images"):
        flat(clips())


def test_levels_are_normalised_and_the_last_one_is_the_output() -> None:
    encoder, x = tiny(depth=4), clips()
    levels = encoder.levels(x, [1, 3])
    assert len(levels) == 2 and levels[0].mean(dim=-1).abs().max() < 1e-12
    torch.testing.assert_close(levels[1], encoder(x), atol=0, rtol=0)


def test_activation_checkpointing_changes_memory_not_numbers() -> None:
    encoder, x = tiny(), clips()
    grads = []
    for on in (False, True):
        for block in encoder.blocks:
            block.activation_checkpointing = on
        encoder.zero_grad()
        torch.cat([t.flatten() for t in encoder(x, subsets_fixed())]).square().mean().backward()
        grads.append([p.grad.clone() for p in encoder.parameters() if p.grad is not None])
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, atol=0, rtol=0)


def subsets_fixed() -> list[Tensor]:
    return [torch.arange(0, 48, 5).expand(2, -1), torch.arange(1, 48, 7).expand(2, -1)]


@pytest.mark.parametrize(
    ("size", "words"),
    [
        ((3, 16, 24), "3 frames are not a multiple of method.encoder.tubelet=2"),
        ((4, 18, 24), "height 18"),
        ((4, 16, 2), "width 2"),
        ((1, 4, 16, 24), "takes clips"),
    ],
)
def test_sizes_that_do_not_fit_are_explained(size: tuple[int, ...], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        tiny(size=size)
    with pytest.raises(ConfigError, match=words):
        tiny().grid_of(size)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"width": 12, "heads": 3}, "heads of width 4 are too narrow"),
        ({"width": 50, "heads": 3}, "not a multiple of heads"),
        ({"tubelet": 0}, "tubelet=0"),
    ],
)
def test_models_that_cannot_be_are_explained(values: dict, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        tiny(**values)


def test_official_sizes() -> None:
    """Parameters as published for V-JEPA 2: L 300 M, H 600 M, g 1 B; 2.1: G 2 B. Heads are 64 wide from giant on."""
    millions = {}
    for name in ("large", "huge", "giant", "gigantic"):
        with torch.device("meta"):
            encoder = VideoTransformer(VideoEncoderConfig(size=name), (16, 256, 256), ROPE)  # type: ignore[arg-type]
        millions[name] = sum(p.numel() for p in encoder.parameters()) // 10**6
    assert millions == {"large": 303, "huge": 631, "giant": 1012, "gigantic": 1843}
    assert [SIZES[n][0] // SIZES[n][2] for n in ("large", "giant", "gigantic")] == [64, 64, 64]


# --- predictor ----------------------------------------------------------------------------------------------------


def predictor(position: PositionConfig = ROPE, **changes: object) -> VideoPredictor:
    torch.manual_seed(0)
    values = {"depth": 2, "width": 24, "heads": 2, "mask_tokens": 3, "zero_init_mask_tokens": False} | changes
    settings = config.build(VideoPredictorConfig, values)
    return VideoPredictor(settings, 48, 3, (2, 4, 6), position).double()


@pytest.mark.parametrize("position", [ROPE, SINCOS])
def test_context_belongs_to_its_own_target(position: PositionConfig) -> None:
    model, masks = predictor(position), Masks(subsets(48, 9, 5), subsets(48, 20, 30))
    visible = [torch.randn(2, k, 48, dtype=torch.float64) for k in (9, 5)]
    both = model(visible, masks, (2, 4, 6), [0, 0])
    assert [t.shape for t in both] == [(2, 20, 48), (2, 30, 48)]
    for i in range(2):
        alone = model(visible[i : i + 1], Masks(masks.context[i : i + 1], masks.target[i : i + 1]), (2, 4, 6), [0])
        torch.testing.assert_close(both[i], alone[0], atol=1e-12, rtol=0)


def test_mask_tokens_are_chosen_by_number_modulo_their_count() -> None:
    model, masks = predictor(), Masks(subsets(48, 9), subsets(48, 20))
    visible = [torch.randn(2, 9, 48, dtype=torch.float64)]
    outs = [model(visible, masks, (2, 4, 6), [k])[0] for k in range(4)]
    torch.testing.assert_close(outs[0], outs[3], atol=0, rtol=0)
    assert (outs[0] - outs[1]).abs().max() > 1e-6 and (outs[1] - outs[2]).abs().max() > 1e-6
    model.use_tokens([1, 3])
    assert [t.requires_grad for t in model.mask_tokens] == [True, True, False]
    zero = predictor(zero_init_mask_tokens=True)
    assert all(t.abs().sum() == 0 for t in zero.mask_tokens) and model.mask_tokens[0].abs().sum() > 0


def test_predictor_width_and_heads_are_checked() -> None:
    with pytest.raises(ConfigError, match=r"predictor\.heads"):
        predictor(heads=5)
    with pytest.raises(ConfigError, match="too narrow"):
        predictor(heads=6)
    with pytest.raises(ConfigError, match="mask_tokens=0"):
        predictor(mask_tokens=0)


def test_copies_do_not_share_rotary_tables_across_types() -> None:
    encoder = tiny()
    encoder(clips())
    single = copy.deepcopy(encoder).float()
    assert single(clips().float()).dtype == torch.float32
