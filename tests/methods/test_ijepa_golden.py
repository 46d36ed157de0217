"""I-JEPA against numbers from the official code: outputs, losses, gradients, a 10-step trajectory, masks."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from jepa import config, losses, optim
from jepa.masks import Masks, MultiBlockConfig, ReferenceSampler
from jepa.methods.ijepa import IJEPA, IJEPAConfig
from tests import golden_set


def make(fixture: str = "ijepa_forward") -> IJEPA:
    model = golden_set.facts(fixture)["config"]["model"]
    values = {
        "encoder": {
            "patch": model["patch"],
            "width": model["embed"],
            "depth": model["depth"],
            "heads": model["heads"],
            "mlp_ratio": model["mlp_ratio"],
        },
        "predictor": {"depth": model["pred_depth"], "width": model["pred_dim"], "heads": model["pred_heads"]},
        "ema": [0.9, 1.0],
    }
    size = model["img"]
    return IJEPA(config.build(IJEPAConfig, values), (size, size))


def load(method: IJEPA, tensors: dict[str, torch.Tensor], target: str) -> None:
    method.encoder.load_state_dict(golden_set.part(tensors, "encoder"))
    method.predictor.load_state_dict(golden_set.part(tensors, "predictor"))
    method.target.load_state_dict(golden_set.part(tensors, target))


def masks_of(tensors: dict[str, torch.Tensor], prefix: str = "", suffix: str = "") -> Masks:
    return Masks(
        golden_set.listed(tensors, f"{prefix}masks_enc{suffix}"),
        golden_set.listed(tensors, f"{prefix}masks_pred{suffix}"),
    )


@pytest.mark.golden("ijepa_forward")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("prefix", ["", "multi."])
def test_forward(dtype: torch.dtype, prefix: str) -> None:
    given = golden_set.tensors("ijepa_forward")
    wide = dtype == torch.float64
    want = golden_set.tensors("ijepa_forward_f64") if wide else given
    close = {"atol": 1e-9, "rtol": 0} if wide else {"atol": 2e-5, "rtol": 1e-5}
    method = make()
    load(method, given, "target")
    method.to(dtype)
    images, masks = given["imgs"].to(dtype), masks_of(given, prefix)

    context = method.encoder(images, masks.context)
    torch.testing.assert_close(context, want[f"{prefix}out.context"], **close)
    torch.testing.assert_close(method.targets(images, masks), want[f"{prefix}out.h"], **close)
    torch.testing.assert_close(method.predict(images, masks), want[f"{prefix}out.z"], **close)
    if not prefix:
        torch.testing.assert_close(method.encoder(images), want["out.encoder_full"], **close)
    loss = method(images, masks, {}).loss
    assert abs(loss.item() - want[f"{prefix}out.loss"].item()) < (1e-9 if wide else 1e-6)


@pytest.mark.golden("ijepa_forward")
def test_position_tables_equal_the_official_ones() -> None:
    given, method = golden_set.tensors("ijepa_forward"), make()
    torch.testing.assert_close(method.encoder.pos_embed, given["encoder.pos_embed"], atol=1e-7, rtol=0)
    torch.testing.assert_close(
        method.predictor.predictor_pos_embed, given["predictor.predictor_pos_embed"], atol=1e-7, rtol=0
    )


@pytest.mark.golden("ijepa_train")
def test_trajectory_in_float64() -> None:
    start, data = golden_set.tensors("ijepa_forward"), golden_set.tensors("ijepa_train")
    facts, final = golden_set.facts("ijepa_train"), golden_set.tensors("ijepa_train_final")
    opt = facts["config"]["opt"]
    steps = int(opt["ipe"] * opt["epochs"])
    settings = config.build(
        config.OptimConfig,
        {
            "lr": opt["lr"],
            "start_lr": opt["start_lr"],
            "final_lr": opt["final_lr"],
            "warmup": {"steps": int(opt["warmup"] * opt["ipe"])},
            "weight_decay": opt["wd"],
            "final_weight_decay": opt["final_wd"],
            "schedule_scale": opt["ipe_scale"],
        },
    )
    method = make()
    load(method, start, "encoder")
    method.double()
    optimizer = optim.build_optimizer(method, settings)
    schedule = optim.Schedules(settings, batch=1, dataset_size=1, total_steps=steps)
    for step, want in enumerate(facts["steps"]):
        values = schedule.at(step) | method.schedule(step, steps * opt["ipe_scale"])
        for ours, theirs in (("lr", "lr"), ("wd", "wd"), ("momentum", "momentum")):
            assert values[ours] == pytest.approx(want[theirs], rel=1e-12), f"{ours} at step {step}"
        optim.apply(optimizer, values)
        loss = method(data[f"imgs.{step}"].double(), masks_of(data, suffix=f".{step}"), {}).loss
        assert abs(loss.item() - want["loss_f64"]) < 1e-9, f"loss at step {step}"
        optimizer.zero_grad()
        loss.backward()
        if step == 0:
            for name, gradient in golden_set.part(final, "grad0").items():
                ours_gradient = method.get_parameter(name).grad
                assert ours_gradient is not None, name
                torch.testing.assert_close(ours_gradient.float(), gradient, atol=2e-6, rtol=0)
        optimizer.step()
        method.after_step(values)
    norms = golden_set.part(final, "f64norm")
    assert norms
    for name, want_norm in norms.items():
        norm = method.state_dict()[name].norm()
        assert abs(norm.item() - want_norm.item()) < 1e-8 * max(1, want_norm.item()), name


@pytest.mark.golden("ijepa_masks")
def test_reference_sampler_draw_for_draw() -> None:
    facts, tensors = golden_set.facts("ijepa_masks")["config"], golden_set.tensors("ijepa_masks")
    layouts = sorted({key.split(".")[0] for key in tensors})
    assert layouts
    for layout in layouts:
        image, patch = map(int, layout.split("_"))
        spec = MultiBlockConfig(
            mode="reference",
            targets=facts["npred"],
            contexts=facts["nenc"],
            target_scale=tuple(facts["pred_mask_scale"]),
            target_ratio=tuple(facts["aspect_ratio"]),
            context_scale=tuple(facts["enc_mask_scale"]),
            min_keep=facts["min_keep"],
            allow_overlap=facts["allow_overlap"],
        )
        sampler = ReferenceSampler(spec, (image // patch, image // patch), seed=0)
        sizes = tensors[f"{layout}.block_sizes"]
        assert [list(sampler.block_sizes(i)) for i in range(len(sizes))] == sizes.tolist()
        generator = torch.Generator().manual_seed(facts["exact_seed"])
        call = 0
        while f"{layout}.exact.{call}.enc.0" in tensors:
            got = sampler.sample(call, facts["exact_batch"], generator)
            for i, block in enumerate(got.context):
                np.testing.assert_array_equal(block, tensors[f"{layout}.exact.{call}.enc.{i}"])
            for i, block in enumerate(got.target):
                np.testing.assert_array_equal(block, tensors[f"{layout}.exact.{call}.pred.{i}"])
            call += 1
        assert call > 0


@pytest.mark.golden("ijepa_masks")
def test_reference_sampler_never_touches_the_last_row_and_column() -> None:
    """A quirk that `exact` does not have; kept here because parity needs it."""
    facts = golden_set.facts("ijepa_masks")["stats"][0]
    grid = facts["grid"]
    sampler = ReferenceSampler(MultiBlockConfig(mode="reference"), (grid, grid), seed=0)
    generator, touched = torch.Generator().manual_seed(0), 0
    counts = []
    for step in range(200):
        masks = sampler.sample(step, 1, generator)
        counts.append(masks.context[0].shape[1])
        for block in masks.target:
            touched += int(((block // grid == grid - 1) | (block % grid == grid - 1)).any())
    assert touched == facts["samples_targets_touching_last_row_or_col"] == 0
    want = facts["context_patches"]
    assert abs(np.mean(counts) - want["mean"]) < 4 * want["std"] / np.sqrt(200)


@pytest.mark.golden("ijepa_forward")
def test_targets_get_no_gradient_and_everything_else_does() -> None:
    given, method = golden_set.tensors("ijepa_forward"), make()
    load(method, given, "target")
    losses_before = method(given["imgs"], masks_of(given), {})
    losses_before.loss.backward()
    for name, parameter in method.named_parameters():
        if name.startswith("target."):
            assert not parameter.requires_grad and parameter.grad is None, name
        else:
            assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name
    assert losses.latent_loss(torch.zeros(1, 2, 3), torch.ones(1, 2, 3)).item() == 0.5
