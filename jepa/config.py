"""Run configuration: plain dataclasses, read strictly from YAML.

One file is one run. ``extends: other.yaml`` takes one level of defaults from a sibling file, lists replace,
``a.b=value`` overrides from the command line win. An unknown key is an error that names the nearest valid one,
a wrong type an error that says what was given and what is allowed.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from jepa import resources
from jepa.errors import ConfigError
from jepa.strict import build, convert, merge, override, read_yaml, unknown_key

MAIN_PHASE = "main"  # the part of a run that the other sections describe
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
class StepsConfig:
    """What is read of an episode beside its frames: T frames come with T - 1 actions of `clip.stride` steps."""

    action: str = "action"  # array of actions
    proprio: str | None = None  # array that the model is given with every frame, e.g. joint angles
    also: tuple[str, ...] = ()  # further arrays, e.g. reward (summed over an action's steps) or state
    blank: float = 0.0  # share of a window's frames that are black, keyed by sample, never the first: seen in part


@dataclass(frozen=True)
class DataConfig:
    """What is read and how it is cropped."""

    path: str = ""  # folder made by `jepa data build`
    split: str = "train"  # split that is trained on
    clip: ClipConfig | None = None  # frames taken from each video; null: the data set holds images
    steps: StepsConfig | None = None  # arrays of episodes to read with each clip; null: frames only
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
    """AdamW with warm-up and decay; all values are pure functions of the step."""

    lr: float = 1e-3  # highest learning rate, reached at the end of the warm-up
    start_lr: float = 2e-4  # learning rate the warm-up starts from
    final_lr: float = 1e-6  # learning rate at the end of the schedule
    warmup: Duration = field(default_factory=lambda: Duration(epochs=40))  # linear from start_lr to lr
    shape: Literal["cosine", "linear", "constant"] = "cosine"  # from lr to final_lr after the warm-up; constant: stays
    weight_decay: float = 0.04  # at the start; of matrices only, not of biases and norms
    final_weight_decay: float = 0.4  # at the end of the schedule, reached along a cosine
    betas: tuple[float, float] = (0.9, 0.999)  # AdamW's running averages of gradient and square
    eps: float = 1e-8  # AdamW's guard against division by zero
    clip_norm: float | None = None  # global gradient norm; null: off
    schedule_scale: float = 1.0  # schedules are laid out over this multiple of the duration (I-JEPA: 1, V-JEPA: 1.25)


@dataclass(frozen=True)
class GuardConfig:
    """Skips steps whose loss jumps: neither weights nor teacher move, the samples count as seen."""

    std: float = 5.0  # a loss above mean + so many standard deviations of the window is a jump
    window: int = 300  # losses looked back at, of steps that were taken; until there are so many, none is skipped
    patience: int = 10  # the run stops when so many steps in a row are skipped

    def __post_init__(self) -> None:
        if not 0 < self.std < float("inf") or self.window < 2 or self.patience < 1:
            raise ConfigError(
                f"std={self.std:g} must be above 0, window={self.window} at least 2 and patience={self.patience} at "
                "least 1"
            )


@dataclass(frozen=True)
class TrainConfig:
    """The loop: batch, length, precision, what is written and when."""

    batch: int = 2048  # global batch, over all ranks
    micro_batch: int | None = None  # most samples per rank at once; accumulation is derived from it
    duration: Duration = field(default_factory=lambda: Duration(epochs=300))  # length of the training's main part
    precision: Precision = "auto"  # bf16 where the hardware multiplies in it, else fp32
    sharding: Literal["none", "fsdp"] = "none"  # fsdp: each rank keeps its part of weights, teacher, optimiser state
    compile: bool = False  # torch.compile the method
    activation_checkpointing: bool = False  # less memory for more work: blocks are run again in backward
    guard: GuardConfig | None = None  # skips steps whose loss jumps; null: off
    checkpoint_every: Duration = field(default_factory=lambda: Duration(epochs=1))  # also at the end
    keep: int = 2  # newest checkpoints kept; 0 keeps all
    keep_every: Duration | None = None  # checkpoints at multiples of this are kept for good
    keep_best: str | None = None  # a health metric, or knn: the checkpoint that is best in it is made and kept
    keep_best_mode: Literal["max", "min"] = "max"  # whether more of it is better, or less
    checkpoint_async: bool = False  # write in the background, from a copy in main memory (docs/checkpoints.md)
    log_every: int = 10  # steps between lines in metrics.jsonl
    trackers: tuple[str, ...] = ("tensorboard",)  # accelerate trackers besides metrics.jsonl
    step_seconds: float | None = None  # a step that takes longer counts as hung and ends the process; null: never
    collective_seconds: float = 3600.0  # a process waits so long for the others, also while one saves or measures
    threads: int | None = None  # CPU threads for maths in each process; null: torch's default


@dataclass(frozen=True)
class MonitorConfig:
    """Health while training."""

    every: Duration = field(default_factory=lambda: Duration(epochs=1))  # also before the first step
    samples: int = 512  # images used for rank, std and online kNN queries
    knn_bank: int = 2048  # labelled images in the online kNN's bank (0: no kNN)
    knn_k: int = 20  # neighbours that vote
    split: str | None = "val"  # split the kNN queries come from; null or missing: no kNN


Act = Literal["ignore", "warn", "stop", "rollback"]  # what an alarm leads to


@dataclass(frozen=True)
class CollapseAlarm:
    """Embeddings of different images become alike; by the monitor, of the teacher or the only encoder."""

    act: Act = "warn"  # ignore, warn, stop, or rollback to the last healthy checkpoint
    rank: float = 0.4  # the tokens' effective rank below so much of its highest value is a sign
    cosine: float = 0.99  # so is a mean cosine of two images above this, with a spread below `rank` of its highest
    looks: int = 2  # signs in so many looks in a row sound the alarm


@dataclass(frozen=True)
class DivergenceAlarm:
    """The loss or the gradient grows; one that is not finite always stops the run, or rolls it back."""

    act: Act = "warn"  # ignore, warn, stop, or rollback to the last healthy checkpoint
    loss: float = 3.0  # a loss above so many times the median of earlier lines is a sign
    grad_norm: float = 30.0  # so is such a gradient norm
    window: int = 100  # lines of metrics that the medians look back at; nothing is judged before 20
    lines: int = 2  # signs in so many lines in a row sound the alarm


@dataclass(frozen=True)
class DeadAlarm:
    """Dimensions of the embedding that are the same for every image; by the monitor."""

    act: Act = "warn"  # ignore, warn, stop, or rollback to the last healthy checkpoint
    share: float = 0.5  # a share of dead dimensions above this is a sign
    looks: int = 2  # signs in so many looks in a row sound the alarm


@dataclass(frozen=True)
class DriftAlarm:
    """The teacher's weights are far from the student's; by the monitor."""

    act: Act = "warn"  # ignore, warn, stop, or rollback to the last healthy checkpoint
    distance: float = 0.5  # |teacher - student| / |student| above this is a sign
    looks: int = 2  # signs in so many looks in a row sound the alarm


@dataclass(frozen=True)
class StarvationAlarm:
    """Most of a step's time goes by in waiting for data."""

    act: Literal["ignore", "warn", "stop"] = "warn"  # a roll-back would not make data come faster
    wait: float = 0.5  # a share of waiting above this is a sign
    lines: int = 5  # signs in so many lines in a row sound the alarm


