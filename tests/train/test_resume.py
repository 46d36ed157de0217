"""Going on: after a signal, a full disk, a torn file, a damaged checkpoint, and with a changed configuration."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from jepa import checkpoint, rundir
from jepa.errors import CheckpointError, ConfigError, TrainingError
from jepa.interrupt import Interrupts
from jepa.methods.base import Method
from jepa.train import train
from tests import disk
from tests.tiny import run_config
from tests.train import runs, worker
from tests.train.worker import Job


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Runs set their number of threads for the whole process; put it back."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


class Signaller:
    """A health check after every step that sends this process a real signal after step 7."""

    number = signal.SIGTERM

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def run(self, method: Method, step: int) -> tuple[dict[str, float], list[str]]:
        if step == 7:
            os.kill(os.getpid(), self.number)
        return {}, []


class CtrlC(Signaller):
    number = signal.SIGINT


@pytest.fixture(scope="module")
def finished(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run that logs every 5 steps, to copy from and to compare with."""
    out = tmp_path_factory.mktemp("finished") / "run"
    train(run_config(tiny_data, "train.log_every=5", "train.keep=0"), out, trace=True, quiet=True)
    return out


@pytest.fixture
def copy(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


@pytest.mark.parametrize("monitor", [Signaller, CtrlC])
def test_a_signal_stops_after_the_step_and_resume_is_exact(
    monitor: type, finished: Path, tiny_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    config = run_config(tiny_data, "train.log_every=5", "train.keep=0", "monitor.every={steps: 1}")
    before = signal.getsignal(signal.SIGTERM)
    result = train(config, out, monitor=monitor, trace=True)
    assert signal.getsignal(signal.SIGTERM) is before
    assert result.stopped and result.step == 8 and result.checkpoint.name == "step-8"
    assert f"jepa train {out} --resume" in capsys.readouterr().err.replace("\n", "")
    # step 8 lies between the lines of steps 5 and 10: their sums so far are in the checkpoint
    assert checkpoint.read_state(result.checkpoint)["window"]["steps"] == 3

    result = train(config, out, resume=True, trace=True, quiet=True)
    assert (result.step, result.stopped) == (12, False)
    assert runs.lines(out) == runs.lines(finished)
    assert runs.trace(out) == runs.trace(finished)
    runs.assert_bit_equal(runs.tensors(out, 12), runs.tensors(finished, 12))


def test_two_processes_agree_on_where_to_stop(tiny_data: Path, tmp_path: Path) -> None:
    """Only rank 1 is signalled; both stop at the same step and save, and both end well."""
    out = tmp_path / "run"
    settings = ("train.duration={steps: 4000}", "train.log_every=7", "train.checkpoint_every={steps: 1000}")
    children = [worker.start(job) for job in worker.ranks(Job(tiny_data, out, settings, trace=False), 2)]
    _wait_for(lambda: (out / "metrics.jsonl").exists() and len(runs.lines(out)) > 1)
    assert children[1].pid is not None
    os.kill(children[1].pid, signal.SIGTERM)
    assert [worker.finish(child) for child in children] == [0, 0]
    last = checkpoint.steps(out)[-1]
    assert runs.lines(out)[-1]["step"] <= last < 4000


def test_decoding_processes_survive_a_signal_to_the_whole_group(tiny_data: Path, tmp_path: Path) -> None:
    """What a scheduler does: SIGTERM to the training process and to its workers at once."""
    out = tmp_path / "run"
    settings = ("train.duration={steps: 4000}", "train.checkpoint_every={steps: 1000}", "data.workers=2")
    child = worker.start(Job(tiny_data, out, settings, trace=False))
    _wait_for(lambda: (out / "metrics.jsonl").exists() and len(runs.lines(out)) > 1)
    listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(child.pid)], capture_output=True, text=True, check=True)
    family = [int(pid) for pid in listed.stdout.split()]
    assert len(family) >= 2
    for pid in [*family, child.pid]:
        os.kill(pid, signal.SIGTERM)
    assert worker.finish(child) == 0
    assert checkpoint.steps(out)[-1] == runs.lines(out)[-1]["step"] < 4000


