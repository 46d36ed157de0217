"""Judgement: probe figures against baselines, health, seeds that belong together, and the summary of a run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from jepa import config as configuration
from jepa.probe.summary import LOWER_IS_BETTER
from jepa.report.markup import count, measure, number
from jepa.report.read import Line, Run, is_number

Outcome = Literal["above", "touching", "not above", "alone"]
Row = dict[str, Any]
OUTCOMES: dict[Outcome, str] = {
    "above": "above every baseline, intervals apart",
    "touching": "above the baselines, but intervals touch",
    "not above": "not above the best baseline",
    "alone": "no baseline to compare with",
}


def is_baseline(row: Row) -> bool:
    """Whether a probe row is a yardstick and not an encoder of the run."""
    return bool(row.get("baseline", not str(row["encoder"]).startswith(("target", "context"))))


@dataclass
class Contest:
    """One probe (say linear top-1): the run's own best-placed encoder against every baseline."""

    suite: str
    probe: str
    metric: str
    own: list[Row]
    baselines: list[Row]

    @property
    def main(self) -> Row | None:
        """The row that counts: the exported encoder, which the probe lists first."""
        return self.own[0] if self.own else None

    @property
    def best_baseline(self) -> Row | None:
        sign = -1 if self.metric in LOWER_IS_BETTER else 1
        return max(self.baselines, key=lambda r: sign * float(r["value"]), default=None)

    @property
    def outcome(self) -> Outcome:
        """'above' needs an interval wholly better than the interval of every baseline (below it for an error)."""
        if self.main is None or not self.baselines:
            return "alone"
        best = self.best_baseline
        assert best is not None, "there are baselines, so there is a best one"
        if self.metric in LOWER_IS_BETTER:
            clear = all(high(self.main) < low(r) for r in self.baselines)
            better = float(self.main["value"]) < float(best["value"])
        else:
            clear = all(low(self.main) > high(r) for r in self.baselines)
            better = float(self.main["value"]) > float(best["value"])
        return "above" if clear else "touching" if better else "not above"


def is_interval(value: Any) -> bool:
    return isinstance(value, dict) and all(is_number(value.get(k)) for k in ("value", "low", "high"))


def low(row: Row) -> float:
    return float(row["low"]) if is_number(row.get("low")) else float(row["value"])


def high(row: Row) -> float:
    return float(row["high"]) if is_number(row.get("high")) else float(row["value"])


def contests(run: Run) -> list[Contest]:
    """One contest for each (suite, probe, metric): by suite, the linear probe first, then as in the file."""
    found: dict[tuple[str, str, str], Contest] = {}
    for result in run.probes:
        for row in result["rows"]:
            key = (str(result.get("suite", "")), str(row["probe"]), str(row.get("metric", "")))
            contest = found.setdefault(key, Contest(*key, [], []))
            (contest.baselines if is_baseline(row) else contest.own).append(row)
    suites = list(dict.fromkeys(c.suite for c in found.values()))
    return sorted(found.values(), key=lambda c: (suites.index(c.suite), c.probe != "linear"))


def headlines(run: Run) -> list[Contest]:
    """The contests that count at the top: where x and y were also judged together, only that; of the state probe, the
    first figure's mean over variables."""
    every = [c for c in contests(run) if c.main is not None and not c.probe.startswith("state:")]
    every = [c for c in every if c.metric not in ("pearson", "error")]  # said of what R² is said of
    first = {c.suite: c.metric for c in reversed(every) if c.probe == "state"}
    every = [c for c in every if c.probe != "state" or c.metric == first[c.suite]]
    wholes = [(c.suite, *c.probe.partition(":")) for c in every if "+" in c.probe]
    parts = {(suite, f"{kind}:{name}") for suite, kind, _, names in wholes for name in names.split("+")}
    return [c for c in every if (c.suite, c.probe) not in parts]


def probe_title(probe: str, metric: str) -> str:
    kind, layer, target = _parts(probe)
    names = {
        "linear": "Linear probe", "knn": "Nearest-neighbour vote (kNN)", "ridge": "Ridge regression",
        "attentive": "Attentive probe", "segmentation": "Linear segmentation", "depth": "Linear depth",
        "anticipation": "Anticipation", "state": "State probe", "mlp": "Small network",
    }  # fmt: skip
    units = {"top1": "top-1 accuracy", "top5": "top-5 accuracy", "r2": "R²", "miou": "mean IoU", "rmse": "RMSE",
             "f1_weighted": "weighted F1", "f1_macro": "macro F1", "pearson": "Pearson r",
             "error": "mean error"}  # fmt: skip
    if metric.startswith("recall"):
        units[metric] = f"class-mean recall at {metric.removeprefix('recall')}"
    what = f" of {target}" if target else ""
    what = what or (", mean over variables" if kind == "state" else "")
    what = what.replace("+", " and ") + (f", layer {layer}" if layer else "")
    return f"{names.get(kind, kind)}{what}, {units.get(metric, metric)}"


