"""Tokens, layers, means, PCA maps, other sizes and clip lengths: the same from a run and through each of its exports.

Where a format interpolates in a way of its own, `--image-size` makes an export of the other size; docs/export.md has
the table.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import timm
import torch
from torch import Tensor
from transformers import AutoModel

import jepa
from jepa.export import subject
from jepa.export.subject import Asked
from jepa.export.write import export
from jepa.report.pictures import feature_maps
from tests.export import runs

Look = Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]  # pixels in 0..1 to tokens, their mean, tokens of block 0
LAYER, CLOSE = 0, 1e-4
LARGER = (64, 48)


def opened(form: str, folder: Path, found: subject.Subject) -> Look:
    """An export as its users open it."""
    if form == "safetensors":
        return of_ours(jepa.load_encoder(folder))
    if form == "torch":
        program = torch.export.load(folder / "encoder.pt2").module()
        return lambda pixels: program(pixels)
    if form == "onnx":
        session = onnxruntime.InferenceSession(folder / "encoder.onnx")
        return lambda pixels: tuple(map(torch.from_numpy, session.run(None, {"pixels": pixels.numpy()})))  # type: ignore[return-value]
    if form == "timm":
        return of_timm(timm.create_model(f"local-dir:{folder}", pretrained=True).eval(), found)
    return of_transformers(AutoModel.from_pretrained(folder).eval(), found)


def of_ours(encoder: Any) -> Look:
    def look(pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        tokens, inner = encoder.features(pixels, layers=[LAYER])
        return tokens, encoder.features(pixels, pool=True), inner

    return look


def of_timm(model: Any, found: subject.Subject) -> Look:
    def look(pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = found.normalised(pixels)
        inner = model.forward_intermediates(x, [LAYER], norm=True, output_fmt="NLC", intermediates_only=True)[0]
        return model.forward_features(x), model(x), inner

    return look


def of_transformers(model: Any, found: subject.Subject) -> Look:
    def look(pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = found.normalised(pixels)
        x, more = (x.transpose(1, 2), {"skip_predictor": True}) if found.clips else (x, {})
        out = model(x, output_hidden_states=True, **more)
        norm = model.encoder.layernorm if found.clips else model.layernorm
        tokens = out.last_hidden_state  # hidden_states[0] is what goes into the first block
        return tokens, tokens.mean(dim=1), norm(out.hidden_states[LAYER + 1])

    return look


def draw(*size: int) -> Tensor:
    return torch.rand(6, 3, *size, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def compare(look: Look, wanted: Look, pixels: Tensor, grid: tuple[int, int, int]) -> None:
    ours, theirs = wanted(pixels), look(pixels)
    for name, own, found in zip(("tokens", "mean", "layer"), ours, theirs, strict=True):
        torch.testing.assert_close(found, own, atol=CLOSE, rtol=0, msg=lambda text, name=name: f"{name}: {text}")
    assert (ours[0] - ours[2]).abs().max() > 100 * CLOSE, "an inner layer is another thing than the output"
    for (mine, _), (other, _) in [(feature_maps(ours[k], grid, 6), feature_maps(theirs[k], grid, 6)) for k in (0, 2)]:
        steps = [np.abs(np.asarray(a, int) - np.asarray(b, int)).max() for x, y in zip(mine, other, strict=True)
                 for a, b in zip(x, y, strict=True)]  # fmt: skip
        assert max(steps) <= 1, "maps of principal components differ by rounding alone"


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return runs.make(tmp_path_factory.mktemp("images") / "run", "ijepa-vit-b16")


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return runs.make(tmp_path_factory.mktemp("clips") / "run", "vjepa2-vit-l16")


@pytest.mark.parametrize("form", ["transformers", "timm", "torch", "onnx", "safetensors"])
def test_images(form: str, images: Path, tmp_path: Path) -> None:
    layers = (LAYER,) if form in ("torch", "onnx") else ()
    export(images, form, tmp_path / "out", Asked(layers=layers))
    found = subject.load(images, Asked())
    look, ours = opened(form, tmp_path / "out", found), of_ours(jepa.load_encoder(images))
    compare(look, ours, draw(32, 32), (1, 2, 2))
    if form in ("torch", "onnx"):  # programs take any size, with positions interpolated as ours are
        larger = jepa.load_encoder(images)
        larger.encoder.resize(LARGER)  # type: ignore[operator]
        larger.image_size = LARGER
        compare(look, of_ours(larger), draw(*LARGER), (1, 4, 3))


@pytest.mark.parametrize("form", ["transformers", "timm", "onnx", "safetensors"])
def test_images_of_another_size(form: str, images: Path, tmp_path: Path) -> None:
    """Positions interpolated by ours, then exported."""
    asked = Asked(image_size=LARGER, layers=(LAYER,) if form == "onnx" else (), any_size=False)
    export(images, form, tmp_path / "out", asked)
    found, ours = subject.load(images, asked), jepa.load_encoder(images)
    ours.encoder.resize(LARGER)  # type: ignore[operator]
    ours.image_size = LARGER
    compare(opened(form, tmp_path / "out", found), of_ours(ours), draw(*LARGER), (1, 4, 3))
    if form != "onnx":
        assert jepa.load_encoder(tmp_path / "out").image_size == LARGER


def test_interpolation_of_others_is_another_one(images: Path, tmp_path: Path) -> None:
    """Why `--image-size` is there: bicubic instead of bilinear moves features by some percent."""
    found = subject.load(images, Asked())
    pixels = draw(*LARGER)
    wanted, x = found.resized(LARGER).tokens(pixels), found.normalised(pixels)
    for form in ("transformers", "timm"):
        export(images, form, tmp_path / form)
    theirs = AutoModel.from_pretrained(tmp_path / "transformers").eval()
    model: Any = timm.create_model(f"local-dir:{tmp_path / 'timm'}", pretrained=True, dynamic_img_size=True).eval()
    with torch.no_grad():
        got = [theirs(x, interpolate_pos_encoding=True).last_hidden_state, model.forward_features(x)]
    for tokens in got:
        assert 1e-3 < float((tokens - wanted).square().mean().sqrt() / wanted.square().mean().sqrt()) < 0.1


@pytest.mark.parametrize("form", ["transformers", "torch", "onnx", "safetensors"])
def test_clips_of_other_lengths_and_sizes(form: str, clips: Path, tmp_path: Path) -> None:
    """Rotary positions go with every length, and every size where the format computes them of it."""
    layers = (LAYER,) if form in ("torch", "onnx") else ()
    export(clips, form, tmp_path / "out", Asked(layers=layers))
    found, ours = subject.load(clips, Asked()), jepa.load_encoder(clips)
    look = opened(form, tmp_path / "out", found)
    compare(look, of_ours(ours), draw(4, 32, 32), (2, 2, 2))
    compare(look, of_ours(ours), draw(6, 32, 32), (3, 2, 2))
    larger = LARGER if form in ("torch", "onnx") else (48, 48)
    ours.encoder.resize((2, *larger))  # type: ignore[operator]
    ours.image_size = larger
    if form == "transformers":  # its positions go by the configuration, which may be another one when it is opened
        look = of_transformers(AutoModel.from_pretrained(tmp_path / "out", crop_size=48).eval(), found)
    elif form == "safetensors":
        export(clips, form, tmp_path / "larger", Asked(image_size=larger, frames=2))
        look = opened(form, tmp_path / "larger", found)
    compare(look, of_ours(ours), draw(2, *larger), (1, larger[0] // 16, larger[1] // 16))


@pytest.mark.parametrize("form", ["torch", "safetensors"])
def test_clips_with_fixed_positions(form: str, tmp_path: Path) -> None:
    """V-JEPA's table in time, height and width: another length by `--frames`, another size in programs as it comes."""
    run = runs.make(tmp_path / "run", "vjepa2-vit-l16", "method.position={kind: sincos}")
    asked = Asked(frames=8, layers=(LAYER,) if form == "torch" else ())
    export(run, form, tmp_path / "out", asked)
    look, ours = opened(form, tmp_path / "out", subject.load(run, asked)), jepa.load_encoder(run)
    ours.encoder.resize((8, 32, 32))  # type: ignore[operator]
    compare(look, of_ours(ours), draw(8, 32, 32), (4, 2, 2))
    if form == "torch":
        ours.encoder.resize((8, *LARGER))  # type: ignore[operator]
        ours.image_size = LARGER
        compare(look, of_ours(ours), draw(8, *LARGER), (4, 4, 3))