def test_a_decoding_process_that_dies_is_a_clear_error(tiny_data: Path, tmp_path: Path) -> None:
    """As the kernel does when memory runs out."""
    out = tmp_path / "run"
    settings = ("train.duration={steps: 4000}", "train.checkpoint_every={steps: 1000}", "data.workers=1")
    child = worker.start(Job(tiny_data, out, settings, trace=False))
    _wait_for(lambda: (out / "metrics.jsonl").exists() and len(runs.lines(out)) > 1)
    listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(child.pid)], capture_output=True, text=True, check=True)
    os.kill(int(listed.stdout.split()[0]), signal.SIGKILL)
    assert worker.finish(child) == 2
    assert (tmp_path / "run.error").read_text().startswith("TrainingError: a decoding process died")


def _wait_for(true: Any) -> None:
    deadline = time.monotonic() + worker.LIMIT
    while not true():
        assert time.monotonic() < deadline, "the run did not get going"
        time.sleep(0.05)


def test_the_second_ctrl_c_means_now() -> None:
    with Interrupts() as interrupts:
        os.kill(os.getpid(), signal.SIGINT)
        assert interrupts.requested
        os.kill(os.getpid(), signal.SIGINT)  # a launcher's echo of the same key press
        os.kill(os.getpid(), signal.SIGTERM)
        interrupts._first -= 2.0
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.01)


