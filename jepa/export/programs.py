"""World models as a few programs that a robot's computer can run without this package.

    encode    a frame, as it comes from the camera, to what the model keeps of it
    step      what is kept of the newest frames, and an action after each, to what follows the last of them
    update    (rssm) a belief, the action since, and a new frame to the belief after it

Actions and proprioception are in the units of the data set; normalisation is inside. `roll_out` plans with nothing but
these programs; an export is refused unless that gives what the model itself imagines.

Shapes: B batch, R rows (states times plans), T frames, H steps, N tokens of a frame, D width, A action, P
proprioception, W belief, Z of its stochastic part, F features of a frame.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim

from jepa.errors import ConfigError
from jepa.methods.ac import AC
from jepa.methods.dinowm import DinoWM
from jepa.methods.lewm import LeWM
from jepa.methods.rssm import RSSM
from jepa.methods.world import History, State, WorldModel
from jepa.nn.rollout import Frames
from jepa.nn.tokens import Normalise

Call = Callable[[Mapping[str, Tensor]], dict[str, Tensor]]
_ROWS = 1 << 20
_SEEING = ("encoder", "proprio_scale", "proprio_embed")


@dataclass(frozen=True)
class Program:
    """Something to be traced: its inputs by example, and which of their axes may have any length."""

    name: str
    module: nn.Module
    example: tuple[Tensor, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    axes: tuple[dict[int, Any], ...]  # of each input: axis -> torch.export.Dim
    down_to_one: bool = False  # an axis that is not 1 in the example may be 1: a clip of one token in time

    def run(self, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The module itself, for comparison."""
        with torch.no_grad():
            out = self.module(*(given[name] for name in self.inputs))
        return dict(zip(self.outputs, out if isinstance(out, tuple) else (out,), strict=True))


