"""Folders of transformers and timm become runs: same features as there, every key accounted for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from transformers import (
    IJepaConfig,
    IJepaForImageClassification,
    IJepaModel,
    ViTConfig,
    ViTModel,
    VJEPA2Config,
    VJEPA2ForVideoClassification,
    VJEPA2Model,
)

from jepa import checkpoint
from jepa.errors import CheckpointError
from jepa.export import describe, import_checkpoint
from jepa.export.folders import convert_timm, convert_transformers

PIXELS = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
CLIPS = torch.randint(0, 256, (2, 3, 4, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
IJEPA: dict[str, Any] = {
    "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 96, "image_size": 32,
    "patch_size": 8, "layer_norm_eps": 1e-6,
}  # fmt: skip
VJEPA2: dict[str, Any] = {
    "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2, "crop_size": 32, "patch_size": 16,
    "frames_per_clip": 4, "pred_hidden_size": 24, "pred_num_attention_heads": 1, "pred_num_hidden_layers": 1,
    "pred_num_mask_tokens": 2, "num_pooler_layers": 1,
}  # fmt: skip


def shaken(model: nn.Module) -> Any:
    """Far from initialisation, so that every weight matters."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def normalised(pixels: Tensor, mean: list[float], std: list[float]) -> Tensor:
    shape = (1, 3, *[1] * (pixels.ndim - 2))
    return (pixels / 255 - torch.tensor(mean).view(shape)) / torch.tensor(std).view(shape)


def test_ijepa_model(tmp_path: Path) -> None:
    model = shaken(IJepaModel(IJepaConfig(**IJEPA), add_pooling_layer=False))
    model.save_pretrained(tmp_path / "hf")
    processor = {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.25], "resample": 3}
    (tmp_path / "hf" / "preprocessor_config.json").write_text(json.dumps(processor))
    record = import_checkpoint(tmp_path / "hf", "transformers", tmp_path / "run")
    assert record["layout"] == "transformers" and record["keys"] == record["used"] and not record["ignored"]
    encoder = checkpoint.load_encoder(tmp_path / "run")
    with torch.no_grad():
        theirs = model(normalised(PIXELS, processor["image_mean"], processor["image_std"])).last_hidden_state
    torch.testing.assert_close(encoder(PIXELS), theirs, atol=2e-5, rtol=1e-5)
    assert encoder.config.data.interpolation == "bicubic"
    assert describe(tmp_path / "hf")["command"].endswith("--from transformers --to RUN")


def test_a_head_is_left_out_and_told_and_shards_are_put_together(tmp_path: Path) -> None:
    model = shaken(IJepaForImageClassification(IJepaConfig(**IJEPA)))
    model.save_pretrained(tmp_path / "hf", max_shard_size="40KB")
    assert len(list((tmp_path / "hf").glob("*.safetensors"))) > 1
    record = convert_transformers(tmp_path / "hf", tmp_path / "run")
    assert sum(record["ignored"].values()) == 2 and "head" in next(iter(record["ignored"]))
    with torch.no_grad():
        mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
        theirs = model.ijepa(normalised(PIXELS, mean, std)).last_hidden_state
    torch.testing.assert_close(checkpoint.load_encoder(tmp_path / "run")(PIXELS), theirs, atol=2e-5, rtol=1e-5)
    next((tmp_path / "hf").glob("model-*.safetensors")).unlink()
    with pytest.raises(CheckpointError, match="cannot read"):
        convert_transformers(tmp_path / "hf", tmp_path / "again")
    assert not (tmp_path / "again").exists()


