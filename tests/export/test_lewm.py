"""stable-worldmodel's LeWM, its weights copied: the same embeddings, roll-outs and costs."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from jepa.errors import CheckpointError
from jepa.export.lewm import lewm_weights
from jepa.methods import base
from jepa.methods.lewm import LeWM
from jepa.methods.world import History


def theirs(width: int, history: int) -> Any:
    """Small and random, with everything that is zero at first made something; `width`: of the predictor."""
    lewm = pytest.importorskip("stable_worldmodel.wm.lewm.lewm", exc_type=ImportError)
    module = pytest.importorskip("stable_worldmodel.wm.lewm.module", exc_type=ImportError)
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    vit = transformers.ViTModel(
        transformers.ViTConfig(
            hidden_size=24,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=96,
            image_size=16,
            patch_size=4,
        ),
        add_pooling_layer=False,
    )
    predictor = module.Predictor(
        num_frames=history, depth=2, heads=3, mlp_dim=40, input_dim=24, hidden_dim=width, output_dim=24, dim_head=8
    )
    projectors = [module.MLP(24, 64, 24, norm_fn=torch.nn.BatchNorm1d) for _ in range(2)]
    made = lewm.LeWM(vit, predictor, module.Embedder(input_dim=6, emb_dim=24), *projectors).eval()
    for name, tensor in made.state_dict().items():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand_like(tensor) + 0.5 if "running_var" in name else torch.randn_like(tensor) * 0.2)
    return made


def ours(width: int, history: int, state: dict[str, torch.Tensor]) -> LeWM:
    values = {
        "name": "lewm", "space": {"action": 6}, "latent": 24, "hidden": 64, "history": history,
        "encoder": {"patch": 4, "width": 24, "depth": 2, "heads": 2},
        "predictor": {"depth": 2, "width": width, "heads": 3, "head_width": 8, "hidden": 40},
    }  # fmt: skip
    model = base.create(values, (4, 16, 16)).eval()
    assert isinstance(model, LeWM)
    missing, unexpected = model.load_state_dict(lewm_weights(state), strict=False)
    assert not unexpected and all("_scale." in name for name in missing)
    return model


@pytest.mark.parametrize(("width", "seen"), [(24, 1), (24, 3), (32, 2)])
@torch.no_grad()
def test_imagines_and_costs_the_same(width: int, seen: int) -> None:
    reference = theirs(width, history=3)
    model = ours(width, 3, reference.state_dict())
    frames, goal = torch.randn(2, seen, 3, 16, 16), torch.randn(2, 1, 3, 16, 16)
    known, plans = torch.randn(2, seen - 1, 6), torch.randn(2, 5, 4, 6)
    state = model.observe(History(frames, known))
    torch.testing.assert_close(
        state.latents.squeeze(2), reference.encode({"pixels": frames})["emb"], atol=1e-5, rtol=1e-4
    )
    found = model.imagine(state, plans).latents.squeeze(3)
    wanted = model.observe(History(goal, known[:, :0])).latents[:, -1, 0]
    costs = (found[:, :, -1] - wanted[:, None]).square().sum(-1)
    whole = torch.cat([known[:, None].expand(-1, 5, -1, -1), plans], dim=2)
    for b in range(2):  # it costs one environment at a time
        info = {"pixels": frames[b].expand(1, 5, -1, -1, -1, -1), "goal": goal[b].expand(1, 5, -1, -1, -1, -1)}
        info["action"] = whole[b : b + 1, :, :seen]
        cost = reference.get_cost(info, whole[b : b + 1])
        torch.testing.assert_close(found[b], info["predicted_emb"][0, :, seen:], atol=2e-5, rtol=1e-4)
        torch.testing.assert_close(costs[b], cost[0], atol=1e-4, rtol=1e-4)


def test_names_of_older_transformers_are_read() -> None:
    old = {
        "encoder.embeddings.cls_token": torch.zeros(1, 1, 4),
        "encoder.embeddings.position_embeddings": torch.zeros(1, 3, 4),
        "encoder.encoder.layer.0.attention.attention.query.bias": torch.zeros(4),
        "encoder.encoder.layer.0.attention.attention.key.bias": torch.zeros(4),
        "encoder.encoder.layer.0.attention.attention.value.bias": torch.zeros(4),
        "encoder.encoder.layer.0.attention.output.dense.bias": torch.zeros(4),
        "encoder.encoder.layer.0.intermediate.dense.bias": torch.zeros(8),
        "encoder.encoder.layer.0.output.dense.bias": torch.zeros(4),
    }
    block = "encoder.vit.blocks.0."
    expected = {block + name for name in ("attn.qkv.bias", "attn.proj.bias", "mlp.fc1.bias", "mlp.fc2.bias")}
    assert set(lewm_weights(old)) == expected | {"encoder.class_token", "encoder.vit.pos_embed"}


def test_other_weights_are_refused() -> None:
    with pytest.raises(CheckpointError, match="no part of a LeWM"):
        lewm_weights({"decoder.weight": torch.zeros(1)})
    with pytest.raises(CheckpointError, match="class token"):
        lewm_weights({"predictor.pos_embedding": torch.zeros(1, 3, 4)})
