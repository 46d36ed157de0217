"""A frozen encoder inside a world model: frames to tokens, one frame at a time.

What it is stands in the configuration once a run has started (`encoder.spec`), so that a checkpoint can be built again
without the run that the encoder came from; its weights are part of the world model's own.

Shapes: B batch, T frames, M frames on their own, H W image, N tokens of a frame, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from jepa.data import Batch
from jepa.errors import ConfigError
from jepa.losses import curvature, latent_loss, normalise_targets
from jepa.methods import base
from jepa.methods.world import HeadedWorldModel, State
from jepa.nn import timm_model
from jepa.nn.heads import Heads, Straightener
from jepa.nn.tokens import coarse

_TOKENS_CPU, _TOKENS = 1 << 14, 1 << 19  # in the window of all plans that are rolled out at the same time


@dataclass(frozen=True)
class FrozenConfig:
    """Which encoder: exactly one of `path` and `timm`, or a `spec` alone for random weights."""

    path: str = ""  # run or checkpoint of ours; official ones become runs by `jepa import`
    which: str | None = None  # of the run's encoders: target, context; null: the one that it exports
    timm: str | None = None  # a model of timm (extra `timm`), e.g. vit_small_patch14_dinov2.lvd142m
    pretrained: bool = True  # timm: with its weights; false: random ones
    chunk: int = 64  # frames encoded at once
    spec: dict[str, Any] = field(default_factory=dict)  # what it is; filled in when a run starts

    def __post_init__(self) -> None:
        if self.path and self.timm:
            raise ConfigError(f"encoder: give path={self.path!r} or timm={self.timm!r}, not both")
        if self.chunk < 1:
            raise ConfigError(f"encoder.chunk: got {self.chunk}, allowed: at least 1")


class FrozenEncoder(nn.Module):
    """Normalised frames to tokens; never trained, never in training mode, no gradient.

    Encoders of images get each frame. Those of clips get each frame by itself, repeated to one tubelet, as in V-JEPA
    2-AC. Frames come normalised as the run's data are and are turned to what the encoder was trained with.

    Attributes:
        width: D.
        grid: rows and columns of tokens.
    """

    filled: Tensor  # 1 when the weights are there; saved with them
    scale: Tensor  # from the run's normalisation to the encoder's, by channel
    shift: Tensor

    def __init__(self, config: FrozenConfig, image_size: tuple[int, int]) -> None:
        """Raises ConfigError when `spec` is empty or the encoder does not take images of this size."""
        super().__init__()
        spec = config.spec
        if not spec:
            raise ConfigError(
                "method.encoder says no encoder: set method.encoder.path to a run (official checkpoints: `jepa "
                "import`) or method.encoder.timm to a timm model. In Python, jepa.checkpoint.frozen.resolve fills in "
                "method.encoder.spec"
            )
        self.config, self.image_size = config, image_size
        self.encoder = timm_model.create(spec["timm"], image_size) if "timm" in spec else _own(spec, image_size)
        self.encoder.requires_grad_(False).eval()
        self._still = 0 if "timm" in spec or len(spec["size"]) == 2 else _tubelet(self.encoder)
        scale, shift = _between(spec)
        self._same = scale == [1.0] * 3 and shift == [0.0] * 3
        self.register_buffer("scale", torch.tensor(scale).view(3, 1, 1), persistent=False)
        self.register_buffer("shift", torch.tensor(shift).view(3, 1, 1), persistent=False)
        wanted = bool(config.path) or (config.timm is not None and config.pretrained)
        self.register_buffer("filled", torch.tensor([0 if wanted else 1], dtype=torch.uint8))
        self._checked = False
        self.width, self.tokens = self._measure()
        self.grid = self._grid()
        self.eval()

    @property
    def awaits_weights(self) -> bool:
        """Whether `jepa.checkpoint.frozen.load` has to fill it before it is of use."""
        return not bool(self.filled)

    def train(self, mode: bool = True) -> FrozenEncoder:
        """Stays in eval mode."""
        return super().train(False)

    def forward(self, x: Tensor) -> Tensor:
        """Clips (B, 3, T, H, W) to tokens (B, T * N, D), time first; images (B, 3, H, W) to (B, N, D)."""
        if x.ndim == 4:
            return self.frames(x)
        return self.frames(x.transpose(1, 2).flatten(0, 1)).reshape(len(x), -1, self.width)

    @torch.no_grad()
    def frames(self, x: Tensor) -> Tensor:
        """Frames (M, 3, H, W) to tokens (M, N, D)."""
        if torch.compiler.is_exporting():  # one graph for any number of frames
            return self._encode(x)
        if not self._checked and x.device.type != "meta":
            assert not self.awaits_weights, "the frozen encoder has no weights yet: call jepa.checkpoint.frozen.load"
            self._checked = True
        if x.shape[-2:] != self.image_size:
            raise ConfigError(
                f"got frames of {tuple(x.shape[-2:])} (height, width); this world model's encoder takes "
                f"{self.image_size}"
            )
        pieces = [self._encode(piece) for piece in torch.split(x, self.config.chunk)]
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces)

    def _encode(self, x: Tensor) -> Tensor:
        if not self._same:
            x = torch.addcmul(self.shift, x, self.scale)
        if self._still:
            x = x.unsqueeze(2).expand(-1, -1, self._still, -1, -1)
        if "timm" in self.config.spec:
            features: Any = self.encoder
            return timm_model.patch_tokens(self.encoder, features.forward_features(x))
        out: Tensor = self.encoder(x)
        return out

    def _measure(self) -> tuple[int, int]:
        """Width and number of tokens of a frame."""
        width, grid = getattr(self.encoder, "width", None), getattr(self.encoder, "grid", None)
        if isinstance(width, int) and grid is not None:
            return width, int(grid[-2] * grid[-1])
        if "timm" in self.config.spec:
            count, wide = timm_model.check(self.encoder, self.config.spec["timm"], self.image_size)
            return wide, count
        parameter = next(self.encoder.parameters())
        with torch.no_grad():
            shape = self._encode(torch.zeros(1, 3, *self.image_size, device=parameter.device)).shape
        return int(shape[2]), int(shape[1])

    def _grid(self) -> tuple[int, int]:
        grid = getattr(self.encoder, "grid", None)
        if grid is not None:
            return int(grid[-2]), int(grid[-1])
        height, width = self.image_size
        rows = max(
            r for r in range(1, self.tokens + 1) if self.tokens % r == 0 and r * r * width <= self.tokens * height
        )
        return rows, self.tokens // rows


def _own(spec: dict[str, Any], image_size: tuple[int, int]) -> nn.Module:
    """An encoder of one of our methods, for images of this size."""
    size = (*spec["size"][:-2], *image_size)
    method = base.create(spec["method"], size)
    encoders = method.encoders()
    which = spec.get("which") or method.exported()
    if which not in encoders:
        raise ConfigError(f"encoder.which={which!r}: method {spec['method'].get('name')!r} has {sorted(encoders)}")
    return encoders[which]


def pretrained(encoder: FrozenEncoder) -> dict[str, Tensor]:
    """The published weights of a timm encoder, for its image size."""
    return timm_model.create(encoder.config.spec["timm"], encoder.image_size, pretrained=True).state_dict()


def _tubelet(encoder: nn.Module) -> int:
    """Frames in a token of an encoder of clips."""
    return int(getattr(getattr(encoder, "config", None), "tubelet", 1))


def _between(spec: dict[str, Any]) -> tuple[list[float], list[float]]:
    """Scale and shift by channel from the run's normalisation to the encoder's."""
    if not {"mean", "std", "data_mean", "data_std"} <= spec.keys():
        return [1.0] * 3, [0.0] * 3
    own, given = ([list(spec[f"{of}{name}"]) for name in ("mean", "std")] for of in ("", "data_"))
    scale = [g / o for g, o in zip(given[1], own[1], strict=True)]
    shift = [(g - o) / std for g, o, std in zip(given[0], own[0], own[1], strict=True)]
    return scale, shift


class FrozenWorldModel(HeadedWorldModel):
    """Base of world models over a frozen encoder.

    Their Config has, besides `space`: `encoder`, `rollout`, `chunk`, `loss`, and for what `extend` adds `heads`,
    `straighten`, `projection` and `coarse`.
    """

    straightener: Straightener | None

    def __init__(self, config: Any, size: tuple[int, ...]) -> None:
        super().__init__(config, size)
        self.check_length(config, size)
        if config.space.action < 1:
            raise ConfigError(
                "method.space.action is 0: a world model needs to know how many numbers an action has. A run takes "
                "that from its data set (data.steps); in Python give method.space.action"
            )
        self.encoder = FrozenEncoder(config.encoder, (size[-2], size[-1]))

    def check_length(self, config: Any, size: tuple[int, ...]) -> None:
        """Raises ConfigError when windows are too short; of every phase of a run."""
        check_rollout(size, config.rollout)
        if size[0] < config.chunk + 1:
            raise ConfigError(
                f"windows of {size[0]} frames are too short: chunk={config.chunk} needs {config.chunk + 1}. Set "
                "data.clip.frames"
            )
        if min(config.coarse, config.projection) < 1 or config.straighten < 0:
            raise ConfigError(
                f"method.coarse={config.coarse}, method.projection={config.projection}: at least 1 each; "
                f"method.straighten={config.straighten:g}: at least 0"
            )
        if config.straighten and size[0] < 3:
            raise ConfigError(
                f"method.straighten={config.straighten:g} with data.clip.frames={size[0]}: a path bends where three "
                "frames follow each other, give at least 3"
            )

    # --- heads and the straight space: none of it is there unless asked for ----------------------------------------

    def extend(self, proprio: int) -> None:
        """Heads and projection that the configuration asks for; to be called when all else is made.

        Args:
            proprio: numbers that a state's `proprio` has.
        """
        config, grid = self.config, self.encoder.grid
        self._coarse = (min(config.coarse, grid[0]), min(config.coarse, grid[1]))
        width = self._coarse[0] * self._coarse[1] * self.encoder.width
        self.heads = Heads(config.heads, width + proprio, config.space.action)
        straight = config.straighten > 0
        self.straightener = Straightener(width, config.heads.width, config.projection) if straight else None

    def also(self, seen: State, ahead: State, actions: Tensor, batch: Batch | None) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of heads and projection (0-d), and its parts as metrics; 0 and none where there are none.

        Args:
            seen: T frames. ahead: what is predicted of the first n of them, which is what follows each.
            actions: scaled, at least those n (B, n, A).
            batch: with rewards and sample numbers, for heads.
        """
        parts: dict[str, Tensor] = {}
        total = torch.zeros((), device=actions.device)
        if self.straightener is not None:
            total, parts = straight_loss(self.straightener, self._vectors(seen.latents), self.config.straighten)
        if self.heads.any:
            assert batch is not None and batch.steps is not None, "heads learn from the arrays of a batch"
            count = ahead.latents.shape[1]
            told = {name: x[:, :count] for name, x in batch.steps.items() if name in ("reward", "terminated")}
            more, found = self.heads.loss(
                self.summary(seen)[:, : count + 1], self.summary(ahead), actions[:, :count], told, batch.g, self.seed
            )
            total, parts = total + more, parts | found
        return total, parts

    def doubted(self, state: State, future: State, actions: Tensor) -> State:
        """The imagined future (B, S, H, ...) of a seen state, with the ensemble's uncertainty where there is one."""
        if self.heads.ensemble is None:
            return future
        newest = state.map(lambda t: t[:, -1:])
        doubt = self.heads.doubt(self.summary(newest)[:, 0], self.summary(future), self.action_scale(actions))
        return replace(future, memory=doubt)

    def summary(self, state: State) -> Tensor:
        """Latents averaged onto `coarse` rows and columns, layer-normed, side by side; proprioception behind."""
        found = self._vectors(state.latents)
        return found if state.proprio is None else torch.cat([found, state.proprio.to(found.dtype)], dim=-1)

    def _vectors(self, latents: Tensor) -> Tensor:
        return normalise_targets(coarse(latents, self.encoder.grid, self._coarse)).flatten(-2)

    def readout(self, state: State) -> Tensor:
        """Latents as they are; with `straighten` their projection, one vector for each frame (..., 1, E)."""
        if self.straightener is None:
            return state.latents
        found: Tensor = self.straightener(self._vectors(state.latents))
        return found.unsqueeze(-2)

    # --- frames ------------------------------------------------------------------------------------------------------

    def encode(self, x: Tensor) -> Tensor:
        """Tokens (B, T * N, D) of clips (B, 3, T, H, W), frame by frame; images give (B, N, D)."""
        tokens: Tensor = self.encoder(x)
        return tokens

    def encoders(self) -> dict[str, nn.Module]:
        return {"context": self.encoder}

    def latents(self, frames: Tensor) -> Tensor:
        """What is predicted, of frames (B, T, 3, H, W): (B, T, N, D)."""
        return self.encoder.frames(frames.flatten(0, 1)).unflatten(0, frames.shape[:2])  # type: ignore[no-untyped-call, no-any-return]

    def check(self, state: State, actions: Tensor) -> None:
        """Raises ConfigError when these actions (B, S, H, A) cannot be rolled out from this seen state."""
        latents = state.latents
        if actions.ndim != 4 or len(actions) != len(latents) or actions.shape[-1] != self.space.action:
            raise ConfigError(
                f"got actions of {tuple(actions.shape)} for {len(latents)} states; this model takes (states, plans, "
                f"steps, {self.space.action}), each action holding all of its data.clip.stride environment steps"
            )
        if self.space.proprio and state.proprio is None:
            raise ConfigError(
                "this model needs proprioception with every frame (data.steps.proprio): give History.proprio to observe"
            )

    def plans_at_once(self, state: State, plans: int, frames: int) -> int:
        """How many of the plans to roll out at the same time, so that keys and values fit into memory and caches."""
        batch, _, tokens, _ = state.latents.shape
        most = _TOKENS_CPU if state.latents.device.type == "cpu" else _TOKENS
        return plans if torch.is_grad_enabled() else max(1, min(plans, most // (batch * tokens * frames)))


def straight_loss(straightener: Straightener, x: Tensor, weight: float) -> tuple[Tensor, dict[str, Tensor]]:
    """What a straight space of paths (B, T, F) costs, 0-d, and its parts: what is told back, and how paths bend."""
    x = x.detach()
    path = straightener(x)
    error, bent = latent_loss(straightener.back(path).float(), x.float(), "l2"), curvature(path)
    parts = {"loss_projection": error, "curvature": bent, "curvature_of_latents": curvature(x)}
    return error + weight * bent, {name: part.detach() for name, part in parts.items()}


def check_rollout(size: Sequence[int], rollout: int) -> None:
    """Raises ConfigError when clips are too short for a roll-out loss of so many steps."""
    frames = size[0]
    if not 0 <= rollout < max(frames, 1) or frames < 2:
        raise ConfigError(
            f"method.rollout={rollout} with data.clip.frames={frames}: a world model trains on 2 frames or more, and "
            "its roll-out loss (0: off) on at most frames - 1 steps"
        )


__all__ = [
    "FrozenConfig",
    "FrozenEncoder",
    "FrozenWorldModel",
    "check_rollout",
    "pretrained",
    "straight_loss",
]
