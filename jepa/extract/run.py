"""Features of a frozen encoder to shards.

    jepa extract runs/demo data/digits --out features/digits

Runs again after any interruption and goes on at the first shard that is not whole. Several processes share the work:
ranks of `accelerate launch` or torchrun, or commands that are told which part is theirs.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor

from jepa import environment
from jepa.config import ClipConfig
from jepa.data import Split, eval_batches, eval_clips, storage
from jepa.data.arrays import Values
from jepa.data.clipdata import read_video
from jepa.data.encode import Encoded
from jepa.data.progress import Advance, bar
from jepa.data.shards import ShardWriter
from jepa.data.sources.base import Sample
from jepa.data.video import clips
from jepa.data.video.probe import probe
from jepa.errors import ConfigError, DataError, JepaError
from jepa.extract import plan as planning
from jepa.extract.plan import ExtractConfig, Job, Plan
from jepa.extract.work import Work
from jepa.probe.featureset import CLIP_FRAMES, EXTENSION
from jepa.probe.run import pick_device

_TAR_BYTES = 3584  # that a sample takes beside its numbers: headers, label, facts, rounding to 512
_UNITS = ("B", "kB", "MB", "GB", "TB", "PB")
Made = tuple[list[int], dict[str, Tensor]]  # samples of a batch, and their tensors on the device


@dataclass(frozen=True)
class Extracted:
    """What one process did."""

    out: Path
    complete: bool  # all shards are there, and the manifest
    splits: dict[str, int]  # samples of each
    samples: int  # extracted by this process now; others were there or are another's
    bytes: int  # of the features of these samples
    seconds: float

    @property
    def rate(self) -> float:
        """Samples a second."""
        return self.samples / self.seconds if self.samples else 0.0

    def to_dict(self) -> dict[str, Any]:
        """For programs."""
        return {"folder": str(self.out), **{k: v for k, v in vars(self).items() if k != "out"}, "rate": self.rate}

    def summary(self) -> str:
        """For people."""
        lines = []
        if self.samples:
            lines.append(f"{self.samples:,} samples, {_size(self.bytes)} of features, {self.rate:,.1f} samples/s")
        if not self.complete:
            return "\n".join([*lines, f"this share of {self.out} is done; whichever share ends last completes it"])
        counts = ", ".join(f"{name} {n:,}" for name, n in self.splits.items())
        state = f"{self.out} is ready ({counts})" if self.samples else f"{self.out} was complete already ({counts})"
        return "\n".join([*lines, f"{state}; probe it with `jepa probe {self.out} --suite NAME`"])


def _size(count: float) -> str:
    power = min(len(_UNITS) - 1, max(0, len(str(int(count))) - 1) // 3)
    return f"{count / 1000**power:.3g} {_UNITS[power]}"


def extract(
    run: Path | str,
    data: Path | str,
    out: Path | str,
    wanted: ExtractConfig | None = None,
    *,
    device: str = "auto",
    share: tuple[int, int] | None = None,
    progress: bool = True,
) -> Extracted:
    """Write the features of every sample of a data set, or what is still missing of them.

    Args:
        run: a run folder (its newest checkpoint) or RUN/checkpoints/step-N.
        data: a folder made by `jepa data build`.
        out: folder of the features.
        device: "auto", "cpu", "cuda", "mps".
        share: (i, n): this process does part i of n, from 0; None: what RANK and WORLD_SIZE say, else everything.
        progress: show a progress bar when standard error is a terminal.

    Raises:
        CheckpointError: no usable checkpoint.
        ConfigError: settings that do not fit the encoder, the data set or the machine.
        DataError: data that cannot be read, features that are not finite, a full disk, or a folder with other features.
    """
    wanted = wanted or ExtractConfig()
    part, parts = share or environment.rank_and_world()
    if not 0 <= part < parts:
        raise ConfigError(f"share {part}/{parts}: the parts of {parts} are 0 to {parts - 1}")
    place = pick_device(_own_gpu(device) if share is None and parts > 1 else device)
    return write(planning.make(run, data, wanted), Path(out), wanted.workers, place, (part, parts), progress)


def write(
    plan: Plan, out: Path, workers: int, device: torch.device, share: tuple[int, int] = (0, 1), progress: bool = False
) -> Extracted:
    """Write what a plan says and what is not there yet; see `extract`.

    Args:
        workers: decoding processes.
        share: (i, n): this process does every n-th shard, from the i-th on.
    """
    part, parts = share
    work = Work(out, plan)
    count = {split: len(plan.data.splits[split]) for split in plan.about.views}
    if work.finished:
        return Extracted(work.root, True, count, 0, 0, 0.0)
    mine = [job for number, job in enumerate(plan.jobs()) if number % parts == part]
    waiting = [job for job in mine if not work.done(job)]
    _check_room(work, plan, waiting)
    plan.encoder.to(device)
    start, samples = time.perf_counter(), sum(job.stop - job.start for job in waiting)
    total = sum(job.stop - job.start for job in mine)
    with bar("samples", total, total - samples, progress, "extracting") as advance:
        for split in plan.about.views:
            jobs = [job for job in waiting if job.split == split]
            if jobs:
                _write_split(work, plan, jobs, _behind(_features(plan, jobs, workers, device)), device, advance)
    seconds = time.perf_counter() - start
    written = sum((job.stop - job.start) * plan.sample_bytes(job.split) for job in waiting)
    return Extracted(work.root, work.end(), count, samples, written, seconds)


def _own_gpu(device: str) -> str:
    """Ranks on one machine take one GPU each."""
    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if device in ("auto", "cuda") and _gpus() else device


def _gpus() -> bool:
    return environment.device_type() == "cuda"


def _check_room(work: Work, plan: Plan, jobs: list[Job]) -> None:
    """A disk that is too small is better known now than after a night."""
    needed = sum((job.stop - job.start) * (plan.sample_bytes(job.split) + _TAR_BYTES) for job in jobs)
    free = shutil.disk_usage(work.root).free
    if needed > free:
        warnings.warn(
            f"about {needed / 1e9:.1f} GB will be written to {work.root}, where {free / 1e9:.1f} GB are free. When the "
            "disk is full, finished shards are kept, and the same command goes on after room was made",
            stacklevel=3,
        )


# --- computing ----------------------------------------------------------------------------------------------------


def _features(plan: Plan, jobs: list[Job], workers: int, device: torch.device) -> Iterator[Made]:
    """The tensors of every sample of some shards of one split, batch by batch."""
    about, split = plan.about, plan.data.splits[jobs[0].split]
    index = np.concatenate([np.arange(job.start, job.stop) for job in jobs])
    if about.clip is None:
        found = eval_batches(split, about.image_size, plan.batch, index, workers, about.interpolation)
    else:
        found = eval_clips(
            split, about.clip, about.image_size, plan.batch, index, workers=workers,
            decoder=about.decoder or "auto", interpolation=about.interpolation,
            deadline=plan.encoder.config.data.decode_seconds, views=about.views[split.name],
        )  # fmt: skip
    done = 0
    for batch in found:
        numbers = index[done : done + len(batch.images)].tolist()
        done += len(numbers)
        yield numbers, planning.embed(plan, batch.images.to(device, non_blocking=True))


def _behind(batches: Iterator[Made]) -> Iterator[Made]:
    """Each batch after the next one was begun, so that a GPU computes while this process writes."""
    last = None
    try:
        for batch in batches:
            if last is not None:
                yield last
            last = batch
    except JepaError:  # of a sample that cannot be read; what came before it is whole
        if last is not None:
            yield last
        raise
    if last is not None:
        yield last


# --- writing ------------------------------------------------------------------------------------------------------


def _write_split(
    work: Work, plan: Plan, jobs: list[Job], batches: Iterator[Made], device: torch.device, advance: Advance
) -> None:
    """Write the shards of one split; batches end where shards end."""
    split = plan.data.splits[jobs[0].split]
    made = {"device": device.type, "batch": plan.batch, "torch": torch.__version__}
    for job in jobs:
        with storage.written_to(work.root), work.claim(job), _writer(work.path(job), split) as writer:
            at = job.start
            while at < job.stop:
                numbers, tensors = next(batches)
                assert numbers[0] == at and numbers[-1] < job.stop, f"{job}: samples {numbers[0]} to {numbers[-1]}"
                for sample, encoded in zip(numbers, _encoded(split, numbers, tensors), strict=True):
                    _add(writer, split, sample, encoded, _steps(split, plan.about.clip, sample))
                advance(len(numbers))
                at += len(numbers)
            work.record(job, writer.close(), made)


@contextlib.contextmanager
def _writer(path: Path, split: Split) -> Iterator[ShardWriter]:
    writer = ShardWriter(path, split.target_names)
    try:
        yield writer
    except BaseException:
        with contextlib.suppress(OSError):  # the disk is full already
            writer.abandon()
        raise


def _encoded(split: Split, numbers: list[int], tensors: dict[str, Tensor]) -> Iterator[bytes]:
    """Every sample's tensors as a safetensors file.

    Raises:
        DataError: numbers that are not finite; names the sample.
    """
    here = {name: tensor.cpu() for name, tensor in tensors.items()}
    for name, tensor in here.items():
        if not bool(torch.isfinite(tensor).all()):
            bad = int(torch.nonzero(~torch.isfinite(tensor).flatten(1).all(dim=1))[0])
            raise _not_finite(split, numbers[bad], name, tensor[bad])
    for k in range(len(numbers)):
        yield save({name: tensor[k].contiguous() for name, tensor in here.items()})


def _not_finite(split: Split, number: int, name: str, found: Tensor) -> DataError:
    where = f"{name} of sample {split.place(number)}, split {split.name!r}"
    if found.dtype == torch.float16 and not bool(torch.isnan(found).any()):
        return DataError(f"{where}, goes beyond 65504, the largest number of fp16. Extract with --dtype bf16 or fp32")
    return DataError(
        f"{where}, holds numbers that are NaN or infinite. The weights are broken, or the sample is one they cannot "
        "take: look at the run's loss, or extract with an earlier checkpoint"
    )


def _steps(split: Split, clip: ClipConfig | None, i: int) -> dict[str, Values]:
    """Arrays of an episode, whole, and the frames (C, T) of it that the clips show; nothing of other samples.

    Raises:
        DataError: arrays that cannot be read.
    """
    if not split.arrays or clip is None:
        return {}
    video, known = read_video(split, i)
    facts = known or probe(video, strict=False)
    shown = clips.place(clip, facts.timeline, clips.evenly(clip.clips))
    return {name: split.read_array(i, name) for name in split.arrays} | {CLIP_FRAMES: shown}


def _add(writer: ShardWriter, split: Split, i: int, data: bytes, steps: dict[str, Values]) -> None:
    """With the label, original and targets of the sample they were made of, under its key."""
    key = split.key(i)
    targets = tuple(float(split.targets[name][i]) for name in split.target_names)
    sample = Sample(b"", int(split.labels[i]), int(split.originals[i]), f"{split.name}/{key}", targets)
    try:
        writer.add(key, Encoded(data, EXTENSION, 0, 0, sample, arrays=steps))
    except ValueError as error:  # tar's
        raise DataError(f"sample {split.place(i)}: its key cannot name a file in a tar ({error})") from None