@dataclass(frozen=True)
class RollbackConfig:
    """What is different after a roll-back; data order, crops, masks and noise get other random numbers too."""

    lr: float = 0.5  # factor on the learning rate, each time
    teacher: float = 0.5  # factor on 1 - momentum, each time: a slower teacher
    most: int = 3  # roll-backs of a run; the next alarm stops it


@dataclass(frozen=True)
class HealthConfig:
    """Alarms: what counts as unhealthy, and what to do about it."""

    collapse: CollapseAlarm = field(default_factory=CollapseAlarm)  # embeddings become alike
    divergence: DivergenceAlarm = field(default_factory=DivergenceAlarm)  # loss or gradient grows
    dead: DeadAlarm = field(default_factory=DeadAlarm)  # dimensions without a use
    drift: DriftAlarm = field(default_factory=DriftAlarm)  # the teacher is left behind
    starvation: StarvationAlarm = field(default_factory=StarvationAlarm)  # data comes too slowly
    rollback: RollbackConfig = field(default_factory=RollbackConfig)  # what a roll-back changes

    def __post_init__(self) -> None:
        for name in ("collapse", "divergence", "dead", "drift", "starvation", "rollback"):
            for key, value in vars(getattr(self, name)).items():
                wrong = not isinstance(value, str) and (value < 0 if key == "most" else value <= 0)
                if wrong or (name == "rollback" and key in ("lr", "teacher") and value > 1):
                    allowed = {"most": "0 or more", "lr": "above 0, at most 1", "teacher": "above 0, at most 1"}
                    raise ConfigError(f"{name}.{key}: got {value:g}, allowed: {allowed.get(key, 'above 0')}")


