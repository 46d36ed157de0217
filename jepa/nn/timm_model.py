"""Models of timm: made by name for images of a size, tried out, and where their patch tokens are.

Needs the extra: ``pip install 'jepa[timm]'``. Pretrained weights come from the network or from timm's cache; without
both there is an error, never a silent fall-back to random weights.

Shapes: B batch, H W image, N tokens, D width.
"""

from __future__ import annotations

import difflib
from typing import Any

import torch
from torch import Tensor, nn

from jepa.errors import ConfigError

_HUB = "hf-hub:"  # in front of names that timm itself does not know
_SIZE = (224, 224)  # where nothing says it


def package(name: str) -> Any:
    """timm, which has the model `name`.

    Raises:
        ConfigError: not installed, or no such model (the nearest names are given).
    """
    try:
        import timm
    except ImportError:
        raise ConfigError(f"timm model {name!r} needs the extra package: pip install 'jepa[timm]'") from None
    architecture = name.split(".")[0]
    if not name.startswith(_HUB) and not timm.is_model(architecture):
        near = difflib.get_close_matches(architecture, timm.list_models(), n=3)
        raise ConfigError(
            f"timm has no model {name!r}. Nearest: {', '.join(near) or 'none'}; "
            "`python -c 'import timm; print(timm.list_models())'` lists all"
        )
    return timm


def settings(name: str) -> Any:
    """What timm knows of a model without its weights (`input_size`, `mean`, `std`); None of models on a hub.

    Raises:
        ConfigError: see `package`.
    """
    timm = package(name)
    return None if name.startswith(_HUB) else timm.get_pretrained_cfg(name)


def own_size(name: str) -> tuple[int, int]:
    """(H, W) that the model was made for.

    Raises:
        ConfigError: see `package`.
    """
    found = settings(name)
    return _SIZE if found is None else (int(found.input_size[1]), int(found.input_size[2]))


def create(name: str, image_size: tuple[int, int], pretrained: bool = False, hint: str = "") -> nn.Module:
    """The model without its classifier, for images of this size (H, W), in eval mode.

    Args:
        hint: what else one can do where its weights cannot be had.

    Raises:
        ConfigError: see `package`; weights that cannot be had, or a model that cannot be made for this size.
    """
    timm = package(name)
    for options in ({"img_size": image_size}, {}):  # a model that takes images of any size has no such argument
        try:
            model: nn.Module = timm.create_model(name, pretrained=pretrained, num_classes=0, **options)
            return model.eval()
        except TypeError as error:
            problem: Exception = error
        except Exception as error:  # whatever a download or a model's own check raises: it has no common base
            problem = error
            break
    if not pretrained:
        raise _unfit(name, image_size, _short(problem)) from None
    raise ConfigError(
        f"the pretrained weights of timm model {name!r} cannot be loaded, for images of {_by(image_size)}: "
        f"{_short(problem)}. They are downloaded once and then cached. Go online once with this model"
        + (f", {hint}" if hint else "")
    ) from None


def check(model: nn.Module, name: str, image_size: tuple[int, int]) -> tuple[int, int]:
    """Tokens of an image and their width, (N, D); one black image goes through the model.

    Raises:
        ConfigError: it does not take images of this size, or gives no finite tokens for them.
    """
    place = next(model.parameters()).device
    features: Any = model
    try:
        with torch.no_grad():
            black = torch.zeros(1, 3, *image_size, device=place)
            tokens = patch_tokens(model, torch.as_tensor(features.forward_features(black)))
        _, count, width = tokens.shape
        fine = count > 0 and (tokens.is_meta or bool(torch.isfinite(tokens).all()))
        reason = "" if fine else "its features are not finite there"
    except Exception as error:  # models check their input in many ways
        reason = _short(error)
    if reason:
        raise _unfit(name, image_size, reason)
    return count, width


def patch_tokens(model: nn.Module, features: Tensor) -> Tensor:
    """Patch tokens, or the positions of a feature map, row by row: (B, N, D).

    Args:
        model: a timm model.
        features: what its `forward_features` gives: tokens with class and register tokens first, or a feature map.
    """
    if features.ndim == 3:
        return features[:, getattr(model, "num_prefix_tokens", 0) :]
    assert features.ndim == 4, f"features have shape {tuple(features.shape)}, expected 3 or 4 axes"
    channels_last = getattr(model, "output_fmt", "NCHW") == "NHWC"
    return features.flatten(1, 2) if channels_last else features.flatten(2).transpose(1, 2)


def _unfit(name: str, image_size: tuple[int, int], reason: str) -> ConfigError:
    return ConfigError(
        f"timm model {name!r} does not take images of {_by(image_size)}: {reason}. Give another image size"
    )


def _by(image_size: tuple[int, int]) -> str:
    return f"{image_size[0]}×{image_size[1]}"


def _short(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:200]}"


__all__ = ["check", "create", "own_size", "package", "patch_tokens", "settings"]
