"""Pictures show what they claim to show."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from jepa.data import Manifest, TrainData, make_loader
from jepa.errors import ConfigError
from jepa.report import material, pictures, save_pictures
from jepa.report.read import open_run
from tests.report.conftest import Runs

GRID = (5, 4)


@pytest.fixture
def image() -> torch.Tensor:
    return torch.randint(0, 256, (3, 20, 16), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def patches(picture: object) -> np.ndarray:
    """(rows, columns, pixels, 3) of a tile cut into the token grid."""
    pixels = np.asarray(picture)
    h, w = pixels.shape[0] // GRID[0], pixels.shape[1] // GRID[1]
    return pixels.reshape(GRID[0], h, GRID[1], w, 3).transpose(0, 2, 1, 3, 4).reshape(*GRID, -1, 3)


def test_a_tile_is_the_image_enlarged(image: torch.Tensor) -> None:
    assert (np.asarray(pictures.plain(image)).transpose(2, 0, 1) == image.numpy()).all()
    tile = np.asarray(pictures.enlarged(pictures.plain(image)))
    factor = tile.shape[0] // 20
    assert tile.shape == (20 * factor, 16 * factor, 3) and tile.shape[0] >= pictures.SIDE
    assert (tile[::factor, ::factor].transpose(2, 0, 1) == image.numpy()).all()
    assert (tile[factor - 1 :: factor, factor - 1 :: factor].transpose(2, 0, 1) == image.numpy()).all()


def test_the_context_tile_shows_the_kept_patches_and_no_others(image: torch.Tensor) -> None:
    kept = torch.tensor([0, 7, 19])
    shown, whole = patches(pictures.context_tile(image, kept, GRID)), patches(pictures.enlarged(pictures.plain(image)))
    greys = {tuple(c) for c in pictures.HIDDEN}
    for token in range(20):
        at = divmod(token, GRID[1])
        if token in kept.tolist():
            assert (shown[at] == whole[at]).all()
        else:
            assert {tuple(c) for c in np.unique(shown[at], axis=0).tolist()} <= greys


def test_the_target_tile_tints_and_outlines_each_block(image: torch.Tensor) -> None:
    blocks = [torch.tensor([0, 1, 4, 5]), torch.tensor([10, 11, 14, 15, 18, 19])]
    tile = pictures.target_tile(image, blocks, GRID)
    shown, plain = patches(tile), patches(pictures.target_tile(image, [], GRID))
    inside = {int(t) for b in blocks for t in b}
    for token in range(20):
        at = divmod(token, GRID[1])
        assert (shown[at] == plain[at]).all() == (token not in inside)
    pixels = np.asarray(tile)
    assert tuple(pixels[0, 0]) == pictures.TARGET_COLOURS[0]  # corner of the first block
    corner = (5 * pixels.shape[0] // 5 - 1, 4 * pixels.shape[1] // 4 - 1)
    assert tuple(pixels[corner]) != pictures.TARGET_COLOURS[1]  # the second outline lies a little further in
    assert tuple(pixels[corner[0] - 4, corner[1] - 4]) == pictures.TARGET_COLOURS[1]


def test_feature_maps_tell_kinds_of_patches_apart_wherever_they_lie() -> None:
    generator = torch.Generator().manual_seed(0)
    kind = torch.randint(0, 2, (32, 20), generator=generator)  # two kinds of patches, strewn at random
    place = 50 * torch.randn(1, 20, 8, generator=generator)  # what a place adds, far larger than the kinds
    tokens = place + torch.eye(8)[kind] + 0.01 * torch.randn(32, 20, 8, generator=generator)
    maps, share = pictures.feature_maps(tokens, GRID, show=4)
    assert len(maps) == 4 and 0.9 < share <= 1
    for i, picture in enumerate(maps):
        red = np.asarray(picture)[:, :, 0].reshape(-1).astype(int)  # the first component
        first, second = red[kind[i].numpy() == 0], red[kind[i].numpy() == 1]
        assert abs(first.mean() - second.mean()) > 150 and max(first.std(), second.std()) < 60
    again, _ = pictures.feature_maps(tokens, GRID, show=4)
    assert all((np.asarray(a) == np.asarray(b)).all() for a, b in zip(maps, again, strict=True))


def test_feature_maps_of_a_collapsed_encoder_are_plain_and_no_error() -> None:
    maps, share = pictures.feature_maps(torch.ones(4, 20, 8), GRID, show=2)
    assert share == 0 and all(len(np.unique(np.asarray(m).reshape(-1, 3), axis=0)) == 1 for m in maps)


def test_neighbours_come_by_angle_not_by_length() -> None:
    bank = torch.tensor([[1.0, 0.0], [100.0, 100.0], [0.0, 2.0], [-1.0, 0.0]])
    index, cosine = pictures.nearest(torch.tensor([[3.0, 0.1], [0.0, 5.0]]), bank, 3)
    assert index.tolist() == [[0, 1, 2], [2, 1, 0]] or index.tolist() == [[0, 1, 2], [2, 1, 3]]
    assert cosine[1, 0] == pytest.approx(1.0) and cosine[1, 1] == pytest.approx(2**-0.5)
    assert pictures.nearest(bank, bank, 10)[0].shape == (4, 4)


def test_sheets_hold_every_picture() -> None:
    images = torch.arange(5, dtype=torch.uint8).reshape(5, 1, 1, 1).expand(5, 3, 10, 10) * 50
    sheet = np.asarray(pictures.contact_sheet(images, columns=3, gap=2))
    assert sheet.shape == (2 * 80 + 2, 3 * 80 + 2 * 2, 3)
    centres = [sheet[40 + 82 * (i // 3), 40 + 82 * (i % 3), 0] for i in range(6)]
    assert centres == [0, 50, 100, 150, 200, 255]


# --- from a run ---------------------------------------------------------------------------------------------------


def test_crops_and_masks_are_those_that_were_trained_on(runs: Runs) -> None:
    found = material.crops(open_run(runs.first), 6)
    assert found is not None and found.grid == (5, 5)
    trace = [json.loads(x) for x in (runs.first / "trace-rank0.jsonl").read_text().splitlines()][:6]
    assert found.g.tolist() == [row["g"] for row in trace]
    for i, row in enumerate(trace):
        digest = hashlib.blake2b(digest_size=8)
        for index in (*found.masks.context, *found.masks.target):
            digest.update(index[i].numpy().tobytes() + b"/")
        assert digest.hexdigest() == row["mask"]
    config = open_run(runs.first).config
    data = TrainData(config.data, config.seed)
    batch = next(iter(make_loader(data, batch=8, total_steps=1)))
    assert torch.equal(batch.images[:6], found.images)


def test_features_compare_the_trained_with_the_untrained_encoder(runs: Runs) -> None:
    run = open_run(runs.first)
    pair = material.encoders(run, "cpu")
    found = material.features(run, material.manifest(run), pair, "cpu")
    assert found.split == "test" and found.trained.shape == found.untrained.shape == (16, 25, 32)
    assert not torch.equal(found.trained, found.untrained)
    assert torch.allclose(pair[0](found.images), found.trained, atol=1e-5)


def test_queries_take_the_classes_in_turn_and_the_bank_is_the_training_split(runs: Runs) -> None:
    run = open_run(runs.first)
    data = material.manifest(run)
    pair = material.encoders(run, "cpu")
    found = material.pools(run, data, pair[0], "cpu", 6)
    labels = np.asarray(data.split("test").labels)
    assert len(set(found.query_labels.tolist())) == min(6, len(set(labels.tolist())))
    assert found.bank.shape == (64, 32) and found.bank_labels.tolist() == data.split("train").labels.tolist()
    assert torch.allclose(pair[0].pool(found.query_images), found.queries, atol=1e-5)


def test_without_other_splits_a_query_is_not_its_own_neighbour(runs: Runs) -> None:
    run = open_run(runs.first)
    data = Manifest.open(run.config.data.path)
    del data.splits["test"], data.splits["val"]
    found = material.pools(run, data, material.encoders(run, "cpu")[0], "cpu", 6)
    assert found.split == "train" and len(found.bank) == 58


def test_without_a_data_set_the_reason_is_said(runs: Runs, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("name: x\n")
    with pytest.raises(ConfigError, match=r"data\.path"):
        material.manifest(open_run(tmp_path))


def test_pictures_for_a_readme_are_written(runs: Runs, tmp_path: Path) -> None:
    paths = save_pictures(runs.first, tmp_path / "docs")
    assert [p.name for p in paths] == ["masks.png", "features.png", "neighbours.png"]
    for path in paths:
        with Image.open(path) as picture:
            assert min(picture.size) > 300 and len(np.unique(np.asarray(picture).reshape(-1, 3), axis=0)) > 20
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot write"):
        save_pictures(runs.first, tmp_path / "file")
