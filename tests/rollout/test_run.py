"""jepa rollout and the state probe on runs and data sets on disk."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from jepa import config
from jepa.cli import app
from jepa.data import Manifest
from jepa.errors import ConfigError
from jepa.monitor import Monitor
from jepa.monitor.imagination import HeldOut
from jepa.nn.tokens import Normalise
from jepa.probe.footage import Footage
from jepa.probe.run import probe
from jepa.rollout.run import rollout
from jepa.rollout.suite import load_suite
from jepa.rollout.terminal import table
from jepa.train import train
from tests.rollout import worlds
from tests.rollout.conftest import run_config

STATE = "state={per_episode: 6, mlp: null, variables: {place: {array: place, unit: px}}}"
SMALL = ["windows={seen: 2, horizon: 5, per_episode: 2, batch: 4}", "bootstrap.resamples=100"]


def test_a_run_is_rolled_out_and_written_down(dot_run: Path) -> None:
    result = rollout(dot_run, None, [*SMALL, STATE], device="cpu", progress=False)
    # a quarter of each action is not believed in; the square is drawn to whole pixels
    assert result["ratios"]["copy"]["value"] == pytest.approx([0.27] * 5, abs=0.08)
    assert result["ratios"]["shuffled"]["low"][-1] > 2 and result["useful_steps"] == 5
    (place,) = result["state"]
    assert place["unit"] == "px" and place["reader"]["val"] > 0.99
    latent, pixels = result["latent"]["l2"]["open_loop"]["value"], place["curves"]["open_loop"]["value"]
    assert pixels == pytest.approx(latent, abs=0.3)  # latents are pixels here
    assert max(place["curves"]["read_off"]["value"]) < 0.5  # rounding
    assert result["dataset"]["split"] == "test" and result["dataset"]["windows"] == 16
    assert result["dataset"]["episodes"] == 8 and result["checkpoint"] == "step-2"
    assert result["uncertainty"]["all"]["value"] > 0.3
    file = dot_run / "rollouts" / "rollout.json"
    assert json.loads(file.read_text()) == result
    assert [p.name for p in file.parent.iterdir()] == ["rollout.json"]


def test_the_same_numbers_come_out_again(dot_run: Path) -> None:
    first, second = (
        rollout(dot_run, None, [*SMALL, "name=again", f"windows.batch={batch}"], device="cpu", progress=False)
        for batch in (4, 1)
    )
    for name in ("copy", "shuffled"):
        assert first["ratios"][name]["value"] == pytest.approx(second["ratios"][name]["value"], rel=1e-5)


def test_training_watches_imagination_on_held_out_windows(walks: Path, tmp_path: Path) -> None:
    train(run_config(walks, "method.gain=0.75"), tmp_path / "run", monitor=Monitor, quiet=True)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    looks = [line for line in lines if "health/imagined_over_copy" in line]
    # a quarter of each action, over six windows only, some of which end at a wall
    assert looks and 0.15 < looks[-1]["health/imagined_over_copy"] < 0.6
    assert looks[-1]["health/shuffled_over_right"] > 2 and looks[-1]["health/imagined_error"] > 0


def test_a_stride_gives_the_actions_of_two_steps(walks: Path, tmp_path: Path) -> None:
    data = run_config(walks, "data.clip.stride=2").data
    whole, half = (Footage.open(Manifest.open(walks), "test", d) for d in (run_config(walks).data, data))
    for episode in range(3):
        a, b = whole.read(episode), half.read(episode)
        length = (whole.lengths[episode] - 1) // 2 + 1
        assert b.frames.shape[0] == half.lengths[episode] == length and b.actions.shape == (length - 1, 4)
        assert b.frames.equal(a.frames[::2]) and b.arrays["place"].equal(a.arrays["place"][::2])
        assert b.actions.view(-1, 2).equal(a.actions[: 2 * (length - 1)])
        assert half.actions(episode).equal(b.actions)


def test_pictures_are_drawn_by_a_decoder_and_by_neighbours(dot_run: Path) -> None:
    folder = dot_run / "rollouts" / "drawn"
    for steps, by in ((60, "decoder"), (0, "nearest training frame")):
        settings = f"pictures={{episodes: 2, decoder_steps: {steps}, size: 32, width: 16, bank: 60}}"
        result = rollout(dot_run, None, [*SMALL, settings, "name=drawn"], device="cpu", progress=False)
        assert result["pictures"]["by"]["by"] == by
        files = result["pictures"]["files"]
        assert len(files) == 2 and sorted(p.name for p in folder.iterdir()) == sorted(
            Path(f[k]).name for f in files for k in ("film", "strip")
        )
        with Image.open(folder.parent / files[0]["film"]) as film:
            assert film.n_frames == 6  # the last one seen, then five steps
    assert load_suite(None, ["pictures={}"]).pictures is not None


def test_the_table_shows_floors_ratios_and_what_it_comes_to(dot_run: Path) -> None:
    run = CliRunner().invoke(app, ["rollout", str(dot_run), *SMALL, STATE, "name=shown"], env={"COLUMNS": "200"})
    assert run.exit_code == 0, run.output
    text = " ".join(run.output.split())
    for words in (
        "open loop",
        "last frame copied",
        "one step",
        "another's actions",
        "place, px",
        "h = 5",
        "first 5 of 5",
    ):
        assert words in text, words
    assert "shown.json" in text
    printed = CliRunner().invoke(app, ["rollout", str(dot_run), *SMALL, "name=shown", "--json"])
    assert json.loads(printed.output)["suite"] == "shown"
    assert table(json.loads(printed.output)).row_count > 5


def test_a_probe_reads_the_state_of_frames(dot_run: Path, tmp_path: Path) -> None:
    suite = tmp_path / "walk-state.yaml"
    suite.write_text(
        "probes: {frames: {per_episode: 6, mlp: {width: 16, steps: 60, lr: [0.003]},"
        " variables: {place: {array: place, unit: px}}}}\n"
        "baselines: {pixels: {size: [16, 16]}, random: 1}\nbootstrap: {resamples: 100}\n"
        "published: [{encoder: elsewhere, probe: 'ridge:place', metric: pearson, value: 0.9, source: a paper}]\n"
    )
    result = probe(dot_run, suite, device="cpu", progress=False)
    own = {(r["probe"], r["metric"]): r for r in result["rows"] if not r["baseline"]}
    assert set(own) == {(f"{k}:place", m) for k in ("ridge", "mlp") for m in ("r2", "pearson", "error")}
    assert own["ridge:place", "r2"]["value"] > 0.98 and own["ridge:place", "error"]["unit"] == "px"
    assert {r["encoder"] for r in result["rows"]} == {"latents (step 2)", "random init", "pixels"}
    assert result["dataset"]["splits"]["test"]["originals"] == 8
    assert json.loads((dot_run / "probes" / "walk-state.json").read_text()) == result
    shown = CliRunner().invoke(app, ["probe", str(dot_run), "--suite", str(suite)], env={"COLUMNS": "200"})
    assert shown.exit_code == 0 and "pearson" in shown.output and "elsewhere" in shown.output


@pytest.mark.parametrize("name", ["tworoom-rollout", "tworoom-blanked-rollout", "pusht-rollout"])
def test_shipped_suites_load(name: str) -> None:
    suite = load_suite(name)
    assert suite.name == name and suite.state is not None and suite.pictures is not None


def test_what_does_not_fit_is_said(dot_run: Path, walks: Path, tmp_path: Path) -> None:
    def refused(match: str, *overrides: str, run: Path = dot_run) -> None:
        with pytest.raises(ConfigError, match=match):
            rollout(run, None, [*SMALL, *overrides], device="cpu", progress=False)

    refused("what the model was trained on", "splits={train: test, val: val, test: train}")
    refused("no split 'holdout'", "splits.test=holdout")
    refused(r"needs two episodes of 62 frames.*the longest has 31", "windows.horizon=60")
    refused("place", "state={mlp: null, variables: {agent: {array: plaec}}}")
    refused("leave frames=1", "state={history: 2, frames: 2, variables: {agent: {array: place}}}")
    refused("windows.horizn", "windows.horizn=3")
    train(run_config(walks, method="tests.rollout.worlds:Short"), tmp_path / "short", quiet=True)
    refused("was made to imagine at most 3 steps", run=tmp_path / "short")


def test_an_encoder_imagines_nothing_but_is_probed(walks: Path, tmp_path: Path) -> None:
    method = {
        "name": "vjepa",
        "encoder": {"patch": 8, "width": 32, "depth": 1, "heads": 2},
        "predictor": {"width": 16, "depth": 1, "heads": 2},
    }
    settings = config.to_dict(run_config(walks)) | {"method": method}
    settings["data"]["steps"] = None
    train(config.build(config.RunConfig, settings), tmp_path / "run", quiet=True)
    with pytest.raises(ConfigError, match="'vjepa', which imagines nothing"):
        rollout(tmp_path / "run", None, SMALL, device="cpu", progress=False)
    suite = tmp_path / "state.yaml"
    suite.write_text(
        "probes: {frames: {per_episode: 4, mlp: null, variables: {place: {array: place}}}}\n"
        "bootstrap: {resamples: 100}\n"
    )
    rows = probe(tmp_path / "run", suite, device="cpu", progress=False)["rows"]
    assert rows[0]["encoder"] == "target (step 2)" and rows[0]["value"] > 0


def test_a_data_set_without_episodes_is_refused(dot_run: Path, tiny_data: Path) -> None:
    with pytest.raises(ConfigError, match="holds no episodes"):
        rollout(dot_run, None, [*SMALL, f"dataset={tiny_data}"], device="cpu", progress=False)


@pytest.mark.parametrize("frames", [4, 28, 40])
def test_windows_of_the_monitor_shrink_until_an_episode_holds_them(walks: Path, frames: int) -> None:
    data = run_config(walks, f"data.clip.frames={frames}", "data.clip.stride=1").data
    split = Manifest.open(walks).splits["val"]
    longest = int(split.video[:, 0].max())
    found = HeldOut(split, data).measure(worlds.model(), Normalise(data.mean, data.std), torch.device("cpu"))
    assert bool(found) == (longest >= frames)
