"""The loop itself: what a run writes, what it refuses, and what it must not depend on."""

from __future__ import annotations

import json
import math
import shutil
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import jepa
from jepa import checkpoint
from jepa.config import Duration
from jepa.data import TrainData, make_loader
from jepa.errors import CheckpointError, ConfigError, DataError, TrainingError
from jepa.methods.base import Method
from jepa.monitor import Monitor
from jepa.train import train
from tests.tiny import run_config
from tests.train import runs

OUTSIDE = "tests.train.outside:Mean"


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    """Runs set their number of threads for the whole process; put it back."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


class Recorder:
    """A health check that only notes when it was called."""

    def __init__(self, config: Any, manifest: Any, device: Any, *, autocast: Any, run_dir: Path) -> None:
        assert manifest.name == "tiny" and device.type == "cpu" and autocast is None and run_dir.is_dir()
        self.run_dir = run_dir

    def run(self, method: Method, step: int) -> tuple[dict[str, float], list[str]]:
        torch.rand(3)  # a check that draws noise must not change the run
        return {"health/calls": float(step)}, [f"watch step {step}"] if step == 8 else []


def test_what_a_run_writes(tiny_data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    result = train(run_config(tiny_data, "monitor.every={steps: 4}"), out, trace=True, monitor=Recorder, quiet=True)
    assert (result.step, result.total_steps, result.stopped) == (12, 12, False)
    assert result.checkpoint == out / "checkpoints" / "step-12"
    assert checkpoint.steps(out) == [10, 12]  # every 5 and the last, the newest 2 kept

    rows = runs.lines(out)
    assert [r["step"] for r in rows] == list(range(1, 13))
    assert [r["g"] for r in rows] == [8 * s for s in range(1, 13)]
    assert rows[-1]["lr"] == pytest.approx(1e-6) and rows[-1]["wd"] == pytest.approx(0.4)
    assert {"loss", "loss_of_mean", "lr", "wd", "momentum", "grad_norm"} <= rows[0].keys()
    whole = json.loads((out / "metrics.jsonl").read_text().splitlines()[1])
    assert whole["images_per_s"] > 0 and 0 <= whole["data_wait"] <= 1 and whole["peak_memory_gib"] > 0.05

    health = runs.lines(out, "health/calls")
    assert [r["step"] for r in health] == [0, 4, 8, 12]
    assert health[2]["warnings"] == ["watch step 8"] and "warnings" not in health[1]

    seen = runs.trace(out)
    assert [r["g"] for r in seen] == list(range(96)) and [r["step"] for r in seen] == [g // 8 for g in range(96)]
    assert all(len(r["crop"]) == 4 and len(r["mask"]) == 16 and r["key"] for r in seen)
    assert len({r["mask"] for r in seen}) > 90  # masks differ between samples

    environment = json.loads((out / "environment.json").read_text())
    assert environment["precision"] == "fp32" and environment["versions"]["torch"] == torch.__version__.split("+")[0]
    assert checkpoint.read_config(out) == checkpoint.read_config(result.checkpoint)


def test_a_health_check_changes_nothing(tiny_data: Path, tmp_path: Path) -> None:
    for name, monitor in (("with", Monitor), ("without", None), ("noisy", Recorder)):
        train(run_config(tiny_data), tmp_path / name, monitor=monitor, quiet=True)
    for name in ("with", "noisy"):
        runs.assert_bit_equal(runs.tensors(tmp_path / name, 12), runs.tensors(tmp_path / "without", 12))
        assert runs.lines(tmp_path / name) == runs.lines(tmp_path / "without")


def test_lines_are_means_over_the_steps_between(tiny_data: Path, tmp_path: Path) -> None:
    train(run_config(tiny_data), tmp_path / "each", quiet=True)
    train(run_config(tiny_data, "train.log_every=4"), tmp_path / "fourth", quiet=True)
    each, fourth = runs.lines(tmp_path / "each"), runs.lines(tmp_path / "fourth")
    assert [r["step"] for r in fourth] == [4, 5, 8, 10, 12]  # and at every checkpoint
    assert fourth[0]["loss"] == pytest.approx(sum(r["loss"] for r in each[:4]) / 4, abs=1e-12)
    assert fourth[1]["loss"] == each[4]["loss"]
    assert fourth[2]["grad_norm"] == each[7]["grad_norm"]
    runs.assert_bit_equal(runs.tensors(tmp_path / "each", 12), runs.tensors(tmp_path / "fourth", 12))


def test_the_loop_is_the_plain_algorithm(tiny_data: Path, tmp_path: Path) -> None:
    """Against the same run written out longhand in float64, with an optimiser that is not the fused one."""
    config = run_config(tiny_data, "train.precision=fp64", "optim.clip_norm=0.3", "optim.schedule_scale=1.25")
    train(config, tmp_path / "run", quiet=True)

    method: Any = checkpoint.create(config).double()
    trained = [(n, p) for n, p in method.named_parameters() if p.requires_grad]
    groups = [{"params": [p for _, p in trained if p.ndim > 1]}, {"params": [p for _, p in trained if p.ndim == 1]}]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.999), eps=1e-8, foreach=False, fused=False)
    data, sampler = TrainData(config.data, config.seed), method.sampler(config.seed)
    mean, std = (torch.tensor(v).double().view(1, 3, 1, 1) for v in (config.data.mean, config.data.std))
    losses = []
    for step in range(12):
        done, total = step + 1, 15
        cosine = 0.5 * (1 + math.cos(math.pi * (done - 3) / (total - 3)))
        lr = 1e-4 + done / 3 * (1e-3 - 1e-4) if done < 3 else 1e-6 + (1e-3 - 1e-6) * cosine
        decay = 0.4 + (0.04 - 0.4) * 0.5 * (1 + math.cos(math.pi * done / total))
        momentum = 0.996 + step / total * (1 - 0.996)
        g = np.arange(step * 8, (step + 1) * 8)
        images = next(iter(make_loader(data, batch=8, start_step=step, total_steps=step + 1))).images
        loss = method((images.double() / 255 - mean) / std, sampler(step, g), {}).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_([p for _, p in trained], 0.3)
        for group, wd in zip(optimizer.param_groups, (decay, 0.0), strict=True):
            group["lr"], group["weight_decay"] = lr, wd
        optimizer.step()
        with torch.no_grad():
            for old, new in zip(method.target.parameters(), method.encoder.parameters(), strict=True):
                old.mul_(momentum).add_(new, alpha=1 - momentum)
        losses.append(loss.item())

    assert [r["loss"] for r in runs.lines(tmp_path / "run")] == pytest.approx(losses, abs=1e-9)
    ours = runs.tensors(tmp_path / "run", 12)
    for name, value in method.state_dict().items():
        torch.testing.assert_close(ours[name], value, atol=1e-8, rtol=0, msg=name)


def test_micro_batches_add_up_to_the_batch(tiny_data: Path, tmp_path: Path) -> None:
    for micro in (8, 2, 3):  # 3 does not divide 8: micro-batches of 2
        config = run_config(tiny_data, "train.precision=fp64", f"train.micro_batch={micro}")
        train(config, tmp_path / str(micro), quiet=True)
    whole, parts = runs.lines(tmp_path / "8"), runs.lines(tmp_path / "2")
    assert parts == runs.lines(tmp_path / "3")
    for a, b in zip(whole, parts, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], abs=1e-9) and a["grad_norm"] == pytest.approx(
            b["grad_norm"], abs=1e-9
        )


def test_a_method_that_couples_samples_is_never_accumulated(tiny_data: Path, tmp_path: Path) -> None:
    coupled = "tests.train.outside:Coupled"
    with pytest.raises(ConfigError, match=r"couples the samples.*micro_batch=4"):
        train(run_config(tiny_data, "train.micro_batch=4", method=coupled), tmp_path / "a", quiet=True)
    assert train(run_config(tiny_data, "train.micro_batch=8", method=coupled), tmp_path / "b", quiet=True).step == 12


def test_outside_method_by_dotted_path(tiny_data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    config = run_config(
        tiny_data, "method.momentum=0.99", "optim.lr=0.005", "train.duration={steps: 40}", method=OUTSIDE
    )
    train(config, out, quiet=True, monitor=Monitor, trace=True)
    rows = runs.lines(out)
    assert rows[-1]["loss"] < 0.5 * rows[0]["loss"] and "spread" in rows[0]
    assert runs.trace(out)[0]["mask"] is None
    now, then = runs.tensors(out, 40), runs.tensors(out, 35)
    assert not torch.equal(now["teacher.proj.weight"], then["teacher.proj.weight"])
    assert "exp_avg.teacher.proj.weight" not in now and "exp_avg.student.proj.weight" in now

    encoder = jepa.load_encoder(out)
    assert encoder.which == "target" and encoder.width == 16
    assert encoder(torch.zeros(2, 3, 20, 20, dtype=torch.uint8)).shape == (2, 4, 16)
    assert torch.equal(encoder.encoder.proj.weight, now["teacher.proj.weight"])


def test_noise_from_the_global_generator_is_a_function_of_the_step(tiny_data: Path, tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 2)):
        torch.manual_seed(seed)
        train(run_config(tiny_data, "method.noise=0.1", method=OUTSIDE), tmp_path / name, quiet=True)
    assert runs.lines(tmp_path / "a") == runs.lines(tmp_path / "b")
    assert runs.lines(tmp_path / "a")[0]["loss"] != runs.lines(tmp_path / "a")[1]["loss"]


def test_weights_are_drawn_from_the_seed_alone(tiny_data: Path, tmp_path: Path) -> None:
    torch.manual_seed(11)
    before = torch.random.get_rng_state()
    first = checkpoint.create(run_config(tiny_data)).state_dict()
    assert torch.equal(before, torch.random.get_rng_state())
    torch.rand(5)
    again, other = checkpoint.create(run_config(tiny_data)), checkpoint.create(run_config(tiny_data, "seed=4"))
    runs.assert_bit_equal(first, again.state_dict())
    assert not torch.equal(
        first["encoder.blocks.0.attn.qkv.weight"], other.state_dict()["encoder.blocks.0.attn.qkv.weight"]
    )


class _HostReads(TorchDispatchMode):
    """Counts what makes the host wait for a device: reading a number or copying out of a tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func)
        if any(part in name for part in ("_local_scalar_dense", "is_nonzero", "nonzero", "equal.default")):
            self.seen[name] += 1
        return func(*args, **(kwargs or {}))


