"""The contract between a method and everything around it.

A method is one file: it owns its context encoder, its EMA target (if it has one) and its predictor, says which
masks it needs, and turns a batch into a loss. The loop knows nothing of teachers; it calls `forward`, steps the
optimiser, then calls `after_step` once. The method's name is its file name under ``jepa/methods/``, or a dotted
path ``package.module:Class`` for one that lives elsewhere.

Shapes: B batch, H W image, N tokens, K kept tokens, D width.
"""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor, nn

from jepa import config
from jepa.data import Batch
from jepa.errors import ConfigError
from jepa.masks import Masks, Sampler

Schedule = dict[str, Tensor]  # 0-d float tensors on the method's device, so that new values cause no recompile


@dataclass
class Output:
    """What a forward pass gives: the loss to minimise (0-d) and detached 0-d metrics."""

    loss: Tensor
    metrics: dict[str, Tensor] = field(default_factory=dict)


class Method(nn.Module):
    """Base class. Subclasses define a nested dataclass ``Config`` and ``__init__(self, config, image_size)``."""

    Config: ClassVar[type]
    inputs: ClassVar[tuple[str, ...]] = ("image",)
    couples_samples: ClassVar[bool] = False  # the loss mixes samples (SIGReg, VICReg): gathered, never accumulated

    def __init__(self, config: Any, image_size: tuple[int, int]) -> None:
        super().__init__()
        self.config = config
        self.image_size = image_size

    def sampler(self, seed: int) -> Sampler | None:
        """The mask sampler, or None for a method without masks."""
        return None

    def schedule(self, step: int, total_steps: float) -> dict[str, float]:
        """Values in force at `step` (0-based) besides lr and weight decay, e.g. EMA momentum; a pure function."""
        return {}

    def forward(self, images: Tensor, masks: Masks | None, schedule: Schedule, batch: Batch | None = None) -> Output:
        """Loss of one micro-batch. `images`: normalised floats (B, 3, H, W) on the device; `schedule`: 0-d tensors."""
        raise NotImplementedError

    def after_step(self, values: dict[str, float]) -> None:
        """Called once after every real optimiser step (EMA update), with `schedule`'s plain values.

        Plain numbers, not tensors: nothing here is compiled, and foreach kernels take numbers without a copy.
        Not called for a skipped step.
        """

    def encode(self, images: Tensor) -> Tensor:
        """Tokens (B, N, D) of the encoder that is exported and probed."""
        raise NotImplementedError

    def encoders(self) -> dict[str, nn.Module]:
        """The encoders to watch, by name ("context", "target"); each maps images to tokens (B, N, D)."""
        raise NotImplementedError

    def exported(self) -> str:
        """Which of `encoders()` is frozen, probed and exported."""
        return "target" if "target" in self.encoders() else "context"

    def checkpoint_blocks(self, enabled: bool) -> None:
        """Turn activation checkpointing on or off in every transformer block."""
        for module in self.modules():
            if hasattr(module, "activation_checkpointing"):
                setattr(module, "activation_checkpointing", enabled)  # noqa: B010 - a plain flag, not a submodule


def known() -> list[str]:
    """Names of the methods that ship with the package."""
    import jepa.methods as package

    return sorted(m.name for m in pkgutil.iter_modules(package.__path__) if m.name != "base")


def resolve(values: dict[str, Any]) -> tuple[type[Method], Any]:
    """The method class and its config from the ``method`` section of a run configuration.

    ``values["name"]`` is a file under jepa/methods/ (``ijepa``) or ``package.module:Class``.

    Raises:
        ConfigError: unknown method, or keys that its Config does not have.
    """
    options = dict(values)
    name = options.pop("name", None)
    if not isinstance(name, str):
        raise ConfigError(f"method.name: give one of {', '.join(known())}, or package.module:Class")
    cls = _outside(name) if ":" in name else _shipped(name)
    return cls, config.build(cls.Config, options, "method")


def _shipped(name: str) -> type[Method]:
    if name not in known():
        raise ConfigError(config.unknown_key(f"method.name={name}", name, known()).replace("key", "method", 1))
    module = importlib.import_module(f"jepa.methods.{name}")
    return _method_in(module, name)


def _outside(path: str) -> type[Method]:
    module_name, _, class_name = path.partition(":")
    try:
        found = getattr(importlib.import_module(module_name), class_name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f"method.name={path!r}: {error}. Write package.module:Class, with the package importable "
            "(installed, or its folder on PYTHONPATH)"
        ) from None
    if not (isinstance(found, type) and issubclass(found, Method) and dataclasses.is_dataclass(found.Config)):
        raise ConfigError(f"method.name={path!r} is not a jepa.methods.base.Method with a dataclass Config")
    return found


def _method_in(module: Any, name: str) -> type[Method]:
    found = [
        v
        for v in vars(module).values()
        if isinstance(v, type) and issubclass(v, Method) and v.__module__ == module.__name__
    ]
    assert len(found) == 1, f"jepa/methods/{name}.py must define exactly one Method, found {len(found)}"
    return found[0]


def create(values: dict[str, Any], image_size: tuple[int, int]) -> Method:
    """Build a method from its configuration section; weights are drawn from torch's current generator."""
    cls, options = resolve(values)
    return cls(options, image_size)


__all__ = ["Method", "Output", "Schedule", "create", "known", "resolve"]
