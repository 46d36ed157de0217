"""A DINO-WM predictor becomes a run that answers as the official code did."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from jepa import checkpoint, config
from jepa.config import RunConfig
from jepa.errors import CheckpointError, ConfigError
from jepa.export import import_checkpoint
from jepa.export.dinowm import convert
from tests import golden_set

NAME = "dino_wm_predictor"
pytestmark = pytest.mark.golden(NAME)
PARTS = ("predictor", "action_encoder", "proprio_encoder")


@pytest.fixture
def encoder_run(tmp_path: Path) -> Path:
    """An encoder of as many patches of that width as the golden predictor was made for; it is not asked."""
    facts = golden_set.facts(NAME)["config"]
    encoder = {"patch": 4, "width": facts["vis"], "depth": 1, "heads": 1}
    values = {"method": {"name": "ijepa", "encoder": encoder, "predictor": {"width": 16, "depth": 1, "heads": 1}}}
    run = config.build(RunConfig, values | {"data": {"image_size": 12}})
    checkpoint.save(tmp_path / "encoder", 0, checkpoint.create(run), None, {}, run)
    return tmp_path / "encoder"


def official() -> dict[str, Tensor]:
    given = golden_set.tensors(NAME)
    return {f"{part}.{name}": tensor for part in PARTS for name, tensor in golden_set.part(given, part).items()}


def settings(encoder_run: Path) -> list[str]:
    heads = golden_set.facts(NAME)["config"]["heads"]
    return [f"method.encoder.path={encoder_run}", "data.image_size=12", f"method.predictor.heads={heads}"]


def test_it_predicts_as_the_official_one(tmp_path: Path, encoder_run: Path) -> None:
    spare = {"decoder.dec.weight": torch.ones(2), "encoder.base_model.cls_token": torch.ones(1)}
    save_file(official() | spare, tmp_path / "dino_wm.safetensors")
    record = import_checkpoint(tmp_path / "dino_wm.safetensors", "dinowm", tmp_path / "run", settings(encoder_run))
    assert record["used"] == len(official()) and sum(record["ignored"].values()) == 2
    found, _ = checkpoint.find(tmp_path / "run")
    run = checkpoint.read_config(found)
    method: Any = checkpoint.create(run).eval()
    checkpoint.load_model(found, method)
    given, want = golden_set.tensors(NAME), golden_set.part(golden_set.tensors(NAME), "out")
    history = golden_set.facts(NAME)["config"]["hist"]
    assert run.method["history"] == history
    frames = method.frames(given["visual"], given["actions"], given["proprio"])
    tokens, embedded = (
        method.predictor.tokens(frames.latents, frames.proprio, method.action_embed(frames.actions)),
        method.action_embed(frames.actions),
    )
    torch.testing.assert_close(tokens, want["z"], atol=2e-5, rtol=1e-5)
    with torch.no_grad():
        ahead = method.predictor(tokens[:, :history], embedded[:, :history])[0]
    torch.testing.assert_close(ahead, want["z_pred"], atol=2e-5, rtol=1e-5)


def test_frames_reach_the_encoder_as_they_are_and_its_weights_are_in_the_run(tmp_path: Path, encoder_run: Path) -> None:
    save_file(official(), tmp_path / "w.safetensors")
    convert(tmp_path / "w.safetensors", tmp_path / "run", settings(encoder_run))
    found, _ = checkpoint.find(tmp_path / "run")
    method: Any = checkpoint.create(checkpoint.read_config(found))
    checkpoint.load_model(found, method)
    own = checkpoint.load_encoder(encoder_run).encoder.state_dict()
    assert not method.encoder.awaits_weights
    assert all(torch.equal(t, own[name]) for name, t in method.encoder.encoder.state_dict().items())


@pytest.mark.parametrize(
    ("drop", "extra", "reason"),
    [
        ("predictor.", {}, "no DINO-WM predictor"),
        ("action_encoder.", {}, "no action_encoder.patch_embed"),
        ("predictor.transformer.layers.1.1.net.4.weight", {}, "lacks 1 weight"),
        (None, {"surprise.weight": torch.ones(1)}, "surprise.weight"),
    ],
)
def test_what_does_not_fit_is_refused(
    tmp_path: Path, encoder_run: Path, drop: str | None, extra: dict[str, Tensor], reason: str
) -> None:
    kept = {name: t for name, t in official().items() if drop is None or not name.startswith(drop)}
    save_file(kept | extra, tmp_path / "w.safetensors")
    with pytest.raises(CheckpointError, match=reason):
        convert(tmp_path / "w.safetensors", tmp_path / "run", settings(encoder_run))
    assert not (tmp_path / "run").exists()


def test_what_the_weights_do_not_show_must_be_said(tmp_path: Path, encoder_run: Path) -> None:
    save_file(official(), tmp_path / "w.safetensors")
    with pytest.raises(CheckpointError, match=r"method\.predictor\.heads=N"):
        convert(tmp_path / "w.safetensors", tmp_path / "run", settings(encoder_run)[:2])
    with pytest.raises(CheckpointError, match="a frame of"):
        convert(tmp_path / "w.safetensors", tmp_path / "run", [*settings(encoder_run), "data.image_size=16"])
    with pytest.raises(ConfigError, match="no model 'vit_nowhere'"):
        convert(
            tmp_path / "w.safetensors", tmp_path / "run", ["method.encoder.timm=vit_nowhere", settings(encoder_run)[2]]
        )
    assert not (tmp_path / "run").exists()
