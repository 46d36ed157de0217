"""``jepa bench data``: is reading as fast as decoding allows, and does a run start at once wherever it starts?

The ceiling is what one core can do at all: decode a JPEG that already lies in memory and resize its crop, in a bare
loop, on the crops that the loader uses. The loader does the same from shards, through the order, the index and
`pread`, in this process (one core against one core), then with worker processes.

Starting is measured on a manifest of a million samples: opening it, and the time until the first batch of a run that
goes on at some step.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg
from torchvision.transforms.v2 import functional as transforms

from jepa.bench import photos
from jepa.bench.result import Result, hardware, interleaved, median
from jepa.config import DataConfig
from jepa.data import Manifest, TrainData, make_loader
from jepa.data.augment import Box, box, draw
from jepa.errors import ConfigError


@dataclass(frozen=True)
class DataSettings:
    """What is measured."""

    images: int = 512  # JPEGs of 500x375 pixels
    image_size: int = 224
    batch: int = 64
    workers: int | None = None  # for the second measurement; default: one for each core
    rounds: int = 5
    manifest_samples: int = 1_000_000


def bench_data(settings: DataSettings | None = None) -> Result:
    """Run the benchmark in a temporary folder.

    Returns:
        Figures: ceiling, loader (one process) and workers in images/s; share_of_ceiling = loader / ceiling, and
        share_of_torchvision against the bare loop with torchvision's own crop; the same by processor time as
        cpu_...; manifest.open_ms, manifest.first_index_ms; resume.POSITION_ms and resume.slowest_ms.

    Raises:
        ConfigError: settings that cannot be measured.
    """
    wanted = settings or DataSettings()
    if wanted.images < wanted.batch or wanted.batch < 1:
        raise ConfigError(f"images={wanted.images} must be at least one batch ({wanted.batch})")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in a worker
    try:
        with tempfile.TemporaryDirectory(prefix="jepa-bench-") as folder:
            return _measure(wanted, Path(folder))
    finally:
        torch.set_num_threads(threads)


def _measure(wanted: DataSettings, folder: Path) -> Result:
    manifest = photos.build_dataset(folder / "small", wanted.images)
    machine = hardware()
    workers = wanted.workers if wanted.workers is not None else int(machine["cores"])
    kilobytes = float(np.mean(manifest.split("train").index[:, 2])) / 1024
    shown = {
        "images": f"{wanted.images} JPEG of 500x375, {kilobytes:.0f} KiB each",
        "crop": wanted.image_size,
        "batch": wanted.batch,
        "rounds": wanted.rounds,
    }
    result = Result("data", shown, machine)
    _throughput(result, wanted, manifest, workers)
    _starting(result, wanted, manifest, folder / "large", workers)
    return result


def _config(manifest_root: Path, wanted: DataSettings, workers: int) -> DataConfig:
    size = (wanted.image_size, wanted.image_size)
    return DataConfig(path=str(manifest_root), image_size=size, workers=workers)


# --- throughput ---------------------------------------------------------------------------------------------------


def _throughput(result: Result, wanted: DataSettings, manifest: Manifest, workers: int) -> None:
    data = TrainData(_config(manifest.root, wanted, 0), seed=0)
    steps = wanted.images // wanted.batch
    count = steps * wanted.batch
    encoded, boxes = in_memory(data, count)
    size = data.config.image_size

    def read(data: TrainData) -> None:
        for batch in make_loader(data, batch=wanted.batch, total_steps=steps):
            assert len(batch) == wanted.batch

    variants: dict[str, Callable[[], object]] = {
        "bare": lambda: [bare(e, b, size) for e, b in zip(encoded, boxes, strict=True)],
        "bare_packed": lambda: [bare_packed(e, b, size) for e, b in zip(encoded, boxes, strict=True)],
        "loader": lambda: read(data),
    }
    for prefix, clock in (("", time.perf_counter), ("cpu_", time.process_time)):
        seconds = interleaved(variants, wanted.rounds, clock=clock)
        ceiling = [min(pair) for pair in zip(seconds["bare"], seconds["bare_packed"], strict=True)]
        shares = [c / s for c, s in zip(ceiling, seconds["loader"], strict=True)]
        what = "processor time, undisturbed by a busy machine" if prefix else "time that passed"
        unit = "images/cpu-s" if prefix else "images/s"
        result.add(f"{prefix}ceiling", count / median(ceiling), unit, f"bare decode and crop on one core; {what}")
        result.add(f"{prefix}loader", count / median(seconds["loader"]), unit, f"from shards, one process; {what}")
        result.add(f"{prefix}share_of_ceiling", median(shares), "", "loader / ceiling, median over the rounds")
        usual = median(seconds["bare"]) / median(seconds["loader"])
        result.add(f"{prefix}share_of_torchvision", usual, "", "loader / the bare loop with torchvision's own crop")
    if workers:
        rate = workers_rate(TrainData(_config(manifest.root, wanted, workers), seed=0), wanted, workers)
        result.add("workers", rate, "images/s", f"with {workers} worker processes, after the first batches")


def workers_rate(data: TrainData, wanted: DataSettings, workers: int) -> float:
    """Images per second of a loader with worker processes, in the steady state: starting them is not counted."""
    skip = 2 * workers  # what the workers had ready before the clock started
    steps = skip + max(2, wanted.rounds * wanted.images // wanted.batch)
    start, counted = 0.0, 0
    for number, batch in enumerate(make_loader(data, batch=wanted.batch, total_steps=steps)):
        if number == skip:
            start = time.perf_counter()
        elif number > skip:
            counted += len(batch)
    return counted / (time.perf_counter() - start)


def in_memory(data: TrainData, count: int) -> tuple[list[Tensor], list[Box]]:
    """The encoded images of sample numbers 0 ... count - 1 as uint8 tensors, and the crops the loader gives them."""
    g = np.arange(count, dtype=np.int64)
    encoded = [torch.frombuffer(bytearray(data.split.read(i)[0]), dtype=torch.uint8) for i in data.order(g).tolist()]
    height, width = photos.SIZE
    return encoded, [box(data.law, row, height, width) for row in draw(data.seed, g)]


def bare(encoded: Tensor, part: Box, size: tuple[int, int]) -> Tensor:
    """Decode and crop with torchvision's own functions."""
    image = decode_jpeg(encoded, mode=ImageReadMode.RGB)
    out: Tensor = transforms.resized_crop(
        image, part.top, part.left, part.height, part.width, list(size), antialias=True
    )
    return out


