"""Which videos can be used: the part of `jepa data check` that decodes them.

Every video is probed and decoded from its first frame to its last, in a process of its own that is stopped when it
takes too long. What can be said of a file:

    ok        every frame of its index decodes
    variable  so does this one, but its frames are not shown equally long; times are exact all the same
    odd       it decodes, but is black, one colour, without motion, or of an odd size
    short     too few frames, too few seconds, or shorter than a clip
    lying     its header claims another length than its packets have
    slow      it was not done within the time limit
    broken    anything else, with the reason
"""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from jepa.config import ClipConfig
from jepa.data import progress
from jepa.data.check.look import Look, digest, odd_frames, odd_shape, pattern
from jepa.data.storage import write_atomic
from jepa.data.video.choose import load
from jepa.data.video.clips import fits
from jepa.data.video.crew import Crew, Job, Lost
from jepa.data.video.decode import decode
from jepa.data.video.probe import Facts, probe
from jepa.data.video.source import Video, VideoError, is_video, opened, reason
from jepa.errors import ConfigError, DataError, JepaError

Status = Literal["ok", "variable", "odd", "short", "lying", "slow", "broken"]
STATUSES: tuple[Status, ...] = get_args(Status)
CLEAN: tuple[Status, ...] = ("ok", "variable")  # what a clean list keeps unless told otherwise
FINDINGS = (*STATUSES[1:], "duplicate", "near")  # what may be said of a sample, alone or beside others
_HEAD = 400  # bytes that tell a video
_WINDOW = 64  # files handed in ahead
_SEEN = 4  # frames of a video that are looked at


@dataclass(frozen=True)
class ScanConfig:
    """How samples are checked."""

    workers: int = 2  # processes
    limit: float = 120.0  # seconds for one sample
    decode: Literal["all", "ends"] = "all"  # every frame of a video, or only a few (much faster)
    min_frames: int = 1  # fewer are too short
    min_seconds: float = 0.0  # less is too short
    clip: ClipConfig | None = None  # a video that this clip does not fit in is too short
    min_side: int = 8  # pixels; a smaller picture is odd
    max_aspect: float = 5.0  # longer side over shorter side; a longer picture is odd
    near: int = 8  # bits of 242 by which pictures that look alike may differ; -1: not looked for
    keep: tuple[str, ...] = ("variable", "near")  # findings that a clean list keeps

    def __post_init__(self) -> None:
        if self.workers < 1 or self.limit <= 0:
            raise ConfigError(f"workers={self.workers} must be at least 1 and limit={self.limit:g} above 0")
        if self.max_aspect < 1 or not -1 <= self.near <= 32:
            raise ConfigError(f"max_aspect={self.max_aspect:g} must be at least 1 and near={self.near} from -1 to 32")
        unknown = [name for name in self.keep if name not in FINDINGS]
        if unknown:
            raise ConfigError(f"keep: {', '.join(unknown)} is no finding; there are {', '.join(FINDINGS)}")


@dataclass(frozen=True)
class Verdict:
    """What was found out about one file."""

    path: str
    status: Status  # the worst finding
    findings: dict[Status, str] = field(default_factory=dict)  # finding -> what it is; empty when all is well
    kind: str = ""  # of an error: see source.Kind
    facts: dict[str, Any] = field(default_factory=dict)  # frames, fps, seconds, size, codec, ...; empty if unreadable
    seconds: float = 0.0  # that the check took
    look: Look | None = None  # what it looks like; None: it cannot be used

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return {name: value for name, value in asdict(self).items() if name != "look"}

    @property
    def line(self) -> str:
        """One line for people."""
        return f"{self.status}: {self.path}" + (f": {'; '.join(self.findings.values())}" if self.findings else "")


@dataclass
class Report:
    """The verdicts of a scan, in the order of its list."""

    verdicts: list[Verdict]
    config: ScanConfig
    what: str = "videos"  # for people

    def counts(self) -> dict[str, int]:
        """Files by finding; a file with two findings counts in both."""
        found = Counter(f for v in self.verdicts for f in (v.findings or {"ok": ""}))
        return {status: found[status] for status in STATUSES}

    def clean(self, keep: Sequence[Status] = CLEAN) -> list[str]:
        """The files whose findings are all among `keep`."""
        return [v.path for v in self.verdicts if set(v.findings or {"ok": ""}) <= set(keep)]

    def summary(self) -> str:
        """A few lines for people: counts, then the reasons of what cannot be used, the most frequent first."""
        counts = self.counts()
        lines = [f"{len(self.verdicts)} {self.what}: " + ", ".join(f"{n} {s}" for s, n in counts.items() if n)]
        kinds = Counter(v.kind for v in self.verdicts if v.kind)
        lines += [f"  {count} {kind}" for kind, count in kinds.most_common()]
        if self.what != "videos":
            return "\n".join(lines)
        hours = sum(v.facts.get("seconds", 0.0) for v in self.verdicts) / 3600
        frames = sum(v.facts.get("frames", 0) for v in self.verdicts)
        return "\n".join([*lines, f"{hours:.2f} hours, {frames} frames"])

    def write_clean(self, path: Path, keep: Sequence[Status] = CLEAN) -> int:
        """A list of the usable files, one path a line; returns how many."""
        kept = self.clean(keep)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, "".join(f"{name}\n" for name in kept).encode("utf-8", "surrogateescape"))
        return len(kept)

    def write_json(self, path: Path) -> None:
        """Everything, for programs."""
        values = {
            "config": asdict(self.config),
            "counts": self.counts(),
            "videos": [v.plain() for v in self.verdicts],
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, (json.dumps(values, indent=1) + "\n").encode())


