"""How the command line prints: text for people, JSON for programs."""

from __future__ import annotations

import errno
import io
import json
import logging
import math
import os
import sys
import traceback
import warnings
from typing import TYPE_CHECKING, Any

import typer

from jepa import verbosity

if TYPE_CHECKING:
    from rich.table import Table

    from jepa.bench.result import Result

# the machine's limits, not bugs: no space, no permission, read-only, over quota, too many open files
SURROUNDINGS = (errno.ENOSPC, errno.EACCES, errno.EPERM, errno.EROFS, errno.EDQUOT, errno.EMFILE, errno.ENFILE)


_FULL = "Make room, then run the same command again (a run: with --resume)"
_FILES = "Raise the limit with `ulimit -n`, or use fewer data.workers"
_ADVICE = {errno.ENOSPC: _FULL, errno.EDQUOT: _FULL, errno.EFBIG: _FULL, errno.EMFILE: _FILES, errno.ENFILE: _FILES}
_MEMORY = (
    "Lower train.micro_batch (features.batch of probes, --batch of extract) or data.workers and data.prefetch, or "
    "raise the limit (`ulimit -v`, the job's --mem); a run goes on with --resume"
)


def print_json(value: Any) -> None:
    """As indented JSON in plain ASCII, the whole of standard output; a number that is not finite is null."""
    verbosity.give_stdout_back()
    typer.echo(json.dumps(_plain(value), indent=2, allow_nan=False))


def _plain(value: Any) -> Any:
    """What JSON can say: paths and the like as text, one-element arrays as numbers."""
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(v) for v in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | int | bool):
        return value
    return _plain(value.tolist()) if hasattr(value, "tolist") else str(value)  # of numpy and torch


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


def write_anything() -> None:
    """A name or a sign that the terminal or locale has no letter for is escaped; printing it would end the verb."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def set_up_logging() -> None:
    """What libraries say: warnings usually, everything of note with --verbose, nothing with --quiet."""
    if verbosity.quiet():
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
    elif verbosity.verbose():
        warnings.simplefilter("default")
        logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")


def say(label: str, message: str) -> None:
    """A labelled message on standard error, with the rank where there are several."""
    rank = os.environ.get("RANK", "0")
    where = f" [rank {rank}]" if rank != "0" else ""
    typer.echo(f"{typer.style(label, fg='red', bold=True)}{where} {message}", err=True)  # colour only on a terminal


def flushed(code: int) -> int:
    """The exit code, after everything was printed."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:  # `jepa inspect … | head`: the reader has gone, and that is no error
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return code


def unexpected(error: Exception) -> int:
    """Say what an error that nobody expected means; the exit code: 2 where it can be put right, 1 for a bug."""
    from jepa.doctor import advice_for

    advice = advice_for(error)
    if advice:
        say("error:", f"{error}\n{advice}")
        return 2
    if isinstance(error, MemoryError) or "DefaultCPUAllocator" in str(error):
        told = [line for line in str(error).splitlines() if "DefaultCPUAllocator" in line or "allocate" in line]
        asked = told[0] if told else "an allocation failed"
        say("error:", f"out of memory: {asked}\n{_MEMORY}")
        return 2
    if type(error).__name__ == "OutOfMemoryError":
        say(
            "error:",
            f"{error}\nLower train.micro_batch or set train.activation_checkpointing=true; jepa extract: lower --batch",
        )
        return 2
    if isinstance(error, OSError) and error.errno in (*SURROUNDINGS, *_ADVICE):
        what = f"{error.strerror}: {error.filename}" if error.filename else str(error)
        say("error:", f"{what}. {_ADVICE.get(error.errno, 'Allow it, or name another place')}")
        return 2
    traceback.print_exception(error)
    say(
        "This is a bug in jepa, not in what you gave it.",
        "Please report the traceback above with the command and the output of `jepa doctor`.",
    )
    return 1
