"""How a CPU process keeps the memory of one training step, or one planner's iteration, for the next."""

from __future__ import annotations

import ctypes
import sys

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4  # names of glibc's mallopt(3)


def keep_freed_memory() -> bool:
    """Let freed memory stay with this process instead of going back to the system after every step.

    A step allocates hundreds of activations of megabytes each. By default glibc maps each one afresh, and the kernel
    fills it with zeros page by page as it is first touched. Kept memory is reused as it is, which was worth 3 % of an
    I-JEPA step on a quiet core and more on a busy machine (docs/performance.md). The highest use stays about what it
    was; it only no longer falls between steps.

    Returns:
        Whether the C library took the settings; False elsewhere than on glibc, where nothing is changed.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:  # musl
        return False
    settings = ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, 2**31 - 1), (_TOP_PAD, 2**26))
    return all(mallopt(name, value) == 1 for name, value in settings)