class Lower(nn.Module):
    """A module in another type; what goes in and comes out stays float32."""

    def __init__(self, module: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.module, self.dtype = copy.deepcopy(module).to(dtype), dtype

    def forward(self, *given: Tensor) -> tuple[Tensor, ...]:
        out = self.module(*(x.to(self.dtype) if x.is_floating_point() else x for x in given))
        return tuple(x.float() if x.is_floating_point() else x for x in (out if isinstance(out, tuple) else (out,)))


def lowered(program: Program, dtype: torch.dtype) -> Program:
    """The same program with weights and arithmetic in `dtype`."""
    return program if dtype == torch.float32 else replace(program, module=Lower(program.module, dtype))


def dtypes(model: WorldModel) -> tuple[str, ...]:
    """Types that a world model's programs can be written in. A belief takes the likeliest of its classes, and in half
    precision another one is the likeliest sooner or later: from there on it imagines something else."""
    return ("fp32",) if isinstance(model, RSSM) else ("fp32", "fp16", "bf16")


class _Part(nn.Module):
    """Those parts of the model that a program needs, and the run's normalisation of frames."""

    sees = False  # whether it takes frames: the encoder and what is around it, or else everything but the encoder

    def __init__(self, model: WorldModel, normalise: Normalise) -> None:
        super().__init__()
        lean: Any = copy.copy(model)  # the weights stay shared
        kept = {name for name in model._modules if (name in _SEEING if self.sees else name != "encoder")}
        lean._modules = {name: module for name, module in model._modules.items() if name in kept}
        if not self.sees and isinstance(model, RSSM):
            lean.__dict__["encoder"] = SimpleNamespace(width=model.encoder.width)  # of latents, which it decodes
        self.model = lean
        self.normalise = normalise

    def history(self, frames: Tensor, proprio: Tensor | None) -> History:
        actions = frames.new_zeros(frames.shape[0], 0, self.model.space.action)
        return History(self.normalise(frames).unsqueeze(1), actions, None if proprio is None else proprio.unsqueeze(1))


class Encode(_Part):
    """Frames (B, 3, H, W) in 0..1 and proprioception (B, P) to latents (B, N, D) and the state as `step` takes it."""

    sees = True

    def forward(self, frames: Tensor, proprio: Tensor | None = None) -> tuple[Tensor, ...]:
        model = self.model
        if isinstance(model, LeWM):
            return (model.encoder.each(self.normalise(frames).unsqueeze(1)),)
        latents = model.latents(self.normalise(frames).unsqueeze(1))[:, 0]
        if proprio is None:
            return (latents,)
        scaled = model.proprio_scale(proprio)
        if isinstance(model, DinoWM):
            assert model.proprio_embed is not None, "proprioception for a model that takes none"
            scaled = model.proprio_embed(scaled).unsqueeze(1).expand(-1, latents.shape[1], -1)
        return latents, scaled


class Step(_Part):
    """Latents (R, T, N, D), actions (R, T, A) and proprioception, T at most the window, to those of the next frame."""

    def forward(self, latents: Tensor, actions: Tensor, proprio: Tensor | None = None) -> tuple[Tensor, ...]:
        model = self.model
        if isinstance(model, LeWM):
            z, told = latents.squeeze(2), model.embed(actions)
            after = model.predict(z, told)[:, -1]
            sure = None if model.heads.ensemble is None else model.heads.ensemble.disagreement(z[:, -1:], told[:, -1:])
            more = _heads(model, State(after[:, None], memory={}))
            return after[:, None], *more, *(() if sure is None else (sure[:, 0],))
        ahead = model.ahead(Frames(latents, proprio, model.action_scale(actions)), last=True)
        return ahead.latents[:, 0], *(() if ahead.proprio is None else (ahead.proprio[:, 0],))


class SeeFrame(_Part):
    """rssm: frames (B, 3, H, W) and proprioception (B, P) to features (B, F), and whether there is a frame (B,)."""

    sees = True

    def forward(self, frames: Tensor, proprio: Tensor | None = None) -> tuple[Tensor, Tensor]:
        features, there = self.model.seen(self.history(frames, proprio))
        return features[:, 0], there[:, 0]


class Update(_Part):
    """rssm: belief (R, W) and (R, Z), the action since (R, A), a frame's features and whether it is there."""

    def forward(
        self, h: Tensor, z: Tensor, actions: Tensor, features: Tensor, there: Tensor, first: Tensor
    ) -> tuple[Tensor, ...]:
        """`first` (R,): there is no belief yet; the first three arguments are not read then."""
        model = self.model
        after = model.belief.step(h, z, model.action_scale(actions))
        h = torch.where(first[:, None], torch.tanh(model.belief.start), after)
        embedded = model.embed(features)
        missing = torch.zeros_like(embedded[0]) if model.missing is None else model.missing
        z = model.belief.posterior(h, torch.where(there[:, None], embedded, missing)).mode()
        return h, z, *_decoded(model, h, z)


class BeliefStep(_Part):
    """rssm: belief (R, W) and (R, Z) and an action (R, A) to the likeliest belief after it, and what that tells."""

    def forward(self, h: Tensor, z: Tensor, actions: Tensor) -> tuple[Tensor, ...]:
        model, told = self.model, self.model.action_scale(actions)
        before = torch.cat([h, z], dim=-1)
        h = model.belief.step(h, z, told)
        prior = model.belief.prior(h)
        z = prior.mode()
        sure = prior.spread()
        if model.heads.ensemble is not None:
            sure = model.heads.ensemble.disagreement(before[:, None], told[:, None])[:, 0]
        return h, z, *_decoded(model, h, z), *_heads(model, State(h, memory={"belief": torch.cat([h, z], -1)})), sure


def _decoded(model: RSSM, h: Tensor, z: Tensor) -> tuple[Tensor, ...]:
    state = model._state(model.decoder(torch.cat([h, z], dim=-1)), {})
    return (state.latents,) if state.proprio is None else (state.latents, state.proprio)


def _heads(model: WorldModel, state: State) -> tuple[Tensor, ...]:
    found = (model.reward(state), model.value(state))
    return tuple(x for x in found if x is not None)


def _head_names(model: Any) -> tuple[str, ...]:
    heads = model.heads
    return (*(() if heads.reward is None else ("reward",)), *(() if heads.value is None else ("value",)))


# --- which programs a model has -----------------------------------------------------------------------------------


def window(model: WorldModel) -> int:
    """Most frames that `step` looks at; 1 for a belief, which holds all of them."""
    if isinstance(model, AC):
        return model.frames_at_once
    return int(model.config.history) if isinstance(model, DinoWM | LeWM) else 1


def world_programs(model: WorldModel, mean: tuple[float, ...], std: tuple[float, ...]) -> list[Program]:
    """The programs of a world model that ships with this package.

    Raises:
        ConfigError: a model of another kind, or one that predicts several actions at once.
    """
    if not isinstance(model, LeWM | DinoWM | AC | RSSM):
        raise ConfigError(
            f"{type(model).__name__} cannot be exported as a roll-out step: that is known for ac, dinowm, lewm and "
            "rssm. Its encoder's own run can be exported"
        )
    if isinstance(model, LeWM | DinoWM | AC) and model.chunks is not None:
        raise ConfigError(
            f"this world model predicts {model.config.chunk} actions at once (method.chunk): a step of one action is "
            "not what it imagines with. Train with method.chunk=1 to export it"
        )
    model = copy.deepcopy(model).eval().requires_grad_(False)
    normalise = Normalise(mean, std)
    height, width = model.size[-2:]
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator)

    batch, rows = {0: Dim("batch", min=1, max=_ROWS)}, Dim("rows", min=1, max=_ROWS)
    seen: tuple[Tensor, ...] = (draw(2, 3, height, width),)
    names: tuple[str, ...] = ("frames",)
    if model.space.proprio:
        seen, names = (*seen, draw(2, model.space.proprio)), (*names, "proprio")
    if isinstance(model, RSSM):
        return _of_belief(model, normalise, seen, names, batch, rows, draw)
    kept = ("latents", "state") if model.space.proprio else ("latents",)
    encode = Program("encode", Encode(model, normalise), seen, names, kept, tuple(batch for _ in seen))
    found = encode.run(dict(zip(names, seen, strict=True)))
    extra = () if not isinstance(model, LeWM) else _head_names(model)
    extra += ("uncertainty",) if isinstance(model, LeWM) and model.heads.ensemble is not None else ()
    outputs = (*(f"next_{name}" for name in kept), *extra)
    most = window(model)
    if isinstance(model, AC):
        model.predictor.longest = most
    step = Step(model, normalise)
    frames = Dim("frames", min=1, max=most)

    def one(name: str, count: int, any_count: bool) -> Program:
        tensors = [found[k].unsqueeze(1).repeat(1, count, *([1] * (found[k].ndim - 1))) for k in kept]
        example = (tensors[0], draw(2, count, model.space.action), *tensors[1:])
        axes = {0: rows, 1: frames} if any_count else {0: rows}
        return Program(name, step, example, ("latents", "actions", *kept[1:]), outputs, tuple(axes for _ in example))

    if most > 2:
        return [encode, one("step", most, True)]
    # tracing takes an axis of 1 for fixed, so that an axis of 1 or 2 cannot be one of any length
    return [encode, one("step", most, False), *([one("step_1", 1, False)] if most == 2 else [])]


