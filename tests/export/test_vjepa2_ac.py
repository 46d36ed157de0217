"""Official V-JEPA 2-AC checkpoints become runs that compute what the official code computes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from jepa import checkpoint
from jepa.checkpoint import frozen
from jepa.config import DataConfig
from jepa.errors import CheckpointError, ConfigError
from jepa.export import describe, import_checkpoint
from jepa.methods import base
from jepa.methods.ac import AC
from tests import golden_set
from tests.export import official

NAME = "vjepa2_ac"
pytestmark = pytest.mark.golden(NAME)


def parts() -> dict[str, dict[str, Tensor]]:
    given = golden_set.tensors(NAME)
    encoder = golden_set.part(given, "encoder")
    return {"encoder": encoder, "target": encoder, "predictor": golden_set.part(given, "predictor")}


def settings() -> list[str]:
    model = golden_set.facts(NAME)["config"]["model"]
    return [
        f"method.encoder.spec.method.encoder.heads={model['heads']}",
        f"method.predictor.heads={model['pred_heads']}",
        f"data.image_size={model['img']}",
        f"data.clip.frames={model['frames']}",
    ]


def imported(folder: Path, saved: dict[str, Any] | None = None) -> Path:
    torch.save(saved or official.training_checkpoint(parts(), "module."), folder / "vjepa2-ac.pt")
    import_checkpoint(folder / "vjepa2-ac.pt", "vjepa2-ac", folder / "run", settings())
    return folder / "run"


def load(run: Path) -> AC:
    path = checkpoint.resolve(run)
    saved = checkpoint.read_config(path)
    method = base.create(saved.method, saved.data.size)
    checkpoint.load_model(path, method)
    assert isinstance(method, AC)
    return method


def test_an_imported_run_gives_the_official_losses(tmp_path: Path) -> None:
    given = golden_set.tensors(NAME)
    method = load(imported(tmp_path)).double()
    frames = given["clips"].double().transpose(1, 2)
    latents = method.latents(frames)
    torch.testing.assert_close(latents.flatten(1, 2), given["f64.h_from_clips"], atol=1e-9, rtol=0)
    metrics = method.learn(latents, given["actions"].double(), given["states"].double()).metrics
    h = given["h"].double().unflatten(1, (frames.shape[1], -1))
    metrics = method.learn(h, given["actions"].double(), given["states"].double()).metrics
    for ours, theirs in (("loss_one_step", "loss_tf"), ("loss_rollout", "loss_ar")):
        assert abs(metrics[ours].item() - given[f"f64.out.{theirs}"].item()) < 1e-9
    settled = checkpoint.read_config(checkpoint.resolve(tmp_path / "run"))
    assert settled.method["motion"] == "pose" and settled.data.steps is not None
    assert frozen.resolve(settled.method, DataConfig()) == settled.method
    assert frozen.load(method) == []


def test_every_key_is_accounted_for(tmp_path: Path) -> None:
    run = imported(tmp_path)
    record = json.loads((run / "import.json").read_text())
    assert record["keys"] == len(record["used_keys"]) + len(record["ignored_keys"])
    reasons = set(record["ignored_keys"].values())
    assert any("camera" in reason for reason in reasons) and any("copy of the frozen" in r for r in reasons)
    facts = describe(tmp_path / "vjepa2-ac.pt")
    assert facts["kind"] == "V-JEPA 2-AC" and "--from vjepa2-ac --to RUN" in facts["command"]


def test_a_file_with_one_encoder(tmp_path: Path) -> None:
    """As the published one."""
    saved = official.training_checkpoint(parts())
    del saved["target_encoder"]
    x = torch.randn(1, 3, *([golden_set.facts(NAME)["config"]["model"]["img"]] * 2))
    found = load(imported(tmp_path, saved)).encode(x)
    whole = tmp_path / "whole"
    whole.mkdir()
    assert torch.equal(found, load(imported(whole)).encode(x))


def test_files_that_are_something_else(tmp_path: Path) -> None:
    saved = official.training_checkpoint(parts())

    def refused(tensors: dict[str, Any], *more: str, error: type[Exception] = CheckpointError) -> str:
        torch.save(tensors, tmp_path / "x.pt")
        with pytest.raises(error) as caught:
            import_checkpoint(tmp_path / "x.pt", "vjepa2-ac", tmp_path / "run", [*more])
        assert not (tmp_path / "run").exists()
        return str(caught.value)

    bare = {k: v for k, v in saved.items() if k != "predictor"}
    assert "--from vjepa2 " in refused(bare, *settings())
    assert "method.encoder.heads=N" in refused(saved, *settings()[1:])
    assert "method.predictor.heads=N" in refused(saved, settings()[0], *settings()[2:])
    odd = dict(saved["predictor"]) | {"module.strange.weight": torch.ones(1)}
    assert "strange" in refused(saved | {"predictor": odd}, *settings())
    less = {k: v for k, v in saved["predictor"].items() if "predictor_norm" not in k}
    assert "predictor_norm" in refused(saved | {"predictor": less}, *settings())
    assert "motoin" in refused(saved, *settings(), "method.motoin=hold", error=ConfigError)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a").touch()
    with pytest.raises(CheckpointError, match="not an empty folder"):
        import_checkpoint(tmp_path / "x.pt", "vjepa2-ac", tmp_path / "full", settings())
