"""Run configuration: plain dataclasses, read strictly from YAML.

One file is one run. ``extends: other.yaml`` takes one level of defaults from a sibling file, lists replace,
``a.b=value`` overrides from the command line win. An unknown key is an error that names the nearest valid one,
a wrong type an error that says what was given and what is allowed.
"""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

import yaml

from jepa import resources
from jepa.errors import ConfigError

T = TypeVar("T")
Precision = Literal["auto", "bf16", "fp16", "fp32", "fp64"]


@dataclass(frozen=True)
class Duration:
    """A length of training, given in exactly one of steps, epochs or samples (epochs may be fractions)."""

    steps: int | None = None
    epochs: float | None = None
    samples: int | None = None

    def __post_init__(self) -> None:
        given = {k: v for k, v in dataclasses.asdict(self).items() if v is not None}
        if len(given) != 1:
            shown = ", ".join(f"{k}={v}" for k, v in given.items()) or "none"
            raise ConfigError(f"a duration needs exactly one of steps, epochs, samples; given: {shown}")
        if next(iter(given.values())) < 0:
            raise ConfigError(f"a duration cannot be negative: {given}")

    def to_steps(self, batch: int, dataset_size: int) -> int:
        """Optimiser steps, rounded up so that every sample asked for is seen."""
        if self.steps is not None:
            return self.steps
        samples = self.samples if self.samples is not None else (self.epochs or 0.0) * dataset_size
        return int(-(-samples // batch))


@dataclass(frozen=True)
class ClipConfig:
    """Which frames of a video a clip takes: `frames` of them, spaced by exactly one of fps, stride and duration."""

    frames: int = 16  # frames of a clip
    fps: float | None = None  # frames per second of video; the frame shown at each time is taken
    stride: int | None = None  # every so many-th frame, whatever the video's rate
    duration: float | None = None  # seconds that the frames are spread over
    clips: int = 1  # clips of each video, spread over it; for evaluation, training takes one
    short: Literal["pad", "loop", "skip"] = "loop"  # video too short: hold the last frame, start over, take another

    def __post_init__(self) -> None:
        given = {k: v for k in ("fps", "stride", "duration") if (v := getattr(self, k)) is not None}
        if len(given) != 1:
            shown = ", ".join(f"{k}={v:g}" for k, v in given.items()) or "none"
            raise ConfigError(f"a clip needs exactly one of fps, stride, duration; given: {shown}")
        if min(self.frames, self.clips) < 1 or not 0 < min(given.values()) < float("inf"):
            raise ConfigError(f"frames={self.frames} and clips={self.clips} must be at least 1, {given} above 0")


@dataclass(frozen=True)
class DataConfig:
    """What is read and how it is cropped."""

    path: str = ""  # folder made by `jepa data build`
    split: str = "train"  # split that is trained on
    clip: ClipConfig | None = None  # frames taken from each video; null: the data set holds images
    image_size: tuple[int, int] = (224, 224)  # (height, width); one number means square
    crop_scale: tuple[float, float] = (0.3, 1.0)  # share of the image's area
    crop_ratio: tuple[float, float] = (0.75, 1.3333333333333333)  # width / height
    hflip: float = 0.0  # probability of a horizontal flip
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"  # how crops are resized; antialiased
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)  # of red, green and blue in 0..1, subtracted on the device
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)  # divided by after that
    workers: int = 2  # decoding processes per rank; 0 decodes in the training process
    prefetch: int = 2  # batches each worker keeps ready
    shuffle_shards: int = 16  # samples are shuffled inside blocks of this many neighbouring (permuted) shards
    lanes: int = 1  # contiguous parts of the epoch visited round-robin; set to the number of nodes on a big cluster
    max_bad: float = 0.01  # the run stops when a larger share of samples could not be read
    decoder: Literal["auto", "torchcodec", "decord", "pyav"] = "auto"  # of videos; auto: the first that works here
    decode_seconds: float = 60.0  # a video that takes longer to decode is given up and another one taken

    @property
    def size(self) -> tuple[int, ...]:
        """(H, W) of images, (T, H, W) of clips."""
        return self.image_size if self.clip is None else (self.clip.frames, *self.image_size)