def test_a_finished_run_has_nothing_left_to_do(copy: Path, tiny_data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (copy / "metrics.jsonl").read_bytes()
    result = train(run_config(tiny_data, "train.log_every=5", "train.keep=0"), copy, resume=True)
    assert result.step == 12 and not result.stopped
    assert "is finished" in capsys.readouterr().err
    assert (copy / "metrics.jsonl").read_bytes() == before


# --- files that a crash left behind -----------------------------------------------------------------------------------


def test_torn_and_surplus_lines_are_cut_back(copy: Path, finished: Path, tiny_data: Path) -> None:
    for step in (10, 12):
        shutil.rmtree(copy / "checkpoints" / f"step-{step}")
    text = (copy / "metrics.jsonl").read_text()
    (copy / "metrics.jsonl").write_text('{"step": 2, "lo\n' + text + '{"step": 12, "loss": 0.')
    with (copy / "trace-rank0.jsonl").open("a") as stream:
        stream.write('{"step": 4, "g"')
    (copy / "trace-rank1.jsonl").write_text('{"step": 7, "g": 60}\n')  # of a rank that there is no longer
    train(run_config(tiny_data, "train.log_every=5", "train.keep=0"), copy, resume=True, trace=True, quiet=True)
    assert (copy / "metrics.jsonl").read_text().count("\n") == 3
    assert runs.lines(copy) == runs.lines(finished)
    assert runs.trace(copy) == runs.trace(finished)


@pytest.mark.parametrize("damage", ["flipped bit", "truncated", "no COMPLETE", "no weights"])
def test_a_damaged_checkpoint_is_passed_over(
    damage: str, copy: Path, finished: Path, tiny_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    newest = copy / "checkpoints" / "step-12"
    weights = newest / "model.safetensors"
    if damage == "flipped bit":
        content = bytearray(weights.read_bytes())
        content[-5] ^= 1
        weights.write_bytes(content)
    elif damage == "truncated":
        os.truncate(newest / "optim.safetensors", 1000)
    elif damage == "no COMPLETE":
        (newest / "COMPLETE").unlink()
    else:
        weights.unlink()
    result = train(run_config(tiny_data, "train.log_every=5", "train.keep=0"), copy, resume=True)
    shown = capsys.readouterr().err.replace("\n", "")
    assert f"{newest} was passed over" in shown and "going on from step-10" in shown
    assert result.step == 12
    runs.assert_bit_equal(runs.tensors(copy, 12), runs.tensors(finished, 12))
    assert checkpoint.problem(newest) is None  # replaced by a good one


def test_no_usable_checkpoint_at_all(copy: Path, tiny_data: Path) -> None:
    for path in (copy / "checkpoints").iterdir():
        (path / "COMPLETE").unlink()
    with pytest.raises(CheckpointError, match=r"no usable checkpoint.*step-12 was passed over.*step-0 was"):
        train(run_config(tiny_data, "train.log_every=5", "train.keep=0"), copy, resume=True, quiet=True)
    assert len(runs.lines(copy)) == 3  # nothing was cut


def test_a_full_disk_leaves_nothing_half_written(tiny_data: Path, tmp_path: Path) -> None:
    """A real limit on file size: weights fit (145 kB), optimiser state does not once there is some (161 kB)."""
    out = tmp_path / "run"
    assert worker.run(Job(tiny_data, out, file_limit=150_000, trace=False)) == 2
    message = (tmp_path / "run.error").read_text()
    assert message.startswith("TrainingError: cannot save checkpoint step-5") and "the disk is full" in message
    assert "complete checkpoints: step-0" in message
    assert [p.name for p in (out / "checkpoints").iterdir()] == ["step-0"]
    assert worker.run(Job(tiny_data, out, resume=True, trace=False)) == 0
    assert len(runs.lines(out)) == 12


def test_a_full_file_system(tiny_data: Path, tmp_path: Path) -> None:
    with disk.small(tmp_path / "small", "400k") as small:
        disk.needed(small)
        with pytest.raises(TrainingError, match=r"step-5.*the disk is full.*complete checkpoints: step-0"):
            train(run_config(tiny_data), small / "run", quiet=True)
        assert [p.name for p in (small / "run" / "checkpoints").iterdir()] == ["step-0"]
        assert checkpoint.problem(small / "run" / "checkpoints" / "step-0") is None


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_disk_while_writing_lines(tmp_path: Path) -> None:
    """/dev/full takes nothing, as a full disk does."""
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    lines = rundir.Lines(tmp_path / "metrics.jsonl")
    with pytest.raises(TrainingError, match=r"cannot write .*metrics\.jsonl: No space left on device.*--resume"):
        lines.add({"step": 1})
    lines.close()


# --- what may change --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optim.lr=0.5", r"optim\.lr was 0\.001, now 0\.5"),
        ("train.batch=16", r"train\.batch was 8, now 16"),
        ("method.encoder.depth=2", r"method\.encoder\.depth was 1, now 2"),
        ("method.ema=[0.9, 1.0]", r"method\.ema was \[0\.996, 1\.0\], now \[0\.9, 1\.0\]"),
        ("seed=4", "seed was 3, now 4"),
        ("data.crop_scale=[0.3, 1.0]", r"data\.crop_scale was"),
        ("data.lanes=2", r"data\.lanes was 1, now 2"),
        ("train.duration={steps: 30}", r"train\.duration was \{'steps': 12\}, now \{'steps': 30\}.*--extend"),
        ("train.precision=bf16", r"train\.precision was fp32 .*now bf16"),
        ("optim.warmup={epochs: 0.25}", r"optim\.warmup was"),
    ],
)
def test_what_may_not_change(override: str, message: str, copy: Path, tiny_data: Path) -> None:
    before = (copy / "metrics.jsonl").read_bytes(), (copy / "config.yaml").read_bytes()
    with pytest.raises(ConfigError, match=message):
        config = run_config(tiny_data, "train.log_every=5", "train.keep=0", override)
        train(config, copy, resume=True, quiet=True)
    assert ((copy / "metrics.jsonl").read_bytes(), (copy / "config.yaml").read_bytes()) == before


def test_every_wrong_key_is_named_at_once(copy: Path, tiny_data: Path) -> None:
    with pytest.raises(ConfigError, match=r"optim\.lr was.*; train\.batch was.*May change: .*train\.log_every"):
        train(run_config(tiny_data, "optim.lr=0.5", "train.batch=16"), copy, resume=True, quiet=True)