def bare_packed(encoded: Tensor, part: Box, size: tuple[int, int]) -> Tensor:
    """The same with the pixels packed height-width-channel before the resize."""
    image = decode_jpeg(encoded, mode=ImageReadMode.RGB)
    cut = image[None, :, part.top : part.top + part.height, part.left : part.left + part.width]
    packed = cut.contiguous(memory_format=torch.channels_last)
    return torch.nn.functional.interpolate(packed, size, mode="bilinear", antialias=True)[0]


# --- starting -----------------------------------------------------------------------------------------------------


def _starting(result: Result, wanted: DataSettings, small: Manifest, folder: Path, workers: int) -> None:
    root = photos.repeat_dataset(small, folder, wanted.manifest_samples)
    start = time.perf_counter()
    split = Manifest.open(root).split("train")
    result.add("manifest.open_ms", 1e3 * (time.perf_counter() - start), "ms", f"{len(split)} samples")
    split.read(len(split) - 1)
    result.add("manifest.first_index_ms", 1e3 * (time.perf_counter() - start), "ms", "open and read the last sample")
    epoch = -(-len(split) // wanted.batch)
    places = {"start": 0, "middle": epoch // 2, "next_epoch": epoch, "epoch_100": 99 * epoch + epoch // 3}
    spent = {name: first_batch(root, wanted, workers, step) for name, step in places.items()}
    for name, seconds in spent.items():
        result.add(
            f"resume.{name}_ms", 1e3 * seconds, "ms", f"open, check the shards, first batch of step {places[name]}"
        )
    result.add("resume.slowest_ms", 1e3 * max(spent.values()), "ms", f"the slowest of these, {workers} workers")


def first_batch(root: Path, wanted: DataSettings, workers: int, step: int) -> float:
    """Seconds from nothing to the first batch of a run that goes on at `step`."""
    start = time.perf_counter()
    data = TrainData(_config(root, wanted, workers), seed=0)
    for batch in make_loader(data, batch=wanted.batch, start_step=step, total_steps=step + 1):
        assert int(batch.g[0]) == step * wanted.batch
    return time.perf_counter() - start
