"""V-JEPA and V-JEPA 2 beyond the golden numbers: losses by hand, mask tokens, images, evaluation before training."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from jepa import config, losses
from jepa.data import Batch
from jepa.errors import ConfigError
from jepa.masks import Masks
from jepa.methods.vjepa import VJEPA, VJEPAConfig

SIZE = (4, 24, 24)
V1: dict[str, Any] = {"position": {"kind": "sincos"}, "mask_token": "mask"}


def make(size: tuple[int, ...] = SIZE, **changes: Any) -> VJEPA:
    torch.manual_seed(0)
    values = {
        "encoder": {"patch": 4, "width": 24, "depth": 3, "heads": 2},
        "predictor": {"depth": 2, "width": 24, "mask_tokens": 3, "zero_init_mask_tokens": False},
    }
    method = VJEPA(config.build(VJEPAConfig, values | changes), size).double()
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return method


def example(method: VJEPA, size: tuple[int, ...] = SIZE) -> tuple[Tensor, Masks]:
    return torch.randn(2, 3, *size, dtype=torch.float64), method.sampler(0, size)(0, np.arange(2))


def at(source: int) -> Batch:
    none = torch.zeros(0, dtype=torch.int64)
    return Batch(images=none, labels=none, g=none, index=none, source=source)


@pytest.mark.parametrize("kind", ["l1", "l2", "smooth_l1"])
def test_the_loss_is_the_mean_of_each_masks_mean(kind: str) -> None:
    def distance(a: Tensor, b: Tensor) -> Tensor:
        d = (a - b).abs()
        return {"l1": d, "l2": d**2 / 2, "smooth_l1": torch.where(d < 1, d**2 / 2, d - 0.5)}[kind]

    method = make(loss=kind)
    x, masks = example(method)
    each = [distance(p, t) for p, t in zip(method.predict(x, masks), method.targets(x, masks), strict=True)]
    assert each[0].shape != each[1].shape
    output = method(x, masks, {})
    assert abs(output.loss.item() - np.mean([e.mean().item() for e in each])) < 1e-12
    assert abs(output.loss.item() - torch.cat([e.flatten() for e in each]).mean().item()) > 1e-6
    means = [t.mean(dim=(0, 1), keepdim=True).expand_as(t) for t in method.targets(x, masks)]
    baseline = np.mean([distance(m, t).mean().item() for m, t in zip(means, method.targets(x, masks), strict=True)])
    assert abs(output.metrics["loss_of_mean"].item() - baseline) < 1e-12


def test_weights_of_a_loss_are_by_token() -> None:
    a, b, weight = torch.randn(2, 5, 3), torch.randn(2, 5, 3), torch.rand(2, 5)
    for kind in ("l1", "l2", "smooth_l1"):
        rows = [losses.power_loss(a[i, j], b[i, j], kind) * weight[i, j] for i in range(2) for j in range(5)]
        torch.testing.assert_close(losses.power_loss(a, b, kind, weight), torch.stack(rows).mean())


def test_mask_tokens_go_by_source_in_v2_and_by_mask_in_v1() -> None:
    method = make()
    x, masks = example(method)
    method.expect(["clip"] * 2)
    assert [t.requires_grad for t in method.predictor.mask_tokens] == [True, True, False]
    by_source = [method(x, masks, {}, at(source)).loss.item() for source in range(4)]
    assert by_source[0] == by_source[3] != by_source[1] != by_source[2]

    first = make(**V1)
    assert [t.requires_grad for t in first.predictor.mask_tokens] == [True, True, False]
    before = first.predict(x, masks)
    with torch.no_grad():
        first.predictor.mask_tokens[1].add_(1)
    after = first.predict(x, masks)
    assert torch.equal(before[0], after[0]) and not torch.equal(before[1], after[1])
    assert torch.equal(first.predict(x, masks, source=1)[0], after[0]), "the source does not matter here"


@pytest.mark.parametrize("changes", [{}, V1])
def test_an_image_is_trained_on_as_one_tubelet(changes: dict[str, Any]) -> None:
    method, image = make(**changes), (24, 24)
    x, masks = example(method, image)
    assert all(index.max() < 36 for index in masks.context + masks.target)
    still = x.unsqueeze(2).expand(-1, -1, 2, -1, -1)
    assert abs(method(x, masks, {}).loss.item() - method(still, masks, {}).loss.item()) < 1e-12
    assert method.encode(x).shape == (2, 36, 24)


@pytest.mark.parametrize("changes", [{}, V1])
def test_answers_depend_on_place_and_time(changes: dict[str, Any]) -> None:
    method = make(**changes)
    x, _ = example(method)
    context = torch.arange(0, 72, 5).expand(2, -1)
    asked = torch.tensor([[1, 2, 7, 37]]).expand(2, -1)  # then its neighbours along columns, rows and time
    (answers,) = method.predict(x, Masks([context], [asked]))
    for other in range(1, 4):
        assert (answers[:, 0] - answers[:, other]).abs().max() > 1e-3
    (again,) = method.predict(x, Masks([context], [asked.flip(1)]))
    torch.testing.assert_close(again.flip(1), answers, atol=1e-12, rtol=0)


def test_clips_of_another_size_in_the_same_run() -> None:
    method = make()
    for size in ((4, 24, 24), (8, 16, 32), (2, 24, 24)):
        x, masks = example(method, size)
        assert torch.isfinite(method(x, masks, {}).loss)
    with pytest.raises(ConfigError, match="tubelet=2"):
        method.sampler(0, (3, 24, 24))


def test_levels_of_the_probed_encoder() -> None:
    method = make()
    x, _ = example(method)
    levels = method.encode_levels(x, [0, 2])
    torch.testing.assert_close(levels[1], method.encode(x), atol=0, rtol=0)
    assert not torch.equal(levels[0], levels[1])


def test_evaluating_first_does_not_spoil_training() -> None:
    """Rotary tables are made in the first call, whatever mode that is in."""
    method = make()
    x, masks = example(method)
    with torch.inference_mode():
        method.encoder(x)
        method(x, masks, {})
    method(x, masks, {}).loss.backward()


def test_the_teacher_takes_no_gradient_and_follows() -> None:
    method = make(ema=[0.9, 0.99]).train()
    assert not method.target.training and all(not p.requires_grad for p in method.target.parameters())
    values = method.schedule(50, 100)
    assert values == {"momentum": pytest.approx(0.945)}
    student, teacher = (dict(m.named_parameters()) for m in (method.encoder, method.target))
    want = {n: 0.945 * teacher[n].detach() + 0.055 * student[n].detach() for n in teacher}
    method.after_step(values)
    for name, parameter in teacher.items():
        torch.testing.assert_close(parameter.detach(), want[name], atol=1e-12, rtol=0)


def test_bad_values_are_named() -> None:
    with pytest.raises(ConfigError, match="ema"):
        make(ema=[0.9, 2])
