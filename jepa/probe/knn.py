"""Weighted kNN on frozen features: no training, one number to choose.

The k nearest training samples by cosine vote for their class with weight exp(cosine / temperature) (Wu et al., CVPR
2018); k is chosen on the validation split and the accuracy is reported on the test split.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from jepa.errors import ConfigError
from jepa.monitor import knn_votes
from jepa.probe.axes import check_finite

Layer = int | Literal["last4"]  # a transformer block from 0, or from -1 backwards; or the last four side by side
LAST4 = (-4, -3, -2, -1)


@dataclass(frozen=True)
class KnnConfig:
    """Grid of neighbours and the votes' temperature."""

    k: tuple[int, ...] = (1, 5, 10, 20, 50, 100, 200)  # above the number of training samples: all of them
    temperature: float = 0.07  # of the votes' weights, exp(cosine / temperature)
    layers: tuple[Layer, ...] = ()  # read these layers too, each in a row of its own: block numbers, or last4

    def __post_init__(self) -> None:
        if not self.k or min(self.k) < 1:
            raise ConfigError(f"k: got {list(self.k)}, allowed: whole numbers from 1, at least one")
        if not self.temperature > 0:
            raise ConfigError(f"temperature: got {self.temperature}, allowed: a number above 0")


def knn_probe(
    train: tuple[Tensor, Tensor],
    val: tuple[Tensor, Tensor],
    test: Tensor,
    classes: int,
    config: KnnConfig,
    name: str = "features",
) -> tuple[Tensor, dict[str, Any]]:
    """Choose k on the validation split and predict the test split.

    `train` and `val` are raw features (n, D) and labels (n,); `test` features only. All on one device.

    Returns:
        Predicted classes (n_test,) on the CPU, and what was chosen with its validation accuracy.

    Raises:
        DataError: features that are not finite; names the encoder, `name`.
    """
    for features in (train[0], val[0], test):
        check_finite(features, name)
    votes = knn_votes(*train, val[0], config.k, classes, config.temperature)
    accuracy = (votes == val[1].to(votes.device)).double().mean(dim=1).cpu()
    best = int(accuracy.argmax())
    found = knn_votes(*train, test, [config.k[best]], classes, config.temperature)[0].cpu()
    return found, {"k": config.k[best], "val": float(accuracy[best])}