def _of_belief(
    model: RSSM,
    normalise: Normalise,
    seen: tuple[Tensor, ...],
    names: tuple[str, ...],
    batch: Any,
    rows: Any,
    draw: Any,
) -> list[Program]:
    width, size, action = model.config.belief.width, model.config.belief.size, model.space.action
    proprio = ("next_proprio",) if model.space.proprio else ()
    outputs = ("next_h", "next_z", "next_latents", *proprio)
    h, z, a = draw(2, width), draw(2, size), draw(2, action)
    flags = torch.tensor([True, False])  # a tensor given twice would be traced as one input
    any_rows = {0: rows}
    return [
        Program("encode", SeeFrame(model, normalise), seen, names, ("features", "there"), tuple(batch for _ in seen)),
        Program(
            "update", Update(model, normalise), (h, z, a, draw(2, model.features), flags, flags.clone()),
            ("h", "z", "actions", "features", "there", "first"), outputs, (any_rows,) * 6,
        ),
        Program(
            "step", BeliefStep(model, normalise), (h, z, a), ("h", "z", "actions"),
            (*outputs, *_head_names(model), "uncertainty"), (any_rows,) * 3,
        ),
    ]  # fmt: skip


# --- planning with programs alone ---------------------------------------------------------------------------------


def roll_out(
    programs: Mapping[str, Call],
    most: int,
    frames: Tensor,
    actions: Tensor,
    proprio: Tensor | None,
    plans: Tensor,
    widths: tuple[int, int] = (0, 0),
) -> Tensor:
    """What `observe` and `imagine` do, by programs: frames (B, T, 3, H, W) in 0..1 to latents (B, S, H, N, D).

    Args:
        most: frames in the window.
        actions: (B, T - 1, A) between the frames; proprio: (B, T, P); plans: (B, S, H, A).
        widths: W and Z of a belief.
    """
    if "update" in programs:
        return _roll_belief(programs, frames, actions, proprio, plans, widths)
    batch, count, horizon, _ = plans.shape
    frames, before = frames[:, -most:], actions[:, max(0, actions.shape[1] - most + 1) :]
    seen = [_encoded(programs["encode"], frames[:, t], None if proprio is None else proprio[:, t - frames.shape[1]])
            for t in range(frames.shape[1])]  # fmt: skip
    kept = {k: torch.stack([s[k] for s in seen], dim=1).repeat_interleave(count, dim=0) for k in seen[0]}
    acts = before.repeat_interleave(count, dim=0)
    found = []
    for step in range(horizon):
        acts = torch.cat([acts, plans[:, :, step].flatten(0, 1)[:, None]], dim=1)
        newest = {k: v[:, -most:] for k, v in kept.items()}
        length = newest["latents"].shape[1]
        out = programs[f"step_{length}" if f"step_{length}" in programs else "step"](
            newest | {"actions": acts[:, -length:]}
        )
        kept = {k: torch.cat([v, out[f"next_{k}"][:, None]], dim=1) for k, v in kept.items()}
        found.append(out["next_latents"])
    return torch.stack(found, dim=1).unflatten(0, (batch, count))  # type: ignore[no-untyped-call, no-any-return]


