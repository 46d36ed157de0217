"""Attention told relative to a window's first token is plain causal attention."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from jepa.nn.causal import CausalAttention, CausalConfig
from jepa.nn.few_tokens import FewTokens, Window

B, S, W = 2, 3, 12


def attention() -> tuple[CausalAttention, FewTokens]:
    torch.manual_seed(0)
    plain = CausalAttention(CausalConfig(width=W, heads=4, head_width=5)).double().eval()
    return plain, FewTokens(plain.qkv, plain.proj, plain.heads)


def by_hand(plain: CausalAttention, x: Tensor) -> Tensor:
    """(n, B, S, W) to the same, by the plain layer."""
    rows = x.flatten(1, 2).transpose(0, 1)  # (R, n, W)
    out: Tensor = plain(rows)
    return out.transpose(0, 1).reshape(x.shape)


def tokens(count: int, plans: int = S) -> Tensor:
    return torch.randn(count, B, plans, W, dtype=torch.double, generator=torch.Generator().manual_seed(count))


@pytest.mark.parametrize("count", [1, 2, 3, 5])
@pytest.mark.parametrize("last", [False, True])
def test_a_whole_window(count: int, last: bool) -> None:
    plain, few = attention()
    x = tokens(count)
    expected = by_hand(plain, x)
    found, _ = few(plain.norm(x), None, last)
    torch.testing.assert_close(found, expected[-1:] if last else expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("parts", [(1, 1, 1, 1), (1, 3), (2, 2), (3, 1)])
def test_window_part_by_part(parts: tuple[int, ...]) -> None:
    plain, few = attention()
    x = tokens(4)
    found: list[Tensor] = []
    window: Window | None = None
    for part in x.split(parts):
        out, window = few(plain.norm(part), window)
        found.append(out)
    torch.testing.assert_close(torch.cat(found), by_hand(plain, x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shared", [1, 2])
def test_tokens_that_all_plans_share_are_given_once(shared: int) -> None:
    plain, few = attention()
    seen, own = tokens(shared, plans=1), tokens(3)
    _, window = few(plain.norm(seen), None, last=True)
    found, _ = few(plain.norm(own), window)
    whole = torch.cat([seen.expand(-1, -1, S, -1), own])
    torch.testing.assert_close(found, by_hand(plain, whole)[shared:], rtol=1e-12, atol=1e-12)


def test_the_gradient_is_the_same() -> None:
    plain, few = attention()
    x = tokens(3).requires_grad_()
    weights = torch.randn(3, B, S, W, dtype=torch.double)
    (expected,) = torch.autograd.grad((by_hand(plain, x) * weights).sum(), x)
    (found,) = torch.autograd.grad((few(plain.norm(x), None)[0] * weights).sum(), x)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