@pytest.mark.parametrize("head", [False, True])
def test_vjepa2_model(tmp_path: Path, head: bool) -> None:
    kind = VJEPA2ForVideoClassification if head else VJEPA2Model
    model = shaken(kind(VJEPA2Config(**VJEPA2)))
    model.save_pretrained(tmp_path / "hf")
    record = convert_transformers(tmp_path / "hf", tmp_path / "run")
    assert bool(record["ignored"]) == head and list(record["filled"]) == ["encoder"]
    encoder, inner = checkpoint.load_encoder(tmp_path / "run"), model.vjepa2 if head else model
    pixels = encoder.normalise(CLIPS)
    with torch.no_grad():
        theirs = inner(pixels.transpose(1, 2), skip_predictor=True).last_hidden_state
    torch.testing.assert_close(encoder(CLIPS), theirs, atol=2e-5, rtol=1e-5)
    method = checkpoint.create(checkpoint.read_config(checkpoint.find(tmp_path / "run")[0]))
    checkpoint.load_model(checkpoint.find(tmp_path / "run")[0], method)
    tokens = method.get_submodule("predictor").mask_tokens
    stacked = inner.predictor.embeddings.mask_tokens
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(tokens, stacked, strict=True))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"model_type": "dinov2"}, "a run can be made of ijepa, vjepa2"),
        ({"hidden_act": "relu"}, "hidden_act='relu'"),
        ({"qkv_bias": False}, "qkv_bias=False"),
        ({"image_size": 64}, "position table has 16"),
    ],
)
def test_what_ours_cannot_be_is_refused(tmp_path: Path, change: dict[str, Any], reason: str) -> None:
    IJepaModel(IJepaConfig(**IJEPA), add_pooling_layer=False).save_pretrained(tmp_path / "hf")
    path = tmp_path / "hf" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(CheckpointError, match=reason):
        convert_transformers(tmp_path / "hf", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_other_norms_are_noted_and_other_models_named(tmp_path: Path) -> None:
    IJepaModel(IJepaConfig(**IJEPA | {"layer_norm_eps": 1e-12}), add_pooling_layer=False).save_pretrained(
        tmp_path / "a"
    )
    assert "layer_norm_eps is 1e-12" in convert_transformers(tmp_path / "a", tmp_path / "run")["notes"][0]
    ViTModel(
        ViTConfig(hidden_size=48, num_hidden_layers=1, num_attention_heads=2, intermediate_size=96)
    ).save_pretrained(tmp_path / "vit")
    with pytest.raises(CheckpointError, match="holds a 'vit'"):
        convert_transformers(tmp_path / "vit", tmp_path / "never")
    with pytest.raises(CheckpointError, match="is no folder of transformers"):
        convert_transformers(tmp_path / "nowhere", tmp_path / "never")
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "config.json").write_text("[1]")
    with pytest.raises(CheckpointError, match="not settings by name"):
        convert_transformers(tmp_path / "odd", tmp_path / "never")
    assert not (tmp_path / "never").exists()


def test_timm_from_a_folder_and_from_a_file(tmp_path: Path) -> None:
    args = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3, "num_classes": 5}
    model: Any = shaken(timm.create_model("vit_base_patch16_gap_224", fc_norm=False, **args))
    folder = tmp_path / "timm"
    timm.models.save_for_hf(model, folder, model_args=args)
    record = convert_timm(folder, tmp_path / "run")
    assert list(record["ignored"].values()) == [2]
    encoder = checkpoint.load_encoder(tmp_path / "run")
    with torch.no_grad():
        theirs = model.forward_features(encoder.normalise(PIXELS))
    torch.testing.assert_close(encoder(PIXELS), theirs, atol=2e-5, rtol=1e-5)
    assert list(encoder.config.data.mean) == list(model.pretrained_cfg["mean"])
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    with pytest.raises(CheckpointError, match=r"method\.encoder\.heads=N"):
        convert_timm(tmp_path / "weights.pth", tmp_path / "again")
    convert_timm(tmp_path / "weights.pth", tmp_path / "again", ["method.encoder.heads=3"])
    mean = [f"data.{name}={list(model.pretrained_cfg[name])}" for name in ("mean", "std")]
    convert_timm(tmp_path / "weights.pth", tmp_path / "third", ["method.encoder.heads=3", *mean])
    torch.testing.assert_close(checkpoint.load_encoder(tmp_path / "third")(PIXELS), encoder(PIXELS))


def test_timm_models_of_another_kind_are_refused(tmp_path: Path) -> None:
    args = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 1, "num_heads": 3}
    timm.models.save_for_hf(timm.create_model("vit_small_patch16_224", **args), tmp_path / "timm", model_args=args)
    with pytest.raises(CheckpointError, match=r"has cls_token.*timm:vit_small_patch16_224"):
        convert_timm(tmp_path / "timm", tmp_path / "run")
    assert not (tmp_path / "run").exists()