def short_title(probe: str) -> str:
    """'Linear probe', 'kNN', 'Ridge R² x': what fits on a tile."""
    kind, layer, target = _parts(probe)
    names = {"linear": "Linear probe", "knn": "kNN", "ridge": "Ridge R²", "attentive": "Attentive probe",
             "state": "State probe", "mlp": "Network R²"}  # fmt: skip
    name = names.get(kind, kind.capitalize()) + (f", layer {layer}" if layer else "")
    return f"{name} {target}" if target else name


def _parts(probe: str) -> tuple[str, str, str]:
    """Kind, layer and target of a probe's name: 'linear@-2' or 'attentive:vx'."""
    left, _, target = probe.partition(":")
    kind, _, layer = left.partition("@")
    return kind, layer, target


def with_interval(row: Row) -> str:
    """'24.1 % [22.3, 25.9]'."""
    metric = str(row.get("metric", ""))
    text = measure(float(row["value"]), metric)
    if not (is_number(row.get("low")) and is_number(row.get("high"))):
        return text
    ends = (measure(v, metric).removesuffix("\u00a0%") for v in (low(row), high(row)))
    return f"{text} [{', '.join(ends)}]"


# --- health -------------------------------------------------------------------------------------------------------


@dataclass
class Health:
    """State is 'ok', 'warned' (earlier, not at the last look), 'collapsing' or 'unknown'."""

    state: Literal["ok", "warned", "collapsing", "unknown"]
    sentence: str
    rank_first: float | None = None
    rank_last: float | None = None


def health_key(run: Run, quantity: str) -> str | None:
    """The monitor's key of a quantity, e.g. 'effective_rank_centred', the target encoder's if there is one."""
    keys = [k for k in run.metrics() if k.startswith("health/") and k.rpartition("/")[2] == quantity]
    return min(keys, key=lambda k: ("/target/" not in k, k), default=None)


def health(run: Run) -> Health:
    """Did the features stay alive? By the monitor's own warnings; the effective rank is told beside it."""
    looks = [int(x["step"]) for x in run.lines if any(k.startswith("health/") for k in x)]
    if not looks:
        return Health("unknown", "Health was not measured (monitor.every).")
    key = health_key(run, "effective_rank_centred")
    first, last = (run.first(key), run.last(key)) if key else (None, None)
    rank = f"effective rank {number(first)} → {number(last)}" if first is not None and last is not None else ""
    said = [x for x in run.lines if any(k.startswith("health/") for k in x) and x.get("warnings")]
    warned = [int(line["step"]) for line in said]
    others = [f"{name} at step {number(step)}" for step, name, act in run.alarms() if act != "rollback"
              and name not in ("collapse", "starvation")]  # fmt: skip
    backs = [f"rolled back to step {number(step)} ({name})" for step, name, act in run.alarms() if act == "rollback"]
    if warned and max(warned) >= looks[-1]:
        state, words = "collapsing", "The monitor warned at its last look"
    elif warned:
        state, words = "warned", f"The monitor warned {len(warned)} time(s), but not at its last look"
    elif others or backs:
        state, words = "warned", "No sign of collapse at the last look"
    else:
        state, words = "ok", "No sign of collapse"
    more = f" Alarms: {', '.join([*others, *backs])}." if others or backs else ""
    return Health(state, f"{words}{': ' if rank else ''}{rank}.{more}", first, last)  # type: ignore[arg-type]


# --- seeds --------------------------------------------------------------------------------------------------------


