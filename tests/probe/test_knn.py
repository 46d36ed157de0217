"""Weighted kNN against scikit-learn and against counting by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier

from jepa.errors import ConfigError, DataError
from jepa.monitor import knn_votes
from jepa.probe.knn import KnnConfig, knn_probe


def clouds(count: int, width: int, classes: int, seed: int, noise: float = 1.5) -> tuple[torch.Tensor, torch.Tensor]:
    centres = torch.randn(classes, width, generator=torch.Generator().manual_seed(99))
    g = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (count,), generator=g)
    return centres[labels] + noise * torch.randn(count, width, generator=g), labels


@pytest.mark.parametrize("k", [1, 7, 40])
def test_votes_are_scikit_learns(k):
    bank, labels = clouds(300, 12, 5, seed=1)
    queries, _ = clouds(200, 12, 5, seed=2)

    def weights(distance: np.ndarray) -> np.ndarray:
        return np.exp((1 - distance) / 0.07)

    other = KNeighborsClassifier(k, metric="cosine", weights=weights, algorithm="brute").fit(bank.numpy(), labels)
    assert (knn_votes(bank, labels, queries, [k], 5)[0].numpy() == other.predict(queries.numpy())).all()


def test_all_ks_at_once_are_each_k_alone_in_any_order_and_in_chunks(monkeypatch):
    bank, labels = clouds(150, 8, 4, seed=3)
    queries, _ = clouds(90, 8, 4, seed=4)
    ks = [20, 1, 5, 1000]
    together = knn_votes(bank, labels, queries, ks, 4)
    for i, k in enumerate(ks):
        assert torch.equal(together[i], knn_votes(bank, labels, queries, [k], 4)[0])
    assert torch.equal(together[3], knn_votes(bank, labels, queries, [150], 4)[0])  # more than there are: all
    assert not torch.equal(together[0], together[1])
    monkeypatch.setattr("jepa.monitor.measures._SIMILARITIES", 150 * 7)
    assert torch.equal(together, knn_votes(bank, labels, queries, ks, 4))


def test_a_near_neighbour_outvotes_two_far_ones():
    bank = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    labels = torch.tensor([0, 1, 1])
    query = torch.tensor([[1.0, 0.6]])
    assert knn_votes(bank, labels, query, [3], 2).item() == 0
    assert knn_votes(bank, labels, query, [3], 2, temperature=100.0).item() == 1  # nearly plain counting


def test_length_of_a_feature_does_not_matter():
    bank, labels = clouds(100, 6, 3, seed=5)
    queries, _ = clouds(50, 6, 3, seed=6)
    scale = torch.rand(100, 1) * 100 + 0.01
    assert torch.equal(knn_votes(bank, labels, queries, [5], 3), knn_votes(bank * scale, labels, queries, [5], 3))


def test_k_is_chosen_on_validation_not_on_test():
    bank, labels = clouds(400, 6, 4, seed=7, noise=2.5)
    val, val_labels = clouds(300, 6, 4, seed=8, noise=2.5)
    test, _ = clouds(50, 6, 4, seed=9, noise=2.5)
    config = KnnConfig(k=(1, 3, 30, 300))
    found, chosen = knn_probe((bank, labels), (val, val_labels), test, 4, config)
    scores = [(knn_votes(bank, labels, val, [k], 4)[0] == val_labels).double().mean().item() for k in config.k]
    assert chosen == {"k": config.k[int(np.argmax(scores))], "val": max(scores)}
    assert chosen["k"] != 1  # noisy clouds need more than one neighbour, or this test shows nothing
    assert torch.equal(found, knn_votes(bank, labels, test, [chosen["k"]], 4)[0])


def test_broken_features_name_their_encoder():
    bank, labels = clouds(20, 4, 2, seed=1)
    bad = bank.clone()
    bad[3, 1] = float("nan")
    with pytest.raises(DataError, match=r"target \(step 5\): 1 of 20 samples have features that are NaN"):
        knn_probe((bad, labels), (bank, labels), bank, 2, KnnConfig(), "target (step 5)")


@pytest.mark.parametrize("values", [{"k": ()}, {"k": (0, 5)}, {"temperature": 0.0}])
def test_bad_settings(values):
    with pytest.raises(ConfigError, match="allowed"):
        KnnConfig(**values)
