"""What a world model tells besides latents: reward and value of a state, how sure it is of a step, a straighter space.

Shapes: ... any leading axes, B batch, T frames, D latent width, A width of what tells an action, M members, K bins.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from jepa.errors import ConfigError
from jepa.nn import noise
from jepa.nn.sharded import local

_EDGE = 20.0  # two-hot bins reach from -20 to 20 in symlog, 5e8 in plain numbers


@dataclass(frozen=True)
class HeadsConfig:
    """Small heads on latents."""

    reward: bool = False  # predict the reward of every step; `data.steps.also` must hold reward
    value: bool = False  # and the discounted return that follows, under the policy of the data
    discount: float = 0.99  # of the return, for one action of the model
    bins: int = 0  # 0: one number and squared error; else so many bins and cross-entropy, for rewards of any scale
    ensemble: int = 0  # members that predict a step each in its own way; where they differ, the model is unsure
    width: int = 256  # of the hidden layers
    weight: float = 1.0  # of the heads' losses

    def __post_init__(self) -> None:
        if not 0 <= self.discount < 1 or self.bins in (1, 2) or min(self.bins, self.weight) < 0 or self.width < 1:
            raise ConfigError(
                f"discount={self.discount:g} must be in [0, 1), bins={self.bins} 0 or at least 3, weight="
                f"{self.weight:g} at least 0, width={self.width} at least 1"
            )
        if self.ensemble == 1 or self.ensemble < 0:
            raise ConfigError(f"ensemble={self.ensemble}: 0 for none, or at least 2 members, for one cannot disagree")


def symlog(x: Tensor) -> Tensor:
    """sign(x) log(1 + |x|) (DreamerV3, arXiv 2301.04104, equation 9)."""
    return torch.sign(x) * torch.log1p(x.abs())


def symexp(x: Tensor) -> Tensor:
    """The inverse of `symlog`."""
    return torch.sign(x) * torch.expm1(x.abs())


class ScalarHead(nn.Module):
    """A number from a latent, by an MLP: directly, or as the mean of a distribution over bins (DreamerV3)."""

    def __init__(self, inputs: int, width: int, bins: int = 0) -> None:
        super().__init__()
        self.bins = bins
        self.fc1, self.norm, self.fc2 = nn.Linear(inputs, width), nn.LayerNorm(width), nn.Linear(width, bins or 1)

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) to (...), in float32."""
        out = self._out(x)
        if not self.bins:
            return out.squeeze(-1)
        return symexp((torch.softmax(out, dim=-1) * self._centres(out)).sum(-1))

    def loss(self, x: Tensor, target: Tensor) -> Tensor:
        """Mean over (...) of the distance to `target` (...): squared error, or cross-entropy with its two-hot bins."""
        out, target = self._out(x), target.float()
        if not self.bins:
            return F.mse_loss(out.squeeze(-1), target)
        return F.cross_entropy(out.flatten(0, -2), two_hot(symlog(target), self.bins).flatten(0, -2))

    def _out(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(F.silu(self.norm(self.fc1(x)))).float()
        return out

    def _centres(self, like: Tensor) -> Tensor:
        return torch.linspace(-_EDGE, _EDGE, self.bins, device=like.device)


def two_hot(x: Tensor, bins: int) -> Tensor:
    """Numbers (...) as weights (..., K) of the two bins around each; the bins' mean under them is the number."""
    place = ((x.clamp(-_EDGE, _EDGE) + _EDGE) * ((bins - 1) / (2 * _EDGE))).unsqueeze(-1)
    return (1 - (place - torch.arange(bins, device=x.device)).abs()).clamp(min=0)


class Ensemble(nn.Module):
    """M small models of one step, latent and action to the next latent; they share nothing but the data.

    Each learns from a random half of the samples (keyed by sample number), so they agree where there was much to learn
    from and differ where there was not (Lakshminarayanan et al., arXiv 1612.01474; Chua et al., arXiv 1805.12114).
    Latents come detached: what they learn does not change the model.
    """

    def __init__(self, members: int, latent: int, action: int, width: int) -> None:
        super().__init__()
        self.members = members
        inputs = latent + action
        self.first = nn.Parameter(torch.randn(members, inputs, width) * inputs**-0.5)
        self.first_bias = nn.Parameter(torch.randn(members, 1, width) * 0.1)
        self.second = nn.Parameter(torch.randn(members, width, latent) * width**-0.5)
        self.second_bias = nn.Parameter(torch.zeros(members, 1, latent))

    def forward(self, z: Tensor, action: Tensor) -> Tensor:
        """(..., D) and (..., A) to the members' changes of the latent (M, ..., D)."""
        x = torch.cat([z, action.to(z.dtype)], dim=-1)
        flat = x.flatten(0, -2).expand(self.members, -1, -1)
        hidden = F.silu(torch.baddbmm(self.first_bias, flat, self.first))
        out: Tensor = torch.baddbmm(self.second_bias, hidden, self.second)
        return out.view(self.members, *x.shape[:-1], -1)

    def loss(self, z: Tensor, action: Tensor, following: Tensor, g: Tensor, seed: int) -> Tensor:
        """Mean squared error of each member on its half of the samples; z, following (B, T, D), g (B,)."""
        error = (self(z.detach(), action.detach()).float() - (following - z).detach().float()).square()
        mine = (noise.uniform("ensemble", seed, g.to(z.device), self.members) < 0.5).float().t()  # (M, B)
        out: Tensor = (error.flatten(2).mean(-1) * mine).sum() / mine.sum().clamp(min=1)
        return out

    def disagreement(self, z: Tensor, action: Tensor) -> Tensor:
        """Standard deviation over members, root mean square over the latent: (...)."""
        spread: Tensor = self(z, action).float().var(dim=0, correction=0)
        return spread.mean(-1).sqrt()


class Heads(nn.Module):
    """Those of the heads that a configuration asks for."""

    def __init__(self, config: HeadsConfig, latent: int, action: int) -> None:
        super().__init__()
        self.config = config
        self.reward = ScalarHead(latent, config.width, config.bins) if config.reward else None
        self.value = ScalarHead(latent, config.width, config.bins) if config.value else None
        self.slow = ScalarHead(latent, config.width, config.bins) if config.value else None
        if self.value is not None and self.slow is not None:
            self.slow.load_state_dict(self.value.state_dict())
            self.slow.requires_grad_(False)
        members = config.ensemble
        self.ensemble = Ensemble(members, latent, action, config.width) if members else None

    @property
    def any(self) -> bool:
        """Whether there is anything to learn."""
        return self.config.reward or self.config.value or self.config.ensemble > 0

    def needs(self, frames: int) -> dict[str, tuple[int, ...]]:
        """Arrays of a window of so many frames that the losses read."""
        return {"reward": (frames - 1, 1)} if self.config.reward or self.config.value else {}

    def loss(
        self,
        z: Tensor,
        predicted: Tensor,
        action: Tensor,
        steps: dict[str, Tensor],
        g: Tensor,
        seed: int,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Weighted sum of the heads' losses (0-d), and each as a metric.

        Args:
            z: latents of all frames (B, T, D).
            predicted: of all but the first, (B, T - 1, D).
            action: what tells the actions (B, T - 1, A).
            steps: the batch's arrays; `terminated`, where it is there, ends returns.
            g: sample numbers (B,).
        """
        parts: dict[str, Tensor] = {}
        if self.reward is not None:
            parts["loss_reward"] = self.reward.loss(predicted, _numbers(steps["reward"], z))
        if self.value is not None and self.slow is not None:
            goes_on = 1 - _numbers(steps["terminated"], z) if "terminated" in steps else 1.0
            with torch.no_grad():
                target = _numbers(steps["reward"], z) + self.config.discount * goes_on * self.slow(z[:, 1:])
            parts["loss_value"] = self.value.loss(z[:, :-1], target)
        if self.ensemble is not None:
            parts["loss_ensemble"] = self.ensemble.loss(z[:, :-1], action, z[:, 1:], g, seed)
        total = sum(parts.values(), start=torch.zeros((), device=z.device))
        return self.config.weight * total, {name: part.detach() for name, part in parts.items()}

    def doubt(self, seen: Tensor, imagined: Tensor, action: Tensor) -> dict[str, Tensor]:
        """How unsure the ensemble is of imagined steps, `uncertainty` (B, S, H); empty without an ensemble.

        Args:
            seen: the newest seen (B, D). imagined: (B, S, H, D). action: what tells the actions (B, S, H, A).
        """
        if self.ensemble is None:
            return {}
        first = seen[:, None, None].expand(-1, imagined.shape[1], -1, -1)
        return {"uncertainty": self.ensemble.disagreement(torch.cat([first, imagined[:, :, :-1]], dim=2), action)}

    @torch.no_grad()
    def after_step(self, keep: Tensor | None = None) -> None:
        """The slow copy of the value head follows; not at all where `keep` is 0."""
        if self.value is None or self.slow is None:
            return
        for slow, fast in zip(self.slow.parameters(), self.value.parameters(), strict=True):
            to, of = local(slow), local(fast)
            to.lerp_(of, 0.01) if keep is None else to.add_((of - to) * (0.01 * (keep > 0)))


class Straightener(nn.Module):
    """A learned space for frozen latents, in which paths are straight (temporal straightening, arXiv 2603.12231).

    Frozen latents cannot be bent, and predictions that are straighter than what they predict are wrong. So a small
    network projects latents onto E numbers whose paths have little curvature, and a second one tells the latents back
    from them, which keeps the projection from forgetting or collapsing. Nothing of it changes what is predicted.
    """

    def __init__(self, latent: int, hidden: int, width: int) -> None:
        """`latent`: numbers F of a state; `width`: E."""
        super().__init__()
        self.enter = nn.Sequential(nn.Linear(latent, hidden), nn.LayerNorm(hidden), nn.SiLU(), nn.Linear(hidden, width))
        self.leave = nn.Sequential(nn.Linear(width, hidden), nn.LayerNorm(hidden), nn.SiLU(), nn.Linear(hidden, latent))

    def forward(self, x: Tensor) -> Tensor:
        """(..., F) to (..., E)."""
        out: Tensor = self.enter(x)
        return out

    def back(self, path: Tensor) -> Tensor:
        """(..., E) to (..., F)."""
        out: Tensor = self.leave(path)
        return out


def _numbers(x: Tensor, like: Tensor) -> Tensor:
    """(B, T - 1) or (B, T - 1, 1) to (B, T - 1)."""
    return x.reshape(x.shape[0], x.shape[1], -1).sum(-1).to(like.device)


__all__ = ["Ensemble", "Heads", "HeadsConfig", "ScalarHead", "Straightener", "symexp", "symlog", "two_hot"]
