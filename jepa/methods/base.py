"""The contract between a method and everything around it.

A method is one file: it owns its context encoder, its EMA target (if it has one) and its predictor, says which
masks it needs, and turns a batch into a loss. The loop knows nothing of teachers; it calls `forward`, steps the
optimiser, then calls `after_step` once. The method's name is its file name under ``jepa/methods/``, or a dotted
path ``package.module:Class`` for one that lives elsewhere.

A run may mix sources (clips of several lengths, images): every step then calls `forward` once for each, whose tensor
tells which kind it is and whose `batch.source` tells which one.

Shapes: B batch, T frames, H W image, N tokens, K kept tokens, D width.
"""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar

from torch import Tensor, nn

from jepa import config
from jepa.data import Batch
from jepa.errors import ConfigError
from jepa.masks import Masks, Sampler

T = TypeVar("T")
_NO_METHODS = ("base", "world", "frozen")  # files beside the methods
Schedule = dict[str, Tensor]  # 0-d float tensors on the method's device, so that new values cause no recompile


@dataclass
class Output:
    """What a forward pass gives: the loss to minimise (0-d) and detached 0-d metrics."""

    loss: Tensor
    metrics: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Foresight:
    """How a method tells the tokens of a time that has not been seen: its frozen encoder, then its frozen predictor.

    Places are numbered time first, then row by row, for clips of any length. What goes between the parts is the
    method's own affair: V-JEPA 2.1 predicts from several levels side by side and shows the last one.
    """

    look: Callable[[Tensor], Tensor]  # normalised clips (B, 3, T, H, W) to what is predicted from, (B, N, L)
    predict: Callable[[Tensor, Tensor, Tensor], Tensor]  # (B, N, L), its places (B, N), places (B, K): (B, K, L)
    show: Callable[[Tensor], Tensor]  # (B, N, L) to tokens (B, N, D) as the encoder gives them
    grid: tuple[int, int]  # rows and columns of tokens
    tubelet: int  # frames in a token
    reach: int | None  # how many times the predictor's positions know; None: any


class Method(nn.Module):
    """Base class. Subclasses define a nested dataclass ``Config`` and ``__init__(self, config, size)``."""

    Config: ClassVar[type]
    inputs: ClassVar[tuple[str, ...]] = ("image",)  # kinds of input it trains on: image, clip
    couples_samples: ClassVar[bool] = False  # the loss mixes samples (SIGReg, VICReg): gathered, never accumulated
    episodes: ClassVar[bool] = False  # clips come with the arrays of `data.steps`: see jepa.methods.world

    phased: ClassVar[tuple[str, ...]] = ()  # keys of Config that are read anew in each step: phases may change them
    gated: ClassVar[bool] = False  # `after_step` takes `keep`
    seed: int = 0  # the run's, set before training: for noise that is keyed by it and by the step or sample number

    def __init__(self, config: Any, size: tuple[int, ...]) -> None:
        """`size`: of the main source, (H, W) for images and (T, H, W) for clips of T frames."""
        super().__init__()
        self.config = config
        self.size = size

    def expect(self, kinds: Sequence[str]) -> None:
        """Told once, before training: the kind of every source ("image" or "clip"), in the order of `batch.source`.

        Until then a method takes it that there is one source, of its own size. Parameters that none of the sources
        uses must be frozen here. Those that only some use must get a gradient from every forward all the same
        (`jepa.nn.tokens.zero_of`), because DDP waits for all of them.
        """

    def enter(self, config: Any, size: tuple[int, ...]) -> None:
        """A phase of the run begins or goes on: its settings and the main source's size hold from here on.

        Only the keys in `phased` differ from those that the method was built with. Whatever depends on the size, such
        as tables of positions, is to be made for the new one; what is trained stays.

        Raises:
            ConfigError: a size that the method cannot take.
        """
        self.config, self.size = config, size

    def sampler(self, seed: int, size: tuple[int, ...] | None = None) -> Sampler | None:
        """The mask sampler for inputs of `size` (default: the method's own), or None for a method without masks."""
        return None

    def schedule(self, step: int, total_steps: float) -> dict[str, float]:
        """Values in force at `step` (0-based) besides lr and weight decay, e.g. EMA momentum; a pure function."""
        return {}

    def forward(self, x: Tensor, masks: Masks | None, schedule: Schedule, batch: Batch | None = None) -> Output:
        """Loss of one micro-batch of one source.

        Args:
            x: normalised floats on the device, images (B, 3, H, W) or clips (B, 3, T, H, W).
            schedule: the values of `schedule` as 0-d tensors.
        """
        raise NotImplementedError

    def after_step(self, values: dict[str, float], keep: Tensor | None = None) -> None:
        """Called once after every real optimiser step (EMA update), with `schedule`'s plain values.

        Plain numbers, not tensors: nothing here is compiled, and foreach kernels take numbers without a copy.
        Not called for a skipped step; but with a loss guard only the device knows which step is one. A method that
        sets `gated` is told: `keep` is 0-d on the device, and at 0 nothing may change (`ema.update` does that). One
        that does not is called without it, after the host has waited for the device.
        """

    def encode(self, x: Tensor) -> Tensor:
        """Tokens (B, N, D) of the encoder that is exported and probed."""
        raise NotImplementedError

    def encoders(self) -> dict[str, nn.Module]:
        """The encoders to watch, by name ("context", "target"); each maps images or clips to tokens (B, N, D)."""
        raise NotImplementedError

    def foresight(self, which: str, mask_token: int | None = None) -> Foresight | None:
        """How to look ahead from one of `encoders()`; None for a method that cannot.

        Args:
            mask_token: which of the predictor's learned tokens stands for a place to predict, modulo their number;
                None: the one that this method trains for its main source.
        """
        return None

    def exported(self) -> str:
        """Which of `encoders()` is frozen, probed and exported."""
        return "target" if "target" in self.encoders() else "context"

    def apart(self, act: Callable[[], T]) -> T:
        """`act()`. What uses parts of the method outside of `forward` goes through here, so that they are at hand when
        the method is sharded (`jepa.sharding`)."""
        return act()

    def checkpoint_blocks(self, enabled: bool) -> None:
        """Turn activation checkpointing on or off in every transformer block."""
        for module in self.modules():
            if hasattr(module, "activation_checkpointing"):
                setattr(module, "activation_checkpointing", enabled)  # noqa: B010 - a plain flag, not a submodule


def known() -> list[str]:
    """Names of the methods that ship with the package."""
    import jepa.methods as package

    return sorted(m.name for m in pkgutil.iter_modules(package.__path__) if m.name not in _NO_METHODS)


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


def create(values: dict[str, Any], size: tuple[int, ...]) -> Method:
    """Build a method from its configuration section; weights are drawn from torch's current generator.

    Args:
        size: (H, W) of images or (T, H, W) of clips.

    Raises:
        ConfigError: see `resolve`; an input that the method does not take, or that its patches do not divide.
    """
    cls, options = resolve(values)
    if kind_of(size) not in cls.inputs:
        takes = " and ".join(f"{kind}s" for kind in cls.inputs)
        raise ConfigError(f"method {values['name']!r} trains on {takes}; this data holds {kind_of(size)}s")
    return cls(options, size)


def kind_of(size: Sequence[int]) -> str:
    """Images have a size of (H, W), clips of (T, H, W)."""
    return "clip" if len(size) == 3 else "image"


__all__ = ["Foresight", "Method", "Output", "Schedule", "create", "kind_of", "known", "resolve"]
