"""timm models as baselines: pooled features of the right shape, and clear words when a model cannot be had."""

from __future__ import annotations

import pytest
import torch

from jepa.errors import ConfigError
from jepa.probe.timm_encoder import TimmConfig, timm_source

timm = pytest.importorskip("timm")
CPU = torch.device("cpu")


def images(size: int, count: int = 3) -> torch.Tensor:
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("name", "size", "width"),
    [
        ("resnet10t", 32, 512),
        ("vit_tiny_patch16_224", 32, 192),
        ("test_convnext", 64, None),
        ("test_efficientnet", 32, None),
    ],
)
@pytest.mark.parametrize("pool", ["mean", "model"])
def test_one_vector_for_each_image(name, size, width, pool):
    source = timm_source(TimmConfig(name, pretrained=False, image_size=(size, size), pool=pool))
    assert source.baseline and source.image_size == (size, size) and source.name == f"timm:{name} (random, seed 0)"
    found = source.build(CPU)(images(size))
    assert found.shape[0] == 3 and found.ndim == 2 and (width is None or found.shape[1] == width)
    assert bool(torch.isfinite(found).all())


def test_mean_of_a_vit_leaves_the_class_token_out():
    config = TimmConfig("vit_tiny_patch16_224", pretrained=False, image_size=(32, 32))
    found = timm_source(config).build(CPU)(images(32))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = timm.create_model("vit_tiny_patch16_224", img_size=(32, 32), num_classes=0).eval()
    mean, std = (torch.tensor(model.pretrained_cfg[k]).view(1, 3, 1, 1) for k in ("mean", "std"))
    with torch.no_grad():
        tokens = model.forward_features((images(32) / 255 - mean) / std)
    torch.testing.assert_close(found, tokens[:, 1:].mean(dim=1), rtol=1e-4, atol=1e-5)


def test_random_weights_follow_the_seed_and_leave_the_generator_alone():
    state = torch.get_rng_state()
    one, same, other = (
        timm_source(TimmConfig("resnet10t", pretrained=False, image_size=(32, 32), seed=s)).build(CPU)(images(32))
        for s in (0, 0, 1)
    )
    assert torch.equal(one, same) and not torch.equal(one, other)
    assert torch.equal(torch.get_rng_state(), state)


def test_the_models_own_size_is_taken_when_none_is_given():
    assert timm_source(TimmConfig("vit_tiny_patch16_224", pretrained=False)).image_size == (224, 224)


def test_unknown_model_names_the_nearest():
    with pytest.raises(ConfigError, match=r"timm has no model 'resnet_18'. Nearest: .*resnet18"):
        timm_source(TimmConfig("resnet_18"))


def test_pretrained_weights_that_cannot_be_had(monkeypatch, tmp_path):
    for name, value in {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "TORCH_HOME": str(tmp_path)}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    source = timm_source(TimmConfig("resnet10t", pretrained=True))  # nothing is downloaded before it is needed
    with pytest.raises(
        ConfigError, match=r"pretrained weights of timm model 'resnet10t' cannot be loaded.*pretrained: false"
    ):
        source.build(CPU)


def test_a_size_the_model_does_not_take():
    config = TimmConfig("vit_tiny_patch16_224", pretrained=False, image_size=(8, 8))  # smaller than a patch
    with pytest.raises(ConfigError, match=r"does not take images of 8×8: .*another image size"):
        timm_source(config).build(CPU)
