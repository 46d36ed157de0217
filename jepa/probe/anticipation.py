"""Action anticipation as a probe: what begins `seconds` after the clip ends is named from seen and predicted tokens.

V-JEPA 2's protocol on EPIC-KITCHENS-100 (arXiv 2506.09985): the clip ends `seconds` before the action's onset, the
frozen encoder reads it, the frozen predictor adds the tokens of the time when the action begins (anticipate.py), and
an attentive probe with a query for each kind of label (verb, noun, action) reads both. A grid of heads is trained at
once; for each kind the head with the best class-mean recall at k on the validation split is taken.

The encoder is compared with random initialisations of encoder and predictor, and with itself without its predictor:
the first says what training brings, the second what predicting adds to seeing.

Shapes: n samples, Q kinds of labels, C classes of a kind, G heads of the grid.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from jepa import checkpoint
from jepa.checkpoint import folder
from jepa.config import RunConfig, unknown_key
from jepa.data import Manifest
from jepa.data.video.clips import spacing
from jepa.errors import ConfigError, DataError
from jepa.methods.base import Method
from jepa.nn.tokens import Normalise
from jepa.probe.anticipate import AnticipateConfig, AnticipationConfig, Anticipator, in_top, recall
from jepa.probe.attentive import Grid, chosen, diverged, train_grid
from jepa.probe.baselines import reordered
from jepa.probe.bootstrap import Float64
from jepa.probe.clips import average_probabilities
from jepa.probe.dataset import Part, ProbeData
from jepa.probe.features import Embed, Levels, Source
from jepa.probe.suite import Suite
from jepa.probe.tokens import Tokens

Say = Callable[[str], None]


# --- what is asked ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Actions:
    """The actions of a data set that can be anticipated."""

    data: ProbeData  # samples with enough video ahead of the action
    kinds: dict[str, int]  # kinds of labels, and how many classes each has
    labels: tuple[Tensor, Tensor, Tensor]  # class numbers (n, Q) int64 of train, val and test; -1: not known
    ends: dict[str, Float64]  # of each split, for all its samples: the second at which the clip ends
    left_out: dict[str, int]  # of each split: samples whose action begins too early

    @classmethod
    def of(cls, data: ProbeData, asked: AnticipationConfig) -> Actions:
        """Those whose onset lies at least `seconds` behind the start of their video.

        Raises:
            ConfigError: no onsets, or kinds of labels that the data set has not.
            DataError: a split without any, or with labels of one class only.
        """
        kinds = _kinds(data.manifest, asked)
        parts, labels, ends, left_out = [], [], {}, {}
        for part in data.parts:
            split = part.split
            if asked.onset not in split.target_names:
                there = ", ".join(split.target_names) or "none"
                raise ConfigError(
                    f"probes.anticipation.onset: split {split.name!r} of {data.manifest.root} has no target "
                    f"{asked.onset!r} that says when an action begins; it has: {there}. "
                    "Sources of kind segments make one"
                )
            ends[split.name] = np.asarray(split.targets[asked.onset], dtype=np.float64) - asked.seconds
            every = _numbers(data.manifest, part, kinds)
            good = (ends[split.name][part.index] >= -1e-6) & (every >= 0).any(axis=1)
            if not good.any():
                raise DataError(
                    f"split {split.name!r} of {data.manifest.root} has no labelled action that begins "
                    f"{asked.seconds:g} s or more behind the start of its video. Build it with source.before above "
                    "that, or lower probes.anticipation.seconds"
                )
            parts.append(_only(part, good))
            labels.append(torch.from_numpy(every[good]))
            left_out[part.use] = int((~good).sum())
            ends[split.name] = np.maximum(ends[split.name], 0.0)
        for k, name in enumerate(kinds):
            for part, numbers in zip(parts, labels, strict=True):
                if len(set(numbers[:, k].tolist()) - {-1}) < 2:
                    raise DataError(f"split {part.split.name!r} has fewer than two classes of {name!r} to tell apart")
        chosen_data = replace(data, parts=(parts[0], parts[1], parts[2]))
        return cls(chosen_data, kinds, (labels[0], labels[1], labels[2]), ends, left_out)

    def facts(self) -> dict[str, Any]:
        """For the result file: how many test samples have a class that no training sample has, by kind."""
        strange = {}
        for k, name in enumerate(self.kinds):
            train, test = self.labels[0][:, k], self.labels[2][:, k]
            strange[name] = int((~torch.isin(test[test >= 0], train)).sum())
        return {"kinds": self.kinds, "begin_too_early": self.left_out, "test_samples_of_unseen_classes": strange}


def _kinds(manifest: Manifest, asked: AnticipationConfig) -> dict[str, int]:
    known = manifest.kinds or {"label": manifest.classes}
    for name in asked.labels:
        if name not in known:
            raise ConfigError(f"probes.anticipation.labels: {unknown_key(name, name, list(known))}")
    return {name: len(known[name]) for name in asked.labels or known}


def _numbers(manifest: Manifest, part: Part, kinds: dict[str, int]) -> Any:
    columns = [part.split.kind(name) if manifest.kinds else part.split.labels for name in kinds]
    return np.stack([np.asarray(column)[part.index] for column in columns], axis=1).astype(np.int64)


def _only(part: Part, good: Any) -> Part:
    at = torch.from_numpy(np.flatnonzero(good))
    return replace(
        part, index=part.index[good], labels=part.labels[at], targets=part.targets[at], originals=part.originals[good]
    )


# --- what is compared ---------------------------------------------------------------------------------------------


def sources(path: Path, run_config: RunConfig, suite: Suite) -> list[Source]:
    """The run's encoders with their predictor, the first of them without, and random ones. `path`: a checkpoint.

    Raises:
        ConfigError: a method that cannot look ahead.
    """
    asked = suite.probes.anticipation
    assert asked is not None and suite.features.clips is not None, "no anticipation was asked for"
    fps = 1 / spacing(suite.features.clips)
    method = checkpoint.create(run_config)
    checkpoint.load_model(path, method)
    step = int(checkpoint.read_state(path)["step"])
    weights = {"weights": folder.manifest(path)["files"][folder.MODEL]["sha256"]}
    found = []
    for which in suite.features.encoders or (method.exported(),):
        name = f"{which} (step {step})"
        found.append(_source(name, "run", method, which, run_config, asked, fps, weights))
    which = suite.features.encoders[0] if suite.features.encoders else method.exported()
    if asked.predictor:
        blind = replace(asked, predictor=False, encoder=True)
        found.append(_source(f"{which}, without its predictor", "seen", method, which, run_config, blind, fps, weights))
    found += [reordered(found[0], how) for how in suite.baselines.frames]
    count = suite.baselines.random
    for seed in range(run_config.seed, run_config.seed + count):
        name = "random init" if count == 1 else f"random init (seed {seed})"
        other = checkpoint.random_method(run_config, seed)
        found.append(_source(name, "random", other, which, run_config, asked, fps, {"random": seed}))
    return found


def _source(
    name: str,
    role: Any,
    method: Method,
    which: str,
    run_config: RunConfig,
    asked: AnticipateConfig,
    fps: float,
    weights: dict[str, Any],
) -> Source:
    if which not in method.encoders():
        raise ConfigError(f"features.encoders: this method has {', '.join(method.encoders())}, not {which!r}")
    foresight = method.eval().requires_grad_(False).foresight(which, asked.mask_token)
    if foresight is None:
        raise ConfigError(
            f"method {run_config.method.get('name')!r} does not say how it looks ahead (Method.foresight), so there is "
            "nothing to anticipate with. Methods of clips with a predictor do: vjepa, vjepa21"
        )
    normalise = Normalise(run_config.data.mean, run_config.data.std)
    model = Anticipator(foresight, fps, asked, normalise)

    def levels(device: torch.device, layers: tuple[int, ...]) -> Levels:
        method.to(device)
        placed = model.to(device)
        return lambda clips: [placed(clips)]

    def build(device: torch.device) -> Embed:
        look = levels(device, ())
        return lambda clips: look(clips)[0].mean(dim=1)

    read = {key: getattr(asked, key) for key in AnticipateConfig.__dataclass_fields__}
    data = {"mean": list(run_config.data.mean), "std": list(run_config.data.std)}
    identity = {**weights, "which": which, "config": {"method": run_config.method, **data}, "ahead": read, "fps": fps}
    facts = {"seed": run_config.seed, "reads": read}
    return Source(name, role, method.size, identity, build, facts, levels, layered=False)


# --- the probe ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Answer:
    """What the chosen head says of the test samples whose label is known."""

    known: Tensor  # (n,) bool
    first: Tensor  # (n,) bool: the most likely class is right
    top: Tensor  # (n,) bool: the right class is among the k most likely
    chosen: dict[str, Any]


def anticipation_probe(
    tokens: tuple[Tokens, Tokens, Tokens],
    actions: Actions,
    asked: AnticipationConfig,
    device: torch.device | str = "cpu",
    name: str = "tokens",
    say: Say | None = None,
) -> dict[str, Answer]:
    """Train the grid on the first of (train, val, test), choose on the second, answer for the third; by kind.

    Raises:
        ConfigError: settings that do not fit the tokens.
        DataError: every head diverged; names the encoder.
    """
    sizes = tuple(actions.kinds.values())
    grid = train_grid(tokens[0], actions.labels[0], sizes, asked.probe, device, say)
    val = _hits(grid, tokens[1], actions.labels[1], sizes, asked.k)
    found = {}
    for q, (kind, hits) in enumerate(zip(actions.kinds, val, strict=True)):
        labels = actions.labels[1][:, q]
        first, top, finite = hits[:, :, labels >= 0]
        score = [recall(top[head], labels[labels >= 0]) if finite[head].all() else -1.0 for head in range(len(top))]
        best = int(np.lexsort((-first.double().mean(dim=1).numpy(), -np.array(score)))[0])
        if score[best] < 0:
            raise diverged(name, asked.probe)
        of_test = _hits(grid, tokens[2], actions.labels[2], sizes, asked.k, best)[q][:, 0]
        picked = chosen(grid, asked.probe, len(tokens[0]), best, score[best])
        found[kind] = Answer(actions.labels[2][:, q] >= 0, of_test[0], of_test[1], picked)
    return found


def _hits(
    grid: Grid, tokens: Tokens, labels: Tensor, sizes: tuple[int, ...], k: int, head: int | None = None
) -> list[Tensor]:
    """Of each kind (3, g, n) bool: the most likely class is right, the right one is among k, all is finite."""
    parts: list[list[Tensor]] = [[] for _ in sizes]
    done = 0
    for out in grid.answers(tokens, head):  # (g, b, V, sum of C)
        wanted = labels[done : done + out.shape[1]]
        done += out.shape[1]
        for q, logits in enumerate(torch.split(out, list(sizes), dim=3)):
            chances = torch.stack([average_probabilities(one) for one in logits])  # (g, b, C)
            right = [in_top(chances, wanted[:, q], count) for count in (1, k)]
            parts[q].append(torch.stack([*right, torch.isfinite(chances).all(dim=2)]))
    return [torch.cat(part, dim=2) for part in parts]
