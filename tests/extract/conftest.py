"""The tiny run and data set of the probes' tests."""

from __future__ import annotations

from tests.probe.conftest import probe_data, run

__all__ = ["probe_data", "run"]
