"""Errors a user can act on. Each message says what was given, what is allowed and what to do. And exit codes."""

INTERRUPTED = 130  # stopped by Ctrl-C or SIGTERM, everything saved; what shells call it
AGAIN = 75  # stopped by SIGUSR2, everything saved, wants to be started again; EX_TEMPFAIL of sysexits.h
HUNG = 124  # ended by the watchdog; as timeout(1) ends
FOUND = 4  # a command that examines something did so, and found what should be put right
UNHEALTHY = 3  # stopped by an alarm of `health`: the same steps again would not help


class JepaError(Exception):
    """Base of every error the command line prints as one clear message, without a traceback."""

    code = 2  # what the command line exits with


class ConfigError(JepaError):
    """A configuration, override or argument that cannot be used."""


class DataError(JepaError):
    """Data that is missing, unreadable, or not what the recipe says."""


class CheckpointError(JepaError):
    """A checkpoint that is missing, damaged, unsafe to load, or of another architecture."""


class TrainingError(JepaError):
    """A run that cannot go on (loss not finite, too many bad samples, disk full)."""


class DivergedError(TrainingError):
    """A run whose loss or weights are not finite, or jump for good: doing the same steps again would not help."""


class AlarmError(DivergedError):
    """A run that an alarm of its `health` section has stopped."""

    code = UNHEALTHY
