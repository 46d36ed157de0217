"""stable-worldmodel's LeWM and PreJEPA (DINO-WM), with the weights of our models of the same sizes.

The library (PyPI, MIT) is the field's evaluation harness and has the reference models of both methods; extra `envs`.

Shapes: B environments, S candidates, F frames seen, H steps, A numbers of an action, N tokens, D width.
"""

from __future__ import annotations

import contextlib
import importlib
import io
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from jepa.errors import ConfigError
from jepa.export.lewm import lewm_weights
from jepa.methods.world import History, WorldModel


@dataclass(frozen=True)
class Scene:
    """What is planned for."""

    history: History  # F frames
    goal: Tensor  # (B, 3, H, W)


class Reference:
    """A model of the library: costs of candidates, and plans by the library's own cross-entropy method."""

    def __init__(self, model: nn.Module, scene: Scene, device: torch.device) -> None:
        self.model, self.scene, self.device = model.to(device).eval(), scene, device
        self.known = scene.history.actions

    def get_cost(self, info: dict[str, Any], plans: Tensor) -> Tensor:
        """As the library's solvers call it; its models take the actions between the frames seen with those to try."""
        model: Any = self.model
        costs: Tensor = model.get_cost(info, torch.cat([info["known"], plans], dim=2))
        return costs

    def info(self) -> dict[str, Tensor]:
        """What the library's policy tells its solver."""
        rows = len(self.scene.goal)
        return {
            "pixels": self.scene.history.frames,
            "goal": self.scene.goal[:, None],
            "known": self.known,
            "action": torch.zeros(rows, 1, self.known.shape[-1], device=self.device),
            "id": torch.arange(float(rows), device=self.device)[:, None],
            "step_idx": torch.zeros(rows, 1, device=self.device),
        }

    @torch.inference_mode()
    def costs(self, plans: Tensor) -> Tensor:
        """(B, S, H, A) to (B, S), one environment at a time: its LeWM takes no more."""
        found = []
        for row, some in enumerate(plans):
            self.forget()
            info = {name: x[row : row + 1, None].expand(1, len(some), *x.shape[1:]) for name, x in self.info().items()}
            found.append(self.get_cost(info, some[None]))
        return torch.cat(found)

    def plan(self, samples: int, elites: int, iterations: int, horizon: int) -> Tensor:
        """What its CEMSolver finds, (B, H, A), one environment after the other as it does by default."""
        import gymnasium as gym

        rows, size = len(self.scene.goal), self.known.shape[-1]
        solver = _module("solver").CEMSolver(
            self, batch_size=1, num_samples=samples, topk=elites, n_steps=iterations, device=str(self.device)
        )
        space = gym.spaces.Box(-np.inf, np.inf, (rows, size))
        solver.configure(action_space=space, n_envs=rows, config=SimpleNamespace(horizon=horizon, action_block=1))
        self.forget()
        with contextlib.redirect_stdout(io.StringIO()):  # it prints how long it took
            found: Tensor = solver.solve(self.info())["actions"]
        return found

    def forget(self) -> None:
        """Drop what PreJEPA keeps from one plan to the next of the same state."""
        for name in ("_init_cached_info", "_goal_cached_info"):
            if hasattr(self.model, name):
                delattr(self.model, name)

    def parameters(self) -> Any:
        """Of the model; the library asks for their type."""
        return self.model.parameters()


def lewm(ours: WorldModel, scene: Scene, device: torch.device) -> Reference:
    """A LeWM of the library with random weights, which `ours` takes over."""
    import transformers

    parts: Any = ours
    c = parts.config
    width, depth, heads, ratio = c.encoder.resolved()
    side, patch = int(ours.size[-1]), int(c.encoder.patch[0])
    vit = transformers.ViTConfig(
        hidden_size=width, num_hidden_layers=depth, num_attention_heads=heads, intermediate_size=int(width * ratio),
        image_size=side, patch_size=patch, layer_norm_eps=parts.encoder.vit.norm.eps,
    )  # fmt: skip
    module, p = _module("wm.lewm.module"), c.predictor
    predictor = module.Predictor(
        num_frames=c.history, depth=p.depth, heads=p.heads, dim_head=p.head_width, mlp_dim=p.hidden,
        input_dim=c.latent, hidden_dim=p.width, output_dim=c.latent,
    )  # fmt: skip
    norm = nn.BatchNorm1d if c.norm == "batch" else nn.LayerNorm
    model = _module("wm.lewm.lewm").LeWM(
        transformers.ViTModel(vit, add_pooling_layer=False),
        predictor,
        module.Embedder(input_dim=ours.space.action, emb_dim=c.latent),
        module.MLP(width, c.hidden, c.latent, norm_fn=norm),
        module.MLP(c.latent, c.hidden, c.latent, norm_fn=norm),
    )
    _open_gates(model)
    missing, unexpected = ours.load_state_dict(lewm_weights(model.state_dict()), strict=False)
    assert not unexpected and all("_scale." in name for name in missing), (missing, unexpected)
    return Reference(model, scene, device)