def same_but_seed(runs: Sequence[Run]) -> list[list[Run]]:
    """Groups of two or more runs whose configurations differ in nothing but name and seed."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        plain = configuration.to_dict(run.config)
        groups.setdefault(repr({k: v for k, v in plain.items() if k not in ("name", "seed")}), []).append(run)
    return [g for g in groups.values() if len(g) > 1]


def over_seeds(group: Sequence[Run]) -> list[dict[str, Any]]:
    """Mean, standard deviation (n - 1) and range over seeds of every row that all runs of a group have."""
    tables: list[dict[tuple[str, str, str, str], Row]] = []
    for run in group:
        rows = [(c, r) for c in contests(run) for r in [*c.own[:1], *c.baselines]]
        tables.append({(c.suite, c.probe, c.metric, _role(r)): r for c, r in rows})
    out = []
    for key in tables[0]:
        if all(key in t for t in tables):
            values = [float(t[key]["value"]) for t in tables]
            mean = sum(values) / len(values)
            spread = math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1))
            suite, probe, metric, encoder = key
            out.append({
                "suite": suite, "probe": probe, "metric": metric, "encoder": encoder, "n": len(values), "mean": mean,
                "sd": spread, "low": min(values), "high": max(values), "baseline": is_baseline(tables[0][key]),
            })  # fmt: skip
    return out


def _role(row: Row) -> str:
    """The encoder without its step, so that seeds line up."""
    return str(row["encoder"]) if is_baseline(row) else str(row["encoder"]).split(" ")[0]


# --- cost and summary ---------------------------------------------------------------------------------------------


def cost(run: Run) -> dict[str, float]:
    """What the run used: seconds on the device, samples, samples per second, FLOPs and joules where recorded."""
    out = {"steps": float(run.steps_done), "samples": float(run.samples_done)}
    rate = run.curve("images_per_s")[1]
    found = run.environment.get("processes")
    processes = found if isinstance(found, int) and found > 0 else 1
    device = run.last("device_seconds")  # over all processes
    spent = device / processes if device is not None else None
    if spent is None and rate:  # lines are evenly spaced, so the mean time per image is the mean of 1 / rate
        spent = run.samples_done * sum(1 / r for r in rate if r > 0) / max(1, sum(r > 0 for r in rate))
    if spent:
        out |= {"seconds": spent, "device_seconds": spent * processes, "samples_per_s": run.samples_done / spent}
    waits = run.curve("data_wait")[1]
    if waits:
        out["data_wait_share"] = sum(waits) / len(waits)
    if len(run.starts) > 1:
        out |= {"restarts": len(run.starts) - 1.0, "lost_steps": float(sum(s.get("lost", 0) for s in run.starts))}
    for key in ("peak_memory_gib", "flops", "joules"):
        if (value := run.last(key)) is not None:
            out[key] = value
    return out


def energy_source(run: Run) -> str:
    """Where the run's joules come from: nvml, rapl, estimated, or several of them with a plus."""
    return str(next((x["energy_source"] for x in reversed(run.lines) if x.get("energy_source")), ""))


def summary(run: Run) -> dict[str, Any]:
    """Every headline figure of a run as plain JSON values; see `jepa.report.summary`."""
    state = health(run)
    plain = configuration.to_dict(run.config)
    probes = []
    for contest in contests(run):
        rows = [{k: r[k] for k in ("encoder", "value", "low", "high") if k in r} for r in contest.own]
        yardsticks = [{k: r[k] for k in ("encoder", "value", "low", "high") if k in r} for r in contest.baselines]
        probes.append({
            "suite": contest.suite, "probe": contest.probe, "metric": contest.metric, "encoder": rows,
            "baselines": yardsticks, "against_baselines": contest.outcome,
        })  # fmt: skip
    ends: dict[str, dict[str, float]] = {}
    for key in run.metrics():
        if key == "loss" or key.startswith("health/"):
            steps, values = run.curve(key)
            if values:
                ends[key] = {"first": values[0], "last": values[-1], "first_step": steps[0], "last_step": steps[-1]}
    return {
        "name": run.name, "seed": run.config.seed, "method": run.config.method.get("name"),
        "dataset": run.dataset, "data_path": plain["data"]["path"], "steps": run.steps_done,
        "samples": run.samples_done,
        "checkpoint": run.checkpoints[-1] if run.checkpoints else None,
        "health": {"state": state.state, "sentence": state.sentence, "warnings": len(run.warnings())},
        "curves": ends, "probes": probes, "cost": cost(run), "energy_source": energy_source(run),
        "probe_cost": _costs(run.probes), "plan_cost": _costs(run.plans),
        "alarms": [{"step": step, "alarm": name, "act": act} for step, name, act in run.alarms()],
        "quarantined": len(run.quarantine),
    }  # fmt: skip


def _costs(results: Sequence[Row]) -> dict[str, Any]:
    """By suite, what a probe or planning cost."""
    return {str(r["suite"]): r["cost"] for r in results if isinstance(r.get("cost"), dict)}


def headline(run: Run) -> str:
    """What was trained on what, for how long: one sentence."""
    encoder = run.config.method.get("encoder")
    shape = _encoder_words(encoder) if isinstance(encoder, dict) else ""
    name = {"ijepa": "I-JEPA", "vjepa": "V-JEPA"}.get(str(run.config.method.get("name")), run.config.method.get("name"))
    height, width = run.config.data.image_size
    done = f"{count(run.steps_done, 'step')} ({count(run.samples_done, 'image')})"
    return f"{name} trained {shape} on {run.dataset} at {height}×{width} pixels for {done}."


def _encoder_words(encoder: Line) -> str:
    patch = encoder.get("patch", "")
    patch = "×".join(map(str, patch)) if isinstance(patch, list | tuple) else f"{patch}×{patch}"
    parts = [f"width {encoder['width']}"] if encoder.get("width") else []
    parts += [f"depth {encoder['depth']}"] if encoder.get("depth") else []
    parts += [f"patch {patch}"] if encoder.get("patch") else []
    named = encoder.get("size") and not (encoder.get("width") and encoder.get("depth"))
    size = f"ViT-{encoder['size']}" if named else "ViT"
    details = f" ({', '.join(parts)})" if parts else ""
    return f"a {size}{details}"
