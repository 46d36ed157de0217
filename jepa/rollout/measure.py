"""Errors of roll-outs against horizon, and what is said of them with intervals.

Shapes: n windows, H steps, N tokens, D width, C columns of the state.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from jepa import keyed
from jepa.errors import DataError
from jepa.methods.world import WorldModel
from jepa.monitor.imagination import Courses, cosine, courses, euclidean
from jepa.nn.tokens import Normalise
from jepa.probe.bootstrap import Bootstrap, Float64, Interval, pearson_columns
from jepa.probe.episodes import Batch, Place, Recordings, batches
from jepa.probe.frames import Reader, flat
from jepa.rollout.suite import RolloutSuite

BINS = 10  # of the reliability curve
DISTANCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"l2": euclidean, "cosine": cosine}


@dataclass
class Errors:
    """Errors (n, H) float64 of every window and step, by course."""

    latent: dict[str, dict[str, list[Tensor]]] = field(default_factory=dict)  # by distance, then course
    state: dict[str, dict[str, list[Tensor]]] = field(default_factory=dict)  # by variable, then course
    uncertainty: list[Tensor] = field(default_factory=list)
    episode: list[int] = field(default_factory=list)

    def table(self, of: str, name: str) -> dict[str, Float64]:
        """(n, H) by course, of `latent` or `state`."""
        return {course: torch.cat(parts).numpy() for course, parts in getattr(self, of)[name].items()}


def measure(
    model: WorldModel,
    normalise: Normalise,
    recordings: Recordings,
    places: Sequence[Place],
    suite: RolloutSuite,
    reader: Reader | None,
    device: torch.device,
    advance: Callable[[int], None] = lambda done: None,
) -> Errors:
    """Roll out from every place (its frame is the last one seen) and hold what is imagined against what followed.

    Raises:
        DataError: an episode that cannot be read, or latents that are not finite.
    """
    seen, horizon, found = suite.windows.seen, suite.windows.horizon, Errors()
    shuffled = _shuffled(recordings, places, suite) if "shuffled" in suite.plans else None
    done = 0
    for batch in batches(recordings, places, seen, horizon, suite.windows.batch):
        windows, count = batch.to(device, normalise, seen, suite.windows.blank), len(batch.frames)
        others = {}
        if shuffled is not None:
            others["shuffled"] = shuffled[done : done + count].to(device)
        if "zero" in suite.plans and not model.space.discrete:  # no choice of a discrete action is nothing
            others["zero"] = torch.zeros_like(windows.future)
        made = courses(model, windows, others)
        _add(found, made, batch, suite, reader)
        found.episode += batch.episode
        done += count
        advance(count)
    return found


def _add(found: Errors, made: Courses, batch: Batch, suite: RolloutSuite, reader: Reader | None) -> None:
    """Errors of one batch."""
    every = made.every()
    for name, course in every.items():
        if not bool(torch.isfinite(course).all()) or not bool(torch.isfinite(made.true).all()):
            raise DataError(
                f"latents of the course {name!r} from episode {batch.episode[0]} are not finite. The weights are "
                "broken; look at the run's loss, or roll out an earlier checkpoint"
            )
        for distance, between in DISTANCES.items():
            parts = found.latent.setdefault(distance, {}).setdefault(name, [])
            parts.append(between(course, made.true).cpu())
    if made.uncertainty is not None:
        found.uncertainty.append(made.uncertainty.double().cpu())
    if reader is None or suite.state is None:
        return
    for name, course in (every | {"read_off": made.true}).items():  # read_off: what the reader itself is off
        columns = reader.read(flat(course, suite.state.tokens))  # (B, H, C)
        for variable, settings in suite.state.variables.items():
            truth = batch.arrays[settings.array][:, suite.windows.seen :]
            off = settings.error(truth, columns[..., reader.places[variable]])
            found.state.setdefault(variable, {}).setdefault(name, []).append(off)


def _shuffled(recordings: Recordings, places: Sequence[Place], suite: RolloutSuite) -> Tensor:
    """For each window the true actions (n, H, A) of a window of another episode, drawn by seed."""
    horizon, episode = suite.windows.horizon, np.array([e for e, _ in places])
    of = {e: recordings.actions(e) for e in np.unique(episode).tolist()}
    own = torch.stack([of[e][frame : frame + horizon] for e, frame in places])
    draw = keyed.generator("rollout.shuffled", 0)
    taken = [int(draw.choice(np.flatnonzero(episode != e))) for e in episode]
    return own[taken]


# --- what is said of them -----------------------------------------------------------------------------------------


def figures(errors: Errors, suite: RolloutSuite, boot: Bootstrap, reader: Reader | None) -> dict[str, Any]:
    """Everything measured, as JSON values."""
    latent = {name: curves(errors.table("latent", name), boot) for name in errors.latent}
    table = errors.table("latent", "l2")
    over = {"copy": ratios(table, "open_loop", "copy", boot)}
    over |= {name: ratios(table, name, "open_loop", boot) for name in ("shuffled", "zero") if name in table}
    state = []
    for name in errors.state:
        assert reader is not None and suite.state is not None, "a state without a reader"
        state.append({
            "name": name, "unit": suite.state.variables[name].shown, "reader": reader.chosen[name],
            "curves": curves(errors.table("state", name), boot),
        })  # fmt: skip
    doubt = None
    if errors.uncertainty:
        doubt = calibration(torch.cat(errors.uncertainty).numpy(), table["open_loop"], boot)
    return {
        "seen": suite.windows.seen, "horizon": suite.windows.horizon, "latent": latent, "ratios": over, "state": state,
        "uncertainty": doubt, "useful_steps": useful_steps(over["copy"]),
    }  # fmt: skip


def curves(table: Mapping[str, Float64], boot: Bootstrap) -> dict[str, dict[str, list[float]]]:
    """Means over windows with their intervals at every step, by course."""
    return {name: _curve([boot.mean(step) for step in errors.T]) for name, errors in table.items()}


def ratios(table: Mapping[str, Float64], over: str, under: str, boot: Bootstrap) -> dict[str, list[float]]:
    """Mean error of one course divided by that of another, at every step, resampled together."""
    pairs = zip(table[over].T, table[under].T, strict=True)
    return _curve([boot.of(np.stack([a, b], axis=1), _ratio) for a, b in pairs])


def calibration(uncertainty: Float64, error: Float64, boot: Bootstrap) -> dict[str, Any]:
    """Does the model know when it is wrong? Both (n, H).

    Spearman's correlation over windows is taken at each step by itself: error and uncertainty both grow with the
    horizon, which alone would correlate them. `all` is Pearson's r of those ranks over all steps. The reliability
    curve goes through `BINS` equally filled bins of uncertainty over all windows and steps.
    """
    first, second = _ranks(uncertainty), _ranks(error)
    steps = [boot.of(*pearson_columns(a[:, None], b[:, None])) for a, b in zip(first.T, second.T, strict=True)]
    rows = boot_rows(boot, uncertainty.shape[1])
    pooled = rows.of(*pearson_columns(first.reshape(-1, 1), second.reshape(-1, 1)))
    order = np.argsort(uncertainty.ravel(), kind="stable")
    bins = [
        {"uncertainty": float(uncertainty.ravel()[part].mean()), "error": float(error.ravel()[part].mean()),
         "count": len(part)}
        for part in np.array_split(order, min(BINS, len(order)))
    ]  # fmt: skip
    return {"spearman": _curve(steps), "all": _plain(pooled), "reliability": bins}


def useful_steps(ratio: Mapping[str, Sequence[float]]) -> int:
    """Steps, from the first on, in which the open loop is better than the last frame, interval and all."""
    return next((h for h, high in enumerate(ratio["high"]) if not high < 1), len(ratio["high"]))


def boot_rows(boot: Bootstrap, steps: int) -> Bootstrap:
    """The same resampling for (n * H,) values of (n, H) ones."""
    return Bootstrap(np.repeat(boot.member, steps), boot.resamples, boot.confidence, boot.seed)


def _curve(points: Sequence[Interval]) -> dict[str, list[float]]:
    return {key: [_finite(getattr(p, key)) for p in points] for key in ("value", "low", "high")}


def _plain(interval: Interval) -> dict[str, float]:
    return {key: _finite(getattr(interval, key)) for key in ("value", "low", "high")}


def _finite(value: float) -> float:
    """JSON knows no infinity: a ratio to nothing is a very large number."""
    return float(np.nan_to_num(value, nan=0.0, posinf=1e12, neginf=-1e12))


def _ratio(sums: Float64) -> Float64:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.where(sums[:, 0] == sums[:, 1], 1.0, sums[:, 0] / sums[:, 1]))  # nothing to nothing: even


def _ranks(values: Float64) -> Float64:
    """Ranks (n, H) within each column, ties sharing their mean rank, from 0 to 1."""

    def of(column: Float64) -> npt.NDArray[np.float64]:
        _, place, count = np.unique(column, return_inverse=True, return_counts=True)
        last = np.cumsum(count)
        return np.asarray((last - (count + 1) / 2)[place] / max(len(column) - 1, 1))

    return np.stack([of(column) for column in values.T], axis=1)
