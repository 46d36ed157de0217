from __future__ import annotations

import torch
from torch import nn

from jepa import ema


def test_momentum_is_linear_and_clamped() -> None:
    assert [ema.momentum(k, 4, 0.9, 1.0) for k in (0, 1, 2, 4, 9)] == [0.9, 0.925, 0.95, 1.0, 1.0]
    assert ema.momentum(3, 0, 0.5, 0.7) == 0.7


def test_update_is_the_definition_and_touches_only_the_target() -> None:
    torch.manual_seed(0)
    student = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4)).double()
    target = ema.teacher(student)
    before = [p.clone() for p in target.parameters()]
    with torch.no_grad():
        for p in student.parameters():
            p.add_(torch.randn_like(p))
    online = [p.detach().clone() for p in student.parameters()]
    ema.update(target.parameters(), student.parameters(), 0.9)
    for now, old, new, kept in zip(target.parameters(), before, online, student.parameters(), strict=True):
        torch.testing.assert_close(now, 0.9 * old + 0.1 * new, atol=1e-15, rtol=0)
        torch.testing.assert_close(kept, new, atol=0, rtol=0)
        assert not now.requires_grad


def test_teacher_is_an_independent_copy_in_eval_mode() -> None:
    student = nn.Linear(2, 2)
    target = ema.teacher(student)
    assert not target.training and all(not p.requires_grad for p in target.parameters())
    with torch.no_grad():
        student.weight.zero_()
    assert target.weight.abs().sum() > 0
