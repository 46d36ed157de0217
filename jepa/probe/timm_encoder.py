"""Any timm model as a baseline: features of the frozen model, pooled (`jepa.nn.timm_model` makes it)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from jepa.nn import timm_model
from jepa.nn.tokens import Normalise
from jepa.probe.features import Embed, Levels, Source


@dataclass(frozen=True)
class TimmConfig:
    """One timm model."""

    model: str  # timm's name, e.g. resnet18 or vit_small_patch16_224.augreg_in21k
    pretrained: bool = True  # false: random weights
    image_size: tuple[int, int] | None = None  # null: the size the model was made for
    pool: Literal["mean", "model"] = "mean"  # mean over patch tokens or positions; or the model's own pooling
    seed: int = 0  # of random weights


def timm_source(config: TimmConfig) -> Source:
    """The model as a source of features.

    Raises:
        ConfigError: timm is not installed, or has no such model (the nearest names are given); when the source is
            built, pretrained weights that cannot be had.
    """
    timm = timm_model.package(config.model)
    size = config.image_size or timm_model.own_size(config.model)

    def build(device: torch.device) -> Embed:
        return _Pooled(_create(config, size), config.pool).eval().to(device)

    def levels(device: torch.device, layers: tuple[int, ...]) -> Levels:
        assert not layers, f"layers {layers} of a timm model"
        model = _Pooled(_create(config, size), config.pool).eval().to(device)
        return lambda images: [model.tokens(images)]

    state = "pretrained" if config.pretrained else f"random, seed {config.seed}"
    identity = {
        "timm": config.model, "version": timm.__version__, "pretrained": config.pretrained, "pool": config.pool,
        "seed": config.seed,
    }  # fmt: skip
    facts = {"timm": timm.__version__, "pretrained": config.pretrained, "image_size": list(size), "pool": config.pool}
    return Source(f"timm:{config.model} ({state})", "timm", size, identity, build, facts, levels, layered=False)


def _create(config: TimmConfig, size: tuple[int, int]) -> nn.Module:
    hint = "use baselines.timm pretrained: false for random weights, or take the model out of the suite"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = timm_model.create(config.model, size, config.pretrained, hint)
    timm_model.check(model, config.model, size)
    return model


class _Pooled(nn.Module):
    """uint8 images (B, 3, H, W) to one vector each (B, D), normalised as the model wants."""

    def __init__(self, model: nn.Module, pool: str) -> None:
        super().__init__()
        settings: dict[str, Any] = model.pretrained_cfg  # type: ignore[assignment]
        self.model, self.pool = model, pool
        self.normalise = Normalise(tuple(settings["mean"]), tuple(settings["std"]))

    def forward(self, images: Tensor) -> Tensor:
        model: Any = self.model
        if self.pool == "model":
            pooled: Tensor = model.forward_head(self._maps(images), pre_logits=True)
            return pooled.flatten(1)
        return self.tokens(images).mean(dim=1)

    def tokens(self, images: Tensor) -> Tensor:
        """Patch tokens, or the positions of a feature map, row by row: (B, N, D)."""
        return timm_model.patch_tokens(self.model, self._maps(images))

    def _maps(self, images: Tensor) -> Tensor:
        model: Any = self.model
        return torch.as_tensor(model.forward_features(self.normalise(images)))
