"""`jepa data check` of a built data set: every sample is read and decoded, label maps and arrays with it."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np

from jepa.data import decode, labelmap, progress
from jepa.data.manifest import Manifest, Split
from jepa.data.video.crew import Job
from jepa.data.video.probe import Facts, probe
from jepa.data.video.scan import Report, ScanConfig, Verdict, decode_whole, judge, results, verdict
from jepa.errors import DataError


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
    for split in found.splits.values():
        split.check()
    tasks = [(name, i) for name, split in found.splits.items() for i in range(len(split))]
    what, verdicts = f"{found.media}s", {}
    with progress.bar(what, len(tasks), 0, show, doing="checking") as advance:
        for number, result in results(_Stored(found.splits, found.media == "video", wanted), tasks, wanted):
            name, i = tasks[number]
            verdicts[number] = verdict(f"{name}: {found.splits[name].place(i)}", result, wanted)
            advance(1)
    return Report([verdicts[i] for i in range(len(tasks))], wanted, what)


class _Stored(Job):
    """The worker's side."""

    def __init__(self, splits: dict[str, Split], video: bool, config: ScanConfig) -> None:
        self.splits, self.video, self.config = splits, video, config

    def run(self, task: tuple[str, int]) -> Verdict:
        """What is to be said of a sample.

        Raises:
            VideoError: its video cannot be used.
        """
        start = time.perf_counter()
        split, i = self.splits[task[0]], task[1]
        name = f"{task[0]}: {split.place(i)}"
        try:
            data = split.read(i)[0]
            if not self.video:
                _, height, width = decode.decode(data).shape
                for label in split.map_names:
                    labelmap.check_shape(label, split.read_map(i, label).shape, (height, width))
                facts = {"height": height, "width": width, "bytes": len(data)}
                return Verdict(name, "ok", facts=facts, seconds=time.perf_counter() - start)
        except (DataError, OSError) as error:
            return Verdict(name, "broken", {"broken": str(error)}, "broken")
        found = probe(data)
        decode_whole(data, found, self.config.decode)
        kept = split.facts(i)
        if kept is not None and not np.array_equal(
            Facts.from_dict(json.loads(kept)).timeline.ticks, found.timeline.ticks
        ):
            said = "what the data set says of its frames is not true: build it again"
            return Verdict(name, "broken", {"broken": said}, "broken")
        try:
            _compare(split, i, len(found))
        except (DataError, OSError) as error:
            return Verdict(name, "broken", {"broken": str(error)}, "broken")
        return judge(name, found, len(data), self.config, time.perf_counter() - start)


def _compare(split: Split, i: int, frames: int) -> None:
    """Read an episode's arrays and compare their rows with its frames.

    Raises:
        DataError: they cannot be read, or do not fit.
    """
    for array, config in split.arrays.items():
        rows, wanted = len(split.read_array(i, array)), frames - (config.kind == "action")
        if rows != wanted:
            raise DataError(f"array {array!r} has {rows} rows, {frames} frames need {wanted}: build it again")


__all__ = ["check_built"]
