"""V-JEPA 2-AC against numbers from the official code: predictions, roll-outs, losses, a training run."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor

from jepa import config, losses, optim
from jepa.methods.ac import AC, ACConfig
from jepa.nn import frame_causal
from jepa.nn.action_predictor import ActionPredictor, ActionPredictorConfig
from jepa.nn.rollout import Frames, roll_out
from tests import golden_set

NAME = "vjepa2_ac"
pytestmark = pytest.mark.golden(NAME)


def make(rollout: int | None = None) -> AC:
    """With the golden weights."""
    given, model = golden_set.tensors(NAME), golden_set.facts(NAME)["config"]["model"]
    encoder = {
        "patch": model["patch"], "tubelet": model["tubelet"], "width": model["embed"], "depth": model["depth"],
        "heads": model["heads"], "mlp_ratio": model["mlp_ratio"],
    }  # fmt: skip
    size = (model["frames"], model["img"], model["img"])
    clip = (2 * model["tubelet"], *size[1:])
    values: dict[str, Any] = {
        "encoder": {"spec": {"method": {"name": "vjepa", "encoder": encoder}, "size": clip, "which": "context"}},
        "predictor": sizes(),
        "space": {"action": given["actions"].shape[-1], "proprio": given["states"].shape[-1]},
        "rollout": model["auto_steps"] if rollout is None else rollout,
        "motion": "hold",
    }
    method = AC(config.build(ACConfig, values), size)
    method.encoder.encoder.load_state_dict(golden_set.part(given, "encoder"))
    method.predictor.load_state_dict(weights())
    return method


def sizes() -> dict[str, Any]:
    model = golden_set.facts(NAME)["config"]["model"]
    return {
        "depth": model["pred_depth"], "width": model["pred_dim"], "heads": model["pred_heads"],
        "mlp_ratio": model["mlp_ratio"],
    }  # fmt: skip


def weights(extrinsics: bool = False) -> dict[str, Tensor]:
    state = golden_set.part(golden_set.tensors(NAME), "predictor")
    return {k: v for k, v in state.items() if extrinsics or not k.startswith("extrinsics_encoder.")}


def predictor(grid: tuple[int, int], extrinsics: bool = False) -> ActionPredictor:
    given = golden_set.tensors(NAME)
    found = ActionPredictor(
        config.build(ActionPredictorConfig, sizes()),
        given["h"].shape[-1],
        grid,
        given["actions"].shape[-1],
        given["states"].shape[-1],
        given["extrinsics"].shape[-1] if extrinsics else 0,
    )
    found.load_state_dict(weights(extrinsics))
    return found


def framewise(tokens: Tensor, frames: int) -> Tensor:
    return tokens.unflatten(1, (frames, -1))


@pytest.mark.parametrize("few", [0, 10**6], ids=["frame by frame", "masked"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_teacher_forcing_and_roll_out(dtype: torch.dtype, few: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frame_causal, "_FEW", few)
    given, model = golden_set.tensors(NAME), golden_set.facts(NAME)["config"]["model"]
    wide = dtype == torch.float64
    prefix = "f64." if wide else ""
    close: dict[str, float] = {"atol": 1e-9, "rtol": 0} if wide else {"atol": 2e-5, "rtol": 1e-5}
    small = 1e-9 if wide else 1e-6
    h = framewise(given["h"].to(dtype), model["frames"])
    actions, states = given["actions"].to(dtype), given["states"].to(dtype)
    method = make().to(dtype)
    raw, _, _ = method.predictor(h[:, :-1], actions, states[:, :-1])
    torch.testing.assert_close(raw.flatten(1, 2), given[f"{prefix}out.raw_tf"], **close)
    forced, _, _ = method._forced(h[:, :-1], actions, states[:, :-1])
    torch.testing.assert_close(forced.flatten(1, 2), given[f"{prefix}out.z_tf"], **close)
    rolled = method._rolled(h[:, :1], forced[:, :1], actions, states, model["auto_steps"])
    torch.testing.assert_close(rolled.flatten(1, 2), given[f"{prefix}out.z_ar"], **close)
    out = method.learn(h, actions, states)
    parts = {"loss_one_step": "loss_tf", "loss_rollout": "loss_ar"}
    for ours, theirs in parts.items():
        assert abs(out.metrics[ours].item() - given[f"{prefix}out.{theirs}"].item()) < small
    total = sum(given[f"{prefix}out.{name}"].item() for name in parts.values())
    assert abs(out.loss.item() - total) < 2 * small

    longest = make(given["out.z_ar_full"].shape[1] // model["tokens_per_frame"]).to(dtype)
    metrics = longest.learn(h, actions, states).metrics
    tolerance = 1e-6  # stored in float32 only
    assert abs(metrics["loss_rollout"].item() - given["out.loss_ar_full"].item()) < tolerance


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_frames_are_doubled_and_layer_normed(dtype: torch.dtype) -> None:
    given, wide = golden_set.tensors(NAME), dtype == torch.float64
    close: dict[str, float] = {"atol": 1e-9, "rtol": 0} if wide else {"atol": 2e-5, "rtol": 1e-5}
    method = make().to(dtype)
    found = method.latents(given["clips"].to(dtype).transpose(1, 2)).flatten(1, 2)
    torch.testing.assert_close(found, given["f64.h_from_clips" if wide else "h"], **close)


def test_what_is_imagined_is_the_roll_out() -> None:
    """With keys and values kept, and the true states put in place of those that are held."""
    given, model = golden_set.tensors(NAME), golden_set.facts(NAME)["config"]["model"]
    h = framewise(given["h"].double(), model["frames"])
    actions, states = given["actions"].double(), given["states"].double()
    method, count = make().double(), given["out.z_ar_full"].shape[1] // model["tokens_per_frame"]

    class TrueStates:
        """The method with states from the fixture."""

        time = 0

        def ahead(self, frames: Frames, past: Any = None, last: bool = False) -> Any:
            found = method.ahead(frames, past, last)
            self.time += 1
            return type(found)(found.latents, states[:, self.time : self.time + 1], found.past)

    seen = Frames(h[:, :1], states[:, :1], actions[:, :1])
    found, _ = roll_out(TrueStates(), seen, actions[:, None, :count], window=count)
    theirs = given["out.z_ar_full"].double()
    torch.testing.assert_close(found[:, 0].flatten(1, 2), theirs, atol=2e-5, rtol=1e-5)
    forced, _, _ = method._forced(h[:, :-1], actions, states[:, :-1])
    rolled = method._rolled(h[:, :1], forced[:, :1], actions, states, count)
    torch.testing.assert_close(found[:, 0], rolled, atol=1e-12, rtol=0)


def test_the_cameras_pose_and_images_that_are_not_square() -> None:
    given, model = golden_set.tensors(NAME), golden_set.facts(NAME)["config"]["model"]
    close = {"atol": 2e-5, "rtol": 1e-5}  # stored in float32 only
    side = model["img"] // model["patch"]
    h = framewise(given["h"].double(), model["frames"])[:, :-1]
    states = torch.cat([given["states"], given["extrinsics"]], dim=-1).double()[:, :-1]
    found, _, _ = predictor((side, side), extrinsics=True).double()(h, given["actions"].double(), states)
    torch.testing.assert_close(found.flatten(1, 2), given["out.extrinsics_raw"].double(), **close)

    x = given["nonsquare.x"].double()
    said = re.search(
        r"on a (\d+)x(\d+) grid, (\d+) frames", golden_set.facts(NAME)["keys"]["nonsquare.x|out.nonsquare"]
    )
    assert said
    rows, columns, frames = map(int, said.groups())
    sample = (given["actions"][:1, :frames].double(), given["states"][:1, :frames].double())
    found, _, _ = predictor((rows, columns)).double()(framewise(x, frames), *sample)
    torch.testing.assert_close(found.flatten(1, 2), given["out.nonsquare"].double(), **close)


def test_training_in_float64() -> None:
    given, facts = golden_set.tensors(NAME), golden_set.facts(NAME)
    opt = facts["config"]["opt"]
    total = opt["ipe"] * opt["epochs"]
    anneal, warmup = (int(opt[name] * opt["ipe"]) for name in ("anneal", "warmup"))
    shared = {"weight_decay": opt["wd"], "final_weight_decay": opt["final_wd"]}
    rates = {"start_lr": opt["start_lr"], "lr": opt["lr"], "warmup": {"steps": warmup}, "shape": "constant"}
    falling = {"lr": opt["lr"], "final_lr": opt["final_lr"], "warmup": {"steps": 0}, "shape": "linear"}
    main = config.build(config.OptimConfig, shared | rates)
    last = config.build(config.OptimConfig, shared | falling)
    schedule = optim.Schedules(main, batch=1, dataset_size=1, total_steps=total)
    cooldown = optim.Schedules(last, batch=1, dataset_size=1, total_steps=anneal)
    method = make().double().train()
    optimizer = optim.build_optimizer(method, main)
    for step, want in enumerate(facts["steps"]):
        values = schedule.at(step)
        if step >= total - anneal:
            values["lr"] = cooldown.at(step - (total - anneal))["lr"]
        assert values["lr"] == pytest.approx(want["lr"], rel=1e-12, abs=1e-18), step
        assert values["wd"] == pytest.approx(want["wd"], rel=1e-12), step
        optim.apply(optimizer, values)
        x = given[f"train.clips.{step}"].double().transpose(1, 2)
        actions, states = (given[f"train.{name}.{step}"].double() for name in ("actions", "states"))
        out = method.learn(method.latents(x), actions, states)
        for ours, theirs in (("loss", "loss"), ("loss_one_step", "loss_tf"), ("loss_rollout", "loss_ar")):
            assert abs(out.metrics[ours].item() - given[f"train.{theirs}_f64"][step].item()) < 1e-9, (step, ours)
        optimizer.zero_grad()
        out.loss.backward()
        optimizer.step()
    untrained = set(facts["config"]["predictor_params_without_grad"])
    norms = golden_set.part(given, "train.f64norm.predictor")
    assert norms
    state = method.predictor.state_dict()
    for name, want_norm in norms.items():
        if name not in untrained:
            norm = state[name].norm().item()
            assert abs(norm - want_norm.item()) < 1e-8 * max(1, want_norm.item()), name


def test_targets_are_normalised_as_in_the_other_methods() -> None:
    x = torch.randn(2, 3, 8, dtype=torch.float64)
    normed = losses.normalise_targets(x)
    assert normed.mean(-1).abs().max() < 1e-12 and (normed.var(-1, correction=0) - 1).abs().max() < 1e-3
