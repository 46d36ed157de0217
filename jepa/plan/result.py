"""From trials to what is written and shown: rows with intervals, episodes, notes, and the task they belong to."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jepa import config
from jepa.errors import DataError
from jepa.plan.agent import Stats
from jepa.plan.envs import Values
from jepa.plan.journal import Journal
from jepa.plan.protocol import PROTOCOL, wilson
from jepa.plan.starts import Origin, Problem
from jepa.plan.suite import PlanSuite
from jepa.plan.trial import Trial

PLANNER = "planner"
# of the environment: what a policy sees or uses, not the task
_NOT_TASK = ("expert", "nothing", "proprio", "extra", "modules", "size", "alone")


def task_of(suite: PlanSuite, origin: Origin) -> dict[str, Any]:
    """What makes the task; everything that `protocol.fingerprint` covers."""
    environment = {k: v for k, v in config.to_dict(suite.environment).items() if k not in _NOT_TASK}
    if not suite.environment.blank:  # results from before there was such a key are of the same task
        del environment["blank"]
    goals = {"source": suite.goals.source, **origin.facts}
    return {
        "protocol": PROTOCOL,
        "environment": environment,
        "goals": goals,
        "budget": suite.budget,
        "episodes": suite.episodes,
        "seeds": list(suite.seeds),
    }


def entry(policy: str, trial: Trial) -> dict[str, Any]:
    """A line of the journal."""
    return {"policy": policy, "number": trial.problem.number, **trial.result()}


def took(stats: Stats, spent: dict[str, Any]) -> dict[str, Any]:
    """A line of the journal: what planning a batch took; `spent`: see `energy.Meter.cost`."""
    return {"took": {k: getattr(stats, k) for k in ("seconds", "rows", "calls", "imagined", "steps")} | {"cost": spent}}


def cost(journal: Journal, episodes: int, flops: float | None) -> dict[str, Any]:
    """What one planned episode cost, the environment's part included; empty where it was not measured.

    `flops`: operations of a step of the model. Those of encoding and of the objective are not counted.
    """
    found = [part["cost"] for part in journal.took if "cost" in part]
    if len(found) < len(journal.took) or not found:
        return {}
    steps = sum(part["imagined"] for part in journal.took) / episodes
    return {
        "per": "planned episode",
        "device_seconds": round(sum(part["device_seconds"] for part in found) / episodes, 3),
        "joules": round(sum(part["joules"] for part in found) / episodes, 3),
        "energy_source": "+".join(sorted({part["energy_source"] for part in found})),
        "model_steps": round(steps),
        **({"flops": steps * flops} if flops is not None else {}),
    }


def row(policy: str, problems: Sequence[Problem], journal: Journal, suite: PlanSuite) -> dict[str, Any]:
    """A line of the table."""
    trials = [journal.trials[policy, p.number] for p in problems]
    won = [t for t in trials if t["success"]]
    low, high = wilson(len(won), len(trials))
    ends = [t["distance"] for t in trials if t["distance"] is not None]
    found: dict[str, Any] = {
        "policy": policy,
        "baseline": policy != PLANNER,
        "value": len(won) / len(trials),
        "low": low,
        "high": high,
        "successes": len(won),
        "episodes": len(trials),
        "steps": float(np.mean([t["steps"] for t in won])) if won else None,
        "distance": float(np.median(ends)) if ends else None,
        "failed": sum("error" in t for t in trials),
        "seeds": {
            str(seed): float(np.mean([journal.trials[policy, p.number]["success"] for p in problems if p.seed == seed]))
            for seed in suite.seeds
        },
    }
    if policy == PLANNER:
        found["planning"] = _planning(journal)
    return found


def _planning(journal: Journal) -> dict[str, Any] | None:
    merged = Stats()
    for part in journal.took:
        merged.seconds += part["seconds"]
        merged.rows += part["rows"]
        merged.calls += part["calls"]
        merged.imagined += part["imagined"]
        merged.steps += part["steps"]
    if not merged.seconds:
        return None
    return {
        **merged.summary(),
        "seconds_per_plan_p95": float(np.quantile(merged.seconds, 0.95)),
        "plans": len(merged.seconds),
        "rows_per_plan": float(np.mean(merged.rows)),
        "calls_per_plan": merged.calls / len(merged.seconds),
    }


def episode(problem: Problem, policies: Sequence[str], journal: Journal) -> dict[str, Any]:
    """One episode: where it began, where it was to end, and what every policy made of it."""
    made = {name: journal.trials[name, problem.number] for name in policies}
    goal = _plain(problem.goal) or made[policies[0]].get("goal")  # the environment's own, as it told it
    return {
        "number": problem.number,
        "seed": problem.seed,
        **problem.place,
        "start": _plain(problem.start),
        "goal": goal,
        "policies": {n: {k: v for k, v in t.items() if k not in ("policy", "number", "goal")} for n, t in made.items()},
    }


def notes(suite: PlanSuite, problems: Sequence[Problem], journal: Journal, trained: int) -> list[str]:
    """What a reader of the table has to know.

    Args:
        trained: most steps that followed a frame in the model's training windows.
    """
    found = []
    if suite.planner.horizon > trained:
        found.append(
            f"plans look {suite.planner.horizon} steps ahead, in training windows at most {trained} followed a frame: "
            "see with `jepa rollout` how far imagination can be trusted"
        )
    seen = [journal.trials[PLANNER, p.number].get("start_difference") for p in problems]
    far = [p.number for p, d in zip(problems, seen, strict=True) if d is not None and d > suite.goals.tolerance]
    if far:
        found.append(
            f"in {len(far)} episodes the environment's start looks different from the data set's frame (goals.tolerance"
            f"={suite.goals.tolerance:g}): {', '.join(map(str, far[:10]))}"
        )
    return found


def check_any(problems: Sequence[Problem], journal: Journal) -> None:
    """Refuse to make a table of an environment that failed in every episode.

    Raises:
        DataError: with the first failure.
    """
    errors = [journal.trials[PLANNER, p.number].get("error") for p in problems]
    if all(errors):
        raise DataError(f"all {len(errors)} episodes failed. The first one: {errors[0]}")


def read(path: Path) -> dict[str, Any]:
    """A result that `jepa plan` has written.

    Raises:
        DataError: no such file, or not such a result.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is no JSON ({error}): give a RUN/plans/SUITE.json") from None
    if not isinstance(found, dict) or not {"fingerprint", "task", "rows", "protocol"} <= set(found):
        raise DataError(f"{path} is no result of `jepa plan`: give a RUN/plans/SUITE.json")
    return found


def _plain(values: Values | None) -> dict[str, Any] | None:
    return None if values is None else {name: np.asarray(value).tolist() for name, value in values.items()}