def test_nothing_is_read_back_inside_a_step(tiny_data: Path, tmp_path: Path) -> None:
    counts = {}
    for steps in (4, 12):
        quiet = (f"train.duration={{steps: {steps}}}", "train.checkpoint_every={steps: 100}", "train.log_every=100")
        with _HostReads() as reads:
            train(run_config(tiny_data, *quiet, "optim.clip_norm=0.1"), tmp_path / str(steps), quiet=True)
        counts[steps] = reads.seen
    assert counts[4] == counts[12] and sum(counts[4].values()) > 0


@pytest.mark.parametrize("switch", ["train.activation_checkpointing=true", "optim.clip_norm=1000"])
def test_switches_that_do_not_change_the_result(switch: str, tiny_data: Path, tmp_path: Path) -> None:
    train(run_config(tiny_data), tmp_path / "plain", quiet=True)
    train(run_config(tiny_data, switch), tmp_path / "switched", quiet=True)
    for a, b in zip(runs.lines(tmp_path / "plain"), runs.lines(tmp_path / "switched"), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], abs=1e-6)


@pytest.mark.slow
def test_compiled_parts_keep_names_and_losses(tiny_data: Path, tmp_path: Path) -> None:
    """Real tracing, and tracing again as mask sizes change; code generation is left out, it takes minutes."""
    from torch._dynamo.utils import counters

    before = torch.compiler.get_default_backend()
    torch.compiler.set_default_backend("aot_eager")
    try:
        counters.clear()  # what other tests have compiled
        train(run_config(tiny_data), tmp_path / "plain", quiet=True)
        assert not counters["stats"]["unique_graphs"]
        train(run_config(tiny_data, "train.compile=true"), tmp_path / "compiled", quiet=True)
        assert counters["stats"]["unique_graphs"] >= 3  # encoder, target, predictor
    finally:
        torch.compiler.set_default_backend(before)
        torch.compiler.reset()
    plain, compiled = tmp_path / "plain", tmp_path / "compiled"
    assert runs.tensors(plain, 12).keys() == runs.tensors(compiled, 12).keys()
    for a, b in zip(runs.lines(plain), runs.lines(compiled), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], abs=1e-5)


