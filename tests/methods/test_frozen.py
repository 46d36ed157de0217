"""Frozen encoders inside world models: the frames they get, where weights come from, what they are without the run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from jepa import checkpoint, config
from jepa.checkpoint import frozen
from jepa.config import DataConfig, RunConfig
from jepa.errors import CheckpointError, ConfigError
from jepa.methods import base
from jepa.methods.frozen import FrozenConfig, FrozenEncoder
from jepa.nn.tokens import Normalise
from tests.methods import frozen_worlds as worlds
from tests.methods.frozen_worlds import ACTION, PROPRIO, SMALL

DATA = DataConfig(mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
OTHER = {"mean": [0.1, 0.2, 0.3], "std": [0.5, 0.6, 0.7]}


def save_run(folder: Path, method: dict[str, Any], data: dict[str, Any], seed: int = 0, step: int = 3) -> Path:
    """A run with random weights and a teacher that differs from the context encoder."""
    run = config.build(RunConfig, {"name": "source", "method": method, "data": {**data, **OTHER}})
    model = checkpoint.create(run, seed)
    with torch.no_grad():
        for parameter in model.get_submodule("target").parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    checkpoint.save(folder, step, model, None, {}, run)
    (folder / "config.yaml").write_text(config.to_yaml(run))
    return folder


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return save_run(tmp_path / "images", worlds.IMAGES, {"image_size": 12})


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    data = {"image_size": 12, "clip": {"frames": 4, "stride": 1}}
    return save_run(tmp_path / "videos", worlds.VIDEO, data)


def section(**encoder: Any) -> dict[str, Any]:
    return {
        "name": "dinowm", "encoder": encoder, "predictor": worlds.PREDICTORS["dinowm"],
        "space": {"action": ACTION, "proprio": PROPRIO},
    }  # fmt: skip


def started(encoder: dict[str, Any], size: tuple[int, ...] = (4, 12, 12)) -> tuple[dict[str, Any], base.Method]:
    """As a fresh run does it."""
    method = frozen.resolve(section(**encoder), DATA)
    made = base.create(method, size)
    frozen.load(made)
    return method, made


@pytest.mark.parametrize("which", ["target", "context", None])
def test_images_give_what_the_run_gives(images: Path, which: str | None) -> None:
    _, model = started({"path": str(images), "which": which})
    pixels = torch.rand(3, 3, 12, 12)
    source = checkpoint.load_encoder(images, which=which)
    want = source(pixels)
    given = Normalise(DATA.mean, DATA.std)(pixels)
    torch.testing.assert_close(model.encode(given), want, atol=1e-5, rtol=1e-5)
    clip = given[:2].unsqueeze(0).transpose(1, 2)  # (1, 3, 2, H, W)
    torch.testing.assert_close(model.encode(clip)[0], want[:2].flatten(0, 1), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("position", [{}, {"position": {"kind": "sincos"}}])
def test_videos_give_each_frame_doubled(tmp_path: Path, position: dict[str, Any]) -> None:
    data = {"image_size": 12, "clip": {"frames": 4, "stride": 1}}
    run = save_run(tmp_path / "videos", worlds.VIDEO | position, data)
    _, model = started({"path": str(run)})
    pixels = torch.rand(2, 3, 12, 12)
    doubled = checkpoint.load_encoder(run)(pixels.unsqueeze(2).expand(-1, -1, 2, -1, -1))
    found = model.encode(Normalise(DATA.mean, DATA.std)(pixels))
    assert found.shape == (2, 9, 24)
    torch.testing.assert_close(found, doubled, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["images", "videos"])
def test_frames_of_another_size(kind: str, request: pytest.FixtureRequest) -> None:
    run: Path = request.getfixturevalue(kind)
    _, model = started({"path": str(run)}, (4, 16, 20))
    encoder = model.get_submodule("encoder")
    assert isinstance(encoder, FrozenEncoder) and encoder.grid == (4, 5) and encoder.tokens == 20
    source = checkpoint.load_encoder(run)
    source.encoder.resize((4, 16, 20)[3 - len(source.size) :])  # type: ignore[operator]
    pixels = torch.rand(2, 3, 16, 20)
    given = pixels.unsqueeze(2).expand(-1, -1, 2, -1, -1) if kind == "videos" else pixels
    want = source.encoder(source.normalise(given))
    torch.testing.assert_close(model.encode(Normalise(DATA.mean, DATA.std)(pixels)), want, atol=1e-5, rtol=1e-5)
    with pytest.raises(ConfigError, match=r"frames of \(12, 12\).*takes \(16, 20\)"):
        model.encode(torch.zeros(1, 3, 12, 12))


def test_a_checkpoint_needs_no_run_beside_it(images: Path, tmp_path: Path) -> None:
    method, model = started({"path": str(images)})
    run = config.build(RunConfig, {"method": method, "data": {"image_size": 12, "clip": {"frames": 4, "stride": 1}}})
    checkpoint.save(tmp_path / "world", 1, model, None, {}, run)
    for path in images.rglob("model.safetensors"):
        path.unlink()
    found = checkpoint.resolve(tmp_path / "world")
    again = checkpoint.create(checkpoint.read_config(found), seed=5)
    encoder = again.get_submodule("encoder")
    assert isinstance(encoder, FrozenEncoder) and encoder.awaits_weights
    with pytest.raises(AssertionError, match="has no weights yet"):
        again.encode(torch.zeros(1, 3, 12, 12))
    checkpoint.load_model(found, again)
    assert frozen.load(again) == [], "they are there already"
    assert frozen.resolve(method, DATA) == method, "a started run's encoder stays what it is"
    x = torch.randn(2, 3, 12, 12)
    assert torch.equal(again.encode(x), model.encode(x))


def test_a_world_model_may_be_the_encoder_of_another(images: Path, tmp_path: Path) -> None:
    method, model = started({"path": str(images)})
    data = {"image_size": 12, "clip": {"frames": 4, "stride": 1}, "mean": DATA.mean, "std": DATA.std}
    run = config.build(RunConfig, {"method": method, "data": config.to_dict(data)})
    checkpoint.save(tmp_path / "world", 1, model, None, {}, run)
    outer = started({"path": str(tmp_path / "world")})[1]
    x = torch.randn(2, 3, 12, 12)
    torch.testing.assert_close(outer.encode(x), model.encode(x))


def test_what_a_run_says_about_its_encoder(videos: Path) -> None:
    method, model = started({"path": str(videos)})
    spec = method["encoder"]["spec"]
    assert spec["size"] == [4, 12, 12] and spec["which"] == "target" and spec["step"] == 3
    assert spec["mean"] == OTHER["mean"] and spec["data_std"] == list(DATA.std) and len(spec["weights"]) == 16
    assert frozen.load(base.create(method, (4, 12, 12))) == [f"frozen encoder from {videos}"]
    text = config.to_yaml(config.build(RunConfig, {"method": method}))
    assert config.read_yaml is not None and "spec" in text
    other = frozen.resolve({"name": "ijepa"}, DATA)
    assert other == {"name": "ijepa"}, "methods without a frozen encoder are left alone"
    assert not any(p.requires_grad for p in model.get_submodule("encoder").parameters())


def test_a_run_that_trained_on_is_not_taken_for_the_same(images: Path, tmp_path: Path) -> None:
    method = frozen.resolve(section(path=str(images)), DATA)
    save_run(images, worlds.IMAGES, {"image_size": 12}, seed=1, step=9)
    with pytest.raises(CheckpointError, match="has trained on since.*one of its checkpoints"):
        frozen.load(base.create(method, (4, 12, 12)))


def test_timm_models_give_patch_tokens_or_maps() -> None:
    timm = pytest.importorskip("timm")
    for name, tokens in (("test_vit", 4), ("test_resnet", 1)):
        method, model = started({"timm": name, "pretrained": False}, (4, 32, 32))
        assert method["encoder"]["spec"]["mean"] == list(timm.get_pretrained_cfg(name).mean)
        x = torch.randn(2, 3, 3, 32, 32)
        found = model.encode(x)
        assert found.shape[:2] == (2, 3 * tokens) and not found.requires_grad
        encoder = model.get_submodule("encoder")
        assert isinstance(encoder, FrozenEncoder) and not encoder.awaits_weights
        spec = encoder.config.spec
        pixels = Normalise(tuple(spec["mean"]), tuple(spec["std"]))(x[:, :, 1] * torch.tensor(DATA.std).view(3, 1, 1)
                           + torch.tensor(DATA.mean).view(3, 1, 1))  # fmt: skip
        maps = encoder.encoder.forward_features(pixels)  # type: ignore[operator]
        want = maps[:, 1:] if name == "test_vit" else maps.flatten(2).transpose(1, 2)
        torch.testing.assert_close(found[:, tokens : 2 * tokens], want, atol=1e-4, rtol=1e-4)
        with torch.device("meta"):
            base.create(method, (4, 32, 32)).to("meta")


@pytest.mark.parametrize("chunk", [1, 3, 64])
def test_frames_are_encoded_in_pieces(chunk: int) -> None:
    torch.manual_seed(0)
    encoder = FrozenEncoder(FrozenConfig(chunk=chunk, spec=worlds.SPECS["images"]), (12, 12))
    encoder.train()
    assert not encoder.training and not encoder.encoder.training
    x = torch.randn(2, 3, 4, 12, 12)
    found = encoder(x)
    for clip in range(2):
        for time in range(4):
            alone = encoder(x[clip : clip + 1, :, time])[0]
            torch.testing.assert_close(found[clip, 9 * time : 9 * time + 9], alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("encoder", "words"),
    [
        ({}, "method.encoder says no encoder"),
        ({"path": "a", "timm": "b"}, "not both"),
        ({"path": "runs/none"}, "no such run"),
        ({"timm": "vit_smal_patch14_dinov2"}, "Nearest: vit_small"),
        ({"path": "images", "which": "teacher"}, "context, target"),
        ({"spec": {"method": {"name": "ijepa", "predictor": SMALL}, "size": [12, 12]}}, "multiple"),
        ({"spec": {**worlds.SPECS["images"], "which": "nobody"}}, "nobody"),
        ({"chunk": 0}, "chunk"),
    ],
)
def test_what_is_wrong_with_an_encoder_is_said(encoder: dict[str, Any], words: str, images: Path) -> None:
    if encoder.get("path") == "images":
        encoder = encoder | {"path": str(images)}
    if "timm" in encoder:
        pytest.importorskip("timm")
    with pytest.raises((ConfigError, CheckpointError), match=words):
        started(encoder)
