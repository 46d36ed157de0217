"""The parts around the loop: precision, what is shown, what is counted, what is written."""

from __future__ import annotations

import json
import math
import os
import pty
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from jepa import environment, rundir
from jepa.errors import ConfigError
from jepa.progress import Clock, Window

SHOW = """
from jepa.progress import Display
with Display(total=40, done=10) as shown:
    for step in (20, 30, 40):
        shown.tick(step)
        shown.line({"step": step, "loss": 0.5, "lr": 1e-3, "images_per_s": 123.4, "data_wait": 0.25})
    shown.say("a sentence [with brackets]")
"""


# --- precision --------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="reads the kernel's list of CPU features")
def test_auto_is_bf16_only_where_the_cpu_multiplies_in_it() -> None:
    flags = set(Path("/proc/cpuinfo").read_text().split())
    native = bool({"avx512_bf16", "amx_bf16"} & flags)
    assert environment.multiplies_bf16("cpu") == native
    assert environment.resolve_precision("auto", "cpu") == ("bf16" if native else "fp32")


def test_precision_that_the_device_has_not() -> None:
    assert environment.resolve_precision("bf16", "cpu") == "bf16"  # slower where it is emulated, but asked for
    assert environment.resolve_precision("auto", "mps") == "fp32"
    with pytest.raises(ConfigError, match="needs a GPU"):
        environment.resolve_precision("fp16", "cpu")
    with pytest.raises(ConfigError, match="MPS has no float64"):
        environment.resolve_precision("fp64", "mps")


def test_the_record_is_plain_json_and_names_the_machine() -> None:
    facts = environment.record(torch.device("cpu"), "fp32", 2)
    assert json.loads(json.dumps(facts)) == facts
    assert facts["processes"] == 2 and facts["hardware"]["device"] == "cpu" and facts["hardware"]["cpu"]


# --- counting ---------------------------------------------------------------------------------------------------------


def test_window_means_survive_being_saved_in_the_middle() -> None:
    values = [torch.tensor(v) for v in (0.1, 0.2, 0.7, 1.3)]
    whole, first = Window(torch.device("cpu")), Window(torch.device("cpu"))
    for value in values:
        whole.add({"loss": value}, 1.0)
        whole.close_step()
    for value in values[:2]:
        first.add({"loss": value}, 0.5)
        first.add({"loss": value}, 0.5)
        first.close_step()
    first.add({"loss": torch.tensor(99.0)}, 0.5)  # a step that a signal cut off is not counted
    second = Window(torch.device("cpu"), json.loads(json.dumps(first.state())))
    for value in values[2:]:
        second.add({"loss": value}, 1.0)
        second.close_step()
    assert second.steps == whole.steps == 4
    numbers = whole.vector(torch.tensor(5.0), 1.0).tolist()
    assert numbers[-2:] == [5.0, 1.0]
    assert second.means(second.vector().tolist()) == whole.means(numbers)
    assert whole.state() is None and whole.steps == 0


def test_clock_tells_waiting_from_working_and_leaves_out_the_rest() -> None:
    """Against this test's own stopwatch, so that a busy machine stretches both."""
    slept = 0.0

    def slow() -> Iterator[int]:
        nonlocal slept
        for item in range(3):
            start = time.perf_counter()
            time.sleep(0.05)
            slept += time.perf_counter() - start
            yield item

    begin, clock = time.perf_counter(), Clock()
    for _ in clock.waiting(slow()):
        time.sleep(0.02)
    since = time.perf_counter()
    time.sleep(0.3)
    clock.pause(since)
    apart = time.perf_counter() - since
    seconds, wait = clock.read()
    assert seconds == pytest.approx(time.perf_counter() - begin - apart, abs=0.02)
    assert wait * seconds == pytest.approx(slept, abs=0.02)
    assert clock.read()[1] == 0.0


# --- writing and showing ----------------------------------------------------------------------------------------------


def test_numbers_that_are_not_finite_stay_valid_json(tmp_path: Path) -> None:
    lines = rundir.Lines(tmp_path / "x.jsonl")
    lines.add({"step": 1, "loss": math.nan}, {"step": 2, "loss": math.inf, "ok": 0.1})
    assert [json.loads(x) for x in (tmp_path / "x.jsonl").read_text().splitlines()] == [
        {"step": 1, "loss": None},
        {"step": 2, "loss": None, "ok": 0.1},
    ]
    lines.close()


def test_environments_of_earlier_starts_are_kept(tmp_path: Path) -> None:
    for number in range(3):
        rundir.write_environment(tmp_path, {"start": number})
    written = json.loads((tmp_path / "environment.json").read_text())
    assert written == {"start": 2, "earlier": [{"start": 0}, {"start": 1}]}


def test_plain_lines_when_not_on_a_terminal() -> None:
    done = subprocess.run([sys.executable, "-c", SHOW], capture_output=True, text=True, check=True)
    assert done.stdout == ""
    shown = done.stderr.splitlines()
    assert shown[0].startswith("step 20/40 · loss 0.5000 · lr 1.00e-03 · 123.4 images/s · data wait 25% · ETA 0:00:0")
    assert shown[1].startswith("step 40/40") and shown[2] == "a sentence [with brackets]"  # 30 came too soon after 20
    assert "\x1b" not in done.stderr


def test_a_live_bar_on_a_terminal() -> None:
    main, side = pty.openpty()
    child = subprocess.Popen(
        [sys.executable, "-c", SHOW], stderr=side, env=os.environ | {"COLUMNS": "160", "TERM": "xterm"}
    )
    os.close(side)
    seen = b""
    while True:
        try:
            part = os.read(main, 4096)
        except OSError:  # the other side is closed
            break
        if not part:
            break
        seen += part
    os.close(main)
    assert child.wait() == 0
    text = seen.decode()
    assert "step 40/40" in text and "123.4 images/s" in text and "data wait 25%" in text and "ETA" in text
    assert "a sentence [with brackets]" in text