def test_clipping_bounds_the_step(tiny_data: Path, tmp_path: Path) -> None:
    """The norm is reported before clipping, and AdamW's first moment shows that what follows is bounded."""
    config = run_config(tiny_data, "optim.clip_norm=0.001", "train.duration={steps: 1}", "optim.warmup={steps: 0}")
    train(config, tmp_path / "run", quiet=True)
    assert runs.lines(tmp_path / "run")[0]["grad_norm"] > 0.01
    moments = [v for k, v in runs.tensors(tmp_path / "run", 1).items() if k.startswith("exp_avg.")]
    norm = torch.cat([m.flatten() for m in moments]).norm().item()
    assert norm == pytest.approx(0.001 * (1 - 0.9), rel=1e-3)


def test_bf16_trains_and_keeps_float32_weights(tiny_data: Path, tmp_path: Path) -> None:
    for precision in ("bf16", "fp32"):
        train(run_config(tiny_data, f"train.precision={precision}"), tmp_path / precision, quiet=True)
    low, full = runs.lines(tmp_path / "bf16"), runs.lines(tmp_path / "fp32")
    assert low[0]["loss"] != full[0]["loss"] and low[0]["loss"] == pytest.approx(full[0]["loss"], rel=0.02)
    assert {t.dtype for t in runs.tensors(tmp_path / "bf16", 12).values()} == {torch.float32}


