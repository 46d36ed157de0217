"""`jepa watch`: runs in the terminal while they go on, read from their folders and nothing else.

Light: no torch, so that it starts at once and takes nothing from a run on the same machine. A run may be written by
another process, on another machine that shares the folder, or be over.
"""

from jepa.watch.live import frame, watch
from jepa.watch.read import RunFolder, find

__all__ = ["RunFolder", "find", "frame", "watch"]
