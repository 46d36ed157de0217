"""``jepa bench decode``: the decoding libraries side by side, and the pool of decoding processes against them.

For each library the same clips are decoded in two ways, in alternating order: *bare*, as its documentation shows it
(open, ask for the frame numbers), and by our decoding call with the facts that a built dataset keeps. The pool does the
whole job (decode, crop, resize, hand over in order) and is compared with as many processes that do the same work in a
bare loop at the same time, handing over nothing.
"""

from __future__ import annotations

import importlib
import io
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import psutil
import torch
from torch import Tensor

from jepa.bench.films import write_film
from jepa.bench.result import Result, hardware, interleaved, median
from jepa.config import ClipConfig
from jepa.data import augment
from jepa.data.video import clips
from jepa.data.video.backend import NAMES
from jepa.data.video.choose import choose, failure, versions
from jepa.data.video.crew import Crew, Job
from jepa.data.video.decode import decode
from jepa.data.video.pool import ClipDecoder, Row, decode_clips_in_order
from jepa.data.video.probe import Facts, probe
from jepa.data.video.sample import write_clips
from jepa.errors import ConfigError

Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class DecodeSettings:
    """What is measured."""

    file: str = ""  # a video of your own; without it one is made: H.264 of photographs that move
    decoders: tuple[str, ...] = ()  # which libraries; none: all that work here
    frames: int = 16  # of a clip
    stride: int = 4  # from one frame of a clip to the next
    size: tuple[int, int] = (256, 340)  # height and width of the video that is made
    gop: int = 60  # frames from one of its key frames to the next
    b_frames: int = 3  # most of them in a row; 0: none, as `jepa data build` codes videos anew
    seconds: float = 10.0  # its length, at 30 frames per second
    clips: int = 4  # decoded per round
    rounds: int = 7
    pool: bool = True  # measure the pool as well
    image_size: int = 224  # of the pool's clips
    batch: int = 4  # clips in the pool's micro-batches
    workers: int | None = None  # of the pool; default: one for each core


def bench_decode(settings: DecodeSettings | None = None) -> Result:
    """Run the benchmark.

    Returns:
        Figures for each library: LIBRARY.bare_ms and .clip_ms (processor time of one clip, one thread), .share (bare
        over ours), .clips_per_s, .probe_ms; .difference, the largest mean absolute difference of a frame from PyAV's,
        in 255ths; pool.LIBRARY.clips_per_s, .bare_clips_per_s, .share and .cpu_share.

    Raises:
        ConfigError: settings that cannot be measured, or a library that does not work here.
        DataError: the file cannot be used.
    """
    wanted = settings or DecodeSettings()
    if min(wanted.clips, wanted.rounds, wanted.batch) < 1:
        raise ConfigError("clips, rounds and batch must be at least 1")
    names = wanted.decoders or tuple(name for name in NAMES if not failure(name))
    for name in names:
        choose(name)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in a worker
    try:
        with tempfile.TemporaryDirectory(prefix="jepa-bench-") as folder:
            path = Path(wanted.file) if wanted.file else Path(folder) / "film.mp4"
            if not wanted.file:
                write_film(path, wanted.seconds, wanted.size, wanted.gop, wanted.b_frames)
            return _measure(wanted, path, names)
    finally:
        torch.set_num_threads(threads)


