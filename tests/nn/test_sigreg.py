"""SIGReg against its formula, against stable-worldmodel's, and on two processes."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from jepa.errors import ConfigError
from jepa.nn import ranks
from jepa.nn.sigreg import SIGReg, SigRegConfig
from tests.nn.processes import in_processes

STEP = torch.tensor(3.0)


def direct(x: Tensor, knots: int = 17, end: float = 3.0) -> Tensor:
    """The statistic of projections (T, B, P), written out."""
    t = torch.linspace(0, end, knots, dtype=x.dtype)
    angle = x.unsqueeze(-1) * t
    error = (angle.cos().mean(1) - torch.exp(-t.square() / 2)).square() + angle.sin().mean(1).square()
    return 2 * torch.trapezoid(error * torch.exp(-t.square() / 2), t, dim=-1).mean() * x.shape[1]


def test_statistic_is_the_formula() -> None:
    sigreg = SIGReg(SigRegConfig(directions=13))
    z = torch.randn(20, 3, 8, dtype=torch.float64, requires_grad=True)
    expected = direct(z.transpose(0, 1) @ sigreg.directions(8, STEP, 5).double())
    (gradient,) = torch.autograd.grad(expected, z)
    found = sigreg(z, STEP, 5)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(torch.autograd.grad(found, z)[0], gradient)


def test_statistic_is_that_of_stable_worldmodel(monkeypatch: pytest.MonkeyPatch) -> None:
    loss = pytest.importorskip("stable_worldmodel.wm.loss", exc_type=ImportError)
    ours, theirs = SIGReg(SigRegConfig(directions=32)), loss.SIGReg(knots=17, num_proj=32)
    z = torch.randn(50, 4, 12) * 1.3 + 0.2
    monkeypatch.setattr(torch, "randn", lambda *size, **_: ours.directions(12, STEP, 0))
    torch.testing.assert_close(ours(z, STEP, 0), theirs(z.transpose(0, 1)), rtol=1e-4, atol=1e-5)


def test_gaussian_embeddings_cost_least() -> None:
    sigreg = SIGReg(SigRegConfig(directions=64))
    g = torch.Generator().manual_seed(0)
    normal = torch.randn(500, 1, 16, generator=g)
    best = float(sigreg(normal, STEP))
    for worse in (normal * 0, normal * 0.3, normal * 3, normal + 1, normal[:, :, :1].expand(-1, -1, 16)):
        assert float(sigreg(worse, STEP)) > 1.5 * best


def test_directions_are_keyed_by_seed_and_step() -> None:
    sigreg = SIGReg(SigRegConfig(directions=5))
    first = sigreg.directions(8, STEP, 1)
    torch.manual_seed(99)
    assert torch.equal(first, sigreg.directions(8, STEP, 1))
    assert not torch.equal(first, sigreg.directions(8, STEP + 1, 1))
    assert not torch.equal(first, sigreg.directions(8, STEP, 2))
    torch.testing.assert_close(first.norm(dim=0), torch.ones(5))


def test_reduced_precision_is_left_outside() -> None:
    sigreg, z = SIGReg(SigRegConfig(directions=8)), torch.randn(16, 2, 8)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(sigreg(z, STEP), SIGReg(SigRegConfig(directions=8))(z, STEP))
        assert sigreg(z.bfloat16(), STEP).dtype == torch.float32


def test_runs_on_the_meta_device() -> None:
    z = torch.empty(4, 3, 8, device="meta", requires_grad=True)
    SIGReg(SigRegConfig(directions=8))(z, torch.empty((), device="meta")).backward()
    assert z.grad is not None


# --- several processes ----------------------------------------------------------------------------------------------


class Model(torch.nn.Module):
    """All that couples samples: batch norm and SIGReg, and a loss that does not."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = torch.nn.Linear(6, 8), torch.nn.Linear(8, 8)
        self.norm, self.sigreg = ranks.BatchNorm(8), SIGReg(SigRegConfig(directions=16))

    def forward(self, x: Tensor) -> Tensor:
        z = self.second(torch.tanh(self.norm(self.first(x))))
        loss: Tensor = self.sigreg(z, STEP, 4) + z.square().mean() + (z[..., 0] * x[..., 0]).mean()
        return loss


def gradients(rank: int, world: int) -> list[Tensor]:
    """Loss, gradients averaged as DDP does, and running statistics; every rank has its part of the samples."""
    torch.manual_seed(0)
    model = Model().double().train()
    x = torch.randn(12, 3, 6, dtype=torch.float64)
    loss = model(x[rank * 12 // world : (rank + 1) * 12 // world])
    loss.backward()
    model.norm.fold()
    found = [loss.detach(), *(p.grad for p in model.parameters() if p.grad is not None)]
    for tensor in found if world > 1 else []:
        dist.all_reduce(tensor)
        tensor /= world
    return [*found, model.norm.running_mean, model.norm.running_var]


def test_value_and_gradient_are_the_same_on_one_and_two_processes() -> None:
    alone = gradients(0, 1)
    for several in in_processes(gradients, 2):
        for a, b in zip(alone, several, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_batch_norm_is_torch_s() -> None:
    ours, theirs = ranks.BatchNorm(5).train(), torch.nn.BatchNorm1d(5).train()
    x = torch.randn(10, 5) * 2 + 1
    torch.testing.assert_close(ours(x), theirs(x))
    ours.fold()
    torch.testing.assert_close(ours.running_var, theirs.running_var)
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x))


def test_what_it_cannot_be_is_explained() -> None:
    with pytest.raises(ConfigError, match="knots=1 at least 2"):
        SigRegConfig(knots=1)
