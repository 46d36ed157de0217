"""Training on clips of real mp4 files: order, resume, ranks, broken videos, and images mixed in."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jepa import config, prepare
from jepa.config import RunConfig
from jepa.data import Manifest
from jepa.errors import ConfigError
from jepa.train import train
from tests.tiny import VALUES, run_config
from tests.train import runs, worker
from tests.train.worker import Job

METHOD = {
    "name": "vjepa",
    "encoder": {"patch": 8, "width": 32, "depth": 1, "heads": 1},
    "predictor": {"width": 32, "depth": 1, "heads": 1},
}


def clips(movies: Path, *more: str) -> tuple[str, ...]:
    method = json.dumps(METHOD)
    return (
        f"method={method}", f"data.path={movies}", "data.clip={frames: 4, stride: 1}", "data.image_size=24",
        "train.batch=6", "train.duration={steps: 6}", "train.checkpoint_every={steps: 4}", *more,
    )  # fmt: skip


def both(tiny_data: Path, movies: Path, *more: str) -> tuple[str, ...]:
    """Six clips and six images in every step."""
    images = f"mix.images={{path: {tiny_data}, image_size: 24, workers: 0, batch: 6, weight: 0.3}}"
    return clips(movies, images, *more)


def made(*overrides: str) -> RunConfig:
    return config.build(RunConfig, config.override({**VALUES, "method": METHOD}, list(overrides)))


def test_clips_are_a_function_of_their_numbers(movies: Path, tmp_path: Path) -> None:
    for name, workers, batch in (("here", 0, 6), ("pool", 2, 6)):
        train(made(*clips(movies, f"data.workers={workers}", f"train.batch={batch}")), tmp_path / name, trace=True)
    here, pool = (runs.trace(tmp_path / name) for name in ("here", "pool"))
    assert here == pool and [r["g"] for r in here] == list(range(36))
    assert sorted(r["index"] for r in here[:30]) == list(range(30))  # every video once in an epoch
    starts = {tuple(r["frames"][0]) for r in here}
    assert all(list(np.diff(s)) == [1, 1, 1] for s in starts) and {s[0] for s in starts} == {0, 1, 2, 3, 4}
    assert runs.lines(tmp_path / "here") == runs.lines(tmp_path / "pool")
    runs.assert_bit_equal(runs.tensors(tmp_path / "here", 6), runs.tensors(tmp_path / "pool", 6))


@pytest.mark.parametrize("mixed", [False, True])
def test_killed_and_resumed(tiny_data: Path, movies: Path, tmp_path: Path, mixed: bool) -> None:
    overrides = both(tiny_data, movies, "data.workers=1") if mixed else clips(movies, "data.workers=1")
    whole, cut = Job(movies, tmp_path / "whole", overrides), Job(movies, tmp_path / "cut", overrides)
    assert worker.run(whole) == 0
    assert worker.run(Job(**{**cut.__dict__, "kill": ("mid-step", 5)})) == -9
    assert worker.run(Job(**{**cut.__dict__, "resume": True})) == 0
    assert runs.lines(whole.out) == runs.lines(cut.out) and runs.trace(whole.out) == runs.trace(cut.out)
    runs.assert_bit_equal(runs.tensors(whole.out, 6), runs.tensors(cut.out, 6))


@pytest.mark.parametrize("world", [2, 3])
def test_images_and_clips_on_any_number_of_ranks(tiny_data: Path, movies: Path, tmp_path: Path, world: int) -> None:
    overrides = both(tiny_data, movies, "train.precision=fp64", "data.workers=0")
    one, many = Job(movies, tmp_path / "one", overrides), Job(movies, tmp_path / "many", overrides)
    assert worker.run(one) == 0
    assert worker.run_group(worker.ranks(many, world)) == [0] * world

    def rows(job: Job) -> list[dict[str, Any]]:
        return sorted(runs.trace(job.out), key=lambda r: (r["source"], r["g"]))

    assert rows(one) == rows(many)
    losses = [[line["loss"] for line in runs.lines(job.out)] for job in (one, many)]
    assert losses[0][0] == pytest.approx(losses[1][0], rel=1e-9)
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_a_broken_video_is_replaced_and_stays_replaced(movies: Path, tmp_path: Path) -> None:
    broken = Path(shutil.copytree(movies, tmp_path / "broken"))
    split = Manifest.open(broken).split("train")
    shard, offset, length, _ = split.index[7].tolist()
    with split.shards[shard].path.open("r+b") as tar:
        tar.seek(offset)
        tar.write(b"\0" * length)
    wanted = clips(broken, "data.workers=1", "data.max_bad=0.5")
    train(made(*wanted), tmp_path / "run", trace=True)
    lines = [json.loads(x) for x in (tmp_path / "run" / "quarantine.jsonl").read_text().splitlines()]
    assert {line["index"] for line in lines} == {7} and all("at byte" in line["place"] for line in lines)
    used = {r["g"]: r["index"] for r in runs.trace(tmp_path / "run")}
    assert all(used[line["g"]] == line["substitute"] != 7 for line in lines) and len(used) == 36


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (("data.clip=null",), r"holds videos, but data\.clip is not set"),
        (("data.clip.stride=null",), "exactly one of fps, stride, duration; given: none"),
        (("data.clip.fps=2",), "given: fps=2, stride=1"),
        (("data.clip.clips=3",), r"clips=3: training takes one clip"),
        (("data.clip.frames=3",), r"3"),
        (("data.decoder=ffmpeg",), r"data\.decoder.*'torchcodec', 'decord', 'pyav'"),
        (("data.decode_seconds=0",), r"decode_seconds: must be above 0"),
        (("method={name: ijepa}",), r"'ijepa' trains on images; this data holds clips|image"),
    ],
)
def test_clear_errors(movies: Path, tmp_path: Path, overrides: tuple[str, ...], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        train(made(*clips(movies), *overrides), tmp_path / "run")


def test_clips_of_a_data_set_of_images(tiny_data: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"holds images, but data\.clip is set"):
        train(run_config(tiny_data, "data.clip={frames: 4, fps: 2}"), tmp_path / "run")


def test_the_decoder_is_recorded_and_kept(movies: Path, tmp_path: Path) -> None:
    train(made(*clips(movies, "data.decoder=pyav")), tmp_path / "run")
    state = json.loads((tmp_path / "run" / "checkpoints" / "step-6" / "state.json").read_text())
    assert state["decoders"] == {"data": "pyav"}
    longer = clips(movies, "data.decoder=decord")
    with pytest.raises(ConfigError, match=r"decoded by .*pyav.*data\.decoder=pyav"):
        train(made(*longer), tmp_path / "run", resume=True)


def test_the_operations_of_both_sources_count(tiny_data: Path, movies: Path) -> None:
    alone = prepare.validate(made(*clips(movies))).stages[0].step_flops
    together = prepare.validate(made(*both(tiny_data, movies))).stages[0].step_flops
    assert alone is not None and together is not None and 1.1 * alone < together < 2 * alone