@dataclass(frozen=True)
class MixConfig(DataConfig):
    """A further source of every step, beside `data`; mean and std are those of `data`."""

    batch: int = 1  # its fixed count in every step, over all ranks
    weight: float | None = None  # its part of the step's loss; default: its share of the step's samples

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise ConfigError(f"batch: at least 1, got {self.batch}")


@dataclass(frozen=True)
class OptimConfig:
    """AdamW with warm-up and cosine decay; all values are pure functions of the step."""

    lr: float = 1e-3  # highest learning rate, reached at the end of the warm-up
    start_lr: float = 2e-4  # learning rate the warm-up starts from
    final_lr: float = 1e-6  # learning rate at the end of the schedule
    warmup: Duration = field(default_factory=lambda: Duration(epochs=40))  # linear from start_lr to lr, then cosine
    weight_decay: float = 0.04  # at the start; of matrices only, not of biases and norms
    final_weight_decay: float = 0.4  # at the end of the schedule, reached along a cosine
    betas: tuple[float, float] = (0.9, 0.999)  # AdamW's running averages of gradient and square
    eps: float = 1e-8  # AdamW's guard against division by zero
    clip_norm: float | None = None  # global gradient norm; null: off
    schedule_scale: float = 1.0  # schedules are laid out over this multiple of the duration (I-JEPA: 1, V-JEPA: 1.25)


@dataclass(frozen=True)
class TrainConfig:
    """The loop: batch, length, precision, what is written and when."""

    batch: int = 2048  # global batch, over all ranks
    micro_batch: int | None = None  # most samples per rank at once; accumulation is derived from it
    duration: Duration = field(default_factory=lambda: Duration(epochs=300))  # length of the training
    precision: Precision = "auto"  # bf16 where the hardware multiplies in it, else fp32
    compile: bool = False  # torch.compile the method
    activation_checkpointing: bool = False  # less memory for more work: blocks are run again in backward
    checkpoint_every: Duration = field(default_factory=lambda: Duration(epochs=1))  # also at the end
    keep: int = 2  # newest checkpoints kept; 0 keeps all
    keep_every: Duration | None = None  # checkpoints at multiples of this are kept for good
    log_every: int = 10  # steps between lines in metrics.jsonl
    trackers: tuple[str, ...] = ("tensorboard",)  # accelerate trackers besides metrics.jsonl
    threads: int | None = None  # CPU threads for maths in each process; null: torch's default


@dataclass(frozen=True)
class MonitorConfig:
    """Health while training."""

    every: Duration = field(default_factory=lambda: Duration(epochs=1))  # also before the first step
    samples: int = 512  # images used for rank, std and online kNN queries
    knn_bank: int = 2048  # labelled images in the online kNN's bank (0: no kNN)
    knn_k: int = 20  # neighbours that vote
    split: str | None = "val"  # split the kNN queries come from; null or missing: no kNN


@dataclass(frozen=True)
class RunConfig:
    """One run."""

    name: str = "run"  # of the run, and of its folder under runs/; default: the file's name
    seed: int = 0  # of everything random in the run
    method: dict[str, Any] = field(default_factory=lambda: {"name": "ijepa"})  # name + the method's own Config
    data: DataConfig = field(default_factory=DataConfig)  # what is read and how it is cropped
    mix: dict[str, MixConfig] = field(default_factory=dict)  # further sources of every step, by name
    optim: OptimConfig = field(default_factory=OptimConfig)  # AdamW and its schedules
    train: TrainConfig = field(default_factory=TrainConfig)  # the loop
    monitor: MonitorConfig = field(default_factory=MonitorConfig)  # health while training


# --- strict construction ------------------------------------------------------------------------------------------