def check(paths: Sequence[Path], config: ScanConfig | None = None, show: bool = False) -> Report:
    """Check files of videos.

    Args:
        show: a progress bar, if there is a terminal.

    Raises:
        ConfigError: PyAV is not installed.
        TrainingError: worker processes do not start.
    """
    wanted = config or ScanConfig()
    found: dict[int, Verdict] = {}
    with progress.bar("videos", len(paths), 0, show, doing="checking") as advance:
        for number, verdict in scan(paths, wanted):
            found[number] = verdict
            advance(1)
    return Report([found[i] for i in range(len(paths))], wanted)


def scan(paths: Sequence[Path], config: ScanConfig | None = None) -> Iterator[tuple[int, Verdict]]:
    """Verdicts as they come, each with its file's place in the list."""
    wanted = config or ScanConfig()
    for number, result in results(_Check(wanted), paths, wanted):
        yield number, verdict(str(paths[number]), result, wanted)


def results(job: Job, tasks: Sequence[Any], config: ScanConfig) -> Iterator[tuple[int, Any]]:
    """What a job makes of each task, as it comes, in processes that may be killed; see `Crew.get`."""
    names = iter(enumerate(tasks))
    with Crew(job, min(config.workers, max(1, len(tasks))), config.limit) as crew:
        while True:
            while len(crew) < _WINDOW and (item := next(names, None)) is not None:
                crew.put(item[0], item[1])
            if not len(crew):
                return
            yield crew.get()


def find_videos(place: Path) -> list[Path]:
    """The videos of a folder (all levels), by content, sorted; or those that a text file lists, one path a line.

    Files with another content are left out, unless their name says that they are videos: then they are broken.

    Raises:
        DataError: no such file or folder, or no video in it.
    """
    if place.is_dir():
        found = [p for p in sorted(place.rglob("*")) if p.is_file() and _looks_like_video(p)]
        if not found:
            raise DataError(f"{place} holds no videos, on no level")
        return found
    if not place.exists():
        raise DataError(f"{place} does not exist: give a folder of videos, a video, or a list of paths")
    if _looks_like_video(place):
        return [place]
    try:
        lines = place.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError as error:
        raise DataError(f"{place} cannot be read: {error.strerror or error}") from None
    if "\0" in "".join(lines):
        raise DataError(f"{place} is neither a video nor a list of paths")
    listed = [place.parent / line.strip() for line in lines if line.strip()]
    if not listed:
        raise DataError(f"{place} lists no videos")
    return listed


