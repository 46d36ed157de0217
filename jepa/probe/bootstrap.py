"""95 % intervals by bootstrap over original images.

Samples cut from one original are not independent: counting them as if they were gives intervals that are too narrow.
So whole originals are drawn with replacement (a cluster bootstrap: Field & Welsh, "Bootstrapping clustered data",
J. R. Stat. Soc. B 69, 2007), and the interval runs between the percentiles of the resampled statistic. It says how far
the test set's luck goes; the luck of training is another matter and is shown by repeating the training.

Every statistic here is a function of sums over samples, so one resample is one weighted sum over clusters, and all
resamples are a product of a (resamples, clusters) matrix of counts with a (clusters, columns) matrix of sums. The
counts depend on the seed and the number of clusters only: rows of one table are resampled alike, which makes the
interval of a difference a paired one.

Shapes: n samples, K clusters, R resamples, S summed columns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from jepa import keyed
from jepa.errors import DataError

Float64 = npt.NDArray[np.float64]
_CHUNK = 1 << 23  # counts made at once (64 MiB)


@dataclass(frozen=True)
class Interval:
    """A value measured on all samples, with the percentile interval around it."""

    value: float
    low: float
    high: float


class Bootstrap:
    """Resampling of one test set.

    Args:
        clusters: (n,) integers; samples of one original share a number.
        resamples: how many times the originals are drawn anew.
        confidence: share of the resampled statistics inside the interval.
        seed: with the number of clusters it determines every draw.

    Raises:
        DataError: fewer than two clusters.
    """

    def __init__(
        self, clusters: npt.NDArray[np.int64], resamples: int = 2000, confidence: float = 0.95, seed: int = 0
    ) -> None:
        unique, self.member = np.unique(np.asarray(clusters), return_inverse=True)
        self.clusters = len(unique)  # `member` (n,): of which of them each sample is
        if self.clusters < 2:
            raise DataError(
                f"a confidence interval needs at least 2 original images in the test split, it has {self.clusters}"
            )
        self.resamples, self.confidence, self.seed = resamples, confidence, seed

    def mean(self, values: npt.ArrayLike) -> Interval:
        """Interval of the mean of `values` (n,), for example 0/1 for wrong/right: accuracy."""
        x = np.asarray(values, dtype=np.float64)
        return self.of(np.stack([x, np.ones_like(x)], axis=1), lambda s: s[:, 0] / s[:, 1])

    def r2(self, target: npt.ArrayLike, predicted: npt.ArrayLike) -> Interval:
        """Interval of the mean over columns of R² = 1 - SSE / SST; both (n,) or (n, T)."""
        y, fit = (np.asarray(a, dtype=np.float64) for a in (target, predicted))
        y, fit = y.reshape(len(y), -1), fit.reshape(len(fit), -1)
        return self.of(*r2_columns(y, fit))

    def r2_gap(self, target: npt.ArrayLike, first: npt.ArrayLike, second: npt.ArrayLike) -> Interval:
        """Paired interval of R²(first) - R²(second), mean over columns."""
        y, a, b = (np.asarray(v, dtype=np.float64) for v in (target, first, second))
        y, a, b = (v.reshape(len(v), -1) for v in (y, a, b))
        (left, r2), (right, _) = r2_columns(y, a), r2_columns(y, b)
        return self.gap(left, right, r2)

    def gap(self, first: Float64, second: Float64, statistic: Callable[[Float64], Float64]) -> Interval:
        """Paired interval of statistic(first) - statistic(second), two sets of columns (n, S) as for `of`."""
        split = first.shape[1]
        both = np.concatenate([first, second], axis=1)
        return self.of(both, lambda s: statistic(s[:, :split]) - statistic(s[:, split:]))

    def of(self, columns: Float64, statistic: Callable[[Float64], Float64]) -> Interval:
        """Interval of `statistic`, which takes sums (R, S) over samples of `columns` (n, S) and gives (R,)."""
        sums = np.zeros((self.clusters, columns.shape[1]))
        np.add.at(sums, self.member, columns)
        drawn = np.concatenate([counts @ sums for counts in self._counts()])
        tail = 100 * (1 - self.confidence) / 2
        low, high = np.nanpercentile(statistic(drawn), [tail, 100 - tail])
        return Interval(float(statistic(columns.sum(axis=0, keepdims=True))[0]), float(low), float(high))

    def _counts(self) -> Iterator[Float64]:
        """How often each cluster is drawn in each resample, (R, K) in chunks of rows."""
        size = max(1, min(self.resamples, _CHUNK // self.clusters))
        for start in range(0, self.resamples, size):
            rows = min(size, self.resamples - start)
            rng = keyed.generator("bootstrap", self.seed, self.clusters, start)
            drawn = rng.integers(0, self.clusters, (rows, self.clusters))
            drawn += np.arange(rows)[:, None] * self.clusters
            counts = np.bincount(drawn.ravel(), minlength=rows * self.clusters)
            yield counts.reshape(rows, self.clusters).astype(np.float64)


def r2_columns(y: Float64, fit: Float64) -> tuple[Float64, Callable[[Float64], Float64]]:
    """Columns whose sums determine R², mean over T, and the function that does it; y and fit (n, T)."""
    wide = y.shape[1]
    centred = y - y.mean(axis=0)  # a shift changes no R² and keeps sum(y^2) - sum(y)^2 / n from cancelling
    columns = np.concatenate([(y - fit) ** 2, centred, centred**2, np.ones((len(y), 1))], axis=1)

    def r2(sums: Float64) -> Float64:
        error, total, square, count = np.split(sums, [wide, 2 * wide, 3 * wide], axis=1)
        around = square - total**2 / count
        with np.errstate(divide="ignore", invalid="ignore"):  # a resample of one original only: left out as NaN
            share = np.where(around > 0, 1 - error / around, np.nan)
        return np.asarray(share.mean(axis=1))

    return columns, r2


def pearson_columns(y: Float64, fit: Float64) -> tuple[Float64, Callable[[Float64], Float64]]:
    """Columns whose sums determine Pearson's r, mean over T, and the function that does it; y and fit (n, T).

    0 where the prediction does not vary: it says nothing.
    """
    wide = y.shape[1]
    a, b = y - y.mean(axis=0), fit - fit.mean(axis=0)
    columns = np.concatenate([a, b, a * a, b * b, a * b, np.ones((len(y), 1))], axis=1)

    def pearson(sums: Float64) -> Float64:
        first, second, square, other, product = (sums[:, i * wide : (i + 1) * wide] for i in range(5))
        n = sums[:, 5 * wide :]
        around, about = square - first**2 / n, other - second**2 / n
        with np.errstate(divide="ignore", invalid="ignore"):
            r = (product - first * second / n) / np.sqrt(around * about)
        r = np.where(about > 0, r, 0.0)  # whatever is constant
        return np.asarray(np.where(around > 0, r, np.nan).mean(axis=1))  # a resample of one value: left out as NaN

    return columns, pearson
