"""Features: right values, in order, cached under a key that covers what changes them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from jepa.data import Manifest, eval_batches
from jepa.probe.features import Embed, Extractor, FeaturesConfig, Source, pixels

CPU = torch.device("cpu")


class Counted:
    """A source that counts how often it is built and how many images it embeds."""

    def __init__(self, identity: dict | None) -> None:
        self.built = self.images = 0
        self.source = Source("counted", "run", (20, 20), identity, self.build)

    def build(self, device: torch.device) -> Embed:
        self.built += 1

        def embed(images: Tensor) -> Tensor:
            assert images.dtype == torch.uint8 and torch.is_inference_mode_enabled()
            self.images += len(images)
            return images.float().mean(dim=(2, 3))

        return embed


@pytest.fixture(scope="module")
def manifest(probe_data: Path) -> Manifest:
    return Manifest.open(probe_data)


def test_features_are_in_order_whatever_the_batch(manifest):
    index = np.array([5, 3, 88, 0, 41])
    split = manifest.splits["test"]
    (batch,) = eval_batches(split, (20, 20), 90)
    expected = batch.images.float().mean(dim=(2, 3))[torch.from_numpy(index)]
    for size in (1, 2, 256):
        (found,) = Extractor(manifest, FeaturesConfig(batch=size), CPU)(Counted(None).source, [(split, index)])
        torch.testing.assert_close(found, expected)


def test_second_time_comes_from_the_cache_without_building_the_model(manifest, tmp_path):
    counted, seen = Counted({"weights": "a"}), []
    parts = [(manifest.splits[name], np.arange(30)) for name in ("train", "val")]
    extract = Extractor(manifest, FeaturesConfig(), CPU, cache=tmp_path / "cache", advance=seen.append)
    first = extract(counted.source, parts)
    assert (counted.built, counted.images, sum(seen)) == (1, 60, 60)
    again = Extractor(manifest, FeaturesConfig(), CPU, cache=tmp_path / "cache", advance=seen.append)(
        counted.source, parts
    )
    assert (counted.built, counted.images, sum(seen)) == (1, 60, 120)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_whatever_changes_a_number_changes_the_key(manifest, tmp_path):
    def count(source, index=30, split="train", config=None, interpolation="bilinear", data=manifest) -> int:
        config = config or FeaturesConfig()
        extract = Extractor(data, config, CPU, interpolation, cache=tmp_path / "cache")
        extract(source, [(data.splits[split], np.arange(index))])
        return len(list((tmp_path / "cache").iterdir()))

    source = Counted({"weights": "a"}).source
    assert count(source) == 1
    assert count(source, config=FeaturesConfig(batch=7)) == 1  # the batch does not
    assert count(Counted({"weights": "b"}).source) == 2
    assert count(source, index=29) == 3
    assert count(source, split="val") == 4
    assert count(source, config=FeaturesConfig(precision="bf16")) == 5
    assert count(source, interpolation="bicubic") == 6
    assert count(replace(source, image_size=(10, 10))) == 7
    assert count(source, data=replace(manifest, hash="another")) == 8


def test_damaged_cache_is_computed_again(manifest, tmp_path):
    counted = Counted({"weights": "a"})
    extract = Extractor(manifest, FeaturesConfig(), CPU, cache=tmp_path)
    parts = [(manifest.splits["val"], np.arange(10))]
    (first,) = extract(counted.source, parts)
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:-7])
    (again,) = extract(counted.source, parts)
    assert counted.images == 20 and torch.equal(first, again)
    (third,) = extract(counted.source, parts)  # and was written anew
    assert counted.images == 20 and torch.equal(first, third)


def test_no_cache_when_switched_off_or_without_identity(manifest, tmp_path):
    parts = [(manifest.splits["val"], np.arange(10))]
    Extractor(manifest, FeaturesConfig(cache=False), CPU, cache=tmp_path)(Counted({"a": 1}).source, parts)
    Extractor(manifest, FeaturesConfig(), CPU, cache=tmp_path)(Counted(None).source, parts)
    assert list(tmp_path.iterdir()) == []


def test_a_cache_that_cannot_be_written_costs_a_warning_only(manifest, tmp_path):
    (tmp_path / "cache").write_text("a file where the folder should be")
    extract = Extractor(manifest, FeaturesConfig(), CPU, cache=tmp_path / "cache")
    with pytest.warns(UserWarning, match="features of counted could not be cached"):
        (found,) = extract(Counted({"weights": "a"}).source, [(manifest.splits["val"], np.arange(10))])
    assert found.shape == (10, 3)


def test_pixels_are_the_images(manifest):
    source = pixels((20, 20), None)
    assert source.name == "pixels (20×20)" and source.baseline
    (found,) = Extractor(manifest, FeaturesConfig(), CPU)(source, [(manifest.splits["test"], np.arange(90))])
    (batch,) = eval_batches(manifest.splits["test"], (20, 20), 90)
    assert torch.equal(found, batch.images.flatten(1).float() / 255)


@pytest.mark.parametrize(
    ("image", "given", "want"),
    [
        ((32, 32), None, (32, 32)),
        ((224, 224), None, (32, 32)),
        ((64, 256), None, (16, 64)),
        ((40, 40), None, (32, 32)),
        ((40, 40), (40, 40), (40, 40)),
        ((20, 30), None, (20, 30)),
    ],
)
def test_size_of_pixels(image, given, want):
    assert pixels(image, given).image_size == want
