"""State probe: a linear classifier for every discrete state variable, its F1 and accuracy.

The idea is AtariARI's (Anand et al., "Unsupervised state representation learning in Atari", arXiv 1906.08226): what an
encoder knows of a game is read from its frozen features as classes, one for each value of each variable. Variables that
hardly vary are left out: those whose values in the training split have an entropy below `min_entropy`, in nats
(0.6 there). The F1 of a variable is the mean over its values of each value's F1 = 2 TP / (2 TP + FP + FN), weighted by
how often the value occurs in the test split (scikit-learn's "weighted"; AtariARI's published program gives scikit-learn
its arguments the other way round, so there the weights are how often a value is predicted). `f1_macro` is the plain
mean over the values that occur or are predicted. The figure of an encoder is the mean over variables.

The classifiers are those of the linear probe (linear.py), on mean features; learning rate and weight decay are chosen
for each variable by accuracy on the validation split. A value that training never saw counts as a miss.

Shapes: n samples, K originals, C values of a variable, V variables.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from jepa.config import unknown_key
from jepa.data import Split
from jepa.errors import ConfigError, DataError
from jepa.probe.axes import Axes
from jepa.probe.bootstrap import Bootstrap, Float64, Interval
from jepa.probe.linear import LinearConfig, linear_probe

Ints = npt.NDArray[np.int64]
Metric = Literal["f1_weighted", "f1_macro", "top1"]
_VALUES = 1024  # most values of a variable: more are no classes


@dataclass(frozen=True)
class StateConfig:
    """Which state variables, which figures, and the grid of the classifiers."""

    variables: tuple[str, ...] = ()  # names of targets in the data set; empty: all it has
    min_entropy: float = 0.6  # of a variable's values in the training split, in nats; variables below are left out
    metrics: tuple[Metric, ...] = ("f1_weighted", "top1")  # f1_weighted, f1_macro, top1
    lr: tuple[float, ...] = (0.03, 1.0)  # as in the linear probe
    weight_decay: tuple[float, ...] = (1e-4, 1e-3, 1e-2, 1e-1)  # as in the linear probe
    steps: int = 100  # full-batch steps

    def __post_init__(self) -> None:
        self.linear()  # checks the grid
        if not self.min_entropy >= 0:
            raise ConfigError(f"min_entropy: got {self.min_entropy}, allowed: 0 (keeps all) or more")
        if not self.metrics or len(set(self.metrics)) < len(self.metrics):
            raise ConfigError(f"metrics: got {list(self.metrics)}, give at least one, each once")

    def linear(self) -> LinearConfig:
        """Each classifier's grid."""
        return LinearConfig(self.lr, self.weight_decay, self.steps)


@dataclass(frozen=True)
class Variable:
    """A state variable as classes."""

    name: str
    values: Float64  # (C,) rising: all that occur in any split
    classes: tuple[Tensor, Tensor, Tensor]  # (n,) int64 places in `values`, of train, validation and test samples
    entropy: float  # in the training split, in nats


@dataclass(frozen=True)
class Variables:
    """Those that are probed, and those that vary too little."""

    probed: list[Variable]
    left_out: list[Variable]

    def known(self) -> float:
        """Share of test samples whose whole state, all probed variables together, a training sample has too."""
        train, _, test = (torch.stack([v.classes[part] for v in self.probed], dim=1).tolist() for part in range(3))
        seen = {tuple(row) for row in train}
        return sum(tuple(row) in seen for row in test) / len(test)

    def facts(self, config: StateConfig) -> dict[str, Any]:
        """For the result file."""
        return {
            "min_entropy": config.min_entropy,
            "known": round(self.known(), 4),
            "variables": {v.name: {"entropy": round(v.entropy, 4), "values": len(v.values)} for v in self.probed},
            "left_out": {v.name: {"entropy": round(v.entropy, 4), "values": len(v.values)} for v in self.left_out},
        }


def open_variables(parts: Sequence[tuple[Split, Ints]], config: StateConfig) -> Variables:
    """Read and check the state variables of the chosen samples of train, validation and test.

    Raises:
        ConfigError: no targets, an unknown name, or one that is not discrete.
        DataError: a split without the variable, values that are not finite, or no variable that varies enough.
    """
    first = parts[0][0]
    wanted = config.variables or tuple(first.target_names)
    if not wanted:
        raise ConfigError(
            f"the state probe needs state variables (targets), and data set {first.root} has none. Leave it out with "
            "probes.state=null, or build the data set with source.state"
        )
    for name in wanted:
        if name not in first.target_names:
            raise ConfigError(f"probes.state.variables: {unknown_key(name, name, first.target_names)}")
    found = [_variable(name, parts) for name in wanted]
    probed = [v for v in found if v.entropy >= config.min_entropy and len(v.values) > 1]
    left_out = [v for v in found if v not in probed]
    if not probed:
        shown = ", ".join(f"{v.name} {v.entropy:.2f}" for v in left_out)
        raise DataError(
            f"no state variable of {first.root} has an entropy of probes.state.min_entropy={config.min_entropy:g} "
            f"nats or more in split {first.name!r}: {shown}. Lower it, or use data in which more happens"
        )
    return Variables(probed, left_out)


