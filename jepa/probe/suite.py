"""An evaluation suite: which probes, which data, which baselines, and published figures to compare with.

Suites are YAML files in eval/, read strictly. `protocol` names the rules the numbers are made by; it changes whenever
a change of the program changes numbers, so figures of different protocols are never put in one table unawares.

Protocol 1: features are the mean over patch tokens of the frozen encoder; the image is the largest centred box of the
encoder's aspect, resized to its input. kNN: cosine, softmax weights, k chosen on val. Linear: L2-regularised logistic
regression on standardised features, grid chosen on val. Ridge: closed form, penalty chosen on val. State: as linear,
for every discrete target. Attentive: a small transformer on the tokens, AdamW with a cosine down to 0, grid chosen on
val; probabilities of several views of a sample are averaged. Anticipation: the same with a query for each kind of
label, on tokens of a clip that ends so many seconds before the action and on those the predictor gives for its start;
top-1, and recall at k as the mean over the classes that occur in the test split. Segmentation and depth: a linear map
of each token, enlarged bilinearly to the label's resolution. Frames: ridge regression and a small network on latents of
single frames of episodes, R² and Pearson's r as means over a variable's numbers, the mean error in its unit. All are
reported on test with percentile intervals of a bootstrap over originals. Accuracy and mIoU are fractions, R² is 1 - SSE
/ SST, RMSE is in the label's unit. Inner layers go through the encoder's final norm.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Literal

from jepa import suites
from jepa.errors import ConfigError
from jepa.probe.anticipate import AnticipationConfig
from jepa.probe.attentive import AttentiveConfig
from jepa.probe.baselines import FrameOrder, RunBaseline
from jepa.probe.dense import DepthConfig, SegmentationConfig
from jepa.probe.features import FeaturesConfig
from jepa.probe.frames import FramesConfig
from jepa.probe.knn import LAST4, KnnConfig
from jepa.probe.linear import LinearConfig
from jepa.probe.ridge import RidgeConfig
from jepa.probe.state import StateConfig
from jepa.probe.timm_encoder import TimmConfig

PROTOCOL = "1"


@dataclass(frozen=True)
class SplitsConfig:
    """Splits of the data set by their use."""

    train: str = "train"  # probes are trained on it
    val: str = "val"  # settings are chosen on it
    test: str = "test"  # figures are reported on it
    max_train: int | None = None  # at most this many training samples, a seeded choice; null: all

    def __post_init__(self) -> None:
        if len({self.train, self.val, self.test}) < 3:
            raise ConfigError(
                f"train={self.train}, val={self.val}, test={self.test}: must be three different splits. "
                "Settings chosen on the samples they are reported on make figures too good"
            )
        if self.max_train is not None and self.max_train < 2:
            raise ConfigError(f"max_train: got {self.max_train}, allowed: 2 or more, or null")


@dataclass(frozen=True)
class ProbesConfig:
    """Which probes are run; null leaves one out."""

    knn: KnnConfig | None = None  # weighted kNN of the class
    linear: LinearConfig | None = None  # linear classifier of the class
    ridge: RidgeConfig | None = None  # ridge regression of continuous targets
    state: StateConfig | None = None  # linear classifiers of discrete targets, as in AtariARI
    attentive: AttentiveConfig | None = None  # attentive classifier of the class, or regression, on tokens
    segmentation: SegmentationConfig | None = None  # linear classifier of every pixel's class, on tokens
    depth: DepthConfig | None = None  # linear regression of every pixel's depth, on tokens
    anticipation: AnticipationConfig | None = None  # attentive classifier of what begins after the clip's end
    frames: FramesConfig | None = None  # regression of state variables at single frames of episodes

    def __post_init__(self) -> None:
        if not (self.pooled or self.tokens or self.frames):
            names = ", ".join(f.name for f in fields(self))
            raise ConfigError(f"no probe is asked for: give at least one of {names} ({{}} takes its defaults)")

    @property
    def pooled(self) -> bool:
        """Whether any probe reads means over tokens."""
        return bool(self.knn or self.linear or self.ridge or self.state)

    @property
    def tokens(self) -> bool:
        """Whether any probe reads tokens."""
        return bool(self.attentive or self.segmentation or self.depth or self.anticipation)

    def layers(self) -> tuple[int, ...]:
        """Every layer that a probe of means reads, in the order of the suite; without the output."""
        asked = [layer for probe in (self.knn, self.linear) if probe for layer in probe.layers]
        return tuple(dict.fromkeys(i for layer in asked for i in (LAST4 if layer == "last4" else (layer,))))


@dataclass(frozen=True)
class PixelsConfig:
    """The raw-pixel baseline."""

    size: tuple[int, int] | None = None  # (height, width) images are shrunk to; null: as seen, at most 32 x 32


@dataclass(frozen=True)
class BaselinesConfig:
    """What the encoder is compared with, in the same table and by the same rules."""

    pixels: PixelsConfig | None = None  # raw pixels; null leaves them out, {} takes the defaults
    random: int = 1  # random initialisations of the same encoder: the run's seed, then the following ones
    frames: tuple[FrameOrder, ...] = ()  # the same encoder on clips with shuffled frames, or with one frame held still
    runs: list[RunBaseline] = field(default_factory=list)  # encoders of other runs; one of images sees a middle frame
    timm: list[TimmConfig] = field(default_factory=list)  # models of timm
    features: tuple[str, ...] = ()  # folders made by `jepa extract` from the same data set, e.g. of other runs

    def __post_init__(self) -> None:
        if self.random < 0:
            raise ConfigError(f"random: got {self.random}, allowed: 0 or more")


@dataclass(frozen=True)
class BootstrapConfig:
    """Intervals."""

    resamples: int = 2000  # how often the originals are drawn anew
    confidence: float = 0.95  # share inside the interval
    seed: int = 0  # of the draws

    def __post_init__(self) -> None:
        if self.resamples < 100 or not 0.5 <= self.confidence < 1:
            raise ConfigError(
                f"resamples={self.resamples}, confidence={self.confidence}: allowed: resamples from 100, confidence "
                "from 0.5 to below 1"
            )


@dataclass(frozen=True)
class Published:
    """A figure from the literature, shown beside the measured ones."""

    encoder: str  # what was measured
    probe: str  # name of the probe's row, e.g. linear
    value: float  # as measured here: accuracy is a fraction
    source: str  # where it was read
    metric: str = "top1"  # top1, recall5, f1_weighted, f1_macro, r2, pearson, error, miou or rmse
    note: str = ""  # how its protocol differs


@dataclass(frozen=True)
class Suite:
    """One evaluation."""

    probes: ProbesConfig  # which probes are run
    name: str = "suite"  # of the result file; default: the suite's file name
    protocol: Literal["1"] = "1"  # rules the numbers are made by
    dataset: str | None = None  # folder made by `jepa data build`; null: the run's own
    splits: SplitsConfig = field(default_factory=SplitsConfig)  # which splits are used for what
    features: FeaturesConfig = field(default_factory=FeaturesConfig)  # how features are computed
    baselines: BaselinesConfig = field(default_factory=BaselinesConfig)  # what the encoder is compared with
    bootstrap: BootstrapConfig = field(default_factory=BootstrapConfig)  # intervals
    published: list[Published] = field(default_factory=list)  # figures from the literature to show beside

    def __post_init__(self) -> None:
        dense = [name for name in ("segmentation", "depth") if getattr(self.probes, name)]
        if dense and self.features.clips is not None:
            raise ConfigError(f"probes.{dense[0]} reads single images; leave it out, or set features.clips=null")
        if self.baselines.frames and self.features.clips is None:
            raise ConfigError(
                "baselines.frames takes the order of frames away, and the suite looks at images: leave it out"
            )
        if self.probes.anticipation:
            self._check_anticipation()
        if self.probes.frames:
            self._check_frames()

    def _check_anticipation(self) -> None:
        clips, others = self.features.clips, [f.name for f in fields(ProbesConfig) if getattr(self.probes, f.name)]
        if len(others) > 1:
            others.remove("anticipation")
            raise ConfigError(
                f"probes.anticipation looks at clips that end before the action, {' and '.join(others)} at all of the "
                "video: put them into suites of their own"
            )
        if clips is None or clips.clips > 1 or clips.stride is not None:
            raise ConfigError(
                "probes.anticipation looks at one clip and counts in seconds: give features.clips with fps or duration "
                "and clips=1, e.g. features.clips={frames: 32, fps: 8}"
            )
        given = self.baselines
        if given.pixels or given.timm or given.runs or self.features.tokens.layers:
            raise ConfigError(
                "probes.anticipation compares with random init, with the encoder alone and on less of the clip "
                "(baselines.random, baselines.frames), on the encoder's output: leave baselines.pixels, timm and runs, "
                "and features.tokens.layers out"
            )

    def _check_frames(self) -> None:
        others = [f.name for f in fields(ProbesConfig) if f.name != "frames" and getattr(self.probes, f.name)]
        if others or self.features.clips is not None:
            found = f"probes.{others[0]}" if others else "features.clips"
            raise ConfigError(f"probes.frames reads single frames of episodes: put {found} into a suite of its own")
        given = self.baselines
        if given.frames or given.timm or given.runs or given.features:
            raise ConfigError(
                "probes.frames compares with a random model and with pixels (baselines.random, baselines.pixels): "
                "leave baselines.frames, timm, runs and features out"
            )


def load_suite(name: str | Path, overrides: list[str] | None = None) -> Suite:
    """A suite from a file or a shipped name ("digits"), with ``key.subkey=value`` overrides.

    Raises:
        ConfigError: no such suite, an unknown key or wrong type, with its place; or another protocol.
    """
    return suites.load("probe", Suite, PROTOCOL, name, overrides)