def _roll_belief(
    programs: Mapping[str, Call],
    frames: Tensor,
    actions: Tensor,
    proprio: Tensor | None,
    plans: Tensor,
    widths: tuple[int, int],
) -> Tensor:
    batch, count, horizon, _ = plans.shape
    belief = {n: torch.zeros(batch, width) for n, width in zip("hz", widths, strict=True)}
    for t in range(frames.shape[1]):
        seen = _encoded(programs["encode"], frames[:, t], None if proprio is None else proprio[:, t])
        first = torch.full((batch,), t == 0)
        action = actions[:, t - 1] if t else torch.zeros(batch, plans.shape[-1])
        out = programs["update"](belief | seen | {"actions": action, "first": first})
        belief = {n: out[f"next_{n}"] for n in "hz"}
    belief = {n: x.repeat_interleave(count, dim=0) for n, x in belief.items()}
    found = []
    for step in range(horizon):
        out = programs["step"](belief | {"actions": plans[:, :, step].flatten(0, 1)})
        belief = {n: out[f"next_{n}"] for n in "hz"}
        found.append(out["next_latents"])
    return torch.stack(found, dim=1).unflatten(0, (batch, count))  # type: ignore[no-untyped-call, no-any-return]


def _encoded(encode: Call, frames: Tensor, proprio: Tensor | None) -> dict[str, Tensor]:
    return encode({"frames": frames} | ({} if proprio is None else {"proprio": proprio}))


__all__ = ["Call", "Lower", "Program", "dtypes", "lowered", "roll_out", "window", "world_programs"]
