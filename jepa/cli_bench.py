"""The verbs of `jepa bench`."""

from __future__ import annotations

import typer

from jepa import verbosity
from jepa.errors import FOUND
from jepa.options import Device, Json, Overrides, settings_of
from jepa.terminal import print_figures, print_json, print_table

bench_app = typer.Typer(help="Measure speed on this machine.", no_args_is_help=True)


@bench_app.command("step")
def bench_step(overrides: Overrides = None, device: Device = None, as_json: Json = False) -> None:
    """A training step against the best matrix product of this machine."""
    from jepa.bench import step

    print_figures(step.bench_step(settings_of(step.StepSettings, overrides), device), as_json)


@bench_app.command("data")
def bench_data(overrides: Overrides = None, as_json: Json = False) -> None:
    """Reading, decoding and cropping against the bare decoders; opening and resuming."""
    from jepa.bench import data

    print_figures(data.bench_data(settings_of(data.DataSettings, overrides)), as_json)


@bench_app.command("decode")
def bench_decode(overrides: Overrides = None, as_json: Json = False) -> None:
    """Decoding clips: the libraries against each other, and the pool against the bare decoder."""
    from jepa.bench import decode

    print_figures(decode.bench_decode(settings_of(decode.DecodeSettings, overrides)), as_json)


@bench_app.command("extract")
def bench_extract(overrides: Overrides = None, device: Device = None, as_json: Json = False) -> None:
    """Extracting features against the encoder alone."""
    from jepa.bench import extract as bench

    print_figures(bench.bench_extract(settings_of(bench.ExtractSettings, overrides), device), as_json)


@bench_app.command("masks")
def bench_masks(overrides: Overrides = None, as_json: Json = False) -> None:
    """Drawing the masks of a batch."""
    from jepa.bench import masks

    print_figures(masks.bench_masks(settings_of(masks.MasksSettings, overrides)), as_json)


@bench_app.command("plan")
def bench_plan(overrides: Overrides = None, device: Device = None, as_json: Json = False) -> None:
    """Planning with a world model against stable-worldmodel's of the same weights."""
    from jepa.bench import plan

    print_figures(plan.bench_plan(settings_of(plan.PlanSettings, overrides), device), as_json)


@bench_app.command("dynamics")
def bench_dynamics(overrides: Overrides = None, device: Device = None, as_json: Json = False) -> None:
    """A training step of a world model against stable-worldmodel's of the same weights."""
    from jepa.bench import dynamics

    print_figures(dynamics.bench_dynamics(settings_of(dynamics.DynamicsSettings, overrides), device), as_json)


@bench_app.command("checkpoint")
def bench_checkpoint(overrides: Overrides = None, device: Device = None, as_json: Json = False) -> None:
    """How long a save holds up training, at once and in the background."""
    from jepa.bench import checkpoint

    print_figures(checkpoint.bench_checkpoint(settings_of(checkpoint.CheckpointSettings, overrides), device), as_json)


@bench_app.command("scaling")
def bench_scaling(overrides: Overrides = None, as_json: Json = False) -> None:
    """Training on many GPUs by calculation, or two processes against one on this machine (measure=true)."""
    from jepa.bench import scaling

    print_figures(scaling.bench_scaling(settings_of(scaling.ScalingSettings, overrides)), as_json)


@bench_app.command("encode")
def bench_encode(overrides: Overrides = None, device: Device = None, as_json: Json = False) -> None:
    """The frozen encoder against the same one in timm, transformers and onnxruntime."""
    from jepa.bench import encode

    print_figures(encode.bench_encode(settings_of(encode.EncodeSettings, overrides), device), as_json)


@bench_app.command("probe")
def bench_probe(overrides: Overrides = None, device: Device = None, as_json: Json = False) -> None:
    """A grid of linear probes against a single one."""
    from jepa.bench import probe

    print_figures(probe.bench_probe(settings_of(probe.ProbeSettings, overrides), device), as_json)


@bench_app.command("memory")
def bench_memory(overrides: Overrides = None, as_json: Json = False) -> None:
    """Whether the memory of a run grows over 2000 steps, with each decoder."""
    from jepa.bench import grow

    print_figures(grow.bench_memory(settings_of(grow.MemorySettings, overrides)), as_json)


@bench_app.command("start")
def bench_start(overrides: Overrides = None, as_json: Json = False) -> None:
    """From the start of a command to its first step."""
    from jepa.bench import start

    print_figures(start.bench_start(settings_of(start.StartSettings, overrides)), as_json)


@bench_app.command("all")
def bench_all(overrides: Overrides = None, device: Device = None, as_json: Json = False) -> None:
    """Every benchmark of speed as one table. only=[step,data], skip=[plan]; settings of one: step.batch=8."""
    from jepa.bench import everything

    own = [word for word in overrides or [] if word.partition("=")[0] in ("only", "skip")]
    others = [word for word in overrides or [] if word not in own]
    settings = settings_of(everything.AllSettings, own)

    def say(name: str) -> None:
        if not verbosity.quiet():
            typer.echo(f"measuring {name}", err=True)

    found = everything.bench_all(settings, others, device, say)
    print_json(found.to_dict()) if as_json else print_table(found.table())


@bench_app.command("interrupt")
def bench_interrupt(overrides: Overrides = None, as_json: Json = False) -> None:
    """Interrupting a run again and again: steps lost, times, and whether it ends as if undisturbed."""
    from jepa.bench import interrupt

    result = interrupt.bench_interrupt(settings_of(interrupt.InterruptSettings, overrides))
    print_figures(result, as_json)
    if not interrupt.flawless(result):
        raise typer.Exit(FOUND)
