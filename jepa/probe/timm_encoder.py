"""Any timm model as a baseline: features of the frozen model, pooled.

Needs the extra: ``pip install 'jepa[timm]'``. Pretrained weights come from the network or from timm's cache; without
both the model cannot be loaded, which is an error and never a silent fall-back to random weights.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from jepa.errors import ConfigError
from jepa.nn.timm_model import patch_tokens
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
    try:
        import timm
    except ImportError:
        raise ConfigError(
            f"baseline timm model {config.model!r} needs the extra package: pip install 'jepa[timm]'"
        ) from None
    architecture = config.model.split(".")[0].removeprefix("hf-hub:")
    if not config.model.startswith("hf-hub:") and not timm.is_model(architecture):
        near = difflib.get_close_matches(architecture, timm.list_models(), n=3)
        raise ConfigError(
            f"timm has no model {config.model!r}. Nearest: {', '.join(near) or 'none'}; "
            "`python -c 'import timm; print(timm.list_models())'` lists all"
        )
    # timm's defaults of the architecture, known without weights
    settings = timm.get_pretrained_cfg(config.model) if not config.model.startswith("hf-hub:") else None
    size = config.image_size or _own_size(settings)

    def build(device: torch.device) -> Embed:
        model = _Pooled(_create(config, size), config.pool).eval().to(device)
        _try(model, config.model, size, device)
        return model

    def levels(device: torch.device, layers: tuple[int, ...]) -> Levels:
        assert not layers, f"layers {layers} of a timm model"
        model = _Pooled(_create(config, size), config.pool).eval().to(device)
        _try(model, config.model, size, device)
        return lambda images: [model.tokens(images)]

    state = "pretrained" if config.pretrained else f"random, seed {config.seed}"
    identity = {
        "timm": config.model, "version": timm.__version__, "pretrained": config.pretrained, "pool": config.pool,
        "seed": config.seed,
    }  # fmt: skip
    facts = {"timm": timm.__version__, "pretrained": config.pretrained, "image_size": list(size), "pool": config.pool}
    return Source(f"timm:{config.model} ({state})", "timm", size, identity, build, facts, levels, layered=False)


def _own_size(settings: Any) -> tuple[int, int]:
    if settings is None:
        return 224, 224
    _, height, width = settings.input_size
    return int(height), int(width)


def _create(config: TimmConfig, size: tuple[int, int]) -> nn.Module:
    import timm

    options: dict[str, Any] = {"pretrained": config.pretrained, "num_classes": 0}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        try:
            try:
                model: nn.Module = timm.create_model(config.model, img_size=size, **options)
            except TypeError:  # a model that takes images of any size has no such argument
                model = timm.create_model(config.model, **options)
        except Exception as error:  # whatever the download raises: it has no common base
            hint = "use baselines.timm pretrained: false for random weights, or take the model out of the suite"
            if config.pretrained:
                raise ConfigError(
                    f"the pretrained weights of timm model {config.model!r} cannot be loaded: {_short(error)}. They "
                    f"are downloaded once and then cached. Go online once with this model, {hint}"
                ) from None
            raise _unfit(config.model, size, _short(error)) from None
    return model


def _try(model: nn.Module, name: str, size: tuple[int, int], device: torch.device) -> None:
    """One black image: a size that the model was not made for shows in an error, or in a mean over no token."""
    try:
        with torch.inference_mode():
            fine = bool(torch.isfinite(model(torch.zeros(1, 3, *size, dtype=torch.uint8, device=device))).all())
        reason = "" if fine else "its features are not finite there"
    except Exception as error:  # models check their input in many ways
        reason = _short(error)
    if reason:
        raise _unfit(name, size, reason)


def _unfit(name: str, size: tuple[int, int], reason: str) -> ConfigError:
    return ConfigError(f"timm model {name!r} does not take images of {size[0]}×{size[1]}: {reason}. Set image_size")


def _short(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:200]}"


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
        return patch_tokens(self.model, self._maps(images))

    def _maps(self, images: Tensor) -> Tensor:
        model: Any = self.model
        return torch.as_tensor(model.forward_features(self.normalise(images)))
