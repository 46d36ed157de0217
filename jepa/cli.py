"""The command line: each verb reads its arguments, calls one function of the package, and prints what it gives.

Everything heavy is imported inside the verb that needs it, so `jepa --help` answers at once. `main` turns errors a
user can act on into one message and exit code 2; anything else is a bug and keeps its traceback.
"""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

import jepa
from jepa import options, verbosity
from jepa.cli_bench import bench_app
from jepa.cli_data import data_app
from jepa.cli_export import export
from jepa.cli_plan import plan
from jepa.cli_rollout import rollout
from jepa.cli_slurm import jobs_app, submit
from jepa.cli_watch import serve, watch
from jepa.errors import AGAIN, FOUND, INTERRUPTED, ConfigError, JepaError
from jepa.options import Json, Overrides, complete, settings_of
from jepa.terminal import flushed, print_facts, print_json, print_table, say, set_up_logging, unexpected, write_anything

# as help lists them: in the order of the job
VERBS = (
    *(
        "demo",
        "data",
        "train",
        "watch",
        "probe",
        "rollout",
        "plan",
        "extract",
        "report",
        "show",
        "inspect",
        "import",
        "export",
    ),
    *("submit", "jobs", "doctor", "bench"),
)


class _InOrder(TyperGroup):
    """Typer lists groups of verbs after single ones; here they stand where VERBS puts them."""

    def list_commands(self, ctx: Any) -> list[str]:
        return sorted(super().list_commands(ctx), key=lambda verb: VERBS.index(verb) if verb in VERBS else len(VERBS))


app = typer.Typer(
    name="jepa",
    cls=_InOrder,
    help="JEPAs from shards to plans: pretraining, frozen probes, world models, reports. Start with `jepa demo`.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(data_app, name="data", rich_help_panel="The main job")

MAIN, LOOK, CLUSTER, TOOLS = "The main job", "Checkpoints", "A SLURM cluster", "This machine"


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"jepa {jepa.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and stop.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Results and errors alone: no progress.")] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Errors with their traceback, warnings, what libraries log.")
    ] = False,
) -> None:
    """Only carries the options that come before a verb."""
    if quiet and verbose:
        raise ConfigError("--quiet and --verbose: give one of them")
    verbosity.choose(quiet, verbose)
    set_up_logging()


# --- train, probe, report -----------------------------------------------------------------------------------------


