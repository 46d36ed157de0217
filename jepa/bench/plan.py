"""``jepa bench plan``: planning with a world model against stable-worldmodel's, same weights, same costs.

Both plan by the cross-entropy method for the same state and goal: the library's reference class of the method under
its own solver, and ours under ours, in alternating order within one run. A plan encodes history and goal and then
iterates; the time of an iteration is that of a plan over its number of iterations. Before anything is timed the costs
of the same candidates must be equal.

Sizes: LeWM of 18 M parameters, 300 candidates, horizon 5, history 3; DINO-WM's predictor on 256 patch tokens, on a CPU
32 candidates, 3 iterations, horizon 3, on CUDA the full 300 x 30 x 5.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from jepa.bench import plan_reference
from jepa.bench.plan_reference import Reference, Scene
from jepa.bench.result import Result, hardware, interleaved, median, pick_device
from jepa.errors import ConfigError
from jepa.methods import base
from jepa.methods.world import History, WorldModel
from jepa.nn.memory import keep_freed_memory
from jepa.plan import ActionSpace, Goal, Noise, Objective, ObjectiveConfig, create

_TOLERANCE = 1e-3  # of the costs, over their spread among the candidates; float32 sums in another order


@dataclass(frozen=True)
class PlanSettings:
    """What is measured. Defaults of None depend on method and device."""

    method: Literal["lewm", "dinowm"] = "lewm"
    samples: int | None = None
    elites: int | None = None  # a tenth of the samples
    iterations: int | None = None
    horizon: int | None = None
    frames: int = 3  # seen, as many as the predictors look back at; the library's own policies show 1
    environments: int = 1
    action: int = 10  # numbers of an action: 5 steps of 2
    image_size: int = 224
    chunk: int = 0  # most roll-outs of ours at a time; 0: all
    rounds: int = 3
    clock: Literal["time", "processor"] = "time"  # processor: of this process alone, for one thread on a busy machine
    reference: bool = True  # stable-worldmodel too (extra `envs`)
    seed: int = 0


def bench_plan(settings: PlanSettings | None = None, device: str | None = None) -> Result:
    """Run the benchmark.

    Returns:
        Figures: plan_ms, iteration_ms, roll_outs_per_s, parameters; with the reference reference_plan_ms,
        reference_iteration_ms, speedup (medians), cost_difference (largest, over the spread of the costs).

    Raises:
        ConfigError: settings that cannot be planned with, no such device, or the reference is not installed.
    """
    wanted, where = settings or PlanSettings(), pick_device(device)
    if where.type == "cpu":
        keep_freed_memory()
    sizes = _sizes(wanted, where.type == "cuda")
    torch.manual_seed(wanted.seed)
    ours = reference_model(wanted.method, wanted.action, wanted.image_size).to(where).eval()
    scene = reference_scene(wanted.seed, wanted.environments, wanted.frames, wanted.action, wanted.image_size, where)
    reference = getattr(plan_reference, wanted.method)(ours, scene, where) if wanted.reference else None
    shown: dict[str, Any] = (
        {"method": wanted.method} | sizes | {"frames": wanted.frames, "environments": wanted.environments}
    )
    shown |= {"rounds": wanted.rounds, "chunk": wanted.chunk, "clock": wanted.clock}
    result = Result("plan", shown, hardware(where))
    result.add("parameters", sum(p.numel() for p in ours.parameters()), "", "of the whole model")
    if reference is not None:
        result.add(
            "cost_difference", _difference(ours, reference, wanted, sizes), "", "largest, over the costs' spread"
        )

    variants: dict[str, Any] = {"ours": lambda: _plan(ours, scene, wanted, sizes)}
    if reference is not None:
        variants["reference"] = lambda: reference.plan(
            sizes["samples"], sizes["elites"], sizes["iterations"], sizes["horizon"]
        )
    clock = time.process_time if wanted.clock == "processor" else time.perf_counter
    seconds = interleaved(variants, wanted.rounds, device=where, clock=clock)
    middle = {name: median(values) for name, values in seconds.items()}
    plans = wanted.environments * sizes["samples"] * sizes["iterations"]
    result.add("plan_ms", 1e3 * middle["ours"], "ms", "one plan: history and goal encoded, all iterations; median")
    result.add("iteration_ms", 1e3 * middle["ours"] / sizes["iterations"], "ms", "a plan over its iterations")
    result.add("roll_outs_per_s", plans / middle["ours"], "/s", "candidates imagined over the whole horizon")
    if reference is not None:
        slow, note = middle["reference"], "stable-worldmodel, its CEMSolver"
        result.add("reference_plan_ms", 1e3 * slow, "ms", note)
        result.add("reference_iteration_ms", 1e3 * slow / sizes["iterations"], "ms", note)
        result.add("speedup", slow / middle["ours"], "x", "reference / ours")
    return result


def _sizes(wanted: PlanSettings, gpu: bool) -> dict[str, int]:
    patches = wanted.method == "dinowm" and not gpu
    samples = wanted.samples or (32 if patches else 300)
    iterations = wanted.iterations or (30 if gpu else 3)
    elites = wanted.elites or max(2, samples // 10)
    return {
        "samples": samples,
        "elites": elites,
        "iterations": iterations,
        "horizon": wanted.horizon or (3 if patches else 5),
    }


def reference_model(method: str, action: int, image_size: int, predictor: dict[str, Any] | None = None) -> WorldModel:
    """Ours, at the published sizes; `predictor`: more settings of it."""
    size = (4, image_size, image_size)
    values: dict[str, Any] = {"name": method, "space": {"action": action}, "predictor": predictor or {}}
    if method == "dinowm":
        encoder = {"name": "ijepa", "encoder": {"size": "small", "patch": 14}, "predictor": {"depth": 1, "heads": 6}}
        values["encoder"] = {"spec": {"method": encoder, "size": list(size[1:])}}
    model = base.create(values, size)
    assert isinstance(model, WorldModel)
    return model


def reference_scene(
    seed: int, environments: int, frames: int, action: int, image_size: int, device: torch.device
) -> Scene:
    """A state and a goal that are noise: neither costs nor times depend on what is shown."""
    if min(frames, environments) < 1:
        raise ConfigError(f"frames={frames}, environments={environments}: give at least 1 each")
    g = torch.Generator().manual_seed(seed)
    shape = (3, image_size, image_size)
    seen = torch.randn(environments, frames, *shape, generator=g)
    known = torch.randn(environments, frames - 1, action, generator=g)
    goal = torch.randn(environments, *shape, generator=g)
    return Scene(History(seen.to(device), known.to(device)), goal.to(device))


def _objective(wanted: PlanSettings) -> Objective:
    """The reference's: LeWM sums squares, PreJEPA takes their mean."""
    return Objective(ObjectiveConfig(reduce="sum" if wanted.method == "lewm" else "mean"))


