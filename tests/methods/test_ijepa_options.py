"""I-JEPA's settings beyond the paper: centred targets and weights in step with each map's inputs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from jepa import config, losses
from jepa.errors import ConfigError
from jepa.methods import base
from jepa.methods.ijepa import IJEPA
from jepa.nn.tokens import gather_tokens
from tests.tiny import VALUES


def make(**options: object) -> IJEPA:
    torch.manual_seed(0)
    method = base.create(VALUES["method"] | options, (20, 20))
    assert isinstance(method, IJEPA)
    return method.double()


def test_centring_removes_position_and_whole_image_and_nothing_else() -> None:
    generator = torch.Generator().manual_seed(0)
    position = torch.randn(1, 9, 8, generator=generator, dtype=torch.float64)
    image = torch.randn(4, 1, 8, generator=generator, dtype=torch.float64)
    content = torch.randn(4, 9, 8, generator=generator, dtype=torch.float64)
    content -= content.mean(dim=1, keepdim=True)
    torch.testing.assert_close(losses.centre_targets(content + image + position, position), content)


def test_centred_targets_of_a_sample_do_not_depend_on_the_others() -> None:
    method = make(targets="centred")
    images = torch.randn(5, 3, 20, 20, dtype=torch.float64)
    sampler = method.sampler(0)
    masks = sampler(0, np.arange(5))
    together, alone = method.targets(images, masks), method.targets(images[2:3], masks.slice(2, 3))
    blocks = len(masks.target)
    mine = together.reshape(blocks, 5, *together.shape[1:])[:, 2]
    torch.testing.assert_close(mine, alone.reshape(blocks, *alone.shape[1:]))


def test_a_picture_of_one_colour_leaves_hardly_anything_to_predict() -> None:
    """Plain targets of uniform pictures differ by position; centred ones barely know where they are."""
    plain, centred = make(), make(targets="centred")
    colour = torch.full((1, 3, 20, 20), 0.01, dtype=torch.float64)
    with torch.no_grad():
        tokens = plain.target(colour)
        left = losses.centre_targets(tokens, plain.target(torch.zeros_like(colour)))
    spread = tokens - tokens.mean(dim=1, keepdim=True)
    assert left.norm() < 0.02 * spread.norm()
    masks = centred.sampler(0)(0, np.arange(1))
    blocks = gather_tokens(plain.target(colour), masks.target)
    torch.testing.assert_close(plain.targets(colour, masks), losses.normalise_targets(blocks))


def test_gradients_reach_everything_but_the_teacher() -> None:
    method = make(targets="centred")
    masks = method.sampler(0)(0, np.arange(3))
    method(torch.randn(3, 3, 20, 20, dtype=torch.float64), masks, {}).loss.backward()
    for name, weight in method.named_parameters():
        if name.startswith("target."):
            assert weight.grad is None, name
        elif not name.endswith("attn.qkv.bias"):
            assert weight.grad is not None and weight.grad.abs().sum() > 0, name


@pytest.mark.parametrize("init", ["fixed", "fan_in"])
def test_weights_at_the_start(init: str) -> None:
    encoder = {"patch": 4, "width": 192, "depth": 2, "heads": 3, "init": init}
    method = make(encoder=encoder, predictor={"width": 96, "depth": 1, "heads": 3, "init": init})
    for part in (method.encoder, method.predictor):
        for name, module in part.named_modules():
            if not isinstance(module, nn.Linear | nn.Conv2d):
                continue
            inputs = module.weight[0].numel()
            wanted = 0.02 if init == "fixed" else 0.02 * (768 / inputs) ** 0.5
            if name.endswith(("attn.proj", "mlp.fc2")):
                wanted /= (2 * (int(name.split("blocks.")[1].split(".")[0]) + 1)) ** 0.5
            assert float(module.weight.detach().std()) == pytest.approx(wanted, rel=0.1), name


def test_fan_in_is_the_official_start_at_the_width_of_vit_b() -> None:
    wide = {"patch": 16, "width": 768, "depth": 1, "heads": 12, "mlp_ratio": 1.0}
    torch.manual_seed(0)
    fixed = base.create({"name": "ijepa", "encoder": wide, "predictor": {"width": 768, "depth": 1}}, (32, 32))
    torch.manual_seed(0)
    other = {"encoder": wide | {"init": "fan_in"}, "predictor": {"width": 768, "depth": 1, "init": "fan_in"}}
    for (name, a), b in zip(
        fixed.named_parameters(), base.create({"name": "ijepa", **other}, (32, 32)).parameters(), strict=True
    ):
        assert torch.equal(a, b) or "fc2" in name, name


def test_unknown_choices_are_named() -> None:
    with pytest.raises(ConfigError, match=r"targets.*'plain', 'centred'"):
        config.build(IJEPA.Config, {"targets": "centered?"}, "method")