class _Tokens(nn.Module):
    """Our frozen encoder as the library calls one: with a class token in front, which it drops."""

    def __init__(self, ours: Any) -> None:
        super().__init__()
        self.encoder = ours.encoder

    def forward(self, pixels: Tensor, **_: Any) -> Any:
        tokens = self.encoder.frames(pixels)
        return SimpleNamespace(last_hidden_state=torch.cat([tokens[:, :1], tokens], dim=1))


def dinowm(ours: WorldModel, scene: Scene, device: torch.device) -> Reference:
    """A PreJEPA of the library over the encoder of `ours`, with the weights of its predictor."""
    _open_gates(ours)
    module, c = _module("wm.prejepa.module"), ours.config
    assert not ours.space.proprio, "the library's cost of proprioception is that of the first patch alone"
    state: dict[str, Tensor] = ours.state_dict()
    positions = state["predictor.positions"]  # (1, T, N, D)
    embedder = module.Embedder(in_chans=ours.space.action, emb_dim=c.action_width)
    predictor = module.CausalPredictor(
        num_patches=positions.shape[2], num_frames=c.history, dim=positions.shape[3], depth=c.predictor.depth,
        heads=c.predictor.heads, mlp_dim=c.predictor.hidden, dim_head=c.predictor.head_width,
    )  # fmt: skip
    theirs = _module("wm.prejepa.prejepa").PreJEPA(
        _Tokens(ours), predictor, nn.ModuleDict({"action": embedder}), history_size=c.history
    )
    embedder.patch_embed.weight.data.copy_(state["action_embed.weight"][..., None])
    embedder.patch_embed.bias.data.copy_(state["action_embed.bias"])
    missing, unexpected = predictor.load_state_dict(_patch_predictor(state), strict=False)
    assert not unexpected and all(name.endswith("0.bias") for name in missing), (missing, unexpected)  # its masks
    return Reference(theirs, scene, device)


def lewm_loss(model: Any, frames: Tensor, actions: Tensor, ours: Any) -> Callable[[], tuple[Tensor, Tensor]]:
    """What its training script minimises, and the part of it that is prediction.

    Args:
        frames: (B, F + 1, 3, H, W); actions: (B, F, A) between them.
        ours: has the settings of SIGReg.
    """
    settings = ours.config.sigreg
    sigreg = _module("wm.loss").SIGReg(knots=settings.knots, num_proj=settings.directions).to(frames.device)

    def loss() -> tuple[Tensor, Tensor]:
        known = model.encode({"pixels": frames, "action": actions})
        z = known["emb"]
        error = (model.predict(z[:, :-1], known["act_emb"]) - z[:, 1:]).square().mean()
        return error + settings.weight * sigreg(z.transpose(0, 1)), error.detach()

    return loss


def dinowm_loss(model: Any, frames: Tensor, actions: Tensor, ours: Any) -> Callable[[], tuple[Tensor, Tensor]]:
    """As `lewm_loss`; the error is that of the features, without the actions that stand beside them."""
    told = torch.cat([actions, torch.zeros_like(actions[:, :1])], dim=1)  # one for each frame
    width = ours.encoder.width

    def loss() -> tuple[Tensor, Tensor]:
        tokens = model.encode({"pixels": frames, "action": told})["emb"]
        found = model.predict(tokens[:, :-1])
        error = (found[..., :width] - tokens[:, 1:, :, :width].detach()).square().mean()
        return error, error.detach()

    return loss


def _patch_predictor(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Our predictor's weights under the library's names."""
    found = {"pos_embedding": state["predictor.positions"].flatten(1, 2)}
    names = {
        "norm1": "0.norm", "attn.qkv": "0.to_qkv", "attn.proj": "0.to_out.0",
        "norm2": "1.net.0", "mlp.fc1": "1.net.1", "mlp.fc2": "1.net.4",
    }  # fmt: skip
    for name, tensor in state.items():
        place = name.removeprefix("predictor.")
        if place.startswith("blocks."):
            _, number, rest = place.split(".", 2)
            part, _, kind = rest.rpartition(".")
            found[f"transformer.layers.{number}.{names[part]}.{kind}"] = tensor
        elif place.startswith("norm.") and name != place:
            found[f"transformer.{place}"] = tensor
    return found


def _open_gates(model: nn.Module) -> None:
    """What is zero at first would hide a difference: gates of AdaLN, biases."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if tensor.abs().max() == 0 or "modulation" in name.lower():
                tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.02)


def _module(name: str) -> Any:
    try:
        return importlib.import_module(f"stable_worldmodel.{name}")
    except ImportError as error:
        raise ConfigError(
            f"the reference of this benchmark is stable-worldmodel ({error}): pip install 'jepa[envs]', or measure "
            "ours alone with reference=false"
        ) from None


__all__ = ["Reference", "Scene", "dinowm", "dinowm_loss", "lewm", "lewm_loss"]
