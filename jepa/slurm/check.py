"""What a submission would run, checked as the verb itself checks it before it starts, in the process that submits."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jepa import checkpoint, config, environment, launch, options, rundir
from jepa.checkpoint import folder
from jepa.config import RunConfig
from jepa.data import Manifest, manifest, recipe, sources
from jepa.data.journal import FOLDER as UNFINISHED
from jepa.errors import ConfigError, DataError
from jepa.extract import ExtractConfig
from jepa.extract import plan as extraction
from jepa.plan import ready
from jepa.plan import suite as planning
from jepa.probe import frozen, stored
from jepa.probe import suite as probing
from jepa.probe.dataset import ProbeData
from jepa.rollout import suite as imagination
from jepa.slurm import book
from jepa.slurm.profile import Profile
from jepa.slurm.queue import Seen

CONFIG = "{config}"  # stands in `argv` for the file that `text` is written to


@dataclass(frozen=True)
class Work:
    """One run of a verb, checked."""

    verb: str  # as on the command line: train, data build
    name: str  # of the job
    run_dir: Path  # absolute; of the run, or of the jobs of a verb that writes none
    argv: tuple[str, ...]  # without `jepa`; CONFIG where the resolved configuration goes
    text: str  # the resolved configuration, suite or recipe as YAML; empty: there is none
    key: str  # two jobs with the same one would write the same files
    profile: Profile  # what this verb asks of the cluster
    steps: int | None = None  # of the whole run, for the table of jobs
    method: str = ""  # method.name
    notes: tuple[str, ...] = ()  # sentences for the user


def check(
    verb: str,
    params: Mapping[str, Any],
    given: tuple[str, ...],
    profile: Profile,
    seen: Mapping[str, Seen] | None = None,
) -> Work:
    """Check a verb's arguments as the verb does.

    Args:
        seen: what `queue.mine` found: no other job may be at the same work. None: not asked.
        params: as the command line read them, by name.
        given: the verb's options that were given and that `check` does not look at, to be passed on.

    Raises:
        ConfigError, DataError, CheckpointError: what the verb would say before it starts.
    """
    if verb == "train" and seen:  # before it is found that there is a run already, which that job has made
        _, out = options.run_settings(
            params["config"], params["overrides"] or [], params["out"], params["debug"], params["tracker"] or []
        )
        book.free(out.absolute(), verb, seen)
    work = _CHECKS[verb](params, given, profile)
    if seen:
        book.free(work.run_dir, work.key, seen)
    if profile.container is None and profile.python is not None and not Path(profile.python).is_file():
        return replace(work, notes=(*work.notes, f"python: there is no {profile.python} here; the nodes must have it"))
    return work


# --- train --------------------------------------------------------------------------------------------------------


def _train(params: Mapping[str, Any], given: tuple[str, ...], profile: Profile) -> Work:
    settings, out = options.run_settings(
        params["config"], params["overrides"] or [], params["out"], params["debug"], params["tracker"] or []
    )
    options.check_data_given(settings, params["config"])
    longer = options.duration(params["extend"]) if params["extend"] else None
    init_from, resume = params["init_from"], params["resume"] or longer is not None
    place = profile.processes, _precision(settings, out, resume, profile)
    plan = launch.planned(settings, out, params["resume"], longer, init_from, place)
    if resume and not rundir.has_run(out):
        raise ConfigError(f"there is no run in {out} to go on with. Submit it without --resume, or check --out")
    start = launch.look(plan, out, resume, longer is not None, init_from)
    run_dir = out.absolute()
    how: tuple[str, ...] = ("--resume",) if params["resume"] else ()
    how += ("--extend", params["extend"]) if params["extend"] else ()
    how += ("--init-from", str(Path(init_from).absolute())) if init_from else ()
    how += ("--trace",) if params["trace"] else ()
    return Work(
        verb="train",
        name=plan.config.name,
        run_dir=run_dir,
        argv=("train", CONFIG, "--out", str(run_dir), *how),
        text=config.to_yaml(plan.config),
        key="train",
        profile=profile,
        steps=plan.total_steps,
        method=str(plan.config.method["name"]),
        notes=start.notes,
    )


def _precision(settings: RunConfig, out: Path, resume: bool, profile: Profile) -> environment.Resolved:
    """What it will be on the nodes, which may have other hardware than this machine."""
    wanted = settings.train.precision
    if wanted == "auto" and resume and rundir.has_run(out):
        state = checkpoint.read_state(checkpoint.find(out, files=(folder.STATE,))[0], "precision")
        saved: environment.Resolved = state["precision"]
        return saved
    if wanted == "auto" and profile.device == "cuda":
        return "bf16"
    return environment.resolve_precision(wanted, profile.device)


# --- verbs on a run -----------------------------------------------------------------------------------------------


def _probe(params: Mapping[str, Any], given: tuple[str, ...], profile: Profile) -> Work:
    settings = probing.load_suite(params["suite"], params["overrides"])

    def look(path: Path, run_config: RunConfig) -> None:
        if settings.probes.frames:
            frozen.open_splits(settings.splits, settings.dataset, run_config)
        else:
            ProbeData.open(settings, run_config.data.path)

    kept = stored.opened(params["run"])
    if kept is not None:
        ProbeData.open(settings, stored.dataset(kept, settings))
    return _on_run("probe", params, given, profile, settings, None if kept is not None else look)


def _plan(params: Mapping[str, Any], given: tuple[str, ...], profile: Profile) -> Work:
    settings = planning.load_suite(params["suite"], params["overrides"])
    return _on_run("plan", params, given, profile, settings, lambda _, run: ready.open_manifest(settings, run))


def _rollout(params: Mapping[str, Any], given: tuple[str, ...], profile: Profile) -> Work:
    settings = imagination.load_suite(params["suite"], params["overrides"])
    return _on_run(
        "rollout", params, given, profile, settings,
        lambda _, run: frozen.open_splits(settings.splits, settings.dataset, run),
    )  # fmt: skip


def _on_run(
    verb: str, params: Mapping[str, Any], given: tuple[str, ...], profile: Profile, settings: Any,
    look: Callable[[Path, RunConfig], object] | None,
) -> Work:  # fmt: skip
    """A verb that reads a checkpoint by a suite, in one process. `look` opens what else it reads."""
    run, notes = Path(params["run"]).absolute(), _one_process(verb, profile)
    if look is not None and not _awaited(run, profile):
        path = checkpoint.resolve(run, files=(folder.MODEL, folder.CONFIG))
        look(path, checkpoint.read_config(path))
    elif look is not None:
        notes += (f"{run} has no checkpoint yet: the job waits for {profile.dependency}, which must write one",)
    return Work(
        verb=verb,
        name=f"{verb}-{settings.name}",
        run_dir=run.parent.parent if run.parent.name == folder.FOLDER else run,
        argv=(verb, str(run), "--suite", CONFIG, *given),
        text=config.to_yaml(settings),
        key=f"{verb} {settings.name}",
        profile=profile.alone(),
        notes=notes,
    )


def _awaited(run: Path, profile: Profile) -> bool:
    """Whether another job is to make the checkpoint first."""
    return profile.dependency is not None and not (run / folder.FOLDER).is_dir() and run.parent.name != folder.FOLDER


def _one_process(verb: str, profile: Profile) -> tuple[str, ...]:
    if profile.processes == 1:
        return ()
    return (f"{verb} runs in one process: 1 node and 1 task are asked for, not {profile.nodes} × {profile.tasks}",)


# --- verbs that write a data set ------------------------------------------------------------------------------------


def _extract(params: Mapping[str, Any], given: tuple[str, ...], profile: Profile) -> Work:
    wanted = config.build(ExtractConfig, options.extract_settings(params))
    run, data, out = (Path(params[name]).absolute() for name in ("run", "data", "out"))
    share = options.share(params["shard_of"])
    notes: tuple[str, ...] = ()
    if _awaited(run, profile):
        Manifest.open(data)
        notes = (f"{run} has no checkpoint yet: the job waits for {profile.dependency}, which must write one",)
    else:
        extraction.make(run, data, wanted)
    _check_out(out, ".extract", "features")
    return Work(
        verb="extract",
        name=f"extract-{out.name}",
        run_dir=_beside(out),
        argv=("extract", str(run), str(data), "--out", str(out), *given),
        text="",
        key=f"extract {out} {share or ''}",
        profile=profile if share is None else profile.alone(),
        notes=notes,
    )


def _data_build(params: Mapping[str, Any], given: tuple[str, ...], profile: Profile) -> Work:
    wanted = recipe.load(params["recipe"], params["overrides"])
    kind, opts = sources.configure(wanted.source)
    out = Path(params["out"]).absolute()
    if not (out / manifest.FILE).is_file():
        _check_out(out, UNFINISHED, "the dataset")
    text = config.to_dict(wanted) | {"source": {"kind": kind, **config.to_dict(opts)}}
    return Work(
        verb="data build",
        name=f"build-{wanted.name}",
        run_dir=_beside(out),
        argv=("data", "build", CONFIG, "--out", str(out), *given),
        text=config.to_yaml(text),
        key=f"data build {out}",
        profile=profile.alone(),
        notes=_one_process("data build", profile),
    )


def _check_out(out: Path, unfinished: str, what: str) -> None:
    if out.exists() and not out.is_dir():
        raise DataError(f"{out} is a file. Give a folder for {what}")
    complete = (out / manifest.FILE).is_file()
    if out.is_dir() and not complete and not (out / unfinished).is_dir() and any(os.scandir(out)):
        raise DataError(f"{out} holds other files. Give an empty or new folder for {what}")


def _beside(out: Path) -> Path:
    """Where jobs leave their files: a data set's own folder holds nothing but the data set."""
    return out.with_name(f"{out.name}.jobs")


_CHECKS: dict[str, Callable[[Mapping[str, Any], tuple[str, ...], Profile], Work]] = {
    "train": _train,
    "probe": _probe,
    "plan": _plan,
    "rollout": _rollout,
    "extract": _extract,
    "data build": _data_build,
}
VERBS = tuple(_CHECKS)

__all__ = ["CONFIG", "VERBS", "Work", "check"]
