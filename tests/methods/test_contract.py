"""What the loop relies on, for every method that ships: names, finite loss, gradients where they should be."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from jepa.data import Batch
from jepa.errors import ConfigError
from jepa.masks import Masks
from jepa.methods import base

CLIP: dict[str, Any] = {
    "encoder": {"patch": 4, "width": 24, "depth": 2, "heads": 2},
    "predictor": {"depth": 2, "width": 24},  # rotary attention over one layer has no use for its biases
}
TINY: dict[str, dict[str, Any]] = {
    "ijepa": {
        "name": "ijepa",
        "encoder": {"patch": 4, "width": 16, "depth": 2, "heads": 2},
        "predictor": {"depth": 1, "width": 8},
        "masks": {"context_keep": 0.2, "targets": 2},
    },
    "vjepa": {"name": "vjepa", **CLIP},
    "vjepa21": {"name": "vjepa21", **CLIP},
}
SIZES = {"image": (24, 24), "clip": (4, 24, 24)}
MASKED = [name for name in base.known() if not base.resolve({"name": name})[0].episodes]  # world models: test_world
CASES = [(name, kind) for name in MASKED for kind in base.resolve(TINY[name])[0].inputs]


def example(method: base.Method, size: tuple[int, ...]) -> tuple[torch.Tensor, Masks | None]:
    sampler = method.sampler(0, size)
    return torch.randn(3, 3, *size), sampler(0, np.arange(3)) if sampler else None


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_smoke(name: str, kind: str) -> None:
    torch.manual_seed(0)
    method = base.create(TINY[name], SIZES[kind]).train()
    x, masks = example(method, SIZES[kind])
    values = method.schedule(9, 10)
    output = method(x, masks, {k: torch.tensor(v) for k, v in values.items()})
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
    width = TINY[name]["encoder"]["width"]
    assert method.encode(x[:2]).shape == (2, 36 * (2 if kind == "clip" else 1), width)
    assert method.exported() in method.encoders()
    assert not method.encoders()["target"].training


@pytest.mark.parametrize("name", [n for n in MASKED if len(base.resolve(TINY[n])[0].inputs) > 1])
def test_every_forward_of_a_mixed_run_gives_every_parameter_a_gradient(name: str) -> None:
    """DDP waits for all of them in the backward that exchanges gradients, whichever source that is."""
    torch.manual_seed(0)
    method = base.create(TINY[name], SIZES["clip"]).train()
    sizes = [SIZES["clip"], SIZES["image"], (6, 24, 16)]
    method.expect([base.kind_of(size) for size in sizes])
    schedule = {k: torch.tensor(v) for k, v in method.schedule(9, 10).items()}
    for source, size in enumerate(sizes):
        x, masks = example(method, size)
        none = torch.zeros(0, dtype=torch.int64)
        batch = Batch(images=none, labels=none, g=none, index=none, source=source)
        gradients = torch.autograd.grad(
            method(x, masks, schedule, batch=batch).loss,
            [p for p in method.parameters() if p.requires_grad],
            allow_unused=True,
        )
        assert all(g is not None for g in gradients)


def test_inputs_that_a_method_does_not_take_are_refused() -> None:
    with pytest.raises(ConfigError, match="'ijepa' trains on images; this data holds clips"):
        base.create(TINY["ijepa"], SIZES["clip"])


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
