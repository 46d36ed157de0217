"""``jepa bench extract``: what extraction costs beside the encoder's own work.

The ceiling is the encoder alone, on images that lie on the device. Extraction reads and decodes JPEGs, runs the same
encoder on the same batches, rounds, packs and writes. Both alternate in the same rounds; what is left between them is
reading and writing. On a CPU processor time is given too, which other programs do not touch.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from jepa import checkpoint
from jepa.bench import photos
from jepa.bench.result import Result, hardware, interleaved, median, pick_device, synchronise
from jepa.config import DataConfig, RunConfig
from jepa.data import eval_batches
from jepa.errors import ConfigError
from jepa.extract.plan import ExtractConfig, Plan, embed, make
from jepa.extract.run import write

_SIZES = {"tiny": (192, 3), "small": (384, 6), "base": (768, 12), "large": (1024, 16)}  # width, heads


@dataclass(frozen=True)
class ExtractSettings:
    """What is measured: a ViT/16 on JPEGs of 500x375 pixels."""

    size: Literal["tiny", "small", "base", "large"] = "small"
    depth: int | None = None  # default: 12, of a large one 24
    image_size: int = 224
    images: int = 128
    batch: int = 32
    tokens: bool = False  # write tokens too
    dtype: Literal["fp32", "fp16", "bf16"] = "fp16"
    precision: Literal["fp32", "bf16"] = "fp32"  # of the encoder's arithmetic
    workers: int = 0  # decoding processes
    rounds: int = 3


def bench_extract(settings: ExtractSettings | None = None, device: str | None = None) -> Result:
    """Run the benchmark in a temporary folder.

    Returns:
        Figures: encoder and extract in images/s, share = extract / encoder; on a CPU the same by processor time of this
        process as cpu_...; bytes_per_image on the disk.

    Raises:
        ConfigError: settings or a device that cannot be measured.
    """
    wanted, place = settings or ExtractSettings(), pick_device(device)
    if wanted.images < wanted.batch or wanted.batch < 1:
        raise ConfigError(f"images={wanted.images} must be at least one batch ({wanted.batch})")
    with tempfile.TemporaryDirectory(prefix="jepa-bench-") as folder:
        return _measure(wanted, place, Path(folder))


def _measure(wanted: ExtractSettings, device: torch.device, folder: Path) -> Result:
    data, run, out = (
        photos.build_dataset(folder / "photos", wanted.images).root,
        _run(wanted, folder / "run"),
        folder / "f",
    )
    options = ExtractConfig(
        tokens=wanted.tokens, dtype=wanted.dtype, precision=wanted.precision, batch=wanted.batch,
        workers=wanted.workers, shard_samples=wanted.batch * max(1, 1024 // wanted.batch),
    )  # fmt: skip
    plan = make(run, data, options)
    plan.encoder.to(device)
    size = plan.about.image_size
    images = [b.images.to(device) for b in eval_batches(plan.data.splits["train"], size, plan.batch)]

    def whole() -> None:
        shutil.rmtree(out, ignore_errors=True)
        write(plan, out, wanted.workers, device)

    result = Result("extract", _shown(wanted), hardware(device))
    variants: dict[str, Callable[[], object]] = {"encoder": lambda: _encode(plan, images, device), "extract": whole}
    for prefix, clock in (("", time.perf_counter), ("cpu_", time.process_time)):
        if prefix and (device.type != "cpu" or wanted.workers):
            continue
        seconds = interleaved(variants, wanted.rounds, device=device, clock=clock)
        encoder, all_of_it = median(seconds["encoder"]), median(seconds["extract"])
        unit = "images/s of processor time" if prefix else "images/s"
        result.add(f"{prefix}encoder", wanted.images / encoder, unit, "the encoder alone")
        result.add(f"{prefix}extract", wanted.images / all_of_it, unit, "reading, encoder, writing")
        result.add(f"{prefix}share", encoder / all_of_it, "", "extract / encoder")
    stored = sum(p.stat().st_size for p in out.rglob("*.tar"))
    result.add("bytes_per_image", stored / wanted.images, "B", "in the shards")
    return result


def _encode(plan: Plan, images: list[Tensor], device: torch.device) -> None:
    for batch in images:
        embed(plan, batch)
    synchronise(device)


def _run(wanted: ExtractSettings, folder: Path) -> Path:
    """A run with random weights."""
    width, heads = _SIZES[wanted.size]
    depth = wanted.depth or (24 if wanted.size == "large" else 12)
    method = {"name": "ijepa", "encoder": {"patch": 16, "width": width, "depth": depth, "heads": heads}}
    config = RunConfig(method=method, data=DataConfig(image_size=(wanted.image_size, wanted.image_size)))
    checkpoint.save(folder, 0, checkpoint.create(config), None, {}, config)
    return folder


def _shown(wanted: ExtractSettings) -> dict[str, object]:
    kept = "tokens" if wanted.tokens else "means"
    return {
        "encoder": f"ViT/16 {wanted.size}, {wanted.image_size} px", "images": wanted.images, "batch": wanted.batch,
        "kept": f"{kept}, {wanted.dtype}", "precision": wanted.precision, "workers": wanted.workers,
        "rounds": wanted.rounds,
    }  # fmt: skip
