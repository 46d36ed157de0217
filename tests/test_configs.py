"""Every shipped configuration: loads, says what it is, builds at its real size, and takes a step under `debug`."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from jepa import config, phases, resources
from jepa.data.build import build
from jepa.methods import base
from jepa.train import train
from tests import tiny

NAMES = [name for name in resources.names("configs") if name != "debug"]
WORLDS = [name for name in NAMES if base.resolve(config.load(name).method)[0].episodes]

# Parameters of the encoder, counted by hand: patch embedding + blocks (12 width² + 13 width each at an MLP ratio of 4)
# + final norm. Positions are fixed tables and not counted.
ENCODERS = {
    "ijepa-vit-s16": (384, 12, 16),
    "ijepa-vit-b16": (768, 12, 16),
    "ijepa-vit-l16": (1024, 24, 16),
    "ijepa-vit-h14": (1280, 32, 14),
    "own-images": (384, 12, 16),
    "mnist": (192, 6, 4),
}
OFFICIAL = {"ijepa-vit-b16": (600, 6), "ijepa-vit-l16": (600, 12), "ijepa-vit-h14": (300, 12)}  # epochs, predictor


@pytest.mark.parametrize("name", NAMES)
def test_it_opens_with_command_hardware_hours_and_score(name: str) -> None:
    text = resources.find("configs", name).read_text(encoding="utf-8")
    head = text[: text.index("\n\n")] if "\nseed:" not in text else text[: text.index("\nseed:")]
    for word in (f"jepa train {name} data.path=", "hardware:", "hours:", "score:"):
        assert word in head, f"the opening comment lacks {word!r}"


@pytest.mark.parametrize("name", [n for n in NAMES if n not in WORLDS])
def test_it_builds_at_real_size(name: str) -> None:
    settings = config.load(name)
    assert settings.name == name and settings.data.path == "", "data.path is the user's to give"
    with torch.device("meta"):
        method = base.create(settings.method, settings.data.size)
    assert method.sampler(settings.seed) is not None, "the masks fit the token grid"
    if name in ENCODERS:
        width, depth, patch = ENCODERS[name]
        expected = 3 * patch * patch * width + width + depth * (12 * width**2 + 13 * width) + 2 * width
        for encoder in method.encoders().values():
            assert sum(p.numel() for p in encoder.parameters()) == expected


@pytest.mark.parametrize("name", OFFICIAL)
def test_it_has_the_official_settings(name: str) -> None:
    """Values of the official in1k_vith14_ep300 configuration; epochs and predictor depth as in the paper."""
    settings = config.load(name)
    epochs, depth = OFFICIAL[name]
    optim, train_, data = settings.optim, settings.train, settings.data
    assert (train_.batch, train_.duration.epochs, train_.precision) == (2048, epochs, "bf16")
    assert (optim.lr, optim.start_lr, optim.final_lr, optim.warmup.epochs) == (1e-3, 2e-4, 1e-6, 40)
    assert (optim.weight_decay, optim.final_weight_decay, optim.schedule_scale) == (0.04, 0.4, 1.0)
    assert (data.image_size, data.crop_scale, data.hflip) == ((224, 224), (0.3, 1.0), 0.0)
    _, method = base.resolve(settings.method)
    assert method.ema == (0.996, 1.0) and method.loss == "smooth_l1"
    assert (method.predictor.depth, method.predictor.width) == (depth, 384)
    masks = method.masks
    assert (masks.targets, masks.contexts, masks.min_keep, masks.allow_overlap) == (4, 1, 10, False)
    assert (masks.target_scale, masks.target_ratio, masks.context_scale) == ((0.15, 0.2), (0.75, 1.5), (0.85, 1.0))


def test_the_cool_downs_are_the_official_ones() -> None:
    """Of the cooldown-256px-64f files: 40 epochs of 300 steps, batches over all GPUs."""
    for name, lr in (("vjepa2-vit-l16", 5.25e-4), ("vjepa2-vit-g16", 5.25e-4), ("vjepa21-vit-gigantic16", 6e-4)):
        run = phases.in_force(config.load(name), "cooldown")
        assert run.train.duration.steps == 12_000 and run.train.batch == 3072 and run.data.size == (64, 256, 256)
        optim = run.optim
        assert (optim.lr, optim.final_lr, optim.shape, optim.warmup.steps) == (lr, 1e-6, "linear", 0)
        assert optim.weight_decay == optim.final_weight_decay == 0.04
    assert run.mix["images"].batch == 9216
    _, method = base.resolve(run.method)
    assert not method.by_distance and method.ema == (0.99925, 0.99925)
    with torch.device("meta"):
        schedule = base.create(run.method, run.data.size).schedule(0, 15_000)
    assert schedule["context_weight"] == schedule["image_context_weight"] == 0.5, "lambda is not warmed up again"


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("digits") / "data"
    small = ["source.samples={train: 64, val: 16, test: 16}", "shards.max_samples=32"]
    build("digits", out, overrides=small, progress=False)
    return out


@pytest.fixture(scope="module")
def movies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("movies") / "data"
    build("moving-digits", out, overrides=["source.samples={train: 16, val: 8, test: 8}"], progress=False)
    return out


def steps_taken(folder: Path, count: int) -> None:
    """A run that took so many steps with losses that may be, and wrote its last checkpoint."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if line.get("loss") is not None]
    assert len(losses) == count and all(0 < loss < 10 for loss in losses)
    assert (folder / "checkpoints" / f"step-{count}" / "COMPLETE").is_file()