@app.command(rich_help_panel=MAIN)
def train(
    config: Annotated[
        str,
        typer.Argument(
            help="A YAML file, a shipped name (ijepa-vit-b16), or a run folder.", autocompletion=complete("configs")
        ),
    ],
    overrides: Overrides = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Run folder; default: runs/NAME.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the newest checkpoint of the run.")] = False,
    extend: Annotated[
        str | None,
        typer.Option(metavar="KEY=VALUE", help="Go on to a longer schedule: epochs=50, steps=… or samples=…."),
    ] = None,
    init_from: Annotated[
        Path | None, typer.Option(help="Start a new run from the weights of another run or checkpoint.")
    ] = None,
    trace: Annotated[
        bool, typer.Option("--trace", help="Write every sample number with its crop and mask keys.")
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Shrink the run to seconds on a CPU (configs/debug.yaml).")
    ] = False,
    tracker: Annotated[
        list[str] | None, typer.Option(help="Another accelerate tracker besides TensorBoard (wandb, …); repeatable.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Pretrain. Each of --resume, --extend and --init-from is a different thing; see docs/checkpoints.md."""
    settings, folder = options.run_settings(config, overrides or [], out, debug, tracker or [])
    longer = options.duration(extend) if extend else None
    options.check_data_given(settings, config)
    from jepa.monitor import Monitor
    from jepa.slurm import ranks
    from jepa.train import train as run

    ranks.join()  # under srun
    ended = run(settings, folder, resume=resume, extend=longer, init_from=init_from, trace=trace, monitor=Monitor)
    first = os.environ.get("RANK", "0") == "0"
    if as_json and first:
        from jepa.watch import RunFolder

        print_json(RunFolder(folder).now() | {"checkpoint": ended.checkpoint, "stopped": ended.stopped})
    if ended.stopped:
        raise typer.Exit(AGAIN if ended.again else INTERRUPTED)
    if first and not as_json:
        typer.echo(f"{folder} is at step {ended.step}. Next: jepa probe {folder} --suite NAME; jepa report {folder}")


@app.command(rich_help_panel=MAIN)
def probe(
    run: Annotated[Path, typer.Argument(help="A run folder, a checkpoint, or features made by `jepa extract`.")],
    suite: Annotated[
        str,
        typer.Option(help="A suite: a YAML file or a shipped one (digits, imagenet).", autocompletion=complete("eval")),
    ],
    overrides: Overrides = None,
    device: Annotated[str, typer.Option(help="Where encoders run: auto, cpu, cuda, mps.")] = "auto",
    as_json: Json = False,
) -> None:
    """Probe frozen features: kNN, linear, ridge, state variables, with baselines and 95 % intervals."""
    from jepa.probe import terminal
    from jepa.probe.run import probe as measure

    result = measure(run, suite, overrides, device=device)
    if as_json:
        return print_json(result)
    print_table(terminal.table(result))
    typer.echo(f"written to {Path(result['run']) / 'probes' / result['suite']}.json")


@app.command(rich_help_panel=MAIN)
def extract(
    run: Annotated[Path, typer.Argument(help="A run folder or a checkpoint.")],
    data: Annotated[Path, typer.Argument(help="A folder made by `jepa data build`.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write the features to.")],
    which: options.Which = None,
    tokens: options.Tokens = False,
    layers: options.Layers = "",
    splits: options.Splits = "",
    dtype: options.Dtype = "fp16",
    precision: options.Precision = "fp32",
    frames: options.Frames = None,
    fps: options.Fps = None,
    stride: options.Stride = None,
    duration: options.Span = None,
    short: options.Short = None,
    clips: options.Clips = 1,
    views: options.Views = None,
    batch: options.Batch = 64,
    workers: options.Workers = 0,
    device: Annotated[str, typer.Option(help="Where the encoder runs: auto, cpu, cuda, mps.")] = "auto",
    shard_samples: options.ShardSamples = 1024,
    shard_bytes: options.ShardBytes = 300_000_000,
    shard_of: options.ShardOf = None,
    as_json: Json = False,
) -> None:
    """Write the frozen encoder's features to shards that every probe reads. Run again to go on."""
    given = options.extract_settings(locals())
    from jepa import config
    from jepa.extract import ExtractConfig
    from jepa.extract import extract as run_extract

    wanted = config.build(ExtractConfig, given)
    done = run_extract(run, data, out, wanted, device=device, share=options.share(shard_of))
    print_json(done.to_dict()) if as_json else typer.echo(done.summary())


@app.command(rich_help_panel=MAIN)
def report(
    runs: Annotated[list[Path], typer.Argument(help="One or several run folders.")],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="HTML file; default: RUN/report.html.")] = None,
    device: Annotated[str, typer.Option(help="Where the encoder runs for pictures: auto, cpu, cuda, mps.")] = "auto",
    live: Annotated[bool, typer.Option("--live", help="Serve it on this machine, made anew when runs change.")] = False,
    port: Annotated[int, typer.Option(help="With --live; 0: any that is free.")] = 0,
    as_json: Json = False,
) -> None:
    """Write one self-contained HTML file: curves, health, masks, features, probes, settings, cost."""
    if live:
        if as_json:
            raise ConfigError("--live serves a page and --json prints its figures: give one of them")
        return serve(runs, out, device, port)
    from jepa.report import build_report, summaries

    page = build_report(runs, out, device)
    print_json({"page": page, **summaries(runs)}) if as_json else typer.echo(page)


@app.command(rich_help_panel=MAIN)
def show(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    overrides: Overrides = None,
    what: Annotated[list[str] | None, typer.Option(help="masks, pca, attention, neighbours; repeatable.")] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder; default: RUN/pictures.")] = None,
    as_json: Json = False,
) -> None:
    """Draw what the encoder sees as PNG and GIF. Settings: data, split, samples, layer, query, foreground, device."""
    from jepa.report import sheets

    done = sheets.save_pictures(run, out or run / "pictures", what or (), settings_of(sheets.Settings, overrides))
    if as_json:
        return print_json({"pictures": done.paths, "left_out": done.left_out})
    typer.echo("\n".join([*map(str, done.paths), *(f"no {k}: {reason}" for k, reason in done.left_out.items())]))


@app.command(rich_help_panel=MAIN)
def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for data, run and report.")] = Path("runs/demo"),
    seed: Annotated[int, typer.Option(help="Training seed.")] = 0,
    chapter: Annotated[list[str] | None, typer.Option(help="images, video, world; repeatable. Default: all.")] = None,
    as_json: Json = False,
) -> None:
    """The whole job on embedded data, from shards to plans and a report. Run again after an interruption to go on."""
    from jepa import demo as whole

    found = whole.demo(out, seed, whole.chosen(chapter or ()))
    if found is None:
        raise typer.Exit(INTERRUPTED)
    if as_json:
        print_json(found)