def test_what_may_change(copy: Path, finished: Path, tiny_data: Path, tmp_path: Path) -> None:
    """All of it at once; the exact ones leave the weights bit-equal."""
    moved = Path(shutil.copytree(tiny_data, tmp_path / "moved"))
    shutil.rmtree(copy / "checkpoints" / "step-12")
    config = run_config(
        moved, "name=other", "data.workers=1", "data.prefetch=3", "data.max_bad=0.5", "train.log_every=1",
        "train.keep=1", "train.keep_every={steps: 5}", "train.checkpoint_every={steps: 11}", "monitor.samples=4",
        "monitor.every={steps: 0}", "train.precision=auto" if _auto_is_fp32() else "train.precision=fp32",
    )  # fmt: skip
    train(config, copy, resume=True, quiet=True)
    runs.assert_bit_equal(runs.tensors(copy, 12), runs.tensors(finished, 12))
    assert checkpoint.steps(copy) == [0, 5, 10, 12]  # multiples of 5 for good, and the newest
    assert [row["step"] for row in runs.lines(copy)] == [5, 10, 11, 12]
    assert checkpoint.read_config(copy).train.log_every == 1


def _auto_is_fp32() -> bool:
    from jepa import environment

    return environment.resolve_precision("auto", environment.device_type()) == "fp32"


def test_micro_batch_may_change_and_says_so(
    copy: Path, finished: Path, tiny_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(copy / "checkpoints" / "step-12")
    config = run_config(tiny_data, "train.log_every=5", "train.keep=0", "train.micro_batch=2")
    train(config, copy, resume=True, trace=True)
    assert "train.micro_batch changed from None to 2: results differ in rounding" in capsys.readouterr().err
    assert runs.trace(copy) == runs.trace(finished)
    ours, theirs = runs.lines(copy)[-1], runs.lines(finished)[-1]
    assert ours["loss"] == pytest.approx(theirs["loss"], abs=1e-5)


def test_other_data_is_noticed_by_its_content(copy: Path, tiny_data: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(tiny_data, tmp_path / "other"))
    manifest = json.loads((other / "manifest.json").read_text())
    manifest["hash"] = "0" * len(manifest["hash"])
    (other / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(
        ConfigError, match=r"the data set was tiny \(64 samples, hash .*\), now tiny \(64 .*hash 000000"
    ):
        train(run_config(other, "train.log_every=5", "train.keep=0"), copy, resume=True, quiet=True)


# --- one writer -------------------------------------------------------------------------------------------------------


def _hold(folder: Path, held: Any, release: Any) -> None:
    with rundir.lock(folder):
        held.set()
        release.wait(worker.LIMIT)


def test_two_runs_in_one_folder(tiny_data: Path, tmp_path: Path) -> None:
    context = multiprocessing.get_context("forkserver")
    held, release = context.Event(), context.Event()
    holder = context.Process(target=_hold, args=(tmp_path / "run", held, release))
    holder.start()
    assert held.wait(worker.LIMIT)
    with pytest.raises(ConfigError, match=rf"is in use: process {holder.pid} on .* is training there"):
        train(run_config(tiny_data), tmp_path / "run", quiet=True)
    holder.kill()  # however it dies, the lock goes with it
    holder.join()
    assert train(run_config(tiny_data), tmp_path / "run", quiet=True).step == 12


# --- started by the launcher ------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_accelerate_launch(tiny_data: Path, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import sys\nfrom pathlib import Path\nfrom jepa.train import train\nfrom tests.tiny import run_config\n"
        "train(run_config(Path(sys.argv[1])), sys.argv[2], trace=True)\n"
    )
    root = Path(__file__).parents[2]
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    options = ["--num_machines", "1", "--mixed_precision", "bf16", "--dynamo_backend", "no", "--main_process_port", "0"]
    done = subprocess.run(
        [*launcher, *options, str(script), str(tiny_data), str(tmp_path / "run")],
        env=os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(runs.lines(tmp_path / "run")) == 12
    assert len(list((tmp_path / "run").glob("trace-rank*.jsonl"))) == 2
    recorded = json.loads((tmp_path / "run" / "environment.json").read_text())
    assert (recorded["processes"], recorded["precision"]) == (2, "fp32")  # the run's settings win over the launcher's
