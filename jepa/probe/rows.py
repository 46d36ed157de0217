"""The result table: every encoder through every probe, each figure with its interval.

Shapes: n samples, D width, T targets.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch
from torch import Tensor

from jepa.probe.axes import Axes, check_finite
from jepa.probe.bootstrap import Bootstrap, Float64, Interval
from jepa.probe.dataset import ProbeData
from jepa.probe.features import Source
from jepa.probe.knn import knn_probe
from jepa.probe.linear import linear_probe
from jepa.probe.ridge import ridge_probe
from jepa.probe.suite import Suite

Row = dict[str, Any]


class Table:
    """Rows of one suite. Add the run's own encoder first: later rows are compared with it, sample by sample.

    Args:
        device: where probes compute; must know float64.
    """

    def __init__(self, suite: Suite, data: ProbeData, device: torch.device) -> None:
        self.suite, self.data, self.device = suite, data, device
        self.rows: list[Row] = []
        self.sources: list[dict[str, Any]] = []
        self._labelled = [part.labelled() for part in data.parts]
        self._right: dict[str, Float64] = {}  # of the first encoder: 0/1 on labelled test samples, by probe
        self._fit: Float64 | None = None  # of the first encoder: predicted targets of test samples
        test, settings = data.parts[2], suite.bootstrap
        options = (settings.resamples, settings.confidence, settings.seed)
        self._by_label = Bootstrap(test.originals[self._labelled[2].numpy()], *options) if data.classes else None
        self._by_target = Bootstrap(test.originals, *options) if data.targets else None

    def add(self, source: Source, features: list[Tensor]) -> None:
        """All rows of one encoder, from its features (n, D) of the train, validation and test samples.

        Raises:
            DataError: features that are not finite; names the encoder.
        """
        begin, first = time.perf_counter(), len(self.rows)
        probes = self.suite.probes
        # copies of the labelled rows only where some are not: features can be most of the memory
        labelled = [x if len(at) == len(x) else x[at] for x, at in zip(features, self._labelled, strict=True)]
        labels = [part.labels[at] for part, at in zip(self.data.parts, self._labelled, strict=True)]
        if probes.knn:
            x_train, x_val, x_test, y_train, y_val = self._placed([*labelled, *labels[:2]])
            found, chosen = knn_probe(
                (x_train, y_train), (x_val, y_val), x_test, self.data.classes, probes.knn, source.name
            )
            self._classified(source, "knn", found, chosen)
        if probes.linear:
            axes, on = self._on_axes(source, labelled)
            found, chosen = linear_probe(
                axes, (on[0], labels[0]), (on[1], labels[1]), on[2], self.data.classes, probes.linear
            )
            self._classified(source, "linear", found, chosen)
        if probes.ridge:
            if not (probes.linear and all(len(a) == len(b) for a, b in zip(labelled, features, strict=True))):
                axes, on = self._on_axes(source, features)
            targets = [part.targets for part in self.data.parts]
            fit, picked = ridge_probe(axes, (on[0], targets[0]), (on[1], targets[1]), on[2], probes.ridge)
            self._regressed(source, fit.numpy(), picked)
        seconds = round(time.perf_counter() - begin, 3)
        self.sources.append({
            "encoder": source.name, "role": source.role, "width": features[0].shape[1],
            "image_size": list(source.image_size), "probe_seconds": seconds, "rows": len(self.rows) - first,
            **source.facts,
        })  # fmt: skip

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

    def _classified(self, source: Source, probe: str, found: Tensor, chosen: dict[str, Any]) -> None:
        assert self._by_label is not None, "a classification without labels was let through"
        labels = self.data.parts[2].labels[self._labelled[2]]
        right = (found == labels).numpy().astype(np.float64)
        main = self._right.setdefault(probe, right)
        row = self._row(source, probe, "top1", self._by_label.mean(right), chosen, self._by_label, len(right))
        row["chance"] = float(np.bincount(labels.numpy()).max() / len(labels))  # always naming the commonest class
        if source.baseline:
            row["gap"] = _plain(self._by_label.mean(main - right))

    def _regressed(self, source: Source, fit: Float64, chosen: list[dict[str, Any]]) -> None:
        boot, names = self._by_target, self.data.targets
        assert boot is not None, "a regression without targets was let through"
        target = self.data.parts[2].targets.numpy()
        if self._fit is None:
            self._fit = fit
        columns = [(f"ridge:{name}", [t], chosen[t]) for t, name in enumerate(names)]
        if len(names) > 1:  # one figure for things that belong together, such as x and y of a position
            columns.append((f"ridge:{'+'.join(names)}", list(range(len(names))), {}))
        for probe, t, picked in columns:
            interval = boot.r2(target[:, t], fit[:, t])
            row = self._row(source, probe, "r2", interval, picked, boot, len(target))
            if source.baseline:
                row["gap"] = _plain(boot.r2_gap(target[:, t], self._fit[:, t], fit[:, t]))

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
        }  # fmt: skip
        self.rows.append(row)
        return row


def _plain(interval: Interval) -> dict[str, float]:
    return {"value": interval.value, "low": interval.low, "high": interval.high}
