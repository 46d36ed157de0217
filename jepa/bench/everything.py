"""``jepa bench all``: every benchmark of speed one after the other, each in a process of its own, as one table.

A process each, so that none profits or suffers from what another has compiled, cached or left in memory; and one that
cannot run here (an extra that is missing) leaves a line that says why, and the others go on.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.table import Table

from jepa.bench.result import show
from jepa.errors import ConfigError

# name -> verb and settings of it
ENTRIES: dict[str, tuple[str, ...]] = {
    "step": ("step",),
    "step-video": ("step", "method=vjepa"),
    "data": ("data",),
    "decode": ("decode",),
    "masks": ("masks",),
    "extract": ("extract",),
    "encode": ("encode",),
    "probe": ("probe",),
    "dynamics": ("dynamics",),
    "plan": ("plan",),
    "checkpoint": ("checkpoint",),
    "start": ("start",),
}


@dataclass(frozen=True)
class AllSettings:
    """Which benchmarks."""

    only: tuple[str, ...] = ()  # names; empty: all
    skip: tuple[str, ...] = ()  # names


@dataclass
class Everything:
    """What came out of each."""

    results: dict[str, dict[str, Any]] = field(default_factory=dict)  # name -> what its --json prints
    missing: dict[str, str] = field(default_factory=dict)  # name -> why there is none
    seconds: dict[str, float] = field(default_factory=dict)  # name -> how long the benchmark itself took
    date: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {"date": self.date, "results": self.results, "missing": self.missing, "seconds": self.seconds}

    def table(self) -> Table:
        """One row for each figure."""
        machines = {json.dumps(r["hardware"]): r["hardware"] for r in self.results.values()}.values()
        caption = "\n".join([self.date, *(", ".join(f"{k} {v}" for k, v in machine.items()) for machine in machines)])
        table = Table(title="jepa bench all", caption=caption)
        table.add_column("benchmark", no_wrap=True)
        table.add_column("figure", overflow="fold")
        table.add_column("value", justify="right", no_wrap=True)
        table.add_column("unit", no_wrap=True)
        table.add_column("what it is", overflow="fold")
        for name, result in self.results.items():
            for number, (figure, value) in enumerate(result["figures"].items()):
                row = (figure, show(value["value"]), value["unit"], value.get("note", ""))
                table.add_row("" if number else name, *row, end_section=number == len(result["figures"]) - 1)
        for name, why in self.missing.items():
            table.add_row(name, "not measured", "", "", why)
        return table


def bench_all(
    settings: AllSettings | None = None,
    changes: Sequence[str] = (),
    device: str | None = None,
    say: Callable[[str], None] | None = None,
) -> Everything:
    """Run them.

    Args:
        changes: NAME.KEY=VALUE, settings of one benchmark: step.batch=8.
        say: told the name of each before it runs.

    Raises:
        ConfigError: a name that is none of ENTRIES.
    """
    wanted = settings or AllSettings()
    given: dict[str, list[str]] = {name: [] for name in ENTRIES}
    for change in changes:
        name, _, rest = change.partition(".")
        _known(name)
        given[name].append(rest)
    for name in (*wanted.only, *wanted.skip):
        _known(name)
    found = Everything(date=time.strftime("%Y-%m-%d"))
    for name in [n for n in ENTRIES if (not wanted.only or n in wanted.only) and n not in wanted.skip]:
        if say is not None:
            say(name)
        begun = time.perf_counter()
        verb, *fixed = ENTRIES[name]
        where = (
            ["--device", device]
            if device and verb in ("step", "extract", "encode", "probe", "dynamics", "plan", "checkpoint")
            else []
        )
        command = [sys.executable, "-m", "jepa", "bench", verb, "--json", *where, *fixed, *given[name]]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        try:
            found.results[name] = json.loads(done.stdout)
        except ValueError:
            found.missing[name] = _why(done.stderr) or f"exit code {done.returncode}"
        found.seconds[name] = round(time.perf_counter() - begun, 1)
    return found


def _why(errors: str) -> str:
    """The line of standard error that says what went wrong."""
    lines = [line for line in errors.splitlines() if line.strip() and not line.startswith("This is a bug in jepa")]
    told = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return (told or lines[-1:] or [""])[-1]


def _known(name: str) -> None:
    if name not in ENTRIES:
        raise ConfigError(f"no benchmark {name!r} here; there are: {', '.join(ENTRIES)}")


__all__ = ["ENTRIES", "AllSettings", "Everything", "bench_all"]
