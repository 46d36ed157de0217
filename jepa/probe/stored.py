"""Extracted features in place of an encoder: a `Source` that is read instead of run.

Whatever a suite asks for must be in the shards just as the encoder would have given it: the same data set, layers,
clips, precision. What is not is an error that says what the shards hold and which command would make the rest.

Shapes: n samples, C clips, V views, N tokens, D width, L layers.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from jepa import config as configuration
from jepa.config import ClipConfig
from jepa.data import Manifest
from jepa.errors import ConfigError, DataError
from jepa.probe.clips import ClipsConfig, average_features, join_clips, separate_clips
from jepa.probe.features import Features, FeaturesConfig, Parts, Source, Wants
from jepa.probe.featureset import POOLED, TOKENS, About, FeatureSet, Ints, Rows, is_features, tensor_name
from jepa.probe.suite import Suite
from jepa.probe.tokens import Held, Tokens

_AT_ONCE = 256  # samples read at a time where many are wanted
Fold = Callable[[Tensor], Tensor]  # tokens (n, N, D) or (n, C, V, N, D), as they are kept, to (n, V, N, D)


def source(kept: FeatureSet, suite: Suite, wants: Wants, role: Literal["run", "features"] = "run") -> Source:
    """The features as a `Source`: what is probed, or a yardstick ("features").

    Raises:
        ConfigError: they are not what the suite asks for; says what they are, and how to extract what is missing.
    """
    about = kept.about
    if role == "run" and suite.baselines.frames:
        raise ConfigError(
            f"baselines.frames={list(suite.baselines.frames)}: the encoder has to see other clips, and {kept.root} "
            "holds features only. Probe the run itself, or leave them out: baselines.frames=[]"
        )
    _check(kept, suite, wants, suite.features.encoders if role == "run" else ())
    name = f"{about.which} (step {about.step})"
    facts = {"step": about.step, "width": about.width, "features": str(kept.root), "dtype": about.dtype}
    name = name if role == "run" else f"{kept.root.name}: {name}"

    def build(device: torch.device) -> Callable[[Tensor], Tensor]:
        raise ConfigError(f"{kept.root} holds features and no encoder; give the run itself to see other images")

    def read(parts: Parts, wants: Wants, config: FeaturesConfig) -> Features:
        return _features(kept, parts, wants, config)

    return Source(name, role, about.image_size, None, build, facts, None, about.grid, stored=read)


def dataset(kept: FeatureSet, suite: Suite) -> Manifest:
    """What a suite is probed on: labels and targets lie beside the features, images where the data set itself is.

    Raises:
        ConfigError: the suite needs images, or label maps, and the data set is not where it was.
        DataError: the suite names another data set than the one that the features are of.
    """
    origin, probes, baselines = kept.about.source, suite.probes, suite.baselines
    if suite.dataset is not None:
        found = Manifest.open(suite.dataset)
        check_same_data(kept, found)
        return found
    needs = [name for name in ("segmentation", "depth") if getattr(probes, name)]
    plain = [f"probes.{name}=null" for name in needs]
    for name, off in (("random", "0"), ("pixels", "null"), ("timm", "[]"), ("runs", "[]")):
        if getattr(baselines, name):
            needs.append(f"baselines.{name}")
            plain.append(f"baselines.{name}={off}")
    if not needs:
        return kept.manifest
    try:
        found = Manifest.open(origin.path)
        check_same_data(kept, found)
    except DataError as error:
        raise ConfigError(
            f"{', '.join(needs)}: these read the {origin.media}s themselves, and data set {origin.name!r} is not found "
            f"where it was when the features were made ({error}). Give it with dataset=FOLDER, or leave them out: "
            f"{' '.join(plain)}"
        ) from None
    return found


def check_same_data(kept: FeatureSet, found: Manifest) -> None:
    """Raise DataError unless the features are of this data set."""
    origin = kept.about.source
    if found.hash != origin.hash:
        raise DataError(
            f"the features in {kept.root} are of data set {origin.name!r} (hash {origin.hash[:12]}), not of "
            f"{found.name!r} in {found.root} (hash {found.hash[:12]})"
        )


def baselines(suite: Suite, wants: Wants, data: Manifest) -> list[Source]:
    """The folders of features that a suite compares with.

    Raises:
        ConfigError: features that are not what the suite asks for.
        DataError: no features there, or features of another data set.
    """
    found = []
    for folder in suite.baselines.features:
        kept = FeatureSet.open(folder)
        check_same_data(kept, data)
        found.append(source(kept, suite, wants, "features"))
    return found


# --- what is asked for and what is there --------------------------------------------------------------------------


def _check(kept: FeatureSet, suite: Suite, wants: Wants, encoders: tuple[str, ...]) -> None:
    """Raise ConfigError unless the shards hold what a suite asks for."""
    about, config, missing = kept.about, suite.features, []
    train, others = suite.splits.train, (suite.splits.val, suite.splits.test)
    if encoders not in ((), (about.which,)):
        missing.append(f"encoders {', '.join(encoders)} (it holds {about.which})")
    if config.precision != about.precision:
        missing.append(
            f"arithmetic in {config.precision} (it was {about.precision}: features.precision={about.precision})"
        )
    splits = [name for name in (train, *others) if name not in about.views]
    if splits:
        missing.append(f"split {', '.join(splits)} (it holds {', '.join(about.views)})")
    token_layers = config.tokens.layers if wants.tokens else ()
    wrong = [i for i in (*wants.layers, *token_layers) if not -about.depth <= i < about.depth]
    if wrong:
        raise ConfigError(
            f"layers {wrong}: the encoder of {kept.root} has layers 0 to {about.depth - 1}, or {-about.depth} to -1"
        )
    layers = sorted({i % about.depth for i in (*wants.layers, *token_layers)})
    if set(layers) - set(about.layers):
        held = f"layers {', '.join(map(str, about.layers))}" if about.layers else "the output only"
        missing.append(f"layers {', '.join(map(str, layers))} (it holds {held})")
    if wants.tokens and not about.tokens:
        missing.append("tokens, for attentive or dense probes (it holds means over tokens only)")
    missing += _clips(about, config.clips, train, [n for n in others if n not in splits])
    if missing:
        command = _command(about, config, wants, layers, [train, *others], (*encoders, about.which)[0])
        raise ConfigError(
            f"{kept.root} does not hold what the suite asks for: {'; '.join(missing)}. Extract that into another "
            f"folder: {command}"
        )


def _clips(about: About, wanted: ClipsConfig | None, train: str, others: Sequence[str]) -> list[str]:
    if about.clip is None or wanted is None:
        return []  # images, or refused because of the data set
    held = {k: v for k, v in configuration.to_dict(about.clip).items() if v is not None}
    asked = {k: v for k in held | configuration.to_dict(wanted) if k in ClipConfig.__dataclass_fields__
             and (v := getattr(wanted, k)) is not None}  # fmt: skip
    if held != asked:
        return [f"clips {_flat(asked)} (it holds {_flat(held)})"]
    wrong = [f"{n} {about.views[n]}" for n in others if wanted.views not in (about.views[n], _middle(about.views[n]))]
    if train in about.views and _middle(about.views[train]) is None:
        wrong.append(f"{train} {about.views[train]}, none of them in the middle")
    return [f"{wanted.views} views of a clip, of {train} the middle one (it holds {', '.join(wrong)})"] if wrong else []


def _middle(views: int) -> int | None:
    """1 where one of so many views is the middle one, which is what a single view is."""
    return 1 if views % 2 else None


def _flat(values: dict[str, object]) -> str:
    return "{" + ", ".join(f"{k}: {v}" for k, v in values.items()) + "}"


def _command(
    about: About, config: FeaturesConfig, wants: Wants, layers: list[int], splits: list[str], which: str
) -> str:
    """The command that extracts what is asked for."""
    words = ["jepa", "extract", about.run, about.source.path, "--out", "FOLDER", "--which", which]
    words += ["--tokens"] if wants.tokens else []
    words += ["--layers", ",".join(map(str, layers))] if layers else []
    words += ["--splits", ",".join(splits), "--dtype", about.dtype]
    words += ["--precision", config.precision] if config.precision != "fp32" else []
    if config.clips is not None:
        clips = config.clips
        spacing = {k: v for k in ("fps", "stride", "duration") if (v := getattr(clips, k)) is not None}
        for key, value in {"frames": clips.frames, **spacing, "clips": clips.clips, "short": clips.short}.items():
            words += [f"--{key}", f"{value:g}" if isinstance(value, float) else str(value)]
        words += ["--views", str(clips.views)] + (["--views", f"{splits[0]}=1"] if clips.views > 1 else [])
    return shlex.join(words)


# --- reading ------------------------------------------------------------------------------------------------------


def _features(kept: FeatureSet, parts: Parts, wants: Wants, config: FeaturesConfig) -> Features:
    """As `Extractor.everything` gives them."""
    depth, found = kept.about.depth, Features([])
    if wants.pooled:
        found.output = _pooled(kept, parts, config, None)
        found.layers = {i: _pooled(kept, parts, config, i % depth) for i in wants.layers}
    if wants.tokens:
        found.tokens = _tokens(kept, parts, config)
    return found


def _views(config: FeaturesConfig, number: int) -> int:
    """Views of a clip; training samples, the first part, have one."""
    return config.clips.views if config.clips and number else 1


def _seen(tensor: Tensor, views: int) -> Tensor:
    """Of (n, C, V, ...) all views, or the middle one where a single one is wanted."""
    have = tensor.shape[2]
    return tensor if views == have else tensor[:, :, have // 2 : have // 2 + 1]


def _pooled(kept: FeatureSet, parts: Parts, config: FeaturesConfig, layer: int | None) -> list[Tensor]:
    out = []
    for number, (split, index) in enumerate(parts):
        found = kept.tensor(split.name, tensor_name(POOLED, layer), index).float()
        if config.clips is not None:
            found = average_features(_seen(found, _views(config, number)))
        out.append(found)
    return out


def _tokens(kept: FeatureSet, parts: Parts, config: FeaturesConfig) -> list[Tokens]:
    """In memory where all of them fit in, else read from the shards whenever they are wanted."""
    depth = kept.about.depth
    names = [tensor_name(TOKENS, i % depth) for i in config.tokens.layers] or [tensor_name(TOKENS)]
    stored = [
        _Stored(kept.rows(split.name), names, index, config, _views(config, number), str(kept.root))
        for number, (split, index) in enumerate(parts)
    ]
    if config.tokens.place(sum(int(np.prod(part.shape)) for part in stored), disk=True) != "memory":
        return list(stored)
    return [part.held() for part in stored]


class _Stored(Tokens):
    """Tokens of chosen samples, read from the shards in any order."""

    def __init__(
        self, rows: Rows, names: list[str], index: Ints, config: FeaturesConfig, views: int, where: str
    ) -> None:
        self._rows, self._names, self._index = rows, names, index
        self._config, self._views, self._name = config, views, where
        v, t, d = self._folded(torch.empty(1, *rows.shapes[names[0]], device="meta")).shape[1:]
        self.shape, self.where = (len(index), v, t * len(names), d), "disk"

    def walk(self, lists: Sequence[Ints]) -> Iterator[Tensor]:
        for places in lists:
            at = self._index[places]
            levels = [self._folded(self._rows.read(name, at)) for name in self._names]
            yield self._config.tokens.round(torch.cat(levels, dim=2), self._name)

    def held(self) -> Held:
        """The same in memory."""
        out, done, n = torch.empty(0), 0, len(self)
        for found in self.walk([np.arange(i, min(i + _AT_ONCE, n)) for i in range(0, n, _AT_ONCE)]):
            out = out if done else torch.empty(self.shape, dtype=found.dtype)
            out[done : done + len(found)] = found
            done += len(found)
        return Held(out)

    def _folded(self, kept: Tensor) -> Tensor:
        """As they are kept to (n, V, N, D)."""
        clips = self._config.clips
        if clips is None:
            return kept.unsqueeze(1)
        seen = _seen(kept, self._views)
        return join_clips(seen) if clips.join else separate_clips(seen)


def opened(path: Path | str) -> FeatureSet | None:
    """The features at a path; None where it is something else, such as a run.

    Raises:
        DataError: features that are not finished or damaged, or a data set.
    """
    return FeatureSet.open(path) if is_features(path) else None
