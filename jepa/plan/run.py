"""One evaluation of one run by planning: the same starts and goals for the planner and the baselines, and a table.

    jepa plan runs/tworoom --suite tworoom

Interrupted, it goes on where it was when it is started again with the same settings: finished episodes are kept in
RUN/plans until the result is written.
"""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

import jepa
from jepa import checkpoint, config, cost, energy, verbosity
from jepa.checkpoint import folder
from jepa.data import storage
from jepa.methods.world import History
from jepa.nn.memory import keep_freed_memory
from jepa.plan import pictures, protocol, ready, result
from jepa.plan.act import Planner, scripted
from jepa.plan.envs import Arena
from jepa.plan.journal import Journal
from jepa.plan.objective import Target
from jepa.plan.result import PLANNER
from jepa.plan.starts import Problem, problems
from jepa.plan.suite import PlanSuite, load_suite
from jepa.plan.trial import Trial
from jepa.probe.run import pick_device

FOLDER = "plans"


def plan(
    run: Path | str,
    suite: str | Path,
    overrides: list[str] | None = None,
    *,
    device: str = "auto",
    out: Path | None = None,
    beside: Sequence[dict[str, Any]] = (),
    progress: bool = True,
) -> dict[str, Any]:
    """Plan with a run's newest checkpoint, or a given one, and write the result.

    Args:
        run: a run folder or RUN/checkpoints/step-N of a world model.
        suite: a YAML file or the name of a shipped suite; `overrides` are ``key.subkey=value`` over it.
        device: where the model runs: "auto", "cpu", "cuda", "mps".
        out: result file; default RUN/plans/SUITE.json. Pictures go into the folder of its name.
        beside: results of other runs that this one is to be compared with; refused before any work if that is no use.
        progress: show a progress bar on stderr.

    Returns:
        What the file holds, and its place as "file": {"protocol", "fingerprint", "task", "rows", "episodes", "notes",
        "published", ...}. A row
        has "policy", "baseline", "value" (share of successes) with "low" and "high", "successes", "episodes", "steps",
        "distance", "failed", "seeds" and, of the planner, "planning". An episode has its "start" and "goal" and under
        "policies" what each of them made of it.

    Raises:
        CheckpointError: no usable checkpoint.
        ConfigError: no world model, or a suite that does not fit it: other actions, frames of another size, a horizon
            beyond what it was trained for, the training split, ...
        DataError: episodes that cannot be read, an environment that fails in every one, or a full disk.
    """
    began = time.perf_counter()
    settings = load_suite(suite, overrides)
    path = checkpoint.resolve(run, files=(folder.MODEL, folder.CONFIG))
    run_dir = path.parent.parent if path.parent.name == folder.FOLDER else path
    run_config, model = ready.load_world_model(path)
    place = pick_device(device)
    if place.type == "cpu":
        keep_freed_memory()
    out = out or run_dir / FOLDER / f"{settings.name}.json"
    storage.check_writable(out)
    found, origin = problems(settings, ready.open_manifest(settings, run_config), run_config.data)
    task = result.task_of(settings, origin)
    same = {"suite": settings.name, "run": str(run_dir), "protocol": settings.protocol, "task": task}
    same["fingerprint"] = protocol.fingerprint(task)
    protocol.check_comparable([same, *beside])
    weights = folder.manifest(path)["files"][folder.MODEL]["sha256"]
    made_of = {"settings": config.to_dict(settings), "weights": weights, "task": task}
    with contextlib.ExitStack() as held:
        held.enter_context(storage.written_to(out.parent))
        arenas = _Arenas(settings)
        held.callback(arenas.close)
        space = ready.action_space(arenas.get(0), settings, model, origin)
        planner = Planner(model.to(place), run_config.data, settings, space, place)
        arenas.size = ready.check_frames(arenas.get(0), found[0], settings)
        if settings.together > 1:
            ready.check_company((arenas.get(0), arenas.get(1)), found[0])
        journal = held.enter_context(contextlib.closing(Journal(out.with_name(f".{out.stem}.journal.jsonl"), made_of)))
        who = [PLANNER, *(policy.name for policy in scripted(settings))]
        with _progress(progress) as bar:
            bar.start(len(who) * len(found), len(journal.trials))
            _plan_all(planner, arenas, found, journal, bar, out.with_suffix(""))
            result.check_any(found, journal)
            for policy in scripted(settings):
                bar.say(policy.name)
                for problem in found:
                    if (policy.name, problem.number) not in journal.trials:
                        trial = policy.run(arenas.get(0), problem)
                        arenas.renew([trial])
                        journal.add([result.entry(policy.name, trial)])
                        bar.advance(1)
        made = {
            **same,
            "checkpoint": path.name,
            "seed": run_config.seed,
            "rows": [result.row(name, found, journal, settings) for name in who],
            "episodes": [result.episode(problem, who, journal) for problem in found],
            "notes": result.notes(settings, found, journal, model.size[0] - 1),
            "pictures": sorted(str(p.relative_to(out.parent)) for p in out.with_suffix("").glob("*.*")),
            "published": config.to_dict(settings.published),
            "settings": made_of["settings"],
            "device": place.type,
            "versions": {"jepa": jepa.__version__, "torch": torch.__version__},
            "seconds": round(time.perf_counter() - began, 2),
            "cost": result.cost(journal, len(found), cost.imagine_flops(run_config, settings.planner.horizon)),
        }
        storage.write_json(out, made)
        journal.remove()
    return {**made, "file": str(out)}


