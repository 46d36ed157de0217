"""`jepa watch` and `jepa report --live`: read arguments, call one function, and print what it gives."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from jepa.errors import ConfigError
from jepa.options import Json
from jepa.terminal import print_json


def watch(
    runs: Annotated[list[Path] | None, typer.Argument(help="Run folders, or folders of them. Default: runs.")] = None,
    once: Annotated[bool, typer.Option("--once", help="Print one frame and end; so it is in a pipe.")] = False,
    every: Annotated[float, typer.Option(min=0.1, help="Seconds between frames.")] = 1.0,
    as_json: Json = False,
) -> None:
    """Runs while they go on: curves, health, throughput, ETA and events, side by side. Ctrl-C ends it."""
    from jepa import watch as watching

    folders = runs or [Path("runs")]
    if as_json:
        return print_json([watching.RunFolder(path).now() for path in watching.find(folders)])
    watching.watch(folders, once=once, every=every)


def serve(runs: list[Path], out: Path | None, device: str, port: int) -> None:
    """The report on a local address, until Ctrl-C."""
    if out is not None:
        raise ConfigError("--live serves the report and --out writes a file: give one of them")
    from jepa.report.live import Server

    with Server(runs, port, device, warn=lambda text: typer.echo(f"warning: {text}", err=True)) as server:
        typer.echo(
            f"{server.address} shows the report and follows the runs; only this machine can open it. Ctrl-C ends"
        )
        server.wait()
