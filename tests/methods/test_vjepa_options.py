"""Settings of V-JEPA and V-JEPA 2.1 beyond the papers: centred targets, targets of motion."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from jepa import losses
from jepa.errors import ConfigError
from jepa.methods import base
from jepa.nn.attention import unpack
from jepa.nn.tokens import gather_packed

SIZE = (4, 16, 16)


def make(name: str, **options: object) -> base.Method:
    torch.manual_seed(0)
    encoder = {"patch": 4, "tubelet": 2, "width": 24, "depth": 2, "heads": 2, "init": "fan_in"}
    predictor = {"width": 16, "depth": 1, "heads": 2}
    values = {"name": name, "encoder": encoder, "predictor": predictor, "position": {"kind": "sincos"}}
    return base.create(values | options, SIZE).double()


def clips(count: int) -> Tensor:
    return torch.randn(count, 3, *SIZE, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", ["vjepa", "vjepa21"])
def test_centred_targets(name: str) -> None:
    """Level by level: less the teacher's answer to an empty clip, less the clip's mean, then the usual norm."""
    method, x = make(name, targets="centred"), clips(3)
    masks = method.sampler(0)(0, np.arange(3))
    found = method.targets(x, masks)
    masked = found if name == "vjepa" else found[0]
    with torch.no_grad():
        levels = method.target(x, **({} if name == "vjepa" else {"fused": True}))
        empty = method.target(torch.zeros_like(x[:1]), **({} if name == "vjepa" else {"fused": True}))
    parts = []
    for level, nothing in zip(levels.split(24, dim=-1), empty.split(24, dim=-1), strict=True):
        freed = level - nothing
        freed = freed - freed.mean(dim=1, keepdim=True)
        parts.append(losses.normalise_targets(freed))
    wanted = unpack(gather_packed(torch.cat(parts, dim=-1), masks.target), masks.target)
    for a, b in zip(masked, wanted, strict=True):
        torch.testing.assert_close(a, b)
    plain = make(name).targets(x, masks)
    assert not torch.allclose((plain if name == "vjepa" else plain[0])[0], masked[0])


@pytest.mark.parametrize("name", ["vjepa", "vjepa21"])
def test_centred_targets_of_a_sample_do_not_depend_on_the_others(name: str) -> None:
    method, x = make(name, targets="centred"), clips(4)
    masks = method.sampler(0)(0, np.arange(4))
    together, alone = method.targets(x, masks), method.targets(x[2:3], masks.slice(2, 3))
    together, alone = (t if name == "vjepa" else t[0] for t in (together, alone))
    for a, b in zip(together, alone, strict=True):
        torch.testing.assert_close(a[2:3], b)


def test_motion_targets_keep_what_changes_and_nothing_else() -> None:
    generator = torch.Generator().manual_seed(0)
    position = torch.randn(1, 3 * 4, 8, generator=generator, dtype=torch.float64)
    still = torch.randn(5, 1, 4, 8, generator=generator, dtype=torch.float64)
    moving = torch.randn(5, 3, 4, 8, generator=generator, dtype=torch.float64)
    moving -= moving.mean(dim=1, keepdim=True)
    found = losses.motion_targets((still + moving).flatten(1, 2) + position, position, 3)
    size = moving.square().mean(dim=(1, 2, 3), keepdim=True).sqrt()
    torch.testing.assert_close(found, (moving / size).flatten(1, 2))
    torch.testing.assert_close(found.square().mean(dim=(1, 2)), torch.ones(5, dtype=torch.float64))
    # scaled with the clip, and left small where hardly anything moves
    one, half = (losses.motion_targets((still + s * moving).flatten(1, 2), 0 * position, 3) for s in (1e-3, 0.5e-3))
    assert float(one.abs().max()) < 0.2
    torch.testing.assert_close(half, 0.5 * one, rtol=1e-3, atol=1e-6)


def test_targets_of_motion_in_vjepa() -> None:
    method, x = make("vjepa", targets="motion"), clips(3)
    masks = method.sampler(0)(0, np.arange(3))
    with torch.no_grad():
        tokens, empty = method.target(x), method.target(torch.zeros_like(x[:1]))
    wanted = unpack(gather_packed(losses.motion_targets(tokens, empty, 2), masks.target), masks.target)
    for a, b in zip(method.targets(x, masks), wanted, strict=True):
        torch.testing.assert_close(a, b)
    method(x, masks, {}).loss.backward()
    assert all(w.grad is None for w in method.target.parameters())
    assert all(w.grad is not None for n, w in method.encoder.named_parameters() if not n.endswith("qkv.bias"))


@pytest.mark.parametrize("kinds", [["image"], ["clip", "image"]])
def test_nothing_moves_in_an_image(kinds: list[str]) -> None:
    with pytest.raises(ConfigError, match=r"targets=motion needs clips of at least two time steps"):
        make("vjepa", targets="motion").expect(kinds)
