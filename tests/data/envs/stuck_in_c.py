"""An environment that loads MuJoCo and stops inside C, where Python's alarms do not reach."""

from __future__ import annotations

import ctypes
import os
from typing import Any

import mujoco

from tests.data.envs.worlds import Light

assert mujoco


class StuckInC(Light):
    """Never comes back from its first reset, holding the interpreter's lock, or takes its process with it."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[int, dict[str, Any]]:
        if self.fault == "crashes":
            os.abort()
        while True:
            ctypes.PyDLL(None).sleep(3600)
