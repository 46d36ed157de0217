"""`jepa plan`: reads its arguments, calls one function, and prints what it gives."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from jepa.options import Json, Overrides, complete
from jepa.terminal import print_json, print_table


def plan(
    run: Annotated[Path, typer.Argument(help="A run folder or a checkpoint of a world model.")],
    suite: Annotated[
        str,
        typer.Option(help="A suite: a YAML file or a shipped one (tworoom, pusht).", autocompletion=complete("eval")),
    ],
    overrides: Overrides = None,
    beside: Annotated[
        list[Path] | None,
        typer.Option(metavar="JSON", help="Result of another run at the same task to show beside; repeatable."),
    ] = None,
    device: Annotated[str, typer.Option(help="Where the model runs: auto, cpu, cuda, mps.")] = "auto",
    as_json: Json = False,
) -> None:
    """Plan to goals in an environment: success with 95 % intervals beside random, do-nothing and expert policies."""
    from jepa.plan import terminal
    from jepa.plan.result import read
    from jepa.plan.run import plan as measure

    others = [read(path) for path in beside or []]
    result = measure(run, suite, overrides, device=device, beside=others)
    if as_json:
        return print_json(result)
    print_table(terminal.table(result, others))
    typer.echo(f"written to {result['file']}")
    for picture in result["pictures"]:
        typer.echo(f"drawn: {Path(result['file']).parent / picture}")