def build(cls: type[T], values: Any, where: str = "") -> T:
    """A dataclass from nested plain values, every key known and every value of the declared type.

    Raises:
        ConfigError: unknown key (nearest one named), missing key, or wrong type, with its dotted place.
    """
    if not isinstance(values, dict):
        raise ConfigError(f"{where or cls.__name__}: expected a mapping, got {_show(values)}")
    hints = typing.get_type_hints(cls)
    known = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for key in values:
        if key not in known:
            raise ConfigError(unknown_key(f"{where}.{key}" if where else str(key), str(key), list(known)))
    kwargs = {k: convert(v, hints[k], f"{where}.{k}" if where else k) for k, v in values.items()}
    missing = [
        n
        for n, f in known.items()
        if n not in kwargs and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise ConfigError(f"{where or cls.__name__}: missing required key(s): {', '.join(missing)}")
    try:
        return cls(**kwargs)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}" if where else str(error)) from None


def convert(value: Any, hint: Any, where: str) -> Any:
    """One value to its declared type; see `build`."""
    origin, args = get_origin(hint), get_args(hint)
    if hint is Any:
        return value
    if origin in (Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        errors = []
        for option in (a for a in args if a is not type(None)):
            try:
                return convert(value, option, where)
            except ConfigError as error:
                errors.append(str(error))
        raise ConfigError(errors[0])
    if origin is Literal:
        if value not in args or isinstance(value, bool) != any(a is value for a in args if isinstance(a, bool)):
            allowed = ", ".join(map(repr, args))
            near = difflib.get_close_matches(str(value), [str(a) for a in args], n=1)
            hint_text = f" Did you mean {near[0]!r}?" if near else ""
            raise ConfigError(f"{where}: got {_show(value)}, allowed: {allowed}.{hint_text}")
        return value
    if dataclasses.is_dataclass(hint):
        return value if isinstance(value, hint) else build(hint, value, where)  # type: ignore[arg-type]
    if origin is tuple:
        return _tuple(value, args, where)
    if origin is list:
        if not isinstance(value, list | tuple):
            raise ConfigError(f"{where}: expected a list, got {_show(value)}")
        return [convert(v, args[0], f"{where}[{i}]") for i, v in enumerate(value)]
    if origin is dict or hint is dict:
        if not isinstance(value, dict):
            raise ConfigError(f"{where}: expected a mapping, got {_show(value)}")
        inner = args[1] if args else Any
        return {str(k): convert(v, inner, f"{where}.{k}") for k, v in value.items()}
    return _scalar(value, hint, where)


def _tuple(value: Any, args: tuple[Any, ...], where: str) -> tuple[Any, ...]:
    if len(args) == 2 and args[1] is Ellipsis:
        if not isinstance(value, list | tuple):
            raise ConfigError(f"{where}: expected a list, got {_show(value)}")
        return tuple(convert(v, args[0], f"{where}[{i}]") for i, v in enumerate(value))
    if set(args) == {int} and isinstance(value, int) and not isinstance(value, bool):
        return (value,) * len(args)  # one number for a square
    if not isinstance(value, list | tuple) or len(value) != len(args):
        raise ConfigError(f"{where}: expected a list of {len(args)} values, got {_show(value)}")
    return tuple(convert(v, a, f"{where}[{i}]") for i, (v, a) in enumerate(zip(value, args, strict=True)))


def _scalar(value: Any, hint: Any, where: str) -> Any:
    if hint is float and isinstance(value, str):  # YAML 1.1 reads 1e-3 as a string
        try:
            return float(value)
        except ValueError:
            pass
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if hint is int and isinstance(value, float) and value.is_integer():
        return int(value)
    if hint is bool or isinstance(value, bool):
        ok = hint is bool and isinstance(value, bool)
    else:
        ok = isinstance(value, hint)
    if not ok:
        raise ConfigError(f"{where}: expected {getattr(hint, '__name__', hint)}, got {_show(value)}")
    return value


def _show(value: Any) -> str:
    return f"{value!r} ({type(value).__name__})"


def unknown_key(where: str, key: str, known: list[str]) -> str:
    """The message for a key that does not exist, naming the nearest valid one."""
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return f"unknown key {where!r}.{hint} Valid keys here: {', '.join(sorted(known))}"


# --- files, inheritance, overrides --------------------------------------------------------------------------------


class _Loader(yaml.SafeLoader):
    """SafeLoader that refuses a key given twice in one mapping (plain YAML keeps the last in silence)."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, list | dict):
                raise ConfigError(f"line {key_node.start_mark.line + 1}: a key must be plain text, got {key!r}")
            if key in seen:
                raise ConfigError(f"line {key_node.start_mark.line + 1}: key {key!r} is given twice")
            seen.add(key)
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML mapping, safely loaded; errors name the file and line."""
    try:
        text = path.read_text(encoding="utf-8")
        values = yaml.load(text, _Loader)  # _Loader is a SafeLoader
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror or error}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from None
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    except RecursionError:
        raise ConfigError(f"{path} is nested too deeply to be a configuration") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected a mapping at the top, got {type(values).__name__}")
    return values


