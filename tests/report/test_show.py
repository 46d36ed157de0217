"""Pictures of clips over time, and all pictures as files."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from jepa.cli import main
from jepa.errors import ConfigError
from jepa.nn.attention_maps import attention_maps
from jepa.report import build_report, material, panels, pictures, save_pictures
from jepa.report.read import open_run
from jepa.report.sheets import Settings
from jepa.train import train
from tests.report.conftest import Page, Runs, digest
from tests.tiny import run_config


def film_of(path: Path) -> list[np.ndarray]:
    with Image.open(path) as film:
        frames = []
        for i in range(getattr(film, "n_frames", 1)):
            film.seek(i)
            frames.append(np.asarray(film.convert("RGB")).astype(int))
        assert film.info.get("loop") == 0  # for ever
    return frames


# --- what is drawn ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["vjepa", "vjepa21"])
def test_masks_of_clips_are_those_that_were_trained_on(clip_runs: dict[str, Path], name: str) -> None:
    run = open_run(clip_runs[name])
    rows = [json.loads(x) for x in (clip_runs[name] / "trace-rank0.jsonl").read_text().splitlines()]
    for source, grid, part in (("data", (3, 3, 3), rows[:4]), ("stills", (1, 3, 3), rows[4:8]))[
        : 1 + (name != "vjepa")
    ]:
        found = material.crops(run, 4, source)
        assert found is not None and found.grid == grid and found.paired and found.source == source
        assert found.g.tolist() == [row["g"] for row in part]
        for i, row in enumerate(part):
            assert digest(found.masks, i) == row["mask"]


def test_masks_over_time_show_the_tokens_of_each_time_step(clip_runs: dict[str, Path]) -> None:
    found = material.crops(open_run(clip_runs["vjepa"]), 2)
    assert found is not None and len(found.groups) == 2 and found.images.shape == (2, 3, 6, 24, 24)
    greys = {tuple(c) for c in pictures.HIDDEN}
    for group, (context, (target,)) in enumerate(found.groups):
        clip, seen, asked = panels.mask_panels(found, 1, group)
        assert [len(p.tiles) for p in (clip, seen, asked)] == [6, 6, 6]
        colour = np.array(pictures.TARGET_COLOURS[group])
        for frame in range(6):
            whole, shown, tinted = (np.asarray(p.tiles[frame]) for p in (clip, seen, asked))
            side = shown.shape[0] // 3
            for place in range(9):
                token, (row, column) = frame // 2 * 9 + place, divmod(place, 3)
                patch = shown[row * side : (row + 1) * side, column * side : (column + 1) * side].reshape(-1, 3)
                if token in context[1].tolist():
                    want = whole[row * 8 : (row + 1) * 8, column * 8 : (column + 1) * 8]
                    assert set(map(tuple, patch.tolist())) == set(map(tuple, want.reshape(-1, 3).tolist()))
                else:
                    assert set(map(tuple, patch.tolist())) <= greys
                middle = tinted[row * side + side // 2, column * side + side // 2].astype(int)
                assert (len(set(middle.tolist())) > 1) == (token in target[1].tolist())  # untouched ones are grey
            assert (tinted == colour).all(axis=2).any() == bool((target[1] // 9 == frame // 2).any())


def test_attention_is_that_of_the_asked_block_and_patch(clip_runs: dict[str, Path]) -> None:
    run = open_run(clip_runs["vjepa"])
    seen, encoder = material.view(run), material.trained(run, "cpu")
    found = material.attention(run, seen, encoder, "cpu", 2, layer=0, query=(1, 2, 0))
    maps = attention_maps(encoder.encoder, encoder.normalise(found.images), 0, [9 + 6])
    torch.testing.assert_close(found.received, 27 * maps.received)
    torch.testing.assert_close(found.chosen, 27 * maps.chosen[:, :, 0])
    assert found.received.mean().item() == pytest.approx(1) and (found.layer, found.depth, found.query) == (
        0,
        2,
        (1, 2, 0),
    )
    samples, (low, high) = panels.attention_panels(found, 2)
    assert [len(p.tiles) for p in samples[0]] == [6, 6, 6] and low[0] < 1 < high[1]
    marked = [(np.asarray(tile) == 255).all(axis=2).any() for tile in samples[0][2].tiles]
    assert marked == [False, False, True, True, False, False]  # the frames of time step 1
    again = material.attention(run, seen, encoder, "cpu", 1)
    assert torch.equal(again.images, found.images[:1]) and again.query == (1, 1, 1) and again.layer == 1
    for query in ((3, 0, 0), (0, 3), (1,), (-1, 0)):
        with pytest.raises(ConfigError, match="query .* of one of the 3 x 3 x 3 tokens"):
            material.attention(run, seen, encoder, "cpu", 1, query=query)


def test_features_of_clips_keep_time(clip_runs: dict[str, Path]) -> None:
    run = open_run(clip_runs["vjepa"])
    pair = material.encoders(run, "cpu")
    found = material.features(run, material.view(run), pair, "cpu")
    assert found.images.shape == (8, 3, 6, 24, 24) and found.grid == (3, 3, 3) and found.trained.shape == (8, 27, 32)
    torch.testing.assert_close(pair[0](found.images), found.trained, atol=1e-5, rtol=0)
    inner = material.features(run, material.view(run), pair, "cpu", layer=0)
    last = material.features(run, material.view(run), pair, "cpu", layer=-1)
    assert not torch.allclose(inner.trained, found.trained) and torch.equal(last.trained, found.trained)
    samples, _ = panels.feature_panels(found, 3, ("trained", "random init"))
    assert [len(p.tiles) for p in samples[0]] == [6, 3, 3]
    assert samples[0][0].at(1, 3) is samples[0][0].tiles[3] and samples[0][1].at(1, 3) is samples[0][1].tiles[1]


def test_films_run_and_hold_every_panel(clip_runs: dict[str, Path]) -> None:
    found = material.crops(open_run(clip_runs["vjepa"]), 1)
    assert found is not None
    shots = panels.film([panels.mask_panels(found, 0)], side=48, headed=False)
    assert len(shots) == 6 and shots[0].size == (3 * 48 + 2 * 8, 48) and shots[0].mode == "RGBA"
    long = [panels.Panel("x", "x", [Image.new("RGB", (8, 8), (i, 0, 0)) for i in range(64)])]
    assert len(panels.film([long])) == panels.MOMENTS
    table = panels.over_time([long], (32, 1, 1), side=8, headed=False)
    assert table.width == 8 * panels.COLUMNS + 6 * (panels.COLUMNS - 1)


# --- on the page --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["vjepa", "vjepa21"])
def test_the_report_of_a_clip_run_moves(clip_runs: dict[str, Path], name: str, tmp_path: Path) -> None:
    page = Page(build_report([clip_runs[name]], tmp_path / "page.html").read_text(encoding="utf-8"))
    assert page.unbalanced == [] and page.open == []
    assert "Not drawn" not in page.text and len(page.raw) < 2_000_000
    still = page.all("source")
    assert len(still) == 2 * 2 + 4 + 4  # two masks of two clips, features, attention
    assert all("prefers-reduced-motion" in s["media"] and s["srcset"].startswith("data:image/") for s in still)
    assert all(len(image["alt"]) > 5 for image in page.all("img"))
    films = [i for i in page.all("img") if i["alt"].startswith("film, side by side: ")]
    assert len(films) == len(still)
    assert re.search(r"mask 2 of 2, .*column for every 2 frames\. Both take 0\.\d+ MB of this page", page.text)
    assert "Block 2 of 2 of the target encoder (step 2), mean over 2 heads" in page.text
    assert ("source stills" in page.text) == (name == "vjepa21")


# --- files --------------------------------------------------------------------------------------------------------


def test_an_image_run_gives_a_table_of_each_kind(runs: Runs, tmp_path: Path) -> None:
    done = save_pictures(runs.first, tmp_path / "docs")
    assert [p.name for p in done.paths] == [f"{n}.png" for n in (
        "masks", "pca", "attention", "attention-heads", "neighbours")]  # fmt: skip
    for path in done.paths:
        with Image.open(path) as picture:
            assert min(picture.size) > 200 and len(np.unique(np.asarray(picture).reshape(-1, 3), axis=0)) > 20
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot write"):
        save_pictures(runs.first, tmp_path / "file")


def test_a_clip_run_gives_films_too(
    clip_runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = str(clip_runs["vjepa21"])
    assert main(["show", run, "samples=2", "device=cpu", "--out", str(tmp_path)]) == 0
    names = ["masks-1", "masks-2", "masks-stills", "pca", "attention", "attention-heads", "neighbours"]
    files = [
        f"{n}.{kind}"
        for n in names
        for kind in ("png", "gif")
        if kind == "png" or n not in ("masks-stills", "neighbours")
    ]
    assert capsys.readouterr().out.split() == [str(tmp_path / f) for f in files]
    for path in tmp_path.glob("*.gif"):
        shots = film_of(path)
        assert len(shots) == 6 and all(np.abs(a - b).max() > 30 for a, b in itertools.pairwise(shots))
        with Image.open(path.with_suffix(".png")) as table:
            assert table.height > 250
    first = (tmp_path / "pca.png").read_bytes()
    assert main(["show", run, "--what", "pca", "samples=2", "device=cpu", "--out", str(tmp_path)]) == 0
    assert (tmp_path / "pca.png").read_bytes() == first  # pictures repeat


def test_another_data_set_can_be_shown(clip_runs: dict[str, Path], runs: Runs, tiny_data: Path, tmp_path: Path) -> None:
    settings = Settings(data=str(tiny_data), split="val", samples=2, device="cpu")
    done = save_pictures(clip_runs["vjepa"], tmp_path, ["pca", "attention"], settings)  # images to an encoder of clips
    assert [p.name for p in done.paths] == ["pca.png", "attention.png", "attention-heads.png"]
    with pytest.raises(ConfigError, match="leave out data="):
        save_pictures(clip_runs["vjepa"], tmp_path, ["masks"], settings)
    movies = open_run(clip_runs["vjepa"]).config.data.path
    with pytest.raises(ConfigError, match="holds videos, and this run's encoder takes images"):
        save_pictures(runs.first, tmp_path, ["pca"], Settings(data=movies, device="cpu"))


def test_a_method_without_tokens_in_places_is_shown_as_far_as_it_goes(tiny_data: Path, tmp_path: Path) -> None:
    run = tmp_path / "outside"
    train(
        run_config(
            tiny_data, "train.duration={steps: 1}", "optim.warmup={steps: 0}", method="tests.train.outside:Mean"
        ),
        run,
        quiet=True,
    )
    done = save_pictures(run, tmp_path / "out", settings=Settings(device="cpu"))
    assert [p.name for p in done.paths] == ["neighbours.png"]
    assert done.left_out["masks"] == "this method uses no masks, so there are none to draw"
    assert "attribute `grid`" in done.left_out["pca"] and "no attention that can be read" in done.left_out["attention"]
    page = Page(build_report([run], tmp_path / "page.html").read_text(encoding="utf-8"))
    assert "Not drawn: Tokens has no attention" in page.text and "This method uses no masks." in page.text
    with pytest.raises(ConfigError, match="no attention that can be read"):
        save_pictures(run, tmp_path / "out", ["attention"], Settings(device="cpu"))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--what", "dreams"], "'dreams', allowed: masks, pca, attention, neighbours"),
        (["samples=0"], "samples: got 0"),
        (["--what", "attention", "layer=7"], r"layers \[7\]: this encoder has layers 0 to 0"),
        (["--what", "attention", "query=[9,9]"], "query 9,9"),
        (["sampels=3"], "samples"),
        (["split=night"], "night"),
        (["device=abacus"], "abacus"),
    ],
)
def test_bad_settings_are_told(
    runs: Runs, tmp_path: Path, arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["show", str(runs.first), *arguments, "--out", str(tmp_path)]) == 2
    assert re.search(said, capsys.readouterr().err)