@dataclass(frozen=True)
class PhaseConfig:
    """A further part of the run, after the main one. Its sections hold only what differs from the main part's."""

    duration: Duration  # its length
    data: dict[str, Any] = field(default_factory=dict)  # sizes and crops, e.g. image_size, clip
    mix: dict[str, dict[str, Any]] = field(default_factory=dict)  # the same for further sources; also batch, weight
    method: dict[str, Any] | None = None  # what the method reads anew in each step; if given, its schedules begin anew
    optim: dict[str, Any] | None = None  # if given, new rates from where those before end; null: they go on
    train: dict[str, Any] = field(default_factory=dict)  # batch, micro_batch, activation_checkpointing


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
    health: HealthConfig = field(default_factory=HealthConfig)  # alarms, and what they lead to
    phases: dict[str, PhaseConfig | None] = field(default_factory=dict)  # what follows the main part; null: left out

    def __post_init__(self) -> None:
        if MAIN_PHASE in self.phases:
            raise ConfigError(f"phases.{MAIN_PHASE}: this name is the main part's; choose another")


# --- files, inheritance -----------------------------------------------------------------------------------------------


def read(path: Path, kind: str = "configs", overlays: list[str] | None = None) -> dict[str, Any]:
    """A YAML file with its `extends` and overlay files (e.g. ``debug``) applied, as plain values.

    What an overlay has under ``methods`` goes over configurations of the method of that name, or by "*" of all others.
    """
    values = read_yaml(path)
    parent = values.pop("extends", None)
    if parent is not None:
        sibling = path.parent / f"{str(parent).removesuffix('.yaml')}.yaml"
        base = read_yaml(sibling if sibling.is_file() else resources.find(kind, str(parent)))
        if "extends" in base:
            raise ConfigError(f"{path} extends {parent}, which itself extends {base['extends']}: one level only")
        values = merge(base, values)
    for overlay in overlays or []:
        changes = read_yaml(resources.find(kind, overlay))
        by_method = changes.pop("methods", {})
        method = (values.get("method") or {}).get("name")
        values = merge(merge(values, changes), by_method.get(method, by_method.get("*", {})))
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


__all__ = [
    "MAIN_PHASE", "ClipConfig", "CollapseAlarm", "DataConfig", "Duration", "GuardConfig", "HealthConfig", "MixConfig",
    "MonitorConfig", "OptimConfig", "PhaseConfig", "RollbackConfig", "RunConfig", "StepsConfig", "TrainConfig", "build",
    "convert", "load", "merge", "override", "read", "read_yaml", "to_dict", "to_yaml", "unknown_key",
]  # fmt: skip
