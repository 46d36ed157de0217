"""V-JEPA 2.1 against its description: distance weights, fused levels, modalities, the loss put together by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from jepa import config, losses
from jepa.errors import ConfigError
from jepa.masks import BlockSpec, Masks
from jepa.methods.vjepa21 import VJEPA21, VJEPA21Config
from jepa.nn.dense import supervised_levels
from jepa.nn.tokens import gather_tokens

CLIP, IMAGE = (4, 24, 20), (24, 20)
TINY: dict[str, Any] = {
    "encoder": {"patch": 4, "width": 24, "depth": 6, "heads": 2},
    "levels": [1, 3, 5],
    "predictor": {"depth": 2, "width": 24, "mask_tokens": 3, "zero_init_mask_tokens": False},
    "context_weight": 0.4,
    "image_context_weight": 0.7,
}
FULL = {"context_weight": torch.tensor(0.4), "image_context_weight": torch.tensor(0.7)}


def make(size: tuple[int, ...] = CLIP, kinds: tuple[str, ...] = ("clip", "image"), **changes: Any) -> VJEPA21:
    torch.manual_seed(0)
    method = VJEPA21(config.build(VJEPA21Config, TINY | changes), size).double()
    method.expect(kinds)
    with torch.no_grad():  # away from initialisation; the teacher differs from the student
        for parameter in method.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return method


def example(method: VJEPA21, size: tuple[int, ...]) -> tuple[Tensor, Masks]:
    return torch.randn(2, 3, *size, dtype=torch.float64), method.sampler(0, size)(0, np.arange(2))


# --- distance to the nearest masked token -------------------------------------------------------------------------


def brute_distance(masked: list[int], grid: tuple[int, int, int]) -> list[float]:
    places = list(np.ndindex(*grid))
    return [min(math.dist(place, places[m]) for m in masked) for place in places]


@pytest.mark.parametrize("grid", [(1, 1, 1), (1, 6, 5), (4, 3, 7), (8, 2, 2)])
def test_distances_against_brute_force(grid: tuple[int, int, int]) -> None:
    torch.manual_seed(0)
    n = math.prod(grid)
    for count in {1, min(2, n), max(1, n // 2), n}:
        masked = torch.stack([torch.randperm(n)[:count] for _ in range(3)])
        want = [brute_distance(row, grid) for row in masked.tolist()]
        torch.testing.assert_close(losses.distance_to(masked, grid), torch.tensor(want), atol=1e-5, rtol=0)


@pytest.mark.parametrize("per_16", [False, True])
def test_nearness_of_visible_tokens(per_16: bool) -> None:
    size = (4, 132, 20)  # 33 rows of tokens: distances in units of 2 when asked for
    method = make(size, distance_per_16=per_16)
    grid = method.encoder.grid
    masks = Masks([torch.tensor([[0, 7, 30]])], [torch.tensor([[1, 200, 329]])])
    (near,) = method.nearness(torch.zeros(1, 3, *size), masks)
    far = [brute_distance([1, 200, 329], grid)[i] / (2 if per_16 else 1) for i in (0, 7, 30)]
    torch.testing.assert_close(near, torch.tensor([[d**-0.5 for d in far]]), atol=1e-6, rtol=0)
    assert (make(size, by_distance=False).nearness(torch.zeros(1, 3, *size), masks)[0] == 1).all()


# --- levels -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [CLIP, IMAGE])
def test_fused_levels_are_block_outputs_through_their_own_norms(size: tuple[int, ...]) -> None:
    method = make()
    encoder, x = method.encoder, torch.randn(2, 3, *size, dtype=torch.float64)
    hidden, rotary, parts = encoder._enter(x, None)
    assert parts is None
    found = []
    for number, block in enumerate(encoder.blocks):
        hidden = block(hidden, rotary)
        if number in (1, 3, 5):
            norm = encoder.norms_block[len(found)]
            found.append(F.layer_norm(hidden, (24,), norm.weight, norm.bias, 1e-6))
    torch.testing.assert_close(encoder(x, fused=True), torch.cat(found, dim=-1), atol=1e-12, rtol=0)
    torch.testing.assert_close(encoder(x), found[-1], atol=1e-12, rtol=0)
    for ours, want in zip(encoder.levels(x, [1, 5]), (found[0], found[2]), strict=True):
        torch.testing.assert_close(ours, want, atol=1e-12, rtol=0)
    with pytest.raises(ConfigError, match=r"norms after blocks \[1, 3, 5\] only"):
        encoder.levels(x, [2])
    assert not hasattr(encoder, "norm"), "the official encoder has no final norm besides that of the last level"


def test_targets_are_normalised_level_by_level() -> None:
    method = make()
    x, masks = example(method, CLIP)
    masked, seen = method.targets(x, masks)
    tokens = method.target(x, fused=True)
    want = torch.cat([F.layer_norm(chunk, (24,)) for chunk in tokens.split(24, dim=-1)], dim=-1)
    for found, index in zip(masked + seen, masks.target + masks.context, strict=True):
        torch.testing.assert_close(found, gather_tokens(want, [index]), atol=1e-12, rtol=0)


def test_supervised_levels() -> None:
    assert supervised_levels(12, None) == (2, 5, 8, 11) and supervised_levels(24, None) == (5, 11, 17, 23)
    assert supervised_levels(40, None) == (9, 19, 29, 39) and supervised_levels(48, None) == (11, 23, 37, 47)
    assert supervised_levels(6, None) == (0, 2, 3, 5) and supervised_levels(2, None) == (0, 1)
    for wrong in ([], [1, 3], [3, 1, 5], [1, 1, 5], [-1, 5]):
        with pytest.raises(ConfigError, match="ascending blocks from 0, the last one 5"):
            make(levels=wrong)


# --- the predictor ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["clip", "image"])
def test_predictor_enters_by_an_mlp_and_marks_every_token(kind: str) -> None:
    method = make()
    predictor, size = method.predictor, CLIP if kind == "clip" else IMAGE
    x, masks = example(method, size)
    visible = method.encoder(x, masks.context, fused=True)
    assert [v.shape[-1] for v in visible] == [72] * len(masks.context)

    enter, out = predictor.predictor_embed, predictor.predictor_proj
    mark = predictor.video_mod_embed if kind == "clip" else predictor.img_mod_embed
    grid = method.encoder.grid_of(size)
    tables = predictor.tables.of(grid, x)
    masked, seen = predictor(visible, masks, grid, [1] * len(visible), kind)
    for i, (v, at, asked) in enumerate(zip(visible, masks.context, masks.target, strict=True)):
        tokens = F.linear(F.gelu(F.linear(v, enter[0].weight, enter[0].bias)), enter[2].weight, enter[2].bias)
        queries = predictor.mask_tokens[1].expand(*asked.shape, -1)
        tokens = torch.cat([tokens, queries], dim=1) + mark
        places = torch.cat([at, asked], dim=1)
        rotary = (tables[0][places][:, :, None, None], tables[1][places][:, :, None, None])
        for block in predictor.predictor_blocks:
            tokens = block(tokens, rotary)
        tokens = predictor.predictor_norm(tokens)
        torch.testing.assert_close(masked[i], out(tokens[:, at.shape[1] :]), atol=1e-11, rtol=0)
        want = predictor.predictor_proj_context(tokens[:, : at.shape[1]])
        torch.testing.assert_close(seen[i], want, atol=1e-11, rtol=0)


def test_mask_token_one_is_used_and_trained() -> None:
    assert [t.requires_grad for t in make().predictor.mask_tokens] == [False, True, False]
    assert [t.requires_grad for t in make(mask_token=3).predictor.mask_tokens] == [True, False, False]


# --- modalities ---------------------------------------------------------------------------------------------------


def changed_by(method: VJEPA21, name: str, size: tuple[int, ...]) -> bool:
    x, masks = example(method, size)
    before = method(x, masks, FULL).loss.item()
    parameter = method.get_parameter(name)
    with torch.no_grad():
        parameter.add_(torch.randn_like(parameter))
        after = method(x, masks, FULL).loss.item()
    return before != after


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("encoder.patch_embed.proj.weight", "clip"),
        ("encoder.patch_embed_img.proj.bias", "image"),
        ("encoder.video_mod_embed", "clip"),
        ("encoder.img_mod_embed", "image"),
        ("predictor.video_mod_embed", "clip"),
        ("predictor.img_mod_embed", "image"),
    ],
)
def test_each_modality_has_its_own_way_in(name: str, kind: str) -> None:
    assert changed_by(make(), name, CLIP) == (kind == "clip")
    assert changed_by(make(), name, IMAGE) == (kind == "image")


def test_an_image_is_one_time_step_embedded_by_itself() -> None:
    method = make()
    image = torch.randn(1, 3, *IMAGE, dtype=torch.float64)
    assert method.encode(image).shape == (1, 30, 24)
    assert method.encoder.patch_embed_img.proj.weight.shape == (24, 3, 1, 4, 4)
    embed, patches = method.encoder.patch_embed_img, F.unfold(image, 4, stride=4).transpose(1, 2)
    want = F.linear(patches, embed.proj.weight.flatten(1), embed.proj.bias) + method.encoder.img_mod_embed
    torch.testing.assert_close(method.encoder._enter(image, None)[0], want, atol=1e-12, rtol=0)


def test_ways_in_that_no_source_uses_are_frozen() -> None:
    names = {n for n, p in make(kinds=("clip",)).named_parameters() if not p.requires_grad and "target" not in n}
    unused = {"predictor.mask_tokens.0", "predictor.mask_tokens.2"}
    image = {"encoder.patch_embed_img.proj.weight", "encoder.patch_embed_img.proj.bias", "encoder.img_mod_embed"}
    assert names == unused | image | {"predictor.img_mod_embed"}
    names = {n for n, p in make(IMAGE, kinds=("image",)).named_parameters() if not p.requires_grad}
    assert "encoder.patch_embed.proj.weight" in names and "encoder.patch_embed_img.proj.weight" not in names


def test_images_have_masks_of_their_own() -> None:
    method = make()
    assert len(method.sampler(0)(0, np.arange(2)).context) == 2
    assert len(method.sampler(0, IMAGE)(0, np.arange(2)).context) == 1
    assert method.config.masks.image_specs == (BlockSpec(blocks=10),)
    settings = config.build(VJEPA21Config, {"masks": {"mode": "reference"}, "position": {"kind": "rope"}})
    assert settings.masks.image_specs == (BlockSpec(blocks=10),), "a section given in part keeps 2.1's defaults"
    assert (settings.position.layout, settings.position.base_grid) == ("paired", 16)


# --- loss ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["l1", "l2", "smooth_l1"])
@pytest.mark.parametrize("size", [CLIP, IMAGE])
def test_the_loss_put_together_by_hand(size: tuple[int, ...], kind: str) -> None:
    def distance(a: Tensor, b: Tensor) -> Tensor:
        d = (a - b).abs()
        return {"l1": d, "l2": d**2 / 2, "smooth_l1": torch.where(d < 1, d**2 / 2, d - 0.5)}[kind].mean(dim=-1)

    method = make(loss=kind)
    x, masks = example(method, size)
    masked, seen = method.predict(x, masks)
    want_masked, want_seen = method.targets(x, masks)
    grid = method.encoder.grid_of(size)
    first, second = [], []
    for i, (at, asked) in enumerate(zip(masks.context, masks.target, strict=True)):
        first.append(distance(masked[i], want_masked[i]).mean())
        rows = []
        for b in range(2):
            far = torch.tensor(brute_distance(asked[b].tolist(), grid))[at[b]]
            rows.append(distance(seen[i][b], want_seen[i][b]) / far.sqrt())
        second.append(torch.stack(rows).mean())
    weight = 0.4 if len(size) == 3 else 0.7
    want = torch.stack(first).mean() + weight * torch.stack(second).mean()
    output = method(x, masks, FULL)
    assert abs(output.loss.item() - want.item()) < 1e-6  # the distances are float32
    assert abs(output.metrics["loss_masked"].item() - torch.stack(first).mean().item()) < 1e-9
    assert output.metrics["loss_of_mean"].item() > 0


def test_without_weight_the_head_for_visible_tokens_gets_no_gradient() -> None:
    method = make()
    x, masks = example(method, CLIP)
    for weight, any_gradient in ((0.0, False), (0.5, True)):
        method.zero_grad()
        method(
            x, masks, {"context_weight": torch.tensor(weight), "image_context_weight": torch.tensor(9.0)}
        ).loss.backward()
        gradient = method.predictor.predictor_proj_context.weight.grad
        assert gradient is not None and bool(gradient.abs().sum() > 0) == any_gradient
    assert all(p.grad is None and not p.requires_grad for p in method.target.parameters())


def test_weight_of_visible_tokens_warms_up_as_in_the_official_schedule() -> None:
    method, total = make(), 300 * 1000 * 1.25  # official: 0 until step 15 000, full from step 30 000 on
    steps = (0, 14_999, 15_000, 22_500, 30_000, 200_000, 10**6)
    found = [method.schedule(step, total) for step in steps]
    assert [v["context_weight"] for v in found] == pytest.approx([0, 0, 0, 0.2, 0.4, 0.4, 0.4])
    assert [v["image_context_weight"] for v in found] == pytest.approx([0, 0, 0, 0.35, 0.7, 0.7, 0.7])
    at_once = make(context_warmup=[0.0, 0.0]).schedule(0, total)
    assert at_once["context_weight"] == 0.4
    jump = make(context_warmup=[0.5, 0.5])
    assert [jump.schedule(step, 10)["context_weight"] for step in (4, 5)] == [0, 0.4]


def test_momentum_stops_at_its_final_value() -> None:
    method = make(ema=[0.9, 0.99])
    assert [method.schedule(s, 100)["momentum"] for s in (0, 50, 100, 1000)] == pytest.approx([0.9, 0.945, 0.99, 0.99])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"ema": [0.9, 1.1]}, "ema"),
        ({"context_warmup": [0.5, 0.2]}, "context_warmup"),
        ({"context_weight": -1}, "context_weight"),
    ],
)
def test_bad_values_are_named(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        make(**changes)
