"""Errors a user can act on. Each message says what was given, what is allowed and what to do."""


class JepaError(Exception):
    """Base of every error the command line prints as one clear message, without a traceback."""


class ConfigError(JepaError):
    """A configuration, override or argument that cannot be used."""


class DataError(JepaError):
    """Data that is missing, unreadable, or not what the recipe says."""


class CheckpointError(JepaError):
    """A checkpoint that is missing, damaged, unsafe to load, or of another architecture."""


class TrainingError(JepaError):
    """A run that cannot go on (loss not finite, too many bad samples, disk full)."""