_NAMES = frozenset({".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".flv", ".ogv", ".wmv"})


def _looks_like_video(path: Path) -> bool:
    if path.suffix.lower() in _NAMES:
        return True
    try:
        with path.open("rb") as file:
            return is_video(file.read(_HEAD))
    except OSError:
        return False


class _Check(Job):
    """The worker's side."""

    def __init__(self, config: ScanConfig) -> None:
        self.config = config

    def run(self, task: Path) -> Verdict:
        """What is to be said of a file.

        Raises:
            VideoError: it cannot be used, or a part of it does not decode.
        """
        return look_at_video(str(task), task, self.config)


def look_at_video(name: str, video: Video, config: ScanConfig, own: str = "", label: int = -1) -> Verdict:
    """Probe a video, decode it, and look at some of its frames.

    Args:
        name: for people.
        own: its name in its source; default: `name`.

    Raises:
        VideoError: it cannot be used, or a part of it does not decode.
    """
    start = time.perf_counter()
    try:
        facts = probe(video, strict=True)
        frames = decode_whole(video, facts, config.decode, seen=_SEEN)
        if isinstance(video, Path):
            size = video.stat().st_size
            with video.open("rb") as file:
                key = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).digest()
        else:
            size, key = len(video), digest(video)
    except OSError as error:
        raise VideoError(f"it cannot be read: {error.strerror or error}", "missing") from None
    look = Look(own or name, label, key, pattern_of(frames))
    return judge(name, facts, size, config, time.perf_counter() - start, frames, look)


def pattern_of(frames: list[Tensor]) -> bytes:
    """The perceptual hash of a video: that of a frame from its middle, if there is anything to see."""
    return pattern(frames[len(frames) // 2]) if frames and not odd_frames(frames[len(frames) // 2 :][:1]) else b""


def decode_whole(video: Video, facts: Facts, which: Literal["all", "ends"] = "all", seen: int = 0) -> list[Tensor]:
    """Decode all frames of a video's index, or only the first, the last and those that are looked at.

    Returns:
        `seen` frames spread evenly over it, (3, H, W) uint8 each, as they are stored; none at 0.

    Raises:
        VideoError: they do not come out of the decoder whole.
        OSError: the storage fails.
    """
    last = len(facts) - 1
    chosen: npt.NDArray[np.int64] = np.unique(np.linspace(0, last, seen).round().astype(np.int64))
    if which == "ends":
        wanted = np.unique([0, *chosen.tolist(), last])
        found = decode(video, wanted, backend=load("pyav"), facts=facts).pixels
        return list(found[torch.from_numpy(np.isin(wanted, chosen))])
    ticks, kept = set(facts.timeline.ticks[chosen].tolist()), dict[int, Tensor]()
    with opened(video) as container:
        stream = next(s for s in container.streams.video if s.index == facts.stream)
        context = stream.codec_context
        context.thread_count = 1
        context.options = {"err_detect": "explode"}  # or damage is painted over
        left, tick = set(facts.timeline.ticks.tolist()), int(facts.timeline.ticks[0])
        try:
            for packet in container.demux(stream):
                for frame in context.decode(packet if packet.size else None):
                    tick = tick if frame.pts is None else frame.pts
                    if not frame.is_corrupt:
                        left.discard(tick)
                        if tick in ticks:
                            kept[tick] = torch.from_numpy(frame.to_ndarray(format="rgb24")).permute(2, 0, 1)
        except (ArithmeticError, OSError, ValueError) as error:
            raise VideoError(f"damaged after {_seconds(facts, tick)}: {reason(error)}") from None
        if left:
            where = _seconds(facts, min(left))
            raise VideoError(f"{len(left)} of its {len(facts)} frames cannot be decoded, the first one at {where}")
    return [kept[tick] for tick in sorted(kept)]


def _seconds(facts: Facts, tick: int) -> str:
    return f"{float((tick - int(facts.timeline.ticks[0])) * facts.timeline.base):.2f} s"


def verdict(name: str, result: Any, config: ScanConfig) -> Verdict:
    """What a worker's answer means."""
    if isinstance(result, Verdict):
        return result
    if isinstance(result, Lost):
        status: Status = "slow" if result.kind == "slow" else "broken"
        return Verdict(name, status, {status: result.reason}, result.kind, seconds=result.seconds)
    if isinstance(result, JepaError):
        kind = result.kind if isinstance(result, VideoError) else ""
        if not kind:
            raise result  # not this file's fault
        status = "lying" if kind == "lying" else "broken"
        return Verdict(name, status, {status: str(result)}, kind)
    raise AssertionError(f"{name}: a worker answered {result!r}")


def judge(
    name: str,
    facts: Facts,
    size: int,
    config: ScanConfig,
    seconds: float,
    frames: list[Tensor] | None = None,
    look: Look | None = None,
) -> Verdict:
    """What is to be said of a video that decodes."""
    findings = _findings(facts, config)
    strange = odd_frames(frames or []) or odd_shape(facts.height, facts.width, config.min_side, config.max_aspect)
    if strange:
        findings["odd"] = strange
    status = max(findings, key=STATUSES.index) if findings else "ok"
    return Verdict(name, status, findings, "", _plain(facts, size), seconds, look)


def _findings(facts: Facts, config: ScanConfig) -> dict[Status, str]:
    line = facts.timeline
    found: dict[Status, str] = {}
    if line.variable:
        gaps = np.diff(line.times)
        found["variable"] = f"frames are shown for {1e3 * gaps.min():.1f} to {1e3 * gaps.max():.1f} ms"
    has = f"it has {len(facts)} frames in {line.duration:.2f} s"
    if len(facts) < config.min_frames or line.duration < config.min_seconds:
        found["short"] = f"{has}, asked for are {config.min_frames} frames and {config.min_seconds:g} s"
    elif config.clip is not None and not fits(config.clip, line):
        found["short"] = f"{has}, a clip does not fit in"
    return found


def _plain(facts: Facts, size: int) -> dict[str, Any]:
    line = facts.timeline
    keys = np.diff(np.append(facts.keys, len(facts)))
    return {
        "frames": len(facts), "fps": line.fps, "seconds": line.duration, "height": facts.height, "width": facts.width,
        "rotation": facts.rotation, "codec": facts.codec, "container": facts.container,
        "pixel_format": facts.pixel_format, "key_interval": int(keys.max()) if len(keys) else len(facts), "bytes": size,
    }  # fmt: skip