def _measure(wanted: DecodeSettings, path: Path, names: tuple[str, ...]) -> Result:
    data = path.read_bytes()
    facts = probe(data)
    config = ClipConfig(wanted.frames, stride=wanted.stride, clips=wanted.clips)
    places = clips.place(config, facts.timeline, clips.draw(0, np.array([0]), wanted.clips)[0])
    shown = {
        "video": f"{facts.codec} {facts.width}x{facts.height}, {len(facts)} frames, {facts.timeline.fps:.4g} fps, "
        f"{len(facts.keys)} key frames, {len(data) / 1024:.0f} KiB",
        "clip": f"{wanted.frames} frames, stride {wanted.stride}",
        "versions": "; ".join(" ".join(f"{k} {v}" for k, v in found.items()) for found in versions().values()),
        "rounds": wanted.rounds,
    }
    result = Result("decode", shown, hardware())
    variants: dict[str, Callable[[], object]] = {"probe": lambda: probe(data)}
    for name in names:
        variants[f"bare {name}"] = lambda name=name: [BARE[name](data, row) for row in places]  # type: ignore[misc]
        variants[name] = lambda name=name: [  # type: ignore[misc]
            decode(data, row, backend=name, facts=facts) for row in places
        ]
    seconds = interleaved(variants, wanted.rounds, clock=time.process_time)
    result.add("probe_ms", 1e3 * median(seconds["probe"]), "ms", "facts of the file; a built dataset keeps them")
    for name in names:
        bare, ours = (median(seconds[kind]) / wanted.clips for kind in (f"bare {name}", name))
        result.add(f"{name}.bare_ms", 1e3 * bare, "ms", "a clip as the library's documentation shows it, one core")
        result.add(f"{name}.clip_ms", 1e3 * ours, "ms", "a clip by our decoding call")
        result.add(f"{name}.clips_per_s", 1 / ours, "clips/cpu-s", "by our decoding call")
        shares = [b / o for b, o in zip(seconds[f"bare {name}"], seconds[name], strict=True)]
        result.add(f"{name}.share", median(shares), "", "bare / ours, median over the rounds")
        result.add(
            f"{name}.difference", _difference(data, facts, places, name), "/255", "from PyAV's frames, the worst"
        )
    if wanted.pool:
        for name in names:
            _pool(result, wanted, path, facts, name)
    return result


def _difference(data: bytes, facts: Facts, places: Int64, name: str) -> float:
    """Largest mean absolute difference of a frame between a library and PyAV, in 255ths."""
    found, reference = (decode(data, places.ravel(), backend=b, facts=facts).pixels for b in (name, "pyav"))
    return float((found.int() - reference.int()).abs().float().mean((1, 2, 3)).max())


# --- as the libraries' documentation shows it ---------------------------------------------------------------------


def _bare_torchcodec(data: bytes, indices: Int64) -> Tensor:
    from torchcodec.decoders import VideoDecoder

    batch: Tensor = VideoDecoder(data, dimension_order="NHWC", device="cpu").get_frames_at(indices.tolist()).data
    return batch


def _bare_decord(data: bytes, indices: Int64) -> Tensor:
    import decord

    reader = decord.VideoReader(io.BytesIO(data), ctx=decord.cpu(0), num_threads=1)
    return torch.from_numpy(reader.get_batch(indices).asnumpy())


def _bare_pyav(data: bytes, indices: Int64) -> Tensor:
    import av

    with av.open(io.BytesIO(data), "r") as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        assert stream.average_rate and stream.time_base, "the video that is measured has a rate"
        tick = 1 / (stream.average_rate * stream.time_base)  # of a frame
        wanted = {round(i * tick) + (stream.start_time or 0) for i in indices.tolist()}
        container.seek(min(wanted), stream=stream)
        found: list[npt.NDArray[Any]] = []
        for frame in container.decode(stream):
            if frame.pts in wanted:
                found.append(frame.to_ndarray(format="rgb24"))
                if len(found) == len(wanted):
                    break
    return torch.from_numpy(np.stack(found))


BARE: dict[str, Callable[[bytes, Int64], Tensor]] = {
    "torchcodec": _bare_torchcodec,
    "decord": _bare_decord,
    "pyav": _bare_pyav,
}


# --- the pool -----------------------------------------------------------------------------------------------------


class BenchClips(ClipDecoder):
    """Clips of one file, all at places of their own."""

    def __init__(self, wanted: DecodeSettings, data: bytes, facts: Facts, library: str) -> None:
        self.size = (wanted.frames, wanted.image_size, wanted.image_size)
        self.config = ClipConfig(wanted.frames, stride=wanted.stride)
        self.data, self.facts, self.library = data, facts, library
        self.law = augment.CropLaw()

    def start(self) -> None:
        importlib.import_module(f"jepa.data.video.with_{self.library}")

    def numbers(self, number: int) -> tuple[npt.NDArray[np.float64], Callable[[int, int], augment.Box]]:
        """Where a clip lies, and the crop for a height and width."""
        g = np.array([number])
        crop = augment.draw(0, g)[0]
        return clips.draw(0, g)[0], lambda height, width: augment.box(self.law, crop, height, width)

    def clip(self, out: Tensor, number: int, index: int) -> Row:
        place, box = self.numbers(number)
        write_clips(out, self.data, self.config, place, box, backend=self.library, facts=self.facts)
        return Row()

    def index(self, number: int, attempt: int) -> int:
        return 0

    def place(self, index: int) -> str:
        return "the file that is measured"


