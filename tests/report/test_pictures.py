"""Pictures show what they claim to show."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from jepa.data import Manifest, TrainData, make_loader
from jepa.errors import ConfigError
from jepa.report import material, pictures
from jepa.report.read import open_run
from tests.report.conftest import Runs, digest

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
    maps, share = pictures.feature_maps(tokens, (1, *GRID), show=4)
    assert len(maps) == 4 and 0.9 < share <= 1
    for i, (picture,) in enumerate(maps):
        red = np.asarray(picture)[:, :, 0].reshape(-1).astype(int)  # the first component
        first, second = red[kind[i].numpy() == 0], red[kind[i].numpy() == 1]
        assert abs(first.mean() - second.mean()) > 150 and max(first.std(), second.std()) < 60
    again, _ = pictures.feature_maps(tokens, (1, *GRID), show=4)
    assert all((np.asarray(a[0]) == np.asarray(b[0])).all() for a, b in zip(maps, again, strict=True))


def test_feature_maps_of_a_collapsed_encoder_are_plain_and_no_error() -> None:
    for foreground in (False, True):
        maps, share = pictures.feature_maps(torch.ones(4, 20, 8), (1, *GRID), show=2, foreground=foreground)
        assert share == 0 and all(len(np.unique(np.asarray(m).reshape(-1, 3), axis=0)) == 1 for (m,) in maps)


def test_the_foreground_is_coloured_and_the_rest_is_black() -> None:
    generator = torch.Generator().manual_seed(0)
    middle = torch.zeros(5, 4, dtype=torch.bool)
    middle[1:4, 1:3] = True
    thing = (torch.rand(32, 20, generator=generator) < 0.4) & middle.flatten()  # things lie inside, not at the edges
    tokens = 8 * thing[..., None] * torch.eye(8)[0] + torch.randn(32, 20, 8, generator=generator)
    maps, _ = pictures.feature_maps(tokens, (1, *GRID), show=32, foreground=True)
    coloured = torch.stack([torch.from_numpy(np.asarray(m).copy()).flatten(0, 1).any(dim=1) for (m,) in maps])
    assert float((coloured == thing).float().mean()) > 0.97
    whole, _ = pictures.feature_maps(tokens, (1, *GRID), show=32)
    assert np.mean([np.asarray(m).any(axis=2).mean() for (m,) in whole]) > 0.99


def test_what_moves_in_a_clip_is_coloured_not_what_the_clip_is_like() -> None:
    generator = torch.Generator().manual_seed(0)
    at = torch.randint(0, 20, (16, 3), generator=generator)  # one token of each time step differs
    tokens = 30 * torch.randn(16, 1, 8, generator=generator) + torch.zeros(16, 60, 8)
    moving = torch.zeros(16, 3, 20).scatter_(2, at[..., None], 1.0).view(16, 60, 1)
    tokens = tokens + moving * torch.eye(8)[2] + 0.01 * torch.randn(16, 60, 8, generator=generator)
    maps, _ = pictures.feature_maps(tokens, (3, *GRID), show=16)
    assert [len(m) for m in maps] == [3] * 16
    for sample, steps in zip(maps, at.tolist(), strict=True):
        for picture, place in zip(sample, steps, strict=True):
            red = np.asarray(picture)[:, :, 0].ravel().astype(int)
            assert int(np.abs(red - np.median(red)).argmax()) == place


def test_heat_rises_from_violet_to_yellow_and_frames_the_query(image: torch.Tensor) -> None:
    weights = torch.linspace(0.5, 2.0, 20).view(GRID)
    shown = patches(pictures.heat_tile(torch.zeros_like(image), weights, (0.5, 2.0))).astype(int)
    light = shown.sum(axis=(2, 3)).ravel()
    assert (np.diff(light) > 0).all()  # lighter with every step
    assert (shown[0, 0] == [0, 0, 2]).all() and (shown[4, 3, :, 0] > 3 * shown[0, 0, :, 2].max()).all()
    marked = patches(pictures.heat_tile(image, weights, (0.5, 2.0), marked=6))
    plain = patches(pictures.heat_tile(image, weights, (0.5, 2.0)))
    changed = {(r, c) for r in range(5) for c in range(4) if (marked[r, c] != plain[r, c]).any()}
    assert changed == {(1, 2)} and (marked[1, 2] == 255).all(axis=1).any()


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
    assert found is not None and found.grid == (1, 5, 5) and not found.paired
    trace = [json.loads(x) for x in (runs.first / "trace-rank0.jsonl").read_text().splitlines()][:6]
    assert found.g.tolist() == [row["g"] for row in trace]
    for i, row in enumerate(trace):
        assert digest(found.masks, i) == row["mask"]
    config = open_run(runs.first).config
    data = TrainData(config.data, config.seed)
    batch = next(iter(make_loader(data, batch=8, total_steps=1)))
    assert torch.equal(batch.images[:6], found.images)


def test_features_compare_the_trained_with_the_untrained_encoder(runs: Runs) -> None:
    run = open_run(runs.first)
    pair = material.encoders(run, "cpu")
    found = material.features(run, material.view(run), pair, "cpu")
    assert found.split == "test" and found.trained.shape == found.untrained.shape == (16, 25, 32)
    assert not torch.equal(found.trained, found.untrained)
    assert torch.allclose(pair[0](found.images), found.trained, atol=1e-5)


def test_queries_take_the_classes_in_turn_and_the_bank_is_the_training_split(runs: Runs) -> None:
    run = open_run(runs.first)
    data = material.manifest(run)
    pair = material.encoders(run, "cpu")
    found = material.pools(run, material.view(run), pair[0], "cpu", 6)
    labels = np.asarray(data.split("test").labels)
    assert len(set(found.query_labels.tolist())) == min(6, len(set(labels.tolist())))
    assert found.bank.shape == (64, 32) and found.bank_labels.tolist() == data.split("train").labels.tolist()
    assert torch.allclose(pair[0].pool(found.query_images), found.queries, atol=1e-5)


def test_without_other_splits_a_query_is_not_its_own_neighbour(runs: Runs) -> None:
    run = open_run(runs.first)
    data = Manifest.open(run.config.data.path)
    del data.splits["test"], data.splits["val"]
    seen = material.View(data, data.split("train"), run.config.data)
    found = material.pools(run, seen, material.trained(run, "cpu"), "cpu", 6)
    assert found.split == "train" and len(found.bank) == 58


def test_without_a_data_set_the_reason_is_said(runs: Runs, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("name: x\n")
    with pytest.raises(ConfigError, match=r"data\.path"):
        material.manifest(open_run(tmp_path))
