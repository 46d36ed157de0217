"""`jepa rollout`: reads its arguments, calls one function, and prints what it gives."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from jepa.options import Json, Overrides, complete
from jepa.terminal import print_json, print_table


def rollout(
    run: Annotated[Path, typer.Argument(help="A run folder of a world model, or one of its checkpoints.")],
    overrides: Overrides = None,
    suite: Annotated[
        str | None,
        typer.Option(help="A suite: a YAML file or a shipped one (tworoom-rollout).", autocompletion=complete("eval")),
    ] = None,
    device: Annotated[str, typer.Option(help="Where the model runs: auto, cpu, cuda, mps.")] = "auto",
    as_json: Json = False,
) -> None:
    """How far imagination can be trusted: open-loop errors against horizon, floors, wrong actions, pictures."""
    from jepa.rollout import run as imagination
    from jepa.rollout.terminal import table

    result = imagination.rollout(run, suite, overrides, device=device)
    if as_json:
        return print_json(result)
    print_table(table(result))
    folder = Path(result["run"]) / "rollouts"
    typer.echo(f"written to {folder / result['suite']}.json")
    for drawn in result["pictures"]["files"] if result["pictures"] else []:
        typer.echo(f"drawn: {folder / drawn['strip']} and {folder / drawn['film']}")