@pytest.mark.parametrize("name", [n for n in NAMES if n not in WORLDS])
def test_it_takes_a_step_under_debug(name: str, digits: Path, movies: Path, tmp_path: Path) -> None:
    plain = config.load(name)
    data = {True: digits, False: movies}
    others = [f"mix.{k}.path={data[source.clip is None]}" for k, source in plain.mix.items()]
    settings = config.load(name, [f"data.path={data[plain.data.clip is None]}", *others], overlays=["debug"])
    train(settings, tmp_path / "run")
    steps_taken(tmp_path / "run", 2 + len(plain.phases))  # one for each phase


@pytest.fixture(scope="module")
def encoder(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a try-out of a configuration for images leaves behind."""
    out = tmp_path_factory.mktemp("encoder") / "run"
    train(config.load("ijepa-vit-s16", [f"data.path={digits}"], ["debug"]), out, quiet=True)
    return out


@pytest.fixture(scope="module")
def walks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """16 episodes of 41 frames with the arrays that shipped world models ask for."""

    def draw(rng: np.random.Generator) -> tiny.Arrays:
        return {
            "frames": rng.integers(0, 255, (41, 16, 16, 3), dtype=np.uint8),
            "action": rng.uniform(-1, 1, (40, 7)).astype(np.float32),
            "state": rng.uniform(-1, 1, (41, 7)).astype(np.float32),
            "proprio": rng.uniform(-1, 1, (41, 4)).astype(np.float32),
        }

    return tiny.build_walks(tmp_path_factory.mktemp("data") / "walks", 16, 12, draw)


@pytest.mark.parametrize("name", WORLDS)
def test_a_world_model_takes_a_step_under_debug(name: str, walks: Path, encoder: Path, tmp_path: Path) -> None:
    plain = config.load(name)
    own = plain.method.get("encoder", {}).get("path") == ""
    if "timm" in plain.method.get("encoder", {}):
        pytest.importorskip("timm")
    given = [f"data.path={walks}", *([f"method.encoder.path={encoder}"] if own else [])]
    train(config.load(name, given, overlays=["debug"]), tmp_path / "run", quiet=True)
    steps_taken(tmp_path / "run", 2 + len(plain.phases))
