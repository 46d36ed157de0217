"""An evaluation suite: which probes, which data, which baselines, and published figures to compare with.

Suites are YAML files in eval/, read strictly. `protocol` names the rules the numbers are made by; it changes whenever
a change of the program changes numbers, so figures of different protocols are never put in one table unawares.

Protocol 1: features are the mean over patch tokens of the frozen encoder; the image is the largest centred box of the
encoder's aspect, resized to its input. kNN: cosine, softmax weights, k chosen on val. Linear: L2-regularised logistic
regression on standardised features, grid chosen on val. Ridge: closed form, penalty chosen on val. Attentive: a small
transformer on the tokens, AdamW with a cosine down to 0, grid chosen on val; probabilities of several views of a sample
are averaged. Segmentation and depth: a linear map of each token, enlarged bilinearly to the label's resolution. All are
reported on test with percentile intervals of a bootstrap over originals. Accuracy and mIoU are fractions, R² is
1 - SSE / SST, RMSE is in the label's unit. Inner layers go through the encoder's final norm.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Literal

from jepa import config, resources
from jepa.errors import ConfigError
from jepa.probe.attentive import AttentiveConfig
from jepa.probe.dense import DepthConfig, SegmentationConfig
from jepa.probe.features import FeaturesConfig
from jepa.probe.knn import LAST4, KnnConfig
from jepa.probe.linear import LinearConfig
from jepa.probe.ridge import RidgeConfig
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
    attentive: AttentiveConfig | None = None  # attentive classifier of the class, or regression, on tokens
    segmentation: SegmentationConfig | None = None  # linear classifier of every pixel's class, on tokens
    depth: DepthConfig | None = None  # linear regression of every pixel's depth, on tokens

    def __post_init__(self) -> None:
        if not (self.pooled or self.tokens):
            names = ", ".join(f.name for f in fields(self))
            raise ConfigError(f"no probe is asked for: give at least one of {names} ({{}} takes its defaults)")

    @property
    def pooled(self) -> bool:
        """Whether any probe reads means over tokens."""
        return bool(self.knn or self.linear or self.ridge)

    @property
    def tokens(self) -> bool:
        """Whether any probe reads tokens."""
        return bool(self.attentive or self.segmentation or self.depth)

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
    timm: list[TimmConfig] = field(default_factory=list)  # models of timm

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
    metric: str = "top1"  # top1, r2, miou or rmse
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


def load_suite(name: str | Path, overrides: list[str] | None = None) -> Suite:
    """A suite from a file or a shipped name ("digits"), with ``key.subkey=value`` overrides.

    Raises:
        ConfigError: no such suite, an unknown key or wrong type, with its place; or another protocol.
    """
    path = resources.find("eval", name)
    values = config.override(config.read(path, kind="eval"), overrides or [])
    values.setdefault("name", path.stem)
    if values.get("protocol", PROTOCOL) != PROTOCOL:
        raise ConfigError(
            f"{path}: protocol {values['protocol']!r} is not the one this program measures by, {PROTOCOL!r} (as text, "
            "in quotes). Use the program version that knows it"
        )
    try:
        return config.build(Suite, values)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
