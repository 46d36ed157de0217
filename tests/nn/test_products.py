"""Attention as batched products is attention, and taken where it is the faster way."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn import functional as F

from jepa.nn import products
from jepa.nn.attention import Attention


def given(queries: int, keys: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """(2, 3, Q, 8), (2, 3, N, 8), (2, 3, N, 8), as they lie in memory after a map that makes all three."""
    generator = torch.Generator().manual_seed(0)
    made = (torch.randn(2, n, 3, 8, generator=generator).to(dtype) for n in (queries, keys, keys))
    q, k, v = (x.transpose(1, 2).requires_grad_() for x in made)
    return q, k, v


@pytest.mark.parametrize("at_once", [1, 5 * 7 * 4, 2**20])  # few, some, all of the six sequences times heads
@pytest.mark.parametrize("kept", [0, 2**25])
@pytest.mark.parametrize(("queries", "keys"), [(5, 7), (6, 6), (1, 4)])
def test_it_is_attention(queries: int, keys: int, kept: int, at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "_AT_ONCE", at_once)
    monkeypatch.setattr(products, "_KEPT", kept)
    qkv = given(queries, keys, torch.float64)
    wanted, found = F.scaled_dot_product_attention(*qkv), products.attend(*qkv)
    assert torch.allclose(found, wanted, rtol=0, atol=1e-14)
    weights = torch.linspace(-1, 1, wanted.numel(), dtype=torch.float64).view_as(wanted)
    for a, b in zip(
        torch.autograd.grad((found * weights).sum(), qkv), torch.autograd.grad((wanted * weights).sum(), qkv),
        strict=True,
    ):  # fmt: skip
        assert torch.allclose(a, b, rtol=0, atol=1e-13)


def test_its_gradient_is_that_of_differences() -> None:
    assert torch.autograd.gradcheck(products.attend, given(5, 7, torch.float64))


def test_bfloat16_is_as_near_as_it_can_be() -> None:
    """Scores are rounded, so an error of some times bfloat16's own 0.4 % is what there is."""
    qkv = given(96, 96, torch.bfloat16)
    exact = [x.detach().double().requires_grad_() for x in qkv]
    found, wanted = products.attend(*qkv), F.scaled_dot_product_attention(*exact)
    pairs = [(found, wanted)]
    pairs += zip(torch.autograd.grad(found.sum(), qkv), torch.autograd.grad(wanted.sum(), exact), strict=True)
    for a, b in [pairs[0], pairs[3]]:  # the sum's gradient by queries and keys is a difference of nearly nothing
        assert a.dtype == torch.bfloat16
        assert (a.double() - b).norm() < 0.015 * b.norm()


@pytest.mark.parametrize(("kept", "tensors"), [(6 * 6 * 6, 3 + 2), (6 * 6 * 6 - 1, 3)])
def test_what_waits_for_the_backward(kept: int, tensors: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Queries, keys and values; the softmax of the two parts only within the bound, and never without a gradient."""
    monkeypatch.setattr(products, "_KEPT", kept)
    monkeypatch.setattr(products, "_AT_ONCE", 3 * 6 * 6)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    saved: list[Any] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x) or x, lambda x: x):
        q, k, v = given(6, 6, torch.float32)
        products.attend(q, k, v)
        assert len(saved) == tensors
        with torch.no_grad():
            products.attend(q, k, v)
        assert len(saved) == tensors


@pytest.mark.parametrize("here", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_where_it_is_taken(dtype: torch.dtype, here: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "_HERE", here)
    attention, x = Attention(24, 3).to(dtype), torch.randn(2, 10, 24, dtype=dtype)

    def graph(node: Any) -> set[str]:
        return {type(node).__name__}.union(*(graph(n) for n, _ in node.next_functions if n is not None))

    out = attention(x)
    assert ("_AttendBackward" in graph(out.grad_fn)) == (here and dtype == torch.bfloat16)
    exported = torch.export.export(attention, (x,)).graph_module
    assert any("scaled_dot_product_attention" in str(node.target) for node in exported.graph.nodes)


def test_packed_and_not_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "_HERE", True)
    attention, x = Attention(24, 3).bfloat16(), torch.randn(20, 24, dtype=torch.bfloat16)
    packed = attention(x, parts=[(2, 7), (1, 6)])
    apart = torch.cat([attention(x[:14].view(2, 7, 24)).flatten(0, 1), attention(x[14:].view(1, 6, 24))[0]])
    monkeypatch.setattr(products, "_HERE", False)
    assert torch.allclose(packed, attention(x, parts=[(2, 7), (1, 6)]), rtol=0.02, atol=0.004)
    assert torch.allclose(packed, apart, rtol=0.02, atol=0.004)


def test_one_graph_serves_all_numbers_of_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "_HERE", True)
    attention, graphs = Attention(24, 3).bfloat16(), CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(attention, fullgraph=True, dynamic=True, backend=graphs)
    for tokens in range(5, 30, 3):
        x = torch.randn(2, tokens, 24, dtype=torch.bfloat16, requires_grad=True)
        (wanted,), (found,) = (torch.autograd.grad(f(x).square().sum(), x) for f in (attention, compiled))
        assert torch.allclose(found, wanted, rtol=0.02, atol=0.004)
    assert graphs.frame_count == 1