@torch.no_grad()
def _plan(ours: WorldModel, scene: Scene, wanted: PlanSettings, sizes: dict[str, int]) -> Tensor:
    """A whole plan, from frames to actions."""
    objective = _objective(wanted)
    cost = objective.cost(ours, ours.observe(scene.history), objective.target(ours, Goal(scene.goal)), wanted.chunk)
    names = ("samples", "elites", "iterations")
    solver = create({"name": "cem"} | {name: sizes[name] for name in names})
    endless, size = torch.full((wanted.action,), torch.inf), wanted.action
    space = ActionSpace.box(-endless, endless, 1, torch.zeros(size), torch.ones(size))
    noise = Noise(wanted.seed, [(row,) for row in range(wanted.environments)], scene.goal.device)
    return solver.plan(cost, space, sizes["horizon"], noise).actions


@torch.no_grad()
def _difference(ours: WorldModel, reference: Reference, wanted: PlanSettings, sizes: dict[str, int]) -> float:
    """How far the costs of the same candidates are apart; they must be equal."""
    g = torch.Generator().manual_seed(wanted.seed + 1)
    shape = (wanted.environments, min(8, sizes["samples"]), sizes["horizon"], wanted.action)
    plans = torch.randn(shape, generator=g).to(reference.device)
    objective, scene = _objective(wanted), reference.scene
    cost = objective.cost(ours, ours.observe(scene.history), objective.target(ours, Goal(scene.goal)), wanted.chunk)
    found, expected = cost(plans), reference.costs(plans)
    apart = float((found - expected).abs().max() / expected.std())
    assert apart < _TOLERANCE, f"costs differ by {apart:.2g} of their spread: ours {found}, reference {expected}"
    return apart


__all__ = ["PlanSettings", "bench_plan", "reference_model", "reference_scene"]