class _Bare(Job):
    """The same work in a bare loop; nothing is handed over."""

    def __init__(self, decoder: BenchClips) -> None:
        self.decoder = decoder

    def start(self) -> None:
        self.decoder.start()

    def run(self, task: range) -> int:
        decoder = self.decoder
        size = decoder.size[-2], decoder.size[-1]
        for number in task:
            numbers, box = decoder.numbers(number)
            row = clips.place(decoder.config, decoder.facts.timeline, numbers)[0]
            found = BARE[decoder.library](decoder.data, row).permute(0, 3, 1, 2)
            clips.fit(found, box(found.shape[2], found.shape[3]), size)
        return len(task)


def _pool(result: Result, wanted: DecodeSettings, path: Path, facts: Facts, name: str) -> None:
    workers = wanted.workers or int(result.hardware["cores"])
    decoder = BenchClips(wanted, path.read_bytes(), facts, name)
    batches = max(2, -(-wanted.clips * workers // wanted.batch))
    each = -(-batches * wanted.batch // workers)
    starts = count(step=batches * wanted.batch)
    lists = (np.arange(wanted.batch, dtype=np.int64) + i * wanted.batch for i in count())
    made = decode_clips_in_order(decoder, lists, most=wanted.batch, workers=workers)
    with Crew(_Bare(decoder), workers, None) as crew:

        def bare() -> None:
            start = next(starts)
            for worker in range(workers):
                crew.put(worker, range(start + worker * each, start + (worker + 1) * each))
            while len(crew):
                crew.get()

        try:
            bare()
            ready = _take(made, 3)  # the workers have started
            rates, shares, busy = [], [], []
            mine = [p.pid for p in psutil.Process().children(recursive=True) if p.pid not in crew.pids]
            for _ in range(wanted.rounds):
                _settle(mine)
                cpu, begin = _cpu(crew.pids), time.perf_counter()
                bare()
                bare_wall = (time.perf_counter() - begin) / (each * workers)
                bare_cpu = (_cpu(crew.pids) - cpu) / (each * workers)
                _take(made, 3)  # what was ready
                cpu, begin = _cpu(mine) + time.process_time(), time.perf_counter()
                took = _take(made, batches)
                wall = (time.perf_counter() - begin) / took
                rates.append((1 / bare_wall, 1 / wall))
                shares.append(bare_wall / wall)
                busy.append(bare_cpu / ((_cpu(mine) + time.process_time() - cpu) / took))
        finally:
            made.close()  # type: ignore[attr-defined]
    assert ready, "no clip came out of the pool"
    what = f"{workers} processes, decoded, cropped and resized to {wanted.image_size}"
    result.add(f"pool.{name}.bare_clips_per_s", median([r[0] for r in rates]), "clips/s", f"{what}; bare loops")
    result.add(f"pool.{name}.clips_per_s", median([r[1] for r in rates]), "clips/s", f"{what}; in order, by the pool")
    result.add(f"pool.{name}.share", median(shares), "", "pool / bare loops, median over the rounds")
    result.add(f"pool.{name}.cpu_share", median(busy), "", "the same by processor time of all processes")


def _take(made: Iterator[Any], batches: int) -> int:
    return sum(len(next(made)[1]) for _ in range(batches))


def _settle(pids: list[int]) -> None:
    """Wait until processes have nothing to do."""
    before = -1.0
    while (now := _cpu(pids)) > before:
        before = now
        time.sleep(0.2)


def _cpu(pids: list[int]) -> float:
    """Processor seconds that processes have used."""
    spent = 0.0
    for pid in pids:
        times = psutil.Process(pid).cpu_times()
        spent += times.user + times.system
    return spent
