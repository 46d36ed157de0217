"""DINO-WM against numbers from the official code: one step, loss, roll-outs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from jepa import config
from jepa.export import keymaps
from jepa.methods.dinowm import DinoWM, DinoWMConfig
from jepa.nn import frame_causal
from jepa.nn.rollout import Frames, roll_out
from tests import golden_set

NAME = "dino_wm_predictor"
pytestmark = pytest.mark.golden(NAME)


def make() -> DinoWM:
    """With the golden weights; over an encoder that gives as many patches of that width (it is not asked)."""
    given, facts = golden_set.tensors(NAME), golden_set.facts(NAME)["config"]
    assert facts["concat_dim"] == 1 and facts["num_action_repeat"] == facts["num_proprio_repeat"] == 1
    patches, width = facts["patches"], facts["vis"]
    rows = next(r for r in range(int(patches**0.5), 0, -1) if patches % r == 0)
    image = [4 * rows, 4 * (patches // rows)]
    encoder = {"patch": 4, "width": width, "depth": 1, "heads": 1}
    values: dict[str, Any] = {
        "encoder": {"spec": {"method": {"name": "ijepa", "encoder": encoder}, "size": image}},
        "predictor": {
            "depth": facts["depth"], "heads": facts["heads"], "head_width": facts["dim_head"], "hidden": facts["mlp"],
        },
        "space": {"action": facts["act_in"], "proprio": facts["prop_in"]},
        "history": facts["hist"],
        "action_width": facts["act_emb"],
        "proprio_width": facts["prop_emb"],
    }  # fmt: skip
    method = DinoWM(config.build(DinoWMConfig, values), (facts["frames"], *image)).eval()
    state = keymaps.DINOWM.inward(golden_set.part(given, "predictor"))
    state["positions"] = state["positions"].unflatten(1, (facts["hist"], patches))
    method.predictor.load_state_dict(state)
    for ours, theirs in ((method.action_embed, "action_encoder"), (method.proprio_embed, "proprio_encoder")):
        assert ours is not None
        weights = golden_set.part(given, f"{theirs}.patch_embed")
        ours.load_state_dict({"weight": weights["weight"].squeeze(-1), "bias": weights["bias"]})
    return method


def side_by_side(method: DinoWM, frames: Frames) -> Tensor:
    return method.predictor.tokens(frames.latents, frames.proprio, method.action_embed(frames.actions))


@pytest.mark.parametrize("few", [0, 10**6], ids=["frame by frame", "masked"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_everything(dtype: torch.dtype, few: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frame_causal, "_FEW", few)
    given, facts = golden_set.tensors(NAME), golden_set.facts(NAME)["config"]
    wide = dtype == torch.float64
    want = golden_set.part(given, "f64.out" if wide else "out")
    close: dict[str, float] = {"atol": 1e-9, "rtol": 0} if wide else {"atol": 2e-5, "rtol": 1e-5}
    small, history = (1e-9 if wide else 1e-6), facts["hist"]
    method = make().to(dtype)
    visual, proprio, actions = (given[name].to(dtype) for name in ("visual", "proprio", "actions"))
    frames = method.frames(visual, actions, proprio)
    z = side_by_side(method, frames)
    torch.testing.assert_close(z, want["z"], **close)
    embedded = method.action_embed(frames.actions)
    for count, name in ((history, "z_pred"), (history - 1, "predict_short")):
        torch.testing.assert_close(method.predictor(z[:, :count], embedded[:, :count])[0], want[name], **close)
    loss = method.learn(visual, actions, proprio).loss
    assert abs(loss.item() - want["loss"].item()) < small
    ahead, features = method.ahead(frames.part(0, history)), facts["vis"]
    assert ahead.proprio is not None
    parts = {
        "loss_visual": (ahead.latents, z[:, 1 : history + 1, :, :features]),
        "loss_proprio": (ahead.proprio, z[:, 1 : history + 1, :, features : features + facts["prop_emb"]]),
    }
    for name, (ours, theirs) in parts.items():
        assert abs(torch.nn.functional.mse_loss(ours, theirs).item() - want[name].item()) < small

    plan = given["rollout_actions"].to(dtype)
    seen = {"rollout_z": 1, "rollout_hist_z": history}
    for name, start in seen.items():
        known = method.frames(visual[:, :start], actions[:, : start - 1], proprio[:, :start])
        # the fixture's actions go on from the first frame; those of seen frames are the plan's first ones
        known = Frames(known.latents, known.proprio, method.action_scale(plan[:, :start]))
        latents, says = roll_out(method, known, plan[:, None, start - 1 :], history)
        theirs = want[name]
        assert says is not None and latents.shape[2] == theirs.shape[1] - start
        ours = torch.cat([latents[:, 0], says[:, 0]], dim=-1)
        torch.testing.assert_close(ours, theirs[:, start:, :, : ours.shape[-1]], **close)
        torch.testing.assert_close(side_by_side(method, known), theirs[:, :start], **close)
        later = method.action_embed(plan[:, start:])[:, :, None].expand(-1, -1, facts["patches"], -1)
        torch.testing.assert_close(theirs[:, start:-1, :, ours.shape[-1] :], later, **close)
