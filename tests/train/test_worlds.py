"""World models through the whole loop: what they take from data set and encoder, and that they go on exactly."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from jepa import checkpoint, config
from jepa.config import RunConfig
from jepa.data import Manifest
from jepa.errors import CheckpointError, ConfigError
from jepa.methods import base
from jepa.methods.world import History, WorldModel
from jepa.train import train
from tests.tiny import VALUES
from tests.train import runs

LEWM = {
    "name": "lewm",
    "encoder": {"patch": 8, "width": 32, "depth": 1, "heads": 2},
    "latent": 16,
    "hidden": 32,
    "predictor": {"depth": 1, "width": 16, "heads": 2, "head_width": 8, "hidden": 32, "dropout": 0.1},
    "sigreg": {"directions": 16},
}


def settings(data: Path, method: dict[str, Any], *overrides: str) -> RunConfig:
    clip = {"frames": 4, "stride": 2, "short": "skip"}
    values = VALUES | {
        "method": method,
        "data": {
            "path": str(data), "clip": clip, "steps": {"action": "action"}, "image_size": 16, "workers": 0,
            "crop_scale": [1.0, 1.0], "crop_ratio": [1.0, 1.0], "decoder": "pyav",
        },
        "monitor": {"every": {"steps": 6}, "samples": 3, "knn_bank": 0, "split": "test"},
    }  # fmt: skip
    return config.build(RunConfig, config.override(values, list(overrides)))


def test_sizes_and_statistics_come_from_the_data_set(walks: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    train(settings(walks, LEWM, "train.duration.steps=3"), out, quiet=True)
    kept = checkpoint.read_config(out)
    assert kept.method["space"] == {"action": 4, "proprio": 0, "discrete": 0, "blank": False}
    known = Manifest.open(walks).arrays["action"]
    weights = runs.tensors(out, 3)
    for name in ("mean", "std"):  # two steps of the episode side by side
        expected = torch.tensor(getattr(known, name) * 2, dtype=torch.float32)
        assert torch.allclose(weights[f"action_scale.{name}"], expected)
    with torch.device("meta"):
        model = base.create(kept.method, kept.data.size)  # without the data set
    assert isinstance(model, WorldModel) and model.needs() == {"action": (3, 4)}
    assert runs.lines(out)[-1]["flops"] > 0


def test_a_resumed_run_is_bit_equal(walks: Path, tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(settings(walks, LEWM), whole, quiet=True)
    train(settings(walks, LEWM, "train.duration.steps=12", "train.checkpoint_every.steps=5"), parts, quiet=True)
    shutil.rmtree(parts / "checkpoints" / "step-12")  # as if it had been killed after step 10
    train(settings(walks, LEWM), parts, resume=True, quiet=True)
    runs.assert_bit_equal(runs.tensors(whole, 12), runs.tensors(parts, 12))
    assert runs.lines(whole) == runs.lines(parts)


def test_a_belief_over_blank_frames_resumes_bit_equal(walks: Path, tmp_path: Path) -> None:
    train(settings(walks, LEWM, "train.duration.steps=3"), tmp_path / "encoder", quiet=True)
    belief = {"name": "rssm", "encoder": {"path": str(tmp_path / "encoder")}, "hidden": 16}
    given = settings(walks, belief, "data.steps.blank=0.5", "train.duration.steps=4", "train.checkpoint_every.steps=2")
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(given, whole, quiet=True)
    shutil.copytree(whole, parts)
    shutil.rmtree(parts / "checkpoints" / "step-4")
    train(given, parts, resume=True, quiet=True)
    runs.assert_bit_equal(runs.tensors(whole, 4), runs.tensors(parts, 4))
    assert runs.lines(whole) == runs.lines(parts)
    assert checkpoint.read_config(parts).method["space"]["blank"] is True
    assert not torch.equal(runs.tensors(whole, 2)["missing"], runs.tensors(whole, 4)["missing"]), (
        "it learns what blank is"
    )
    random = checkpoint.random_method(checkpoint.read_config(whole), 0)  # baselines: its frozen encoder needs no run
    assert isinstance(random, WorldModel)
    seen = random.eval().observe(History(torch.rand(2, 3, 3, 16, 16), torch.zeros(2, 2, 4)))
    assert bool(torch.isfinite(seen.latents).all())
    made_for_all = settings(walks, belief | {"space": {"action": 4}}, "data.steps.blank=0.5")
    with pytest.raises(ConfigError, match=r"method\.space\.blank=true"):
        train(made_for_all, tmp_path / "never", quiet=True)


def test_a_frozen_encoder_travels_with_the_run(walks: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "encoder", tmp_path / "belief"
    train(settings(walks, LEWM, "train.duration.steps=3"), first, quiet=True)
    belief = {"name": "rssm", "encoder": {"path": str(first)}, "hidden": 16}
    given = settings(walks, belief, "train.duration.steps=4")
    train(given, second, quiet=True)
    spec = checkpoint.read_config(second).method["encoder"]["spec"]
    assert spec["method"]["name"] == "lewm" and spec["step"] == 3
    trained = load_file(first / "checkpoints" / "step-3" / "model.safetensors")
    kept = load_file(second / "checkpoints" / "step-4" / "model.safetensors")
    copied = {
        name.split("encoder.", 2)[-1]: value for name, value in kept.items() if name.startswith("encoder.encoder.")
    }
    assert len(copied) > 10 and all(torch.equal(value, trained[f"encoder.{name}"]) for name, value in copied.items())
    moved = first.rename(tmp_path / "elsewhere")
    assert train(checkpoint.read_config(second), second, resume=True, quiet=True).step == 4  # needs it no more
    with pytest.raises(CheckpointError, match="encoder"):
        train(given, tmp_path / "new", quiet=True)
    assert moved.is_dir()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["data.steps=null"], "train on episodes, with a section data.steps"),
        (["data.steps.action=actoin"], "action"),
        (["data.steps.action=state"], "needs one for every action"),
        (["data.clip={frames: 4, fps: 5, short: skip}"], "stride"),
        (["data.clip.short=loop"], "choose pad or skip"),
    ],
)
def test_what_does_not_fit_is_told_before_anything_starts(
    walks: Path, tmp_path: Path, changes: list[str], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        train(settings(walks, LEWM, *changes), tmp_path / "run", quiet=True)
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_other_methods_refuse_actions(walks: Path, tmp_path: Path) -> None:
    video = {"name": "vjepa", "encoder": {"patch": 8, "width": 32, "depth": 1, "heads": 2}}
    with pytest.raises(ConfigError, match="does not look at actions"):
        train(settings(walks, video), tmp_path / "run", quiet=True)