def merge(base: dict[str, Any], top: dict[str, Any]) -> dict[str, Any]:
    """`top` over `base`: mappings merge key by key, everything else (lists too) replaces."""
    out = dict(base)
    for key, value in top.items():
        old = out.get(key)
        if key == "*":  # in an overlay: every entry that is there
            out = {k: merge(v, value) for k, v in out.items()}
        elif isinstance(old, dict) and isinstance(value, dict) and not (_is_duration(old) and _is_duration(value)):
            out[key] = merge(old, value)
        else:
            out[key] = merge({}, value) if isinstance(value, dict) and "*" in value else value
    return out


def _is_duration(value: dict[str, Any]) -> bool:
    # {steps: 10} over {epochs: 300} must replace it: together they would be two durations
    return bool(value) and set(value) <= {"steps", "epochs", "samples"}


def read(path: Path, kind: str = "configs", overlays: list[str] | None = None) -> dict[str, Any]:
    """A YAML file with its `extends` and overlay files (e.g. ``debug``) applied, as plain values."""
    values = read_yaml(path)
    parent = values.pop("extends", None)
    if parent is not None:
        sibling = path.parent / f"{str(parent).removesuffix('.yaml')}.yaml"
        base = read_yaml(sibling if sibling.is_file() else resources.find(kind, str(parent)))
        if "extends" in base:
            raise ConfigError(f"{path} extends {parent}, which itself extends {base['extends']}: one level only")
        values = merge(base, values)
    for overlay in overlays or []:
        values = merge(values, read_yaml(resources.find(kind, overlay)))
    return values


def override(values: dict[str, Any], assignments: list[str]) -> dict[str, Any]:
    """Apply ``a.b.c=value`` assignments (values parsed as YAML) to nested plain values."""
    for assignment in assignments:
        name, sign, text = assignment.partition("=")
        if not sign or not name.strip():
            raise ConfigError(f"cannot read override {assignment!r}: write key.subkey=value")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ConfigError(f"cannot read the value of override {assignment!r}: {error}") from None
        *parents, last = name.strip().split(".")
        change: dict[str, Any] = {last: value}
        for part in reversed(parents):
            change = {part: change}
        values = merge(values, change)
    return values


def load(name: str | Path, overrides: list[str] | None = None, overlays: list[str] | None = None) -> RunConfig:
    """A run configuration from a file or a shipped name, with overlays and overrides applied.

    Raises:
        ConfigError: whatever is wrong, with the place and what to do.
    """
    path = resources.find("configs", name)
    values = override(read(path, overlays=overlays), overrides or [])
    values.setdefault("name", path.stem)
    try:
        return build(RunConfig, values)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def to_dict(config: Any) -> Any:
    """Plain nested values (tuples to lists, empty duration fields dropped), ready for YAML or JSON."""
    if isinstance(config, Duration):
        return {k: v for k, v in dataclasses.asdict(config).items() if v is not None}
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        return {f.name: to_dict(getattr(config, f.name)) for f in dataclasses.fields(config)}
    if isinstance(config, dict):
        return {k: to_dict(v) for k, v in config.items()}
    if isinstance(config, list | tuple):
        return [to_dict(v) for v in config]
    return config


def to_yaml(config: Any) -> str:
    """The configuration as YAML text that `load` reads back to an equal object."""
    return yaml.safe_dump(to_dict(config), sort_keys=False, default_flow_style=None, width=100)