def _variable(name: str, parts: Sequence[tuple[Split, Ints]]) -> Variable:
    columns = []
    for split, index in parts:
        if name not in split.target_names:
            raise DataError(f"split {split.name!r} of {split.root} has no state variable {name!r}")
        columns.append(np.asarray(split.targets[name])[index].astype(np.float64))
        if not np.isfinite(columns[-1]).all():
            raise DataError(f"state variable {name!r} in split {split.name!r} of {split.root} is not finite everywhere")
    values = np.unique(np.concatenate(columns))
    if len(values) > _VALUES or (values != values.round()).any():
        raise ConfigError(
            f"state variable {name!r} is not discrete ({len(values)} values, e.g. {values[len(values) // 2]:g}). "
            "Read continuous targets with the ridge probe, and name the others in probes.state.variables"
        )
    train, val, test = (torch.from_numpy(np.searchsorted(values, column)) for column in columns)
    return Variable(name, values, (train, val, test), entropy(train, len(values)))


def entropy(classes: Tensor, count: int) -> float:
    """-sum p log p of class numbers (n,), in nats."""
    share = np.bincount(classes.numpy(), minlength=count) / max(len(classes), 1)
    share = share[share > 0]
    return float(-(share * np.log(share)).sum()) + 0.0


def state_probe(
    axes: Axes, train: Tensor, val: Tensor, test: Tensor, variable: Variable, config: StateConfig
) -> tuple[Tensor, dict[str, Any]]:
    """Classify one variable from features on the axes: predicted classes (n_test,), and what was chosen."""
    y_train, y_val, _ = (y.to(train.device) for y in variable.classes)
    return linear_probe(axes, (train, y_train), (val, y_val), test, len(variable.values), config.linear())


# --- figures ------------------------------------------------------------------------------------------------------


class Scores:
    """Figures of predictions with intervals clustered by original; all are functions of counts per original.

    Args:
        originals: (n,) of the test samples.
        options: resamples, confidence, seed of the bootstrap.
    """

    def __init__(self, originals: Ints, variables: Sequence[Variable], options: tuple[int, float, int]) -> None:
        unique, self._member = np.unique(originals, return_inverse=True)
        self.boot = Bootstrap(unique, *options)
        self.variables = list(variables)

    def counts(self, variable: Variable, predicted: Tensor) -> Float64:
        """Hits, false alarms and misses of each value, by original: (K, 3 C)."""
        true, found, wide = variable.classes[2].numpy(), predicted.numpy(), len(variable.values)
        right = true == found

        def table(classes: Ints, rows: npt.NDArray[np.bool_]) -> Float64:
            flat = self._member[rows] * wide + classes[rows]
            return np.bincount(flat, minlength=self.boot.clusters * wide).reshape(-1, wide).astype(np.float64)

        return np.concatenate([table(true, right), table(found, ~right), table(true, ~right)], axis=1)

    def commonest(self, variable: Variable) -> Tensor:
        """Always the value that the training split has most: (n_test,)."""
        return torch.full_like(variable.classes[2], int(torch.bincount(variable.classes[0]).argmax()))

    def interval(self, counts: Sequence[Float64], metric: Metric, other: Sequence[Float64] | None = None) -> Interval:
        """The mean of a figure over variables, or how far it lies above that of `other` predictions (paired)."""
        widths = [c.shape[1] for c in counts]
        own = np.concatenate([*counts, *(other or ())], axis=1)

        def statistic(sums: Float64) -> Float64:
            pieces = np.split(sums, np.cumsum([*widths, *(widths if other else ())])[:-1], axis=1)
            each = np.stack([figure(piece, metric) for piece in pieces])
            mean: Float64 = each[: len(widths)].mean(axis=0)
            return mean - each[len(widths) :].mean(axis=0) if other else mean

        return self.boot.of(own, statistic)


def figure(counts: Float64, metric: Metric) -> Float64:
    """F1 or accuracy (R,) from hits, false alarms and misses of each value (R, 3 C)."""
    hit, alarm, miss = np.split(counts, 3, axis=1)
    if metric == "top1":
        return np.asarray(hit.sum(axis=1) / (hit + miss).sum(axis=1))
    touched = 2 * hit + alarm + miss
    f1 = np.divide(2 * hit, touched, out=np.zeros_like(hit), where=touched > 0)
    weight = hit + miss if metric == "f1_weighted" else (touched > 0).astype(np.float64)
    return np.asarray((f1 * weight).sum(axis=1) / weight.sum(axis=1))
