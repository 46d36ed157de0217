"""The attentive probe against numbers from the official code, and what a pooler must do whatever its weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from jepa.errors import ConfigError
from jepa.nn.pooling import PROBE_NORM_EPS, AttentiveClassifier, AttentivePooler
from tests import golden_set

pytestmark = pytest.mark.golden("attentive_probe")
NAME = "attentive_probe"


@pytest.fixture(scope="module")
def facts() -> dict[str, Any]:
    return golden_set.facts(NAME)["config"]


@pytest.fixture(scope="module")
def given() -> dict[str, Tensor]:
    return golden_set.tensors(NAME)


def pooler(facts: dict[str, Any], which: str) -> AttentivePooler:
    depth = facts["depth"] if which == "pooler" else 1
    return AttentivePooler(
        facts["embed"], facts["heads"], depth, facts["queries"], facts["mlp_ratio"], which != "pooler_incomplete"
    )


def classifier(facts: dict[str, Any]) -> AttentiveClassifier:
    return AttentiveClassifier(facts["embed"], facts["heads"], facts["classes"], facts["depth"], facts["mlp_ratio"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("which", ["pooler1", "pooler", "pooler_incomplete"])
def test_pooler(facts, given, which, dtype):
    model = pooler(facts, which)
    model.load_state_dict(golden_set.part(given, which))  # strict: the official names
    found = model.to(dtype)(given["features"].to(dtype))
    wide = dtype == torch.float64
    want = given[f"{'f64.' if wide else ''}out.{which}"]
    torch.testing.assert_close(found, want, **({"atol": 1e-9, "rtol": 0} if wide else {"atol": 2e-5, "rtol": 1e-5}))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_classifier_loss_and_gradients(facts, given, dtype):
    model = classifier(facts)
    model.load_state_dict(golden_set.part(given, "classifier"))
    model.to(dtype)
    logits = model(given["features"].to(dtype))
    wide = dtype == torch.float64
    close: dict[str, float] = {"atol": 1e-9, "rtol": 0} if wide else {"atol": 2e-5, "rtol": 1e-5}
    torch.testing.assert_close(logits, given["f64.out.logits" if wide else "out.logits"], **close)
    loss = F.cross_entropy(logits, given["labels"])
    assert abs(loss.item() - given["out.cross_entropy"].item()) < 1e-6
    loss.backward()
    wanted = golden_set.part(given, "grad.classifier")
    assert len(wanted) >= 3
    parameters = dict(model.named_parameters())
    for name, gradient in wanted.items():
        torch.testing.assert_close(parameters[name].grad.float(), gradient, atol=2e-6, rtol=1e-5)


def test_the_epsilon_is_seen_by_the_float64_run(facts, given):
    """The check above would notice the encoder's epsilon in place of the probe's."""
    model = pooler(facts, "pooler1").double()
    model.load_state_dict(golden_set.part(given, "pooler1"))
    assert facts["norm_eps"] == PROBE_NORM_EPS
    model.cross_attention_block.norm1.eps = 1e-6
    gap = (model(given["features"].double()) - given["f64.out.pooler1"]).abs().max()
    assert gap > 1e-7


@pytest.mark.parametrize("depth", [1, 3])
def test_order_of_tokens_does_not_matter(depth):
    torch.manual_seed(0)
    model = AttentivePooler(24, 3, depth, queries=2).double()
    x = torch.randn(2, 7, 24, dtype=torch.float64)
    torch.testing.assert_close(model(x), model(x[:, torch.randperm(7)]), atol=1e-12, rtol=0)
    assert model(x).shape == (2, 2, 24)


def test_start_is_the_official_one():
    torch.manual_seed(0)
    model = AttentiveClassifier(256, 4, 10, depth=3)
    std = {name: float(p.detach().std()) for name, p in model.named_parameters() if p.ndim > 1}
    block = model.pooler.cross_attention_block
    assert std["pooler.query_tokens"] == pytest.approx(0.02, rel=0.2)
    assert float(block.xattn.kv.weight.detach().std()) == pytest.approx(0.02, rel=0.02)
    for place, level in (("blocks.0", 1), ("blocks.1", 2), ("cross_attention_block", 2)):
        assert std[f"pooler.{place}.mlp.fc2.weight"] == pytest.approx(0.02 / (2 * level) ** 0.5, rel=0.02)
    assert all(float(p.detach().abs().max()) == 0 for n, p in model.pooler.named_parameters() if n.endswith("bias"))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"width": 24, "heads": 5}, r"heads=5 does not divide the width 24; these do: \[1, 2, 3\]"),
        ({"width": 24, "heads": 3, "depth": 0}, "depth=0, queries=1: allowed"),
        ({"width": 24, "heads": 3, "queries": 0}, "queries=0: allowed"),
    ],
)
def test_bad_settings(values, message):
    with pytest.raises(ConfigError, match=message):
        AttentivePooler(**values)
