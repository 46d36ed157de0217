"""`Encoder.features` takes images and videos as people have them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from jepa.checkpoint import Encoder, random_encoder
from jepa.data.arrange import LAYOUTS, arrange, fit
from jepa.data.augment import apply, centre_box
from jepa.errors import ConfigError
from tests.tiny import run_config


@pytest.fixture(scope="module")
def encoder(tiny_data: Path) -> Encoder:
    return random_encoder(run_config(tiny_data, "method.encoder.depth=2"), 0)


@pytest.fixture
def pictures() -> Tensor:
    return torch.randint(0, 256, (5, 3, 20, 20), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def tokens(found: Tensor | list[Tensor]) -> Tensor:
    assert isinstance(found, Tensor)
    return found


def test_every_way_to_hand_images_over_gives_the_same(encoder: Encoder, pictures: Tensor) -> None:
    want = encoder(pictures)
    last = pictures.permute(0, 2, 3, 1)
    pil = [Image.fromarray(one.numpy()) for one in last]
    ways = [pictures, last, last.numpy(), list(pictures), list(last.numpy()), pil, pictures / 255, last.numpy() / 255.0]
    for way in ways:
        torch.testing.assert_close(tokens(encoder.features(way, batch=2)), want, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(tokens(encoder.features(pil[0])), want[:1])
    torch.testing.assert_close(tokens(encoder.features(pictures, pool=True)), want.mean(dim=1))
    grey = pil[0].convert("L")
    torch.testing.assert_close(tokens(encoder.features(grey)), tokens(encoder.features(grey.convert("RGB"))))


def test_layers_come_after_the_output(encoder: Encoder, pictures: Tensor) -> None:
    found = encoder.features(pictures, layers=(0, -1))
    assert isinstance(found, list) and len(found) == 3
    assert torch.equal(found[0], found[2]) and not torch.equal(found[0], found[1])
    with pytest.raises(ConfigError, match="layers 0 to 1"):
        encoder.features(pictures, layers=(2,))


def test_other_sizes_are_cut_and_resized_as_in_an_evaluation(encoder: Encoder) -> None:
    big = torch.randint(0, 256, (2, 3, 47, 61), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    part = centre_box(47, 61, (20, 20))
    want = torch.stack([apply(one, part, (20, 20), "bilinear") for one in big])
    assert torch.equal(fit(big, (20, 20), "bilinear"), want)
    torch.testing.assert_close(tokens(encoder.features(big)), encoder(want))
    clips = big.unsqueeze(2).expand(-1, -1, 3, -1, -1)
    assert torch.equal(fit(clips, (20, 20), "bilinear"), want.unsqueeze(2).expand(-1, -1, 3, -1, -1))
    floats = fit(torch.rand(1, 3, 50, 50, generator=torch.Generator().manual_seed(2)).round(), (20, 20), "bicubic")
    assert floats.min() >= 0 and floats.max() <= 1


@given(st.sampled_from(sorted(LAYOUTS)), st.integers(4, 6), st.integers(7, 9), st.integers(4, 5))
def test_all_layouts_are_read_by_name_and_told_by_shape(layout: str, time: int, height: int, width: int) -> None:
    sizes = {"B": 2, "C": 3, "T": time, "H": height, "W": width}
    full = torch.arange(2 * 3 * time * height * width).float().view(2, 3, time, height, width)
    axes = "BCTHW"
    if "T" not in layout:
        full, axes = full[:, :, 0], "BCHW"
    if "B" not in layout:
        full = full[:1]
    given_one = (full if "B" in layout else full[0]).permute(
        [axes.replace("B", "" if "B" not in layout else "B").index(a) for a in layout]
    )
    assert tuple(given_one.shape) == tuple(sizes[a] for a in layout)
    assert torch.equal(arrange(given_one, "T" in layout, layout), full)
    assert torch.equal(arrange(given_one, "T" in layout), full)


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        (torch.zeros(2, 4, 20, 20, dtype=torch.uint8), "layouts CHW"),
        (torch.zeros(2, 3, 20, 20, dtype=torch.int64), "uint8"),
        (torch.full((2, 3, 20, 20), 255.0), "0..255"),
        (-torch.ones(2, 3, 20, 20), "not normalised"),
        (torch.zeros(3, 20, 3, dtype=torch.uint8), "may be CHW or HWC"),
        (torch.zeros(1, 3, 4, 20, 20, dtype=torch.uint8), "takes images"),
        ([np.zeros((20, 20, 3), np.uint8), np.zeros((21, 20, 3), np.uint8)], "one size"),
        ("picture.png", "no image"),
    ],
)
def test_what_is_no_picture_is_refused(encoder: Encoder, wrong: object, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        encoder.features(wrong)
