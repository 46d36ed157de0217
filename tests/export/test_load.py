"""`jepa.load_encoder` gives the same encoder from a run, from its exports, and takes timm's models by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

import jepa
from jepa import checkpoint, cli
from jepa.config import RunConfig
from jepa.errors import CheckpointError, ConfigError
from jepa.export import describe
from jepa.export.subject import Asked
from jepa.export.write import export
from jepa.nn import timm_model
from tests.tiny import run_config


@pytest.fixture(scope="module")
def run(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    settings: RunConfig = run_config(tiny_data)
    checkpoint.save(folder, 3, checkpoint.create(settings), None, {}, settings)
    return folder


@pytest.fixture
def pixels() -> torch.Tensor:
    return torch.randint(0, 256, (2, 3, 20, 20), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("form", ["transformers", "timm", "safetensors"])
def test_exports_are_read_back(run: Path, tmp_path: Path, pixels: torch.Tensor, form: str) -> None:
    ours = jepa.load_encoder(run)
    export(run, form, tmp_path / "out")
    again = jepa.load_encoder(tmp_path / "out")
    assert torch.equal(again(pixels), ours(pixels))
    assert again.image_size == ours.image_size and again.config.data.mean == ours.config.data.mean
    assert torch.equal(again.features(pixels, pool=True), ours.features(pixels, pool=True))  # type: ignore[arg-type]


def test_exports_for_other_programs_say_so(run: Path, tmp_path: Path) -> None:
    export(run, "torch", tmp_path / "out")
    with pytest.raises(CheckpointError, match="for other programs"):
        jepa.load_encoder(tmp_path / "out")


def test_lower_precision_and_compilation(run: Path, pixels: torch.Tensor) -> None:
    ours, low = jepa.load_encoder(run), jepa.load_encoder(run, dtype=torch.bfloat16)
    assert next(low.encoder.parameters()).dtype == torch.bfloat16
    found = low.features(pixels)
    assert isinstance(found, torch.Tensor) and found.dtype == torch.float32
    torch.testing.assert_close(found, ours(pixels), atol=0.1, rtol=0.1)
    fast = jepa.load_encoder(run, compile=True)
    torch.testing.assert_close(fast(pixels), ours(pixels), atol=1e-5, rtol=1e-5)


def test_timm_models_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(name: str, size: tuple[int, int], pretrained: bool = False) -> Any:
        assert pretrained
        torch.manual_seed(0)
        return timm.create_model(name, img_size=size, num_classes=0)  # its weights are not here

    monkeypatch.setattr(timm_model, "create", offline)
    encoder = jepa.load_encoder("timm:vit_tiny_patch16_224", image_size=(64, 48))
    pixels = torch.randint(0, 256, (2, 3, 64, 48), dtype=torch.uint8)
    model: Any = encoder.encoder
    with torch.no_grad():
        theirs = model.model.forward_features(encoder.normalise(pixels))[:, 1:]
    torch.testing.assert_close(encoder(pixels), theirs)
    assert encoder.width == 192 and tuple(encoder(pixels).shape) == (2, 12, 192)
    with pytest.raises(ConfigError, match="^timm has no model 'vit_nowhere'"):
        jepa.load_encoder("timm:vit_nowhere")
    with pytest.raises(ConfigError, match="does not take images of 8×8"):
        jepa.load_encoder("timm:vit_tiny_patch16_224", image_size=(8, 8))


def test_image_size_is_for_timm_alone(run: Path) -> None:
    with pytest.raises(ConfigError, match="goes with timm:NAME"):
        jepa.load_encoder(run, image_size=(8, 8))


def test_inspect_describes_exports(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    export(run, "torch", tmp_path / "out", Asked(which="context", image_size=(24, 20)))
    assert cli.main(["inspect", str(tmp_path / "out"), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["kind"] == "an export for torch" and facts["made from"] == "run 'tiny', step 3, its context encoder"
    assert facts["model"] == "VisionTransformer of method ijepa" and facts["takes"].startswith("24 x 20 pixels")
    assert facts["programs"]["encoder"]["inputs"]["pixels"][:2] == ["batch", 3]
    assert "comparisons with the model; nearest to its limit: " in facts["checked"] and facts["dtype"] == "fp32"
    record = tmp_path / "out" / "export.json"
    record.write_text(json.dumps({"made_by": "jepa export", "format": "torch"}))
    with pytest.raises(CheckpointError, match="is not whole .no 'name'"):
        describe(tmp_path / "out")
    with pytest.raises(CheckpointError, match="is not whole"):
        jepa.load_encoder(tmp_path / "out")
