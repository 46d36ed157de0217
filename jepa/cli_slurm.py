"""`jepa submit` and `jepa jobs`: read their arguments, call one function, print what it gives."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from jepa.errors import ConfigError
from jepa.options import Json, complete
from jepa.terminal import print_json, print_table

TWO_WORDS = {"data": "build"}
# What `jepa.slurm.check` reads itself; other options of a verb are passed on as they were given.
_READ = {
    "train": {"config", "overrides", "out", "resume", "extend", "init_from", "trace", "debug", "tracker"},
    "probe": {"run", "suite", "overrides"},
    "plan": {"run", "suite", "overrides"},
    "rollout": {"run", "suite", "overrides"},
    "extract": {"run", "data", "out"},
    "data build": {"recipe", "overrides", "out"},
}
_PATHS = {"beside"}  # options that name files; the rest of a verb's options are plain words


def submit(
    context: typer.Context,
    words: Annotated[
        list[str],
        typer.Argument(metavar="VERB ARGUMENTS...", help="As without `submit`: train CONFIG --out RUN optim.lr=1e-3."),
    ],
    cluster: Annotated[
        str | None,
        typer.Option(
            help="A profile: a YAML file, or a shipped one (local, gpu, h100).",
            autocompletion=complete("slurm"),
        ),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Wins over the profile: time=2:00:00, nodes=4; repeatable."),
    ] = None,
    seeds: Annotated[int | None, typer.Option(metavar="N", help="Train with each of the seeds 0 to N - 1.")] = None,
    parallel: Annotated[
        int | None, typer.Option(metavar="N", help="So many runs of a sweep at the same time; default: the profile's.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything, print the batch script, write and submit nothing.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Send a verb to a SLURM cluster: train, probe, plan, rollout, extract or data build.

    Everything is checked first. A list makes a sweep of training runs, as one job array: optim.lr=1e-3,3e-4 seed=0,1.
    """
    from jepa.slurm import check, profile, queue
    from jepa.slurm import submit as submission

    verb, rest = _verb(words)
    if cluster is None:
        from jepa import resources

        raise ConfigError(f"give --cluster, a YAML file or one of: {', '.join(resources.names('slurm'))}")
    changes = [*(settings or []), *([f"array_parallelism={parallel}"] if parallel is not None else [])]
    asked = profile.load(cluster, changes)
    params, given = _read(context, verb, rest)
    seen = None if dry_run else queue.mine()
    if verb == "train":
        works, root = _runs(params, given, asked, seeds, seen)
    else:
        if seeds is not None:
            raise ConfigError(f"--seeds is for train; {verb} takes its seeds from the suite or recipe")
        works, root = [check.check(verb, params, given, asked, seen)], None
    planned = submission.prepare(works, root)
    for note in dict.fromkeys(note for work in works for note in work.notes):
        typer.echo(f"note: {note}", err=True)
    if dry_run:
        script = submission.script(planned)
        shown = {"runs": [work.run_dir for work in works], "script": script}
        return print_json(shown) if as_json else typer.echo(script)
    entries = submission.submit(planned)
    if as_json:
        return print_json([{"run": str(entry.run_dir), **entry.values} for entry in entries])
    _tell(planned, entries)


def _verb(words: list[str]) -> tuple[str, list[str]]:
    from jepa.config import unknown_key
    from jepa.slurm.check import VERBS

    verb, rest = words[0], words[1:]
    if verb in TWO_WORDS and rest[:1] == [TWO_WORDS[verb]]:
        verb, rest = f"{verb} {rest[0]}", rest[1:]
    if verb not in VERBS:
        told = unknown_key(verb, verb, list(VERBS)).replace("unknown key", "no such verb to submit:", 1)
        raise ConfigError(told.replace("Valid keys here", "There are"))
    return verb, rest


