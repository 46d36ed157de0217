"""Blocks over frames: keys and values of the past stand for the frames, and norms adapt as the formula says."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from jepa.nn import frame_causal
from jepa.nn.frame_causal import FrameBlock, Past, through


def blocks(condition: int = 0, depth: int = 3) -> nn.ModuleList:
    torch.manual_seed(0)
    made = nn.ModuleList(FrameBlock(12, 2, 5, 16, eps=1e-6, condition=condition) for _ in range(depth)).double()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return made


@pytest.mark.parametrize("few", [0, 10**6], ids=["frame by frame", "masked"])
@pytest.mark.parametrize("condition", [0, 4])
def test_a_past_stands_for_its_frames(few: int, condition: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frame_causal, "_FEW", few)
    made, x = blocks(condition), torch.randn(2, 5, 3, 12, dtype=torch.float64)
    c = torch.randn(2, 5, condition, dtype=torch.float64) if condition else None

    def part(begin: int, end: int, past: Past | None = None, last: bool = False) -> tuple[torch.Tensor, Past]:
        return through(made, x[:, begin:end], None, None if c is None else c[:, begin:end], past, last)

    whole, _ = part(0, 5)
    first, past = part(0, 2)
    second, past = part(2, 4, past)
    third, past = part(4, 5, past)
    assert past.frames == 5
    torch.testing.assert_close(torch.cat([first, second, third], dim=1), whole, atol=1e-12, rtol=0)
    for begin, end in ((0, 5), (2, 5)):
        before = part(0, begin)[1] if begin else None
        torch.testing.assert_close(part(begin, end, before, last=True)[0], whole[:, 4:], atol=1e-12, rtol=0)
    again = part(0, 2)[1].repeat(3)
    alone = through(made, x[1:, 2:3].repeat(3, 1, 1, 1), None, None if c is None else c[1:, 2:3].repeat(3, 1, 1),
                    Past(tuple((k[3:], v[3:]) for k, v in again.blocks), 2))[0]  # fmt: skip
    torch.testing.assert_close(alone, whole[1:, 2:3].repeat(3, 1, 1, 1), atol=1e-12, rtol=0)


def test_adaptive_norms_by_the_formula() -> None:
    (block,) = blocks(condition=4, depth=1)
    assert isinstance(block, FrameBlock) and block.modulation is not None
    x, c = torch.randn(2, 3, 4, 12, dtype=torch.float64), torch.randn(2, 3, 4, dtype=torch.float64)
    found, _ = block(x, condition=c)
    changes = block.modulation(F.silu(c))
    shift1, scale1, gate1, shift2, scale2, gate2 = (changes[..., 12 * i : 12 * i + 12, None].mT for i in range(6))
    mixed, _ = block.attn(F.layer_norm(x, (12,), eps=1e-6) * (1 + scale1) + shift1, None, None, False)
    y = x + gate1 * mixed
    want = y + gate2 * block.mlp(F.layer_norm(y, (12,), eps=1e-6) * (1 + scale2) + shift2)
    torch.testing.assert_close(found, want, atol=1e-12, rtol=0)


def test_dropout_is_of_training_alone() -> None:
    torch.manual_seed(0)
    block = FrameBlock(12, 2, 6, 16, eps=1e-5, dropout=0.5)
    x = torch.randn(1, 2, 3, 12)
    assert not torch.equal(block(x)[0], block(x)[0])
    block.eval()
    assert torch.equal(block(x)[0], block(x)[0])
