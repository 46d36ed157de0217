"""The benchmarks run on tiny sizes and give what they say; no test looks at how fast this machine is."""

from __future__ import annotations

import io
import json
import math
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from jepa import cli
from jepa.bench import photos
from jepa.bench.checkpoint import CheckpointSettings, bench_checkpoint
from jepa.bench.data import DataSettings, bare, bare_packed, bench_data, in_memory
from jepa.bench.extract import ExtractSettings, bench_extract
from jepa.bench.masks import MasksSettings, bench_masks
from jepa.bench.matmul import Sweep
from jepa.bench.plain import PlainIJEPA
from jepa.bench.result import Result, interleaved, pick_device
from jepa.bench.scaling import ScalingSettings, bench_scaling
from jepa.bench.step import Ours, StepSettings, bench_step
from jepa.config import DataConfig
from jepa.data import Manifest, TrainData, make_loader
from jepa.errors import ConfigError

CPU = torch.device("cpu")
TINY: dict[str, Any] = {
    "size": "tiny",
    "batch": 2,
    "image_size": 64,
    "predictor_depth": 1,
    "predictor_width": 24,
    "rounds": 2,
    "matmul_sizes": ((64, 64, 64), (96, 32, 64)),
}


def shown(result: Result) -> str:
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(result.table())
    return console.export_text()


def test_step() -> None:
    result = bench_step(StepSettings(**TINY, precision="both"), "cpu")
    assert result.settings["model"] == "ViT-tiny/16" and result.hardware["cpu"]
    for precision in ("fp32", "bf16"):
        seconds = result[f"{precision}.step_ms"] / 1e3
        assert result[f"{precision}.images_per_s"] == pytest.approx(2 / seconds)
        rate = result[f"{precision}.model_gflop"] / seconds
        share = rate / result[f"{precision}.peak_gflops"]
        assert result[f"{precision}.share_of_peak"] == pytest.approx(share)
        assert result[f"{precision}.share_of_peak_best_round"] >= share
        parts = [name for name in result.figures if name.startswith(f"{precision}.ms.")]
        assert [p.rsplit(".", 1)[1] for p in parts] == [
            "target", "context", "predictor", "loss", "backward", "optimiser", "ema",
        ]  # fmt: skip
        assert all(result[p] > 0 for p in parts)
    assert result["fp32.model_gflop"] == result["bf16.model_gflop"]
    values = json.loads(json.dumps(result.to_dict()))
    assert values["figures"]["fp32.speedup"]["unit"] == "x" and values["bench"] == "step"
    text = shown(result)
    assert "fp32.share_of_peak" in text and "ViT-tiny/16" in text