def test_nan_loss_stops_with_the_last_good_checkpoint(tiny_data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with pytest.raises(TrainingError, match=r"nan between steps 6 and 9.*step-6.*--init-from.*optim\.lr") as error:
        settings = ("method.nan_loss_at=7", "train.log_every=3", "train.checkpoint_every={steps: 6}")
        config = run_config(tiny_data, *settings, method=OUTSIDE)
        train(config, out, quiet=True)
    assert "step-6" in str(error.value)
    assert checkpoint.steps(out) == [0, 6] and checkpoint.problem(out / "checkpoints" / "step-6") is None
    assert runs.lines(out)[-1] | {"loss": None} == runs.lines(out)[-1]  # null, and the file stays valid JSON
    assert all(torch.isfinite(t).all() for t in runs.tensors(out, 6).values())


def test_weights_that_are_not_finite_are_never_saved(tiny_data: Path, tmp_path: Path) -> None:
    """The loss of the step is fine, its gradient is not: the checkpoint right after it must not be written."""
    out = tmp_path / "run"
    config = run_config(tiny_data, "method.nan_grad_at=9", method=OUTSIDE)
    with pytest.raises(TrainingError, match=r"weights are not finite after step 10.*step-5"):
        train(config, out, quiet=True)
    assert checkpoint.steps(out) == [0, 5]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.path=''", "data.path is empty"),
        ("data.path=/nowhere/at/all", "is not a folder"),
        ("data.split=trian", "has no split 'trian'"),
        ("data.image_size=22", r"not a multiple of the patch.*\[20, 24\]"),
        ("train.duration={steps: 0}", "no step at all"),
        ("train.precision=fp16", "fp16 needs a GPU"),
        ("train.trackers=[tensorbord]", "Did you mean 'tensorboard'"),
        ("train.log_every=0", "train.log_every: got 0"),
        ("train.keep=-1", "train.keep: got -1"),
        ("optim.warmup={steps: 13}", "warm-up would never end"),
        ("method.masks={context_keep: 0.99}", "masks cannot be satisfied"),
        ("method.encodr={}", "Did you mean 'encoder'"),
    ],
)
def test_bad_settings_are_refused_before_anything_is_written(
    override: str, message: str, tiny_data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    with pytest.raises((ConfigError, DataError), match=message):
        train(run_config(tiny_data, override), out, quiet=True)
    assert not out.exists()


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("tests.train.outside:Scalar", r"no optimiser rule covers: temperature \(\)"),
        ("tests.train.outside:Men", "has no attribute 'Men'"),
        ("tests.train.outside:Tokens", "is not a jepa.methods.base.Method"),
        ("tests.train.nowhere:Mean", "No module named"),
        ("ijep", "Did you mean 'ijepa'"),
    ],
)
def test_bad_methods_are_refused(method: str, message: str, tiny_data: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        train(run_config(tiny_data, method=method), tmp_path / "run", quiet=True)


def test_a_number_of_processes_that_does_not_fit(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(ConfigError, match="1, 2, 4, 8 processes"):
        train(run_config(tiny_data), tmp_path / "run", quiet=True)
    monkeypatch.setenv("RANK", "5")
    with pytest.raises(ConfigError, match="RANK='5' and WORLD_SIZE='3'"):
        train(run_config(tiny_data), tmp_path / "run", quiet=True)


def test_a_folder_with_a_run_is_not_overwritten(tiny_data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    train(run_config(tiny_data), out, quiet=True)
    before = (out / "metrics.jsonl").read_bytes()
    with pytest.raises(ConfigError, match=r"already holds a run.*--resume"):
        train(run_config(tiny_data), out, quiet=True)
    with pytest.raises(ConfigError, match="there is no run"):
        train(run_config(tiny_data), tmp_path / "other", resume=True, quiet=True)
    assert not (tmp_path / "other").exists()
    with pytest.raises(ConfigError, match="only one of them"):
        train(run_config(tiny_data), out, resume=True, init_from=out, quiet=True)
    assert (out / "metrics.jsonl").read_bytes() == before


def test_init_from_takes_weights_and_nothing_else(tiny_data: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    train(run_config(tiny_data), first, quiet=True)
    config = run_config(tiny_data, "seed=9", "train.keep=0", "optim.lr=0.002")
    train(config, second, init_from=first, quiet=True)
    start = runs.tensors(second, 0)
    weights = {k: v for k, v in runs.tensors(first, 12).items() if not k.startswith(("exp_avg", "step."))}
    runs.assert_bit_equal(start, weights)  # no optimiser state came along
    assert [r["step"] for r in runs.lines(second)] == list(range(1, 13))

    with pytest.raises(CheckpointError, match=r"another architecture.*missing.*blocks\.1"):
        train(run_config(tiny_data, "method.encoder.depth=2"), tmp_path / "third", init_from=first, quiet=True)
    assert not (tmp_path / "third" / "config.yaml").exists()
    pickled = tmp_path / "model.pth"
    torch.save({}, pickled)
    with pytest.raises(CheckpointError, match="jepa import"):
        train(run_config(tiny_data), tmp_path / "fourth", init_from=pickled, quiet=True)


def test_extend_goes_on_along_the_longer_schedule(tiny_data: Path, tmp_path: Path) -> None:
    out, long = tmp_path / "run", tmp_path / "long"
    train(run_config(tiny_data), out, quiet=True)
    train(run_config(tiny_data, "train.duration={steps: 20}"), long, quiet=True)
    with pytest.raises(ConfigError, match=r"new total length, 12 steps.*already has 12"):
        train(run_config(tiny_data), out, extend=Duration(steps=12), quiet=True)
    result = train(run_config(tiny_data), out, extend=Duration(steps=20), quiet=True)
    assert (result.step, result.total_steps) == (20, 20)
    rows = runs.lines(out)
    assert [r["step"] for r in rows] == list(range(1, 21))
    for ours, theirs in zip(rows[12:], runs.lines(long)[12:], strict=True):
        assert (ours["lr"], ours["wd"], ours["momentum"]) == (theirs["lr"], theirs["wd"], theirs["momentum"])
    assert checkpoint.read_config(out).train.duration == Duration(steps=20)
    with pytest.raises(ConfigError, match=r"train.duration was .*20.*now .*12.*--extend"):
        train(run_config(tiny_data), out, resume=True, quiet=True)


def test_tensorboard_is_a_tracker(tiny_data: Path, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    out = tmp_path / "run"
    train(run_config(tiny_data, "train.trackers=[tensorboard]"), out, quiet=True, monitor=Recorder)
    events = EventAccumulator(str(out / "tb" / "tiny"))
    events.Reload()
    logged = {e.step: e.value for e in events.Scalars("loss")}
    assert logged == pytest.approx({r["step"]: r["loss"] for r in runs.lines(out)}, abs=1e-6)
    assert [e.step for e in events.Scalars("health/calls")] == [0, 4, 8, 12]


class Vandal(Recorder):
    """Deletes the tracker's folder at every health check."""

    def run(self, method: Method, step: int) -> tuple[dict[str, float], list[str]]:
        if step == 4:
            shutil.rmtree(self.run_dir / "tb")
            time.sleep(0.5)  # the tracker writes in a thread of its own
        return super().run(method, step)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # the tracker's own thread
def test_a_tracker_that_fails_is_told_and_left_alone(
    tiny_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    settings = run_config(tiny_data, "train.trackers=[tensorboard]", "monitor.every={steps: 4}", "train.log_every=1")
    assert train(settings, out, monitor=Vandal).step == 12
    assert [r["step"] for r in runs.lines(out)] == list(range(1, 13))
    shown = " ".join(capsys.readouterr().err.split())
    assert shown.count("a tracker failed at step") == 1 and "metrics.jsonl has them all" in shown