# --- checkpoints --------------------------------------------------------------------------------------------------


@app.command(rich_help_panel=LOOK)
def inspect(
    checkpoint: Annotated[
        Path, typer.Argument(help="A checkpoint, a run or export folder, or one from elsewhere (file, folder).")
    ],
    as_json: Json = False,
) -> None:
    """Say what is in a checkpoint without loading its tensors."""
    from jepa.export import describe

    facts = describe(checkpoint)
    print_json(facts) if as_json else print_facts(facts)


@app.command("import", rich_help_panel=LOOK)
def import_(
    checkpoint: Annotated[
        Path, typer.Argument(help="A foreign checkpoint: a file, or a folder of transformers or timm.")
    ],
    to: Annotated[Path, typer.Option("--to", help="Run folder to write.")],
    source: Annotated[
        str,
        typer.Option("--from", help="ijepa, vjepa, vjepa2, vjepa21, vjepa2-ac, dinowm, transformers, timm."),
    ] = "ijepa",
    overrides: Overrides = None,
    as_json: Json = False,
) -> None:
    """Make a run folder from an official checkpoint; every key is used, ignored for a stated reason, or an error."""
    from jepa.export import import_checkpoint

    facts = import_checkpoint(checkpoint, source, to, overrides)
    if as_json:
        return print_json({"run": to, **facts})
    print_facts(facts)
    typer.echo(f"{to} is a run now: jepa probe {to} --suite NAME dataset=DIR")


# --- this machine -------------------------------------------------------------------------------------------------


@app.command(rich_help_panel=TOOLS)
def doctor(as_json: Json = False) -> None:
    """Look at the installation and the machine, and say what to do about what is wrong. Exit code 4 on errors."""
    from jepa import doctor as examiner

    checks = examiner.examine()
    print_json(examiner.as_json(checks)) if as_json else typer.echo(examiner.as_text(checks))
    if any(check.status == "error" for check in checks):
        raise typer.Exit(FOUND)


app.command(rich_help_panel=MAIN)(watch)
app.command(rich_help_panel=MAIN)(rollout)
app.command(rich_help_panel=MAIN)(plan)
app.command(rich_help_panel=LOOK)(export)
app.command(
    rich_help_panel=CLUSTER, context_settings={"ignore_unknown_options": True, "allow_interspersed_args": True}
)(submit)
app.add_typer(jobs_app, name="jobs", rich_help_panel=CLUSTER)
app.add_typer(bench_app, name="bench", rich_help_panel=TOOLS)


# --- errors ------------------------------------------------------------------------------------------------------


def main(arguments: list[str] | None = None, failed: Callable[[Exception], None] | None = None) -> int:
    """Run the command line; the exit code. 2: something to put right, 3: an alarm, 130 and 75: interrupted, 1: a bug.

    `failed` is called with the error that ends it, before that is shown.
    """
    write_anything()
    try:
        app(args=arguments, prog_name="jepa")
    except SystemExit as stop:
        return flushed(stop.code if isinstance(stop.code, int) else 0)
    except KeyboardInterrupt:
        return INTERRUPTED
    except Exception as error:
        if failed is not None:
            failed(error)
        if not isinstance(error, JepaError):
            return unexpected(error)
        if verbosity.verbose():
            traceback.print_exception(error)
        say("error:", str(error))
        return error.code
    return flushed(0)
