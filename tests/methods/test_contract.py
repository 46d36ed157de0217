"""What the loop relies on, for every method that ships: names, finite loss, gradients where they should be."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from jepa.errors import ConfigError
from jepa.methods import base

TINY = {
    "ijepa": {
        "name": "ijepa",
        "encoder": {"patch": 4, "width": 16, "depth": 2, "heads": 2},
        "predictor": {"depth": 1, "width": 8},
        "masks": {"context_keep": 0.2, "targets": 2},
    }
}


@pytest.mark.parametrize("name", base.known())
def test_smoke(name: str) -> None:
    torch.manual_seed(0)
    method = base.create(TINY[name], (24, 24)).train()
    sampler = method.sampler(seed=0)
    masks = sampler(0, np.arange(3)) if sampler else None
    values = method.schedule(0, 10)
    output = method(torch.randn(3, 3, 24, 24), masks, {k: torch.tensor(v) for k, v in values.items()})
    assert output.loss.ndim == 0 and torch.isfinite(output.loss)
    assert all(m.ndim == 0 and not m.requires_grad for m in output.metrics.values())
    output.loss.backward()
    for key, parameter in method.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None and parameter.grad.abs().sum() > 0, key
        else:
            assert parameter.grad is None, key
    before = {k: v.clone() for k, v in method.state_dict().items()}
    with torch.no_grad():
        for parameter in method.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1)
    method.after_step(values)
    moved = [k for k, v in method.state_dict().items() if k.startswith("target.") and not torch.equal(v, before[k])]
    assert moved, "after_step must move the teacher"
    tokens = method.encode(torch.randn(2, 3, 24, 24))
    assert tokens.shape == (2, 36, 16)
    assert method.exported() in method.encoders()
    assert not method.encoders()["target"].training


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"name": "ijpea"}, "'ijepa'"),
        ({}, "method.name"),
        ({"name": "ijepa", "encodr": {}}, "method.encodr"),
        ({"name": "no.such.module:X"}, "PYTHONPATH"),
        ({"name": "json:JSONDecoder"}, "not a jepa.methods.base.Method"),
        ({"name": "ijepa", "ema": [0.9, 1.5]}, "ema"),
    ],
)
def test_what_cannot_be_resolved_is_explained(values: dict, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        base.resolve(values)
