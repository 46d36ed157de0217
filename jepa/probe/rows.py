"""The result table: every encoder through every probe, each figure with its interval.

Rows are named by their probe: ``linear`` reads the mean over the output's tokens, ``linear@3`` that of layer 3,
``linear@last4`` the last four layers side by side, ``ridge:x`` and ``attentive:x`` the continuous target x,
``state:x`` the discrete target x and ``state`` their mean.

Shapes: n samples, D width, T targets.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from jepa.probe.anticipate import class_mean_recall, recall_columns
from jepa.probe.anticipation import Actions, anticipation_probe
from jepa.probe.attentive import attentive_probe, attentive_regression
from jepa.probe.axes import Axes, check_finite
from jepa.probe.bootstrap import Bootstrap, Float64, Interval
from jepa.probe.dataset import ProbeData
from jepa.probe.dense import depth_probe, miou, segmentation_probe
from jepa.probe.features import Features, Source
from jepa.probe.knn import LAST4, Layer, knn_probe
from jepa.probe.linear import linear_probe
from jepa.probe.maps import Maps
from jepa.probe.ridge import ridge_probe
from jepa.probe.state import Scores, open_variables, state_probe
from jepa.probe.suite import Suite
from jepa.probe.tokens import Tokens

Row = dict[str, Any]


class Table:
    """Rows of one suite. Add the run's own encoder first: later rows are compared with it, sample by sample.

    Args:
        device: where probes compute; must know float64.
        say: told what is being done, for a progress bar.
        actions: what is anticipated, in a suite that does.
    """

    def __init__(
        self,
        suite: Suite,
        data: ProbeData,
        device: torch.device,
        say: Callable[[str], None] | None = None,
        actions: Actions | None = None,
    ) -> None:
        self.suite, self.data, self.device, self.say, self.actions = suite, data, device, say, actions
        self.rows: list[Row] = []
        self.sources: list[dict[str, Any]] = []
        self._labelled = [part.labelled() for part in data.parts]
        self._right: dict[str, Float64] = {}  # of the first encoder: 0/1 on labelled test samples, by probe
        self._fit: dict[str, Float64] = {}  # of the first encoder: predicted targets of test samples, by probe
        self._columns: dict[str, Float64] = {}  # of the first encoder: what a dense figure is summed from, by probe
        test, settings = data.parts[2], suite.bootstrap
        options = (settings.resamples, settings.confidence, settings.seed)
        whole = bool(data.targets or suite.probes.segmentation or suite.probes.depth or actions)
        self._by_label = Bootstrap(test.originals[self._labelled[2].numpy()], *options) if data.classes else None
        self._by_sample = Bootstrap(test.originals, *options) if whole else None
        self.state, state = None, suite.probes.state
        if state:
            self.state = open_variables(data.wanted(), state)
            self._scores = Scores(test.originals, self.state.probed, options)
            self._counts: list[Float64] = []  # of the first encoder: hits, false alarms and misses, by variable

    def add(self, source: Source, found: Features) -> None:
        """All rows of one encoder, from its features of the train, validation and test samples.

        Raises:
            DataError: features that are not finite; names the encoder.
        """
        begin, first = time.perf_counter(), len(self.rows)
        if self.suite.probes.pooled:
            self._pooled(source, found)
        if found.tokens is not None:
            self._attentive(source, found.tokens)
            self._dense(source, found.tokens)
            self._anticipated(source, found.tokens)
        about: dict[str, Any] = {"encoder": source.name, "role": source.role, "image_size": list(source.image_size)}
        if found.output:
            about["width"] = found.output[0].shape[1]
        if found.tokens:
            about["tokens"] = {"shape": list(found.tokens[0].shape[1:]), "kept": found.tokens[0].where}
        seconds = round(time.perf_counter() - begin, 3)
        self.sources.append(about | {"probe_seconds": seconds, "rows": len(self.rows) - first, **source.facts})

    # --- probes of means over tokens ------------------------------------------------------------------------------

    def _pooled(self, source: Source, found: Features) -> None:
        probes = self.suite.probes
        labels = [part.labels[at] for part, at in zip(self.data.parts, self._labelled, strict=True)]
        if probes.knn:
            for name, features in _levels("knn", found, probes.knn.layers):
                x_train, x_val, x_test, y_train, y_val = self._placed([*self._with_labels(features), *labels[:2]])
                answers, chosen = knn_probe(
                    (x_train, y_train), (x_val, y_val), x_test, self.data.classes, probes.knn, source.name
                )
                self._classified(source, name, answers, chosen)
        axes: Axes | None = None
        if probes.linear:
            for name, features in _levels("linear", found, probes.linear.layers):
                labelled = self._with_labels(features)
                here, on = self._on_axes(source, labelled)
                answers, chosen = linear_probe(
                    here, (on[0], labels[0]), (on[1], labels[1]), on[2], self.data.classes, probes.linear
                )
                self._classified(source, name, answers, chosen)
                if name == "linear" and all(len(a) == len(b) for a, b in zip(labelled, features, strict=True)):
                    axes, placed = here, on  # the ridge probe reads the same
        if probes.ridge:
            if axes is None:
                axes, placed = self._on_axes(source, found.output)
            targets = self._targets(self.data.ridge)
            fit, picked = ridge_probe(axes, (placed[0], targets[0]), (placed[1], targets[1]), placed[2], probes.ridge)
            self._regressed(source, "ridge", self.data.ridge, fit.numpy(), picked)
        if probes.state and self.state:
            here, on = self._on_axes(source, found.output)
            answers_of = [state_probe(here, on[0], on[1], on[2], v, probes.state) for v in self.state.probed]
            self._stated(source, answers_of)

    def _with_labels(self, features: list[Tensor]) -> list[Tensor]:
        """Copies of the labelled rows only where some are not: features can be most of the memory."""
        return [x if len(at) == len(x) else x[at] for x, at in zip(features, self._labelled, strict=True)]

    def _targets(self, names: tuple[str, ...]) -> list[Tensor]:
        columns = [self.data.targets.index(name) for name in names]
        return [part.targets[:, columns] for part in self.data.parts]

    def _on_axes(self, source: Source, features: list[Tensor]) -> tuple[Axes, list[Tensor]]:
        axes = Axes.fit(features[0], source.name, self.device)
        for part in features[1:]:
            check_finite(part, source.name)
        return axes, self._placed([axes.apply(part) for part in features])

    def _placed(self, tensors: list[Tensor]) -> list[Tensor]:
        """All on the probes' device if they leave room for work there; else all where they are, read in chunks."""
        if self.device.type == "cuda":
            free, _ = torch.cuda.mem_get_info(self.device)
            if sum(t.numel() * t.element_size() for t in tensors) < free // 2:
                return [t.to(self.device) for t in tensors]
        return tensors

    # --- probes of tokens -----------------------------------------------------------------------------------------

    def _attentive(self, source: Source, tokens: list[Tokens]) -> None:
        config = self.suite.probes.attentive
        if config is None:
            return
        say = self._saying(f"{source.name}, attentive probe")
        if config.classify:
            labels = [part.labels[at] for part, at in zip(self.data.parts, self._labelled, strict=True)]
            train, val, test = (x.at(at.numpy()) for x, at in zip(tokens, self._labelled, strict=True))
            chances, chosen = attentive_probe(
                (train, labels[0]), (val, labels[1]), test, self.data.classes, config, self.device, source.name, say
            )
            self._classified(source, "attentive", chances.argmax(dim=1), chosen)
        if config.targets:
            targets = self._targets(config.targets)
            fit, picked = attentive_regression(
                (tokens[0], targets[0]), (tokens[1], targets[1]), tokens[2], config, self.device, source.name, say
            )
            self._regressed(source, "attentive", config.targets, fit.numpy(), picked)

    def _dense(self, source: Source, tokens: list[Tokens]) -> None:
        probes, (train, val, test) = self.suite.probes, tokens
        if source.grid is None or not (probes.segmentation or probes.depth):
            return
        if probes.segmentation:
            maps = self._maps(source, probes.segmentation.map)
            say = self._saying(f"{source.name}, segmentation")
            columns, chosen = segmentation_probe(
                (train, val, test), maps, source.grid, probes.segmentation, self.device, say
            )
            self._summed(source, "segmentation", "miou", columns, miou, chosen)
        if probes.depth:
            maps = self._maps(source, probes.depth.map)
            error, chosen = depth_probe((train, val, test), maps, source.grid, probes.depth)
            known = np.isfinite(error)
            columns = np.stack([np.where(known, error, 0.0), known.astype(np.float64)], axis=1)
            self._summed(source, "depth", "rmse", columns, lambda s: s[:, 0] / s[:, 1], chosen)

    def _anticipated(self, source: Source, tokens: list[Tokens]) -> None:
        asked, actions = self.suite.probes.anticipation, self.actions
        if asked is None or actions is None:
            return
        (train, val, test), say = tokens, self._saying(f"{source.name}, anticipation")
        answers = anticipation_probe((train, val, test), actions, asked, self.device, source.name, say)
        for k, (kind, answer) in enumerate(answers.items()):
            labels, known = actions.labels[2][:, k], answer.known.numpy().astype(np.float64)
            right = np.stack([answer.first.numpy() * known, known], axis=1)
            row = self._summed(
                source, f"anticipation:{kind}", "top1", right, lambda s: s[:, 0] / s[:, 1], answer.chosen
            )
            seen = labels[answer.known]
            row["chance"] = float(torch.bincount(seen).max() / len(seen))
            recalled = recall_columns(answer.top, labels)
            self._summed(source, f"anticipation:{kind}", f"recall{asked.k}", recalled, class_mean_recall, answer.chosen)

    def _maps(self, source: Source, name: str) -> tuple[Maps, Maps, Maps]:
        size = (source.image_size[-2], source.image_size[-1])
        train, val, test = (Maps(part.split, part.index, name, size) for part in self.data.parts)
        return train, val, test

    def _saying(self, what: str) -> Callable[[str], None] | None:
        say = self.say
        return (lambda text: say(f"{what}: {text}")) if say else None

    # --- rows -----------------------------------------------------------------------------------------------------

    def _classified(self, source: Source, probe: str, found: Tensor, chosen: dict[str, Any]) -> None:
        assert self._by_label is not None, "a classification without labels was let through"
        labels = self.data.parts[2].labels[self._labelled[2]]
        right = (found == labels).numpy().astype(np.float64)
        main = self._right.setdefault(probe, right)
        row = self._row(source, probe, "top1", self._by_label.mean(right), chosen, self._by_label, len(right))
        row["chance"] = float(np.bincount(labels.numpy()).max() / len(labels))  # always naming the commonest class
        if source.baseline:
            row["gap"] = _plain(self._by_label.mean(main - right))

    def _regressed(
        self, source: Source, kind: str, names: tuple[str, ...], fit: Float64, chosen: list[dict[str, Any]]
    ) -> None:
        boot = self._by_sample
        assert boot is not None, "a regression without targets was let through"
        target = self._targets(names)[2].numpy()
        main = self._fit.setdefault(kind, fit)
        columns = [(f"{kind}:{name}", [t], chosen[t]) for t, name in enumerate(names)]
        if len(names) > 1:  # one figure for things that belong together, such as x and y of a position
            columns.append((f"{kind}:{'+'.join(names)}", list(range(len(names))), {}))
        for probe, t, picked in columns:
            interval = boot.r2(target[:, t], fit[:, t])
            row = self._row(source, probe, "r2", interval, picked, boot, len(target))
            if source.baseline:
                row["gap"] = _plain(boot.r2_gap(target[:, t], main[:, t], fit[:, t]))

    def _stated(self, source: Source, answers: list[tuple[Tensor, dict[str, Any]]]) -> None:
        """Rows of every state variable, then of their mean."""
        assert self.state is not None and self.suite.probes.state is not None, "a state probe without variables"
        scores, variables = self._scores, self.state.probed
        counts = [scores.counts(v, found) for v, (found, _) in zip(variables, answers, strict=True)]
        self._counts = self._counts or counts
        chance = [scores.counts(v, scores.commonest(v)) for v in variables]
        places = [(f"state:{v.name}", [i], answers[i][1]) for i, v in enumerate(variables)]
        for metric in self.suite.probes.state.metrics:
            for probe, at, chosen in [("state", list(range(len(variables))), {}), *places]:
                mine, main = [counts[i] for i in at], [self._counts[i] for i in at]
                n = len(self.data.parts[2].index)
                row = self._row(source, probe, metric, scores.interval(mine, metric), chosen, scores.boot, n)
                row["chance"] = scores.interval([chance[i] for i in at], metric).value
                if source.baseline:
                    row["gap"] = _plain(scores.interval(main, metric, mine))

    def _summed(
        self,
        source: Source,
        probe: str,
        metric: str,
        columns: Float64,
        statistic: Callable[[Float64], Float64],
        chosen: dict[str, Any],
    ) -> Row:
        """A figure that is a function of sums over test samples of `columns` (n, S)."""
        boot, wide = self._by_sample, columns.shape[1]
        assert boot is not None, "a dense probe without intervals"
        main = self._columns.setdefault(f"{probe} {metric}", columns)
        row = self._row(source, probe, metric, boot.of(columns, statistic), chosen, boot, len(columns))
        if source.baseline:
            both = np.concatenate([main, columns], axis=1)
            row["gap"] = _plain(boot.of(both, lambda s: statistic(s[:, :wide]) - statistic(s[:, wide:])))
        return row

    def _row(
        self,
        source: Source,
        probe: str,
        metric: str,
        interval: Interval,
        chosen: dict[str, Any],
        boot: Bootstrap,
        n: int,
    ) -> Row:
        row: Row = {
            "encoder": source.name, "role": source.role, "baseline": source.baseline, "probe": probe, "metric": metric,
            **_plain(interval), "chosen": chosen, "n_test": n, "n_clusters": boot.clusters,
            "protocol": self.suite.protocol,
        }  # fmt: skip
        self.rows.append(row)
        return row


def _levels(probe: str, found: Features, layers: tuple[Layer, ...]) -> Iterator[tuple[str, list[Tensor]]]:
    """Row names and features of the output and of each layer that the source has."""
    yield probe, found.output
    for layer in layers if found.layers else ():
        if layer == "last4":
            yield f"{probe}@last4", [torch.cat(x, dim=1) for x in zip(*(found.layers[i] for i in LAST4), strict=True)]
        else:
            yield f"{probe}@{layer}", found.layers[layer]


def _plain(interval: Interval) -> dict[str, float]:
    return {"value": interval.value, "low": interval.low, "high": interval.high}
