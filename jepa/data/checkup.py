"""`jepa data check` of a built data set: every sample is read and decoded, label maps and arrays with it."""

from __future__ import annotations

import json
import tarfile
import time
from pathlib import Path

import numpy as np
from torch import Tensor

from jepa.data import decode, labelmap, progress, storage
from jepa.data.check.look import Look, digest, odd_rows, odd_shape, one_colour, pattern
from jepa.data.manifest import LENGTH, OFFSET, SHARD, Manifest, Split
from jepa.data.video.crew import Job
from jepa.data.video.decode import decode as decode_video
from jepa.data.video.probe import Facts, probe
from jepa.data.video.scan import Report, ScanConfig, Verdict, look_at_video, results, verdict
from jepa.errors import DataError

_BLOCK = 512  # of a tar


def check_built(folder: Path, config: ScanConfig | None = None, show: bool = False) -> Report:
    """Check every sample of a built data set, in processes that may be killed.

    Args:
        show: a progress bar, if there is a terminal.

    Raises:
        DataError: no data set, or a shard is missing, truncated or replaced.
        ConfigError: it holds videos and PyAV is not installed.
        TrainingError: worker processes do not start.
    """
    found, wanted = Manifest.open(folder), config or ScanConfig()
    job = Stored(found, wanted)
    what, verdicts = f"{found.media}s", {}
    with progress.bar(what, len(job), 0, show, doing="checking") as advance:
        for number, result in results(job, range(len(job)), wanted):
            verdicts[number] = verdict(job.place(number), result, wanted)
            advance(1)
    return Report([verdicts[i] for i in range(len(job))], wanted, what)


class Stored(Job):
    """The worker's side. Samples are numbered through all splits, in the manifest's order."""

    def __init__(self, found: Manifest, config: ScanConfig) -> None:
        """
        Raises:
            DataError: a shard is missing, truncated or replaced.
        """
        for split in found.splits.values():
            split.check()
        source = found.recipe.get("source", {})
        self.splits, self.video, self.config = list(found.splits.values()), found.media == "video", config
        self.in_place = source.get("kind") == "webdataset" and not source.get("copy")
        self._ends = np.cumsum([len(split) for split in self.splits])

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def at(self, number: int) -> tuple[Split, int]:
        """A sample's split, and its index there."""
        place = int(np.searchsorted(self._ends, number, side="right"))
        return self.splits[place], number - int(self._ends[place]) + len(self.splits[place])

    def place(self, number: int) -> str:
        """Where a sample lies, for people."""
        split, i = self.at(number)
        return f"{split.name}: {split.place(i)}"

    def picture(self, number: int) -> Tensor:
        """A sample's image, or a frame from the middle of its video, (3, H, W) uint8.

        Raises:
            DataError, OSError: it cannot be read.
        """
        split, i = self.at(number)
        data = split.read(i)[0]
        if not self.video:
            return decode.decode(data)
        facts = probe(data, strict=False)
        return decode_video(data, [len(facts) // 2], facts=facts).pixels[0]

    def run(self, task: int) -> Verdict:
        """What is to be said of a sample.

        Raises:
            VideoError: its video cannot be used.
        """
        start = time.perf_counter()
        split, i = self.at(task)
        name = self.place(task)
        try:
            data = split.read(i)[0]
            own, label = self._source(split, i), int(split.labels[i])
            if not self.video:
                image = decode.decode(data)
                for kind in split.map_names:
                    labelmap.check_shape(kind, split.read_map(i, kind).shape, (image.shape[1], image.shape[2]))
                return image_verdict(name, image, Look(own, label, digest(data)), len(data), self.config, start)
        except (DataError, OSError) as error:
            return broken(name, error)
        found = look_at_video(name, data, self.config, own, label)
        try:
            strange = self._compare(split, i, data, int(found.facts["frames"]))
        except (DataError, OSError) as error:
            return broken(name, error)
        return with_oddity(found, strange)

    def _compare(self, split: Split, i: int, data: bytes, frames: int) -> str:
        """Compare what the data set says of a video, and an episode's arrays, with its frames; what is odd of them.

        Raises:
            DataError: they cannot be read, or do not fit.
        """
        kept = split.facts(i)
        if kept is not None:
            ticks = Facts.from_dict(json.loads(kept)).timeline.ticks
            if not np.array_equal(ticks, probe(data, strict=False).timeline.ticks):
                raise DataError("what the data set says of its frames is not true: build it again")
        odd = []
        for array, config in split.arrays.items():
            rows = split.read_array(i, array)
            wanted = frames - (config.kind == "action")
            if len(rows) != wanted:
                raise DataError(f"array {array!r} has {len(rows)} rows, {frames} frames need {wanted}: build it again")
            odd.append(odd_rows(rows, array))
        return "; ".join(filter(None, odd))

    def _source(self, split: Split, i: int) -> str:
        """What the sample is called in its source, which a recipe's `clean` list goes by."""
        row, key = split.index[i], split.key(i)
        shard = split.shards[int(row[SHARD])]
        if self.in_place:
            return f"{shard.path.name}/{key}"
        at = int(row[OFFSET])
        length = int(row[LENGTH])
        while True:  # the sample's other members follow, its KEY.json last
            at += -(-length // _BLOCK) * _BLOCK
            member = tarfile.TarInfo.frombuf(storage.read(shard.path, shard.size, at, _BLOCK), "utf-8", "replace")
            at, length = at + _BLOCK, member.size
            if not member.name.startswith(f"{key}."):
                return f"{split.name}/{key}"  # somebody else's tar
            if member.name == f"{key}.json":
                facts = json.loads(storage.read(shard.path, shard.size, at, length))
                return str(facts.get("source", f"{split.name}/{key}"))


def image_verdict(name: str, image: Tensor, look: Look, size: int, config: ScanConfig, start: float) -> Verdict:
    """What is to be said of an image (3, H, W) that decodes; `look` lacks its pattern yet."""
    height, width = image.shape[1:]
    facts = {"height": height, "width": width, "bytes": size}
    colour = one_colour(image)
    strange = f"it is {colour}" if colour else odd_shape(height, width, config.min_side, config.max_aspect)
    seen = Look(look.name, look.label, look.digest, b"" if colour else pattern(image))
    found = Verdict(name, "ok", facts=facts, seconds=time.perf_counter() - start, look=seen)
    return with_oddity(found, strange)


def with_oddity(found: Verdict, strange: str) -> Verdict:
    """A verdict with a further finding, if there is one."""
    if not strange:
        return found
    status = "odd" if found.status in ("ok", "variable") else found.status
    said = "; ".join(filter(None, (found.findings.get("odd"), strange)))
    return Verdict(
        found.path, status, found.findings | {"odd": said}, found.kind, found.facts, found.seconds, found.look
    )  # fmt: skip


def broken(name: str, error: Exception) -> Verdict:
    """A sample that cannot be used."""
    said = error.strerror or str(error) if isinstance(error, OSError) else str(error)
    return Verdict(name, "broken", {"broken": said}, "broken")


__all__ = ["Stored", "broken", "check_built", "image_verdict", "with_oddity"]