def _read(context: typer.Context, verb: str, rest: list[str]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """A verb's arguments by name, as the verb's own command reads them, and options to be passed on."""
    root = context.find_root()
    command: Any = root.command
    for word in verb.split():
        command = command.commands[word]
    inner = command.make_context(verb, list(rest), parent=root)
    given: list[str] = []
    for parameter in command.params:
        name = parameter.name
        if name in _READ[verb] or name == "as_json" or inner.get_parameter_source(name).name == "DEFAULT":
            continue
        value = inner.params[name]
        for one in value if isinstance(value, list | tuple) else [value]:
            if isinstance(one, bool):
                given.append((parameter.opts if one else parameter.secondary_opts)[0])
            else:
                given.append(f"{parameter.opts[0]}={Path(one).absolute() if name in _PATHS else one}")
    return dict(inner.params), tuple(given)


def _runs(
    params: Mapping[str, Any], given: tuple[str, ...], asked: Any, seeds: int | None, seen: Any
) -> tuple[list[Any], Path | None]:
    """Every run of a sweep, checked, and the folder they lie in; one run lies where it always does."""
    from jepa import options
    from jepa.slurm import check, sweep

    points = sweep.grid(params["overrides"] or [], seeds)
    if len(points) == 1:
        only = dict(params) | {"overrides": list(points[0].overrides)}
        return [check.check("train", only, given, asked, seen)], None
    first = list(points[0].overrides)
    _, folder = options.run_settings(params["config"], first, None, params["debug"], params["tracker"] or [])
    root = params["out"] or folder.with_name(f"{folder.name}-sweep")
    works = []
    for point in points:
        own = dict(params) | {"overrides": list(point.overrides), "out": root / point.name}
        try:
            works.append(check.check("train", own, given, asked, seen))
        except ConfigError as error:
            raise ConfigError(f"{point.name}: {error}") from None
    return works, root


def _tell(planned: Any, entries: list[Any]) -> None:
    work, first = planned.works[0], entries[0]
    root = _short(planned.root)
    if len(entries) == 1:
        typer.echo(f"job {first.job}: {work.profile.summary()}")
        typer.echo(f"run     {root}")
        typer.echo(f"log     {_short(first.log())}, errors and progress: {first.log(errors=True).name}")
        typer.echo(f"watch   jepa jobs logs {root} --follow; all jobs: jepa jobs --in {root.parent}")
        return
    most = work.profile.array_parallelism
    at_once = f", {most} at a time" if most is not None and most < len(entries) else ""
    typer.echo(f"array {first.job.partition('_')[0]}: {len(entries)} runs{at_once}, each {work.profile.summary()}")
    for entry in entries:
        typer.echo(f"  {entry.job}  {_short(entry.run_dir)}")
    typer.echo(f"logs    {_short(Path(first.values['logs']))}/")
    typer.echo(f"watch   jepa jobs --in {root}; one of them: jepa jobs logs {_short(first.run_dir)} --follow")


def _short(path: Path) -> Path:
    """As the user would type it."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


# --- jobs -----------------------------------------------------------------------------------------------------------

jobs_app = typer.Typer(help="Look after jobs: a table of them; logs, cancel, requeue.", invoke_without_command=True)
Run = Annotated[Path, typer.Argument(help="A run folder that jobs were submitted for.")]
Job = Annotated[str | None, typer.Option(help="Id of one of the run's jobs; default: the newest.")]


@jobs_app.callback()
def jobs(
    context: typer.Context,
    folders: Annotated[
        list[Path] | None,
        typer.Option("--in", help="Only runs in and below this folder; repeatable. Default: runs/, and all live jobs."),
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="Also jobs that a newer one of the same run replaced.")] = False,
    as_json: Json = False,
) -> None:
    """Every run's job: state, step, loss, ETA, restarts, node, last line of its log."""
    if context.invoked_subcommand is not None:
        if as_json:
            raise ConfigError(f"--json goes behind the verb: jepa jobs {context.invoked_subcommand} RUN --json")
        return
    from jepa.slurm import jobs as looking

    found = looking.rows(folders, every)
    if as_json:
        return print_json(looking.as_json(found))
    if not found:
        return typer.echo("no jobs. Submit one: jepa submit train CONFIG --cluster NAME")
    print_table(looking.table(found))


@jobs_app.command("logs")
def jobs_logs(
    run: Run,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the job ends.")] = False,
    err: Annotated[bool, typer.Option("--err", help="Only standard error, where progress and errors are.")] = False,
    task: Annotated[int, typer.Option(help="Process of the job, from 0.")] = 0,
    lines: Annotated[int, typer.Option("--lines", "-n", help="Lines from the end.")] = 40,
    job: Job = None,
) -> None:
    """The end of a job's log."""
    from jepa.slurm import jobs as looking

    def out(text: str) -> None:
        typer.echo(text, nl=False)

    looking.follow(looking.of_run(run, job), out, task, err, lines, follow)


@jobs_app.command("cancel")
def jobs_cancel(run: Run, job: Job = None, as_json: Json = False) -> None:
    """End a run's jobs, or those of every run in a folder. Training saves first; it goes on with --resume."""
    from jepa.slurm import jobs as looking

    ended = looking.cancel(run, job)
    print_json({"cancelled": ended}) if as_json else typer.echo(f"cancelled: {', '.join(ended)}")


@jobs_app.command("requeue")
def jobs_requeue(run: Run, job: Job = None, as_json: Json = False) -> None:
    """Let a run's job start anew from its last checkpoint, on other nodes perhaps; a waiting one starts at once."""
    from jepa.slurm import jobs as looking

    told = looking.requeue(run, job)
    print_json({"requeued": told}) if as_json else typer.echo("\n".join(told.values()))
