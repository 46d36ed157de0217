"""How the command line prints: text for people, JSON for programs."""

from __future__ import annotations

import json
import os
import sys
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from jepa.bench.result import Result


def print_json(value: Any) -> None:
    """As indented JSON."""
    typer.echo(json.dumps(value, indent=2, default=str))


def print_table(table: Table) -> None:
    """As wide as the terminal, or 200 columns into a file."""
    from rich.console import Console

    Console(width=None if sys.stdout.isatty() else 200).print(table)


def print_figures(result: Result, as_json: bool) -> None:
    """A benchmark's figures."""
    print_json(result.to_dict()) if as_json else print_table(result.table())


def print_facts(facts: dict[str, Any], indent: str = "") -> None:
    """Nested values, one a line."""
    for key, value in facts.items():
        if isinstance(value, dict) and value:
            typer.echo(f"{indent}{key}:")
            print_facts(value, indent + "  ")
        else:
            typer.echo(f"{indent}{key}: {value}")


def say(label: str, message: str) -> None:
    """A labelled message on standard error, with the rank where there are several."""
    rank = os.environ.get("RANK", "0")
    where = f" [rank {rank}]" if rank != "0" else ""
    typer.echo(f"{typer.style(label, fg='red', bold=True)}{where} {message}", err=True)  # colour only on a terminal
