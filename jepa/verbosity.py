"""How much the command line says besides results and errors: `jepa --quiet`, `jepa --verbose`.

Kept in the environment, so that processes which a verb starts say as much.
"""

from __future__ import annotations

import os

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


__all__ = ["QUIET", "USUAL", "VARIABLE", "VERBOSE", "choose", "level", "quiet", "verbose"]
