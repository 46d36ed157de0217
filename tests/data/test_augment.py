"""Crops follow the usual law, depend on (seed, g) alone, and are cut as torchvision cuts them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms.v2 import RandomResizedCrop
from torchvision.transforms.v2.functional import resized_crop

from jepa.data import augment
from jepa.data.augment import Box, CropLaw

sides = st.integers(1, 700)


@settings(deadline=None, max_examples=150)
@given(
    height=sides,
    width=sides,
    g=st.integers(0, 2**50),
    low=st.floats(0.01, 1),
    ratio=st.floats(1, 20),
)
def test_a_box_lies_inside_the_image(height: int, width: int, g: int, low: float, ratio: float) -> None:
    law = CropLaw((low, 1.0), (1 / ratio, ratio))
    part = augment.box(law, augment.draw(0, np.array([g]))[0], height, width)
    assert part.height >= 1 and part.width >= 1 and part.top >= 0 and part.left >= 0
    assert part.top + part.height <= height and part.left + part.width <= width


def test_the_law_is_that_of_torchvision() -> None:
    """Area, ratio and place agree in mean and spread with 4000 draws of the reference, within 5 standard errors."""
    scale, ratio, height, width, n = (0.3, 1.0), (3 / 4, 4 / 3), 375, 500, 4000
    numbers = augment.draw(7, np.arange(n))
    ours = np.array([augment.box(CropLaw(scale, ratio), row, height, width)[:4] for row in numbers], dtype=float)
    torch.manual_seed(0)
    reference = RandomResizedCrop(10, scale=scale, ratio=ratio)
    image = torch.empty(3, height, width)
    drawn = [reference.make_params([image]) for _ in range(n)]
    theirs = np.array([[d["top"], d["left"], d["height"], d["width"]] for d in drawn], dtype=float)
    for name, value in {
        "area": lambda b: b[:, 2] * b[:, 3],
        "ratio": lambda b: np.log(b[:, 3] / b[:, 2]),
        "top": lambda b: b[:, 0] / (height - b[:, 2] + 1),
        "left": lambda b: b[:, 1] / (width - b[:, 3] + 1),
    }.items():
        a, b = value(ours), value(theirs)
        error = math.sqrt((a.var() + b.var()) / n)
        assert abs(a.mean() - b.mean()) < 5 * error, f"{name}: {a.mean()} against {b.mean()}"
        assert abs(a.std() / b.std() - 1) < 0.08, f"{name}: spread {a.std()} against {b.std()}"


@pytest.mark.parametrize(("height", "width", "expected"), [(10, 1000, (10, 13)), (1000, 10, (13, 10)), (1, 1, (1, 1))])
def test_no_box_fits_so_the_centre_is_taken(height: int, width: int, expected: tuple[int, int]) -> None:
    part = augment.box(CropLaw((0.9, 1.0)), augment.draw(0, np.array([5]))[0], height, width)
    assert (part.height, part.width) == expected
    assert part.top == (height - part.height) // 2 and part.left == (width - part.width) // 2


def test_numbers_depend_on_seed_g_and_view_only() -> None:
    whole = augment.draw(1, np.arange(50))
    assert np.array_equal(augment.draw(1, np.array([31, 4]))[1], whole[4])
    assert not np.array_equal(augment.draw(2, np.arange(50)), whole)
    assert not np.array_equal(augment.draw(1, np.arange(50), view=1), whole)


def test_mirroring_has_its_probability() -> None:
    numbers = augment.draw(0, np.arange(4000))
    for share in (0.0, 0.3, 1.0):
        flips = np.mean([augment.box(CropLaw(hflip=share), row, 20, 20).flip for row in numbers])
        assert abs(flips - share) <= 4 * math.sqrt(share * (1 - share) / 4000)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(24, 24), (17, 40), (60, 80)])
def test_pixels_are_those_of_torchvision(interpolation: str, size: tuple[int, int]) -> None:
    image = torch.randint(0, 256, (60, 80, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    image = image.permute(2, 0, 1)
    part = Box(5, 7, 40, 50, flip=True)
    expected = resized_crop(image.contiguous(), 5, 7, 40, 50, list(size), interpolation, antialias=True).flip(-1)
    got = augment.apply(image, part, size, interpolation)  # type: ignore[arg-type]
    assert got.dtype == torch.uint8 and got.shape == (3, *size)
    assert (got.int() - expected.int()).abs().max() <= 1


def test_the_centre_box_covers_as_much_as_it_can() -> None:
    assert augment.centre_box(40, 40, (40, 40)) == Box(0, 0, 40, 40)
    assert augment.centre_box(100, 200, (50, 50)) == Box(0, 50, 100, 100)
    assert augment.centre_box(300, 200, (50, 100)) == Box(100, 0, 100, 200)
    assert augment.centre_box(1, 500, (224, 224)) == Box(0, 249, 1, 1)
