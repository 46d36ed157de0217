"""How much the command line says besides results and errors: `jepa --quiet`, `jepa --verbose`; and `--json`.

Kept in the environment, so that processes which a verb starts say as much. With `--json` standard output is kept for
the one document: until it is printed, whatever else is written there, by a library or a process, goes to standard
error.
"""

from __future__ import annotations

import os
import sys
from typing import IO

VARIABLE = "JEPA_VERBOSITY"
QUIET, USUAL, VERBOSE = -1, 0, 1


def level() -> int:
    """QUIET, USUAL or VERBOSE; anything that is no number is USUAL."""
    try:
        return max(QUIET, min(VERBOSE, int(os.environ.get(VARIABLE, "0"))))
    except ValueError:
        return USUAL


def quiet() -> bool:
    """No progress, no warnings."""
    return level() == QUIET


def verbose() -> bool:
    """Tracebacks of errors that usually are one message, and what libraries log."""
    return level() == VERBOSE


def choose(quiet: bool, verbose: bool) -> None:
    """What this process and those it starts say from now on; neither leaves it as it is."""
    if quiet or verbose:
        os.environ[VARIABLE] = str(VERBOSE if verbose else QUIET)


# --- standard output for a document alone ---------------------------------------------------------------------------

_kept: tuple[IO[str], int | None] | None = None  # standard output as it was, and a copy of its descriptor


def keep_stdout() -> None:
    """From now on what is written to standard output goes to standard error, until `give_stdout_back`."""
    global _kept
    if _kept is not None:
        return
    real, copy = sys.stdout, None
    real.flush()
    if _descriptor(real) == 1 and _descriptor(sys.stderr) == 2:  # not under a test's capture
        copy = os.dup(1)
        os.dup2(2, 1)  # what C code and processes that are started write
    _kept, sys.stdout = (real, copy), sys.stderr


def give_stdout_back() -> None:
    """Undo `keep_stdout`; nothing where it was not called."""
    global _kept
    if _kept is None:
        return
    (real, copy), _kept = _kept, None
    sys.stdout = real
    if copy is not None:
        os.dup2(copy, 1)
        os.close(copy)


def _descriptor(stream: IO[str]) -> int | None:
    try:
        return stream.fileno()
    except (OSError, ValueError, AttributeError):
        return None


__all__ = [
    *("QUIET", "USUAL", "VARIABLE", "VERBOSE"),
    *("choose", "give_stdout_back", "keep_stdout", "level", "quiet", "verbose"),
]
