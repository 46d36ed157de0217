"""Out and back again: the same weights bit by bit, the same outputs, whichever layout they went through."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel

import jepa
from jepa import checkpoint
from jepa.errors import CheckpointError
from jepa.export import import_checkpoint, keymaps
from jepa.export.subject import Asked
from jepa.export.write import export
from jepa.methods import base
from tests import golden_set
from tests.export import official, runs

ROUNDING = {"atol": 2e-5, "rtol": 1e-5}  # that golden outputs are compared with


def weights(run: Path) -> dict[str, torch.Tensor]:
    found = checkpoint.latest(run)
    method = checkpoint.create(checkpoint.read_config(found))
    checkpoint.load_model(found, method)
    return dict(method.state_dict())


def equal(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> bool:
    return found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in wanted)


# --- official layout, ours, theirs --------------------------------------------------------------------------------


@pytest.mark.golden("ijepa_forward")
@pytest.mark.parametrize("form", ["transformers", "timm"])
def test_official_ijepa_becomes_a_model_of_others(form: str, tmp_path: Path) -> None:
    import timm

    given, parts = golden_set.tensors("ijepa_forward"), official.golden_parts()
    source = official.write_golden(tmp_path / "IN1K-vit.pth.tar")
    import_checkpoint(source, "ijepa", tmp_path / "run", official.golden_settings())
    table = keymaps.IJEPA if form == "transformers" else keymaps.TIMM
    for which, part in (("context", "encoder"), ("target", "target")):
        out = tmp_path / which
        export(tmp_path / "run", form, out, Asked(which=which))
        assert equal(table.inward(load_file(out / "model.safetensors")), parts[part])
    with torch.no_grad():
        if form == "transformers":
            tokens = AutoModel.from_pretrained(tmp_path / "context").eval()(given["imgs"]).last_hidden_state
        else:
            model: Any = timm.create_model(f"local-dir:{tmp_path / 'context'}", pretrained=True).eval()
            tokens = model.forward_features(given["imgs"])
    torch.testing.assert_close(tokens, given["out.encoder_full"], **ROUNDING)


@pytest.mark.golden("vjepa2_forward")
def test_official_vjepa2_becomes_a_model_of_transformers(tmp_path: Path) -> None:
    given, parts = golden_set.tensors("vjepa2_forward"), official.video_parts()
    torch.save(official.training_checkpoint(parts, "module.backbone."), tmp_path / "vitl.pt")
    import_checkpoint(tmp_path / "vitl.pt", "vjepa2", tmp_path / "run", official.video_settings())
    export(tmp_path / "run", "transformers", tmp_path / "out", Asked(which="context"))
    back = keymaps.VJEPA2.inward(load_file(tmp_path / "out" / "model.safetensors"))
    assert equal(back, {f"{p}.{name}": t for p in ("encoder", "predictor") for name, t in parts[p].items()})
    model = AutoModel.from_pretrained(tmp_path / "out").eval()
    with torch.no_grad():
        tokens = model.get_vision_features(given["clips.0"].transpose(1, 2))
    torch.testing.assert_close(tokens, given["out.encoder_full.0"], **ROUNDING)


# --- ours, theirs, ours -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "form", "size", "parts"),
    [
        ("ijepa-vit-b16", "transformers", (32, 32), ("target",)),
        ("ijepa-vit-b16", "transformers", (48, 32), ("target",)),
        ("ijepa-vit-b16", "timm", (32, 32), ("target",)),
        ("ijepa-vit-b16", "timm", (32, 64), ("target",)),
        ("vjepa2-vit-l16", "transformers", (4, 32, 32), ("target", "predictor")),
    ],
)
def test_a_run_comes_back_from_its_export(
    name: str, form: str, size: tuple[int, ...], parts: tuple[str, ...], tmp_path: Path
) -> None:
    """Weights bit by bit, features, and what a run has to know besides: heads, sizes, preprocessing."""
    run = runs.make(tmp_path / "run", name, f"data.image_size={list(size[-2:])}", "data.mean=[0.4,0.5,0.6]")
    export(run, form, tmp_path / "out")
    import_checkpoint(tmp_path / "out", form, tmp_path / "back")
    before, after = weights(run), weights(tmp_path / "back")
    for part in parts:
        own = {key: tensor for key, tensor in before.items() if key.startswith(f"{part}.")}
        assert equal({key: tensor for key, tensor in after.items() if key.startswith(f"{part}.")}, own)
    ours, again = jepa.load_encoder(run), jepa.load_encoder(tmp_path / "back")
    pixels = torch.randint(0, 256, (2, 3, *size), dtype=torch.uint8)
    assert torch.equal(again(pixels), ours(pixels))
    assert again.size == ours.size == size
    for setting in ("mean", "std", "interpolation"):
        assert getattr(again.config.data, setting) == getattr(ours.config.data, setting)
    (_, old), (_, new) = (base.resolve(found.config.method) for found in (ours, again))
    assert new.encoder.resolved() == old.encoder.resolved() and new.encoder.patch == old.encoder.patch
    if len(size) == 3:
        assert (new.predictor.width, new.predictor.depth, new.predictor.heads) == (24, 1, old.predictor.heads or 2)


def test_a_table_refuses_what_it_does_not_know() -> None:
    with pytest.raises(CheckpointError, match="no place for the weight 'cls_token'"):
        keymaps.TIMM.outward({"cls_token": torch.zeros(1)})
    with pytest.raises(CheckpointError, match="'head.weight'.*no place here"):
        keymaps.IJEPA.inward({"head.weight": torch.zeros(1)})
    one = {"encoder.layer.0.attention.attention.query.weight": torch.zeros(2, 2)}
    with pytest.raises(CheckpointError, match="needs 3 weights, 1 are there"):
        keymaps.IJEPA.inward(one)