def test_step_on_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    overrides = ["size=tiny", "image_size=32", "batch=1", "rounds=1", "baseline=false", "predictor_width=24"]
    overrides += ["predictor_depth=1", "matmul_sizes=[[32,32,32]]", "precision=fp32"]
    assert cli.main(["bench", "step", *overrides, "--device", "cpu", "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)["figures"]
    assert "fp32.images_per_s" in figures and "fp32.speedup" not in figures
    assert cli.main(["bench", "step", "roundz=1"]) == 2
    assert "rounds" in capsys.readouterr().err


def test_step_on_clips() -> None:
    video = {"method": "vjepa", "image_size": 32, "patch": 8, "frames": 4}
    result = bench_step(StepSettings(**(TINY | video), precision="fp32"), "cpu")
    assert result.settings["model"] == "ViT-tiny/8" and result.settings["image"] == "4x32x32"
    assert result["fp32.clips_per_s"] == pytest.approx(2e3 / result["fp32.step_ms"])
    assert result["fp32.plain_clips_per_s"] > 0 and result["fp32.speedup"] > 0
    assert "fp32.ms.predictor" in result.figures and "clips/s" in shown(result)


def test_masks(capsys: pytest.CaptureFixture[str]) -> None:
    result = bench_masks(MasksSettings(batch=4, grid=(10, 12), rounds=2))
    assert result["speedup"] == pytest.approx(result["reference_ms"] / result["exact_ms"])
    assert result["exact_slowest_ms"] >= result["exact_ms"] > 0
    assert cli.main(["bench", "masks", "batch=2", "rounds=1", "reference=false"]) == 0
    assert "exact_ms" in capsys.readouterr().out


def test_data(capsys: pytest.CaptureFixture[str]) -> None:
    before = torch.get_num_threads()
    settings = DataSettings(images=6, image_size=32, batch=3, workers=1, rounds=2, manifest_samples=40)
    result = bench_data(settings)
    assert torch.get_num_threads() == before
    for name in ("ceiling", "loader", "workers", "cpu_ceiling", "cpu_share_of_ceiling", "manifest.open_ms"):
        assert result[name] > 0, name
    resumes = [result[n] for n in result.figures if n.startswith("resume.") and n != "resume.slowest_ms"]
    assert len(resumes) == 4 and result["resume.slowest_ms"] == max(resumes)
    with pytest.raises(ConfigError, match="at least one batch"):
        bench_data(DataSettings(images=2, batch=3))


def test_the_ceiling_does_the_loaders_work(tmp_path: Path) -> None:
    """The yardstick decodes the same bytes and cuts the same crops, so it cannot be fast by doing less."""
    manifest = photos.build_dataset(tmp_path, 5)
    data = TrainData(DataConfig(path=str(manifest.root), image_size=(48, 48), workers=0), seed=0)
    encoded, boxes = in_memory(data, 5)
    batch = next(iter(make_loader(data, batch=5, total_steps=1)))
    for i in range(5):
        assert torch.equal(bare_packed(encoded[i], boxes[i], (48, 48)), batch.images[i])
        usual = bare(encoded[i], boxes[i], (48, 48))
        assert (usual.int() - batch.images[i].int()).abs().max() <= 2
    assert len({bytes(e.numpy()) for e in encoded}) == 5


def test_photographs_are_photographs(tmp_path: Path) -> None:
    paths = photos.write_jpegs(tmp_path, 4)
    again = photos.write_jpegs(tmp_path / "again", 4)
    assert [p.read_bytes() for p in paths] == [p.read_bytes() for p in again]
    sizes = [p.stat().st_size for p in paths]
    assert all(15_000 < size < 200_000 for size in sizes), sizes  # neither flat colour nor noise


def test_repeated_dataset_is_readable_everywhere(tmp_path: Path) -> None:
    small = photos.build_dataset(tmp_path / "small", 5, shard=2)
    split = Manifest.open(photos.repeat_dataset(small, tmp_path / "large", 18)).split("train")
    split.check()
    assert len(split) == 20 and len(split.shards) == 12
    for i in range(20):
        assert split.read(i) == small.split("train").read(i % 5)


def test_sweep_and_interleaving() -> None:
    sweep = Sweep([(8, 16, 4), (32, 32, 32)], torch.float32, CPU)
    sweep.run(2)
    sweep.run(1)
    assert {len(seconds) for seconds in sweep.seconds.values()} == {3}
    assert sweep.peak() == max(sweep.rates().values()) > 0
    assert sweep.rates()[8, 16, 4] == pytest.approx(2 * 8 * 16 * 4 / min(sweep.seconds[8, 16, 4]))

    order: list[str] = []
    seconds = interleaved({n: lambda n=n: order.append(n) for n in "ab"}, 3, warmup=1)  # type: ignore[misc]
    assert "".join(order) == "ba" + "ab" + "ba" + "ab"
    assert [len(s) for s in seconds.values()] == [3, 3]
    with pytest.raises(ConfigError, match="rounds=0"):
        interleaved({"a": list}, 0)


def test_devices_that_are_not_there() -> None:
    assert pick_device("cpu") == CPU
    for name in ("cuda:99", "cupu"):
        with pytest.raises(ConfigError, match=name):
            pick_device(name)


def test_the_baseline_learns_the_same_way() -> None:
    """Plain and ours start elsewhere but are the same model: both fit one batch."""
    options = {
        "name": "ijepa",
        "encoder": {"patch": 4, "width": 32, "depth": 2, "heads": 2},
        "predictor": {"width": 32, "depth": 2},
    }
    ours = Ours(options, (32, 32), CPU, torch.float32)
    images, masks = ours.example(4)
    plain = PlainIJEPA(ours.geometry, CPU, torch.float32)
    start = {n: p.clone() for n, p in plain.target.named_parameters()}
    for step in (lambda: ours.step(images, masks), lambda: plain.step(images, masks.context, masks.target)):
        losses = [float(step()) for _ in range(40)]
        assert math.isfinite(losses[-1]) and losses[-1] < 0.95 * losses[0], losses
    moved = [n for n, p in plain.target.named_parameters() if not torch.equal(p, start[n])]
    assert "blocks.0.qkv.weight" in moved
    for part in ("encoder", "predictor"):
        theirs, mine = (getattr(model, part).parameters() for model in (plain, ours.method))
        assert sum(p.numel() for p in theirs) == sum(p.numel() for p in mine), part


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux")
def test_meter_sees_memory() -> None:
    """In a process of its own: there, nothing else grows or shrinks meanwhile."""
    program = """
import torch
from jepa.bench.memory import Meter

CPU = torch.device("cpu")
marks = []
for size in (10, 2**27, 10):  # the second is 512 MiB
    with Meter(CPU) as meter:
        torch.ones(size)
    marks.append(meter.megabytes)
before, with_tensor, after = marks
assert with_tensor - before > 400, marks
assert with_tensor - after > 400, marks
"""
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_kept_memory_stays_with_the_process() -> None:
    """In a process of its own, because the setting lasts."""
    program = """
import torch
from jepa.nn.memory import keep_freed_memory

def left_after_freeing():
    x = torch.ones(2**25)  # 128 MiB
    del x
    return int(open("/proc/self/statm").read().split()[1]) * 4096 // 2**20

before = left_after_freeing()
assert keep_freed_memory()
print(left_after_freeing() - before)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert int(done.stdout) > 100


def test_extract_figures_agree() -> None:
    result = bench_extract(
        ExtractSettings(size="tiny", depth=1, image_size=32, images=8, batch=4, rounds=1, tokens=True), "cpu"
    )
    assert result["share"] == pytest.approx(result["extract"] / result["encoder"])
    assert result["cpu_share"] == pytest.approx(result["cpu_extract"] / result["cpu_encoder"])
    assert 5 * 192 * 2 < result["bytes_per_image"] < 5 * 192 * 2 + 4000  # 4 tokens and their mean, fp16
    with pytest.raises(ConfigError, match="images=2 must be at least one batch"):
        bench_extract(ExtractSettings(images=2, batch=4))


def test_checkpoint(tmp_path: Path) -> None:
    settings = CheckpointSettings(size="tiny", batch=1, image_size=32, every=2, rounds=2, folder=str(tmp_path))
    result = bench_checkpoint(settings, "cpu")
    assert {"sync.stall_ms", "async.stall_ms", "async.write_ms", "sync.overhead_ms", "async.overhead_ms"} <= set(
        result.figures
    )
    assert result["checkpoint_mb"] == pytest.approx(result["memory_mb"], rel=0.01)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ConfigError, match="every=1"):
        bench_checkpoint(CheckpointSettings(every=1), "cpu")


def test_scaling_by_calculation() -> None:
    """One number of GPUs by hand."""
    result = bench_scaling(ScalingSettings(config="ijepa-vit-b16", gpus=(16,), node=8, overlap=0.5))
    trained, teacher = result["trained_m"] * 1e6, result["teacher_m"] * 1e6
    compute = result["step_tflop"] / (16 * 400)
    assert result["16.compute_ms"] == pytest.approx(1e3 * compute)
    sent = {"ddp": 2 * 15 / 16 * 4 * trained, "fsdp": 15 / 16 * 4 * (3 * trained + teacher)}
    assert all(result[f"16.{kind}.sent_gb"] == pytest.approx(value / 1e9) for kind, value in sent.items())
    exchange = sent["ddp"] / 300e9 + math.ceil(4 * trained / (25 * 2**20)) * 20e-6 * 4
    assert result["16.ddp.exchange_ms"] == pytest.approx(1e3 * exchange)
    exposed = max(0.0, exchange - 0.5 * 2 / 3 * compute)
    assert result["16.ddp.efficiency"] == pytest.approx(compute / (compute + exposed))
    assert result["16.ddp.memory_gb"] == pytest.approx((16 * trained + 4 * teacher) / 1e9)
    with pytest.raises(ConfigError, match="gpus=7 does not divide the batch of 2048"):
        bench_scaling(ScalingSettings(config="ijepa-vit-b16", gpus=(7,)))


@pytest.mark.slow
def test_scaling_measured() -> None:
    result = bench_scaling(ScalingSettings(measure=True, batch=1, rounds=1))
    assert result["ddp"] == pytest.approx(result["one_ms"] / result["ddp_ms"])
    assert {"both_ms", "fsdp_ms", "machine", "fsdp"} <= set(result.figures)
