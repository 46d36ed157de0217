"""Decoders that hang, crash and are killed cost their own sample, never the order, and leave no process behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch

from jepa.data.video.crew import Crew, Lost
from jepa.data.video.pool import decode_clips_in_order
from jepa.errors import ConfigError, DataError, TrainingError
from tests.data.video.films import film
from tests.data.video.jobs import Acts, CannotStart, DiesAtOnce, Films

COUNT = 12


def gone(pids: list[int], seconds: float = 10.0) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if not any(psutil.pid_exists(p) and psutil.Process(p).status() != psutil.STATUS_ZOMBIE for p in pids):
            return True
        time.sleep(0.05)
    return False


def workers_now() -> list[int]:
    """The decoding processes of this one, which the server process makes."""
    found = [p for c in psutil.Process().children() for p in c.children()]
    return [p.pid for p in found if p.status() != psutil.STATUS_ZOMBIE]


# --- the crew -----------------------------------------------------------------------------------------------------


@pytest.fixture
def crew() -> Iterator[Crew]:
    with Crew(Acts(), 2, deadline=1.0) as made:
        yield made


def answers(crew: Crew, *tasks: tuple[str, Any]) -> dict[int, Any]:
    for ticket, task in enumerate(tasks):
        crew.put(ticket, task)
    return dict(crew.get() for _ in tasks)


def test_every_task_is_answered_once(crew: Crew) -> None:
    assert answers(crew, *[("give", i) for i in range(500)]) == {i: i for i in range(500)} and len(crew) == 0
    found = answers(crew, ("bad", "not good"), ("give", 1))
    assert isinstance(found[0], DataError) and str(found[0]) == "not good" and found[1] == 1


@pytest.mark.parametrize(
    ("act", "kind", "reason"),
    [("hang", "slow", "longer than 1 s"), ("crash", "died", "SIGSEGV"), ("exit", "died", "exit code 3")],
)
def test_a_task_that_ends_its_process_loses_only_itself(crew: Crew, act: str, kind: str, reason: str) -> None:
    before = set(crew.pids)
    found = answers(crew, *[("sleep", 0.01)] * 20, (act, None), *[("sleep", 0.01)] * 60)
    lost = found.pop(20)
    assert isinstance(lost, Lost) and lost.kind == kind and reason in lost.reason
    assert set(found.values()) == {0.01} and len(found) == 80
    if act == "hang":
        assert 1.0 <= lost.seconds < 5.0
    assert len(set(crew.pids) & before) == 1 and gone(list(before - set(crew.pids)))


def test_a_worker_that_is_killed(crew: Crew) -> None:
    """By the system, for want of memory: while it decodes, and while it waits."""
    pid = answers(crew, ("pid", None))[0]
    crew.put(0, ("sleep", 0.8))
    crew.put(1, ("sleep", 0.8))
    threading.Timer(0.3, os.kill, (pid, signal.SIGKILL)).start()
    found = dict(crew.get() for _ in range(2))
    lost = [r for r in found.values() if isinstance(r, Lost)]
    assert len(lost) == 1 and "SIGKILL" in lost[0].reason and 0.8 in found.values()
    for pid in crew.pids:
        os.kill(pid, signal.SIGKILL)
    assert gone(crew.pids)
    assert answers(crew, *[("give", i) for i in range(10)]) == {i: i for i in range(10)}, "nothing was being done"


def test_slow_is_counted_from_the_start_of_the_task() -> None:
    """Tasks that wait behind others are not late."""
    with Crew(Acts(), 1, deadline=0.8) as crew:
        assert answers(crew, *[("sleep", 0.3)] * 6) == dict.fromkeys(range(6), 0.3)


def test_what_cannot_work_is_said() -> None:
    with Crew(CannotStart(), 2, 1.0) as crew, pytest.raises(ConfigError, match="not there"):
        answers(crew, ("give", 1))
    with Crew(DiesAtOnce(), 2, 1.0) as crew, pytest.raises(TrainingError, match="died one after the other"):
        answers(crew, ("give", 1))
    with Crew(Acts(), 1, 1.0) as crew, pytest.raises(RuntimeError, match="no such act: dance"):
        answers(crew, ("dance", 1))


@pytest.mark.slow
def test_workers_end_with_the_process_that_made_them() -> None:
    """Also when it is killed, and also workers that hang."""
    root = Path(__file__).parents[3]
    command = [sys.executable, "-m", "tests.data.video.jobs"]
    process = subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    pids = [int(p) for p in process.stdout.readline().split()]
    assert len(pids) == 2 and all(psutil.pid_exists(p) for p in pids)
    process.kill()
    process.wait()
    process.stdout.close()
    assert gone(pids)


# --- clips --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("films")
    for index in range(COUNT):
        (made / f"{index:03d}.mp4").write_bytes(film(20 + index))
    return made


def lists(batches: int, size: int) -> list[np.ndarray]:
    return [np.arange(i * size, (i + 1) * size, dtype=np.int64) for i in range(batches)]


def run(decoder: Films, batches: int = 5, workers: int = 2, **options: Any) -> list[tuple[Any, torch.Tensor]]:
    wanted = {"most": 6, "deadline": 3.0} | options
    return list(decode_clips_in_order(decoder, lists(batches, 6), workers=workers, **wanted))


def same(one: list[tuple[Any, torch.Tensor]], other: list[tuple[Any, torch.Tensor]]) -> None:
    assert len(one) == len(other)
    for (left, clips), (right, others) in zip(one, other, strict=True):
        assert torch.equal(clips, others)
        for name in ("g", "index", "labels"):
            assert np.array_equal(getattr(left, name), getattr(right, name)), name
        assert left.bad == right.bad and left.trace == right.trace


def test_workers_change_nothing(folder: Path) -> None:
    alone = run(Films(folder, COUNT), workers=0)
    assert alone[0][1].shape == (6, 3, 4, 32, 40) and alone[0][1].dtype == torch.uint8
    assert [g for loaded, _ in alone for g in loaded.g.tolist()] == list(range(30))
    assert all(not loaded.bad and [t["number"] for t in loaded.trace] == loaded.g.tolist() for loaded, _ in alone)
    for options in ({}, {"workers": 1, "prefetch": 1}, {"prefetch": 4, "most": 9}):
        same(alone, run(Films(folder, COUNT), **options))
    # clips stay what they are when the next ones are made in the same memory
    slow = Films(folder, COUNT, acts=dict.fromkeys((0, 5, 6), "wait"))
    same(alone, run(slow))


def test_bad_videos_are_refilled_in_place(folder: Path) -> None:
    """One hangs, one crashes, one is bad: the batches keep their order and their good samples."""
    acts = {1: "hang", 4: "crash", 9: "bad"}
    sound, found = run(Films(folder, COUNT), workers=0), run(Films(folder, COUNT, acts), deadline=4.0)
    bad = {b.g: b for loaded, _ in found for b in loaded.bad}
    assert {g % COUNT for g in bad} == set(acts) and len(bad) == 8
    for (loaded, clips), (_, expected) in zip(found, sound, strict=True):
        for position, g in enumerate(loaded.g.tolist()):
            if g not in bad:
                assert loaded.index[position] == g % COUNT and torch.equal(clips[position], expected[position])
            else:
                entry = bad[g]
                assert entry.index == g % COUNT and entry.place == f"video {entry.index}" and entry.attempt >= 1
                assert loaded.index[position] == entry.substitute not in acts
                assert entry.substitute == Films(folder, COUNT).index(g, entry.attempt)
    reasons = {b.index: b.reason for b in bad.values()}
    assert "longer than 4 s" in reasons[1] and "SIGSEGV" in reasons[4] and reasons[9] == "this video is bad"
    # what was decided once is decided again, without looking at the bad video
    known = {b.g: b.substitute for b in bad.values()}
    again = run(Films(folder, COUNT, acts), workers=0, known=known)
    for (loaded, clips), (first, others) in zip(again, found, strict=True):
        assert torch.equal(clips, others) and np.array_equal(loaded.index, first.index)
        assert [(b.g, b.substitute, b.attempt) for b in loaded.bad] == [(b.g, b.substitute, 0) for b in first.bad]


@pytest.mark.parametrize("workers", [0, 2])
def test_what_stops_a_run(folder: Path, workers: int) -> None:
    """Good batches before come out first."""
    evaluation = Films(folder, COUNT, {9: "bad"}, attempts=0)
    made = decode_clips_in_order(evaluation, lists(3, 6), most=6, workers=workers)
    assert next(made)[0].g.tolist() == list(range(6))
    with pytest.raises(DataError, match="video 9 cannot be read: this video is bad"):
        next(made)
    hopeless = Films(folder, COUNT, dict.fromkeys(range(COUNT), "bad"), attempts=3)
    with pytest.raises(TrainingError, match="video 0 cannot be read .* neither could 3 others"):
        run(hopeless, workers=workers)
    with pytest.raises(TrainingError, match="the storage fails"):
        run(Films(folder, COUNT, {2: "storage"}), workers=workers)
    assert not workers_now()


def test_too_little_shared_memory(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = Films(folder, COUNT)
    decoder.size = (4, 100_000, 100_000)
    with pytest.raises(TrainingError, match="shm-size"):
        run(decoder)
    with pytest.raises(TrainingError, match="prefetch=0"):
        run(decoder, prefetch=0)


def stop_by_dropping(made: Any) -> None:
    del made


def stop_by_ctrl_c(made: Any) -> None:
    # a process that a shell starts in the background ignores Ctrl-C, and its tests would wait for ever
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    threading.Timer(0.4, os.kill, (os.getpid(), signal.SIGINT)).start()
    try:
        with pytest.raises(KeyboardInterrupt):
            for _ in made:
                time.sleep(0.01)
    finally:
        signal.signal(signal.SIGINT, before)


def stop_by_closing(made: Any) -> None:
    made.close()


@pytest.mark.parametrize("stop", [stop_by_dropping, stop_by_ctrl_c, stop_by_closing])
def test_no_process_is_left_behind(folder: Path, stop: Callable[[Any], None]) -> None:
    endless = (np.arange(6, dtype=np.int64) for _ in range(10**9))
    made = decode_clips_in_order(Films(folder, COUNT), endless, most=6, workers=2)
    next(made)
    pids = workers_now()
    assert len(pids) == 2
    holder = [made]
    del made
    stop(holder.pop())
    assert gone(pids)