def _plan_all(
    planner: Planner, arenas: _Arenas, found: Sequence[Problem], journal: Journal, bar: _Bar, album: Path
) -> None:
    """Plan for what the journal has not, batch by batch."""
    suite = planner.suite
    if not journal.trials:
        shutil.rmtree(album, ignore_errors=True)  # pictures of another time
    bar.say("planner")

    def first(history: History, target: Target) -> None:
        seen = pictures.landscape(planner, history, target, suite.pictures.steps)
        if seen is not None:
            pictures.draw_landscape(seen, album / "landscape.png")

    for batch in _batches([p for p in found if (PLANNER, p.number) not in journal.trials], suite.together):
        look = first if suite.pictures.landscape and batch[0].number == 0 else None
        meter = energy.Meter(planner.device)
        trials, stats = planner.run(
            [arenas.get(i) for i in range(len(batch))],
            batch,
            lambda p: p.number < suite.pictures.episodes,
            look,
            bar.say,
        )
        for trial in trials:
            if trial.film is not None:
                pictures.draw_film(trial, album / f"episode-{trial.problem.number}.gif")
        spent = meter.cost()
        arenas.renew(trials)
        journal.add([*(result.entry(PLANNER, trial) for trial in trials), result.took(stats, spent)])
        bar.advance(len(batch))


def _batches(found: Sequence[Problem], size: int) -> Iterator[list[Problem]]:
    """Problems of one seed, at most `size` together."""
    for seed in dict.fromkeys(p.seed for p in found):
        own = [p for p in found if p.seed == seed]
        for i in range(0, len(own), size):
            yield own[i : i + size]


class _Arenas:
    """Environments, opened when they are needed and kept; one that failed is opened anew."""

    def __init__(self, suite: PlanSuite) -> None:
        self._suite, self._open = suite, dict[int, Arena]()
        self.size = suite.environment.size  # of frames

    def get(self, i: int) -> Arena:
        if i not in self._open:
            self._open[i] = Arena(self._suite.environment)
        self._open[i].size = self.size
        return self._open[i]

    def renew(self, trials: Sequence[Trial]) -> None:
        for trial in trials:
            if trial.error is not None:
                self._open = {i: arena for i, arena in self._open.items() if arena is not trial.arena}
                trial.arena.close()

    def close(self) -> None:
        for arena in self._open.values():
            arena.close()


class _Bar:
    """A progress bar over all episodes of all policies."""

    def __init__(self, progress: Progress) -> None:
        self._progress, self._task = progress, progress.add_task("episodes", total=None)

    def start(self, total: int, done: int) -> None:
        self._progress.update(self._task, total=total, completed=done)

    def say(self, what: str) -> None:
        self._progress.update(self._task, description=what)

    def advance(self, episodes: int) -> None:
        self._progress.advance(self._task, episodes)


@contextlib.contextmanager
def _progress(shown: bool) -> Iterator[_Bar]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(
        *columns, console=Console(stderr=True), disable=not shown or verbosity.quiet(), transient=True
    ) as progress:
        yield _Bar(progress)
