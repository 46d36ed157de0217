"""The loader trains on what the plan says, whatever the workers, ranks and starting step; bad samples are replaced."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from jepa.config import DataConfig
from jepa.data import Batch, Manifest, Order, TrainData, eval_batches, make_loader
from jepa.data.build import build
from jepa.data.quarantine import FLOOR
from jepa.data.storage import read as read_storage
from jepa.errors import ConfigError, DataError, TrainingError
from tests.data.conftest import UNEVEN, encoded, picture, write_tars

N = sum(UNEVEN)


def config(root: Path, **changes: object) -> DataConfig:
    return replace(DataConfig(path=str(root), image_size=(8, 10), workers=0, shuffle_shards=2), **changes)  # type: ignore[arg-type]


def batches(
    path: Path, *, run_dir: Path | None = None, seed: int = 0, workers: int = 0, **plan: int | bool
) -> list[Batch]:
    data = TrainData(config(path, workers=workers, max_bad=plan.pop("max_bad", 0.01)), seed, run_dir=run_dir)
    return list(make_loader(data, **plan))  # type: ignore[arg-type]


def by_g(found: list[Batch]) -> dict[int, tuple[int, bytes]]:
    """g -> (index, pixels)."""
    out = {}
    for batch in found:
        for g, index, image in zip(batch.g.tolist(), batch.index.tolist(), batch.images, strict=True):
            assert g not in out, f"g={g} came twice"
            out[g] = (index, image.contiguous().numpy().tobytes())
    return out


@pytest.fixture(scope="module")
def plan(uneven: Path) -> dict[int, tuple[int, bytes]]:
    """Three epochs in one process; 133 samples do not divide by the batch of 12, so batches cross epochs."""
    return by_g(batches(uneven, batch=12, total_steps=-(-3 * N // 12)))


def test_three_epochs_are_three_permutations(plan: dict[int, tuple[int, bytes]], uneven: Path) -> None:
    assert sorted(plan) == list(range(-(-3 * N // 12) * 12))
    for epoch in range(3):
        assert sorted(plan[g][0] for g in range(epoch * N, (epoch + 1) * N)) == list(range(N))
    order = Order(0, Manifest.open(uneven).split("train").shard_sizes, 2)
    assert [plan[g][0] for g in sorted(plan)] == order(np.array(sorted(plan))).tolist()


@pytest.mark.parametrize("workers", [0, 1, 3])
@pytest.mark.parametrize(("world", "micro"), [(1, 5), (2, 3), (3, None)])
def test_the_union_over_ranks_is_the_plan(
    plan: dict[int, tuple[int, bytes]], uneven: Path, workers: int, world: int, micro: int | None
) -> None:
    """Over three epochs, with the same samples and the same pixels, hence the same crops."""
    steps = -(-3 * N // 12)
    found: list[Batch] = []
    for rank in range(world):
        mine = batches(uneven, workers=workers, batch=12, micro_batch=micro, rank=rank, world=world, total_steps=steps)  # type: ignore[arg-type]
        places = [(b.step, b.micro) for b in mine]
        assert places == sorted(places) and {b.step for b in mine} == set(range(steps))
        assert sum(b.last for b in mine) == steps and all(len(b) == 12 // world // (mine[-1].micro + 1) for b in mine)
        found += mine
    assert by_g(found) == plan


def test_starting_anywhere_gives_the_rest(plan: dict[int, tuple[int, bytes]], uneven: Path) -> None:
    for workers, start in ((0, 7), (2, 30)):
        found = batches(uneven, workers=workers, batch=12, start_step=start, total_steps=33)
        assert found[0].step == start and by_g(found) == {g: plan[g] for g in range(start * 12, 33 * 12)}


def test_labels_belong_to_images(uneven: Path) -> None:
    """In this dataset the label of a sample is its index."""
    for batch in batches(uneven, batch=7, total_steps=20):
        assert torch.equal(batch.labels, batch.index)


def test_more_workers_than_shards_and_a_tiny_dataset(tmp_path: Path) -> None:
    write_tars(tmp_path / "tars", (1,))
    build("webdataset", tmp_path / "out", overrides=[f"source.shards={tmp_path}/tars/*.tar", "splits.fractions={}"])
    found = batches(tmp_path / "out", workers=3, batch=4, total_steps=3)
    assert [b.index.tolist() for b in found] == [[0, 0, 0, 0]] * 3
    assert len({image.contiguous().numpy().tobytes() for b in found for image in b.images}) > 1, "crops must differ"


def test_batches_stay_as_they_were_while_later_ones_are_read(uneven: Path) -> None:
    """Workers reuse their buffers; a batch that was handed out must not change under its owner."""
    data = TrainData(config(uneven, workers=2), 0)
    kept = [(b, b.images.clone()) for b in make_loader(data, batch=4, total_steps=40)]
    assert all(torch.equal(b.images, copy) for b, copy in kept)


def test_the_trace_tells_sample_and_crop(uneven: Path) -> None:
    manifest = Manifest.open(uneven)
    split = manifest.split("train")
    for batch in batches(uneven, batch=6, total_steps=4, trace=True, workers=1):
        assert batch.trace is not None
        for row, g, index in zip(batch.trace, batch.g.tolist(), batch.index.tolist(), strict=True):
            assert row["g"] == g and row["index"] == index and row["key"] == split.key(index)
            top, left, height, width = row["crop"]
            assert top >= 0 and top + height <= 12 and left >= 0 and left + width <= 16 and row["flip"] is False
    assert batches(uneven, batch=6, total_steps=1)[0].trace is None


def test_the_global_generator_is_left_alone(uneven: Path) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    batches(uneven, batch=6, total_steps=2, workers=1)
    list(eval_batches(Manifest.open(uneven).split("train"), (8, 10), 50, workers=1))
    assert torch.equal(torch.get_rng_state(), before)


def test_evaluation_keeps_the_order_and_cuts_the_middle(uneven: Path) -> None:
    split = Manifest.open(uneven).split("train")
    whole = list(eval_batches(split, (12, 16), 50))
    assert torch.cat([b.index for b in whole]).tolist() == list(range(N))
    assert [len(b) for b in whole] == [50, 50, 33]
    pixels = torch.cat([b.images for b in whole])
    assert torch.equal(pixels[3].permute(1, 2, 0), torch.from_numpy(np.array(picture(3))))
    chosen = list(eval_batches(split, (12, 12), 2, indices=[90, 3, 3], workers=2))
    assert torch.cat([b.labels for b in chosen]).tolist() == [90, 3, 3]
    assert torch.equal(torch.cat([b.images for b in chosen])[1], pixels[3][:, :, 2:14])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"path": ""}, "data.path is empty"),
        ({"image_size": (0, 8)}, "image_size"),
        ({"crop_scale": (0.5, 1.5)}, "crop_scale"),
        ({"crop_scale": (0.0, 1.0)}, "crop_scale"),
        ({"crop_ratio": (2.0, 1.0)}, "crop_ratio"),
        ({"hflip": 2.0}, "hflip"),
        ({"workers": -1}, "workers=-1"),
        ({"lanes": 0}, "lanes=0"),
    ],
)
def test_a_wrong_data_section(uneven: Path, change: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TrainData(config(uneven, **change), 0)


# --- bad samples --------------------------------------------------------------------------------------------------


@pytest.fixture
def damaged(tmp_path: Path) -> Path:
    """40 pictures, of which numbers 3 (zero bytes), 11 (cut off) and 30 (noise) broke after the build."""
    write_tars(tmp_path / "tars", (20, 20))
    overrides = [f"source.shards={tmp_path}/tars/*.tar", "splits.fractions={}"]
    build("webdataset", tmp_path / "built", overrides=overrides)
    spoil(tmp_path / "built", {3: b"", 11: None, 30: b"noise" * 20})
    return tmp_path / "built"


def spoil(built: Path, how: dict[int, bytes | None]) -> None:
    """Overwrite images inside their tars, without changing a tar's size; None keeps the first half."""
    split = Manifest.open(built).split("train")
    for i, junk in how.items():
        shard, offset, length, _ = split.index[i].tolist()
        with split.shards[shard].path.open("r+b") as file:
            file.seek(offset)
            kept = file.read(length)[: length // 2] if junk is None else junk[:length]
            file.seek(offset)
            file.write(kept + bytes(length - len(kept)))


def lines(run_dir: Path) -> list[dict[str, object]]:
    return [json.loads(line) for f in sorted(run_dir.glob("quarantine*.jsonl")) for line in f.read_text().splitlines()]


def test_a_bad_sample_is_replaced_and_written_down_before_use(damaged: Path, tmp_path: Path) -> None:
    data = TrainData(config(damaged, max_bad=1.0), 0, run_dir=tmp_path / "run")
    seen = 0
    for batch in make_loader(data, batch=10, total_steps=8):
        assert len(batch) == 10 and not {3, 11, 30} & set(batch.index.tolist())
        assert torch.equal(batch.labels, batch.index), "the label must be the substitute's own"
        replaced = [
            g for g, i in zip(batch.g.tolist(), data.order(batch.g.numpy()).tolist(), strict=True) if i in (3, 11, 30)
        ]
        seen += len(replaced)
        assert {line["g"] for line in lines(tmp_path / "run")} >= set(replaced)
    assert seen == 6, "two epochs hold each bad sample twice"
    entries = lines(tmp_path / "run")
    assert len(entries) == 6 and {e["index"] for e in entries} == {3, 11, 30}
    assert len({e["substitute"] for e in entries}) > 3, "each slot has a substitute of its own"
    assert all(e["reason"] and "part-00" in str(e["place"]) and e["substitute"] not in (3, 11, 30) for e in entries)


@pytest.mark.parametrize(("workers", "world"), [(2, 1), (0, 2), (3, 5)])
def test_substitutes_do_not_depend_on_workers_or_ranks(damaged: Path, tmp_path: Path, workers: int, world: int) -> None:
    one = by_g(batches(damaged, run_dir=tmp_path / "a", batch=10, total_steps=8, max_bad=1.0))  # type: ignore[arg-type]
    many: list[Batch] = []
    for rank in range(world):
        many += batches(
            damaged, run_dir=tmp_path / "b", workers=workers, batch=10, rank=rank, world=world, total_steps=8,
            max_bad=1.0,  # type: ignore[arg-type]
        )  # fmt: skip
    assert by_g(many) == one
    key = lambda e: e["g"]  # noqa: E731
    assert sorted(lines(tmp_path / "a"), key=key) == sorted(lines(tmp_path / "b"), key=key)  # type: ignore[arg-type]


def test_resuming_repeats_the_decisions_in_the_file(damaged: Path, tmp_path: Path) -> None:
    """Even when the sample has become readable meanwhile; and nothing is written down twice."""
    run = tmp_path / "run"
    first = by_g(batches(damaged, run_dir=run, batch=10, total_steps=8, max_bad=1.0))  # type: ignore[arg-type]
    written = (run / "quarantine.jsonl").read_bytes()
    (run / "quarantine.jsonl").write_bytes(written + b'{"g": 79, "subst')  # the line a crash cut off
    spoil(damaged, {3: encoded(picture(3)), 30: encoded(picture(30))})
    again = by_g(batches(damaged, run_dir=run, batch=10, start_step=2, total_steps=8, max_bad=1.0))  # type: ignore[arg-type]
    assert again == {g: first[g] for g in range(20, 80)}
    assert (run / "quarantine.jsonl").read_bytes() == written + b'{"g": 79, "subst'
    fresh = by_g(batches(damaged, batch=10, total_steps=8, max_bad=1.0))  # type: ignore[arg-type]
    assert {3, 30} <= {index for index, _ in fresh.values()}, "without the file the repaired samples are used"
    spoil(damaged, {7: b""})
    batches(damaged, run_dir=run, batch=10, total_steps=4, max_bad=1.0)  # type: ignore[arg-type]
    entries = (run / "quarantine.jsonl").read_bytes().splitlines()
    assert json.loads(entries[-1])["index"] == 7, "a new line must not be glued to the one that was cut off"


def test_entries_of_another_seed_are_left_alone(damaged: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    batches(damaged, run_dir=run, batch=10, total_steps=4, max_bad=1.0)  # type: ignore[arg-type]
    alone = by_g(batches(damaged, seed=1, batch=10, total_steps=4, max_bad=1.0))  # type: ignore[arg-type]
    assert by_g(batches(damaged, run_dir=run, seed=1, batch=10, total_steps=4, max_bad=1.0)) == alone  # type: ignore[arg-type]


@pytest.mark.parametrize("workers", [0, 2])
def test_too_many_bad_samples_stop_the_run(damaged: Path, tmp_path: Path, workers: int) -> None:
    """3 of 40 are bad and 1 % is allowed; a few never stop it, more than the floor do."""
    data = TrainData(config(damaged, workers=workers), 0, run_dir=tmp_path)
    loader, steps = make_loader(data, batch=10, total_steps=100), 0
    with pytest.raises(TrainingError, match=r"21 of \d+ samples.*data\.max_bad=0\.01.*quarantine\.jsonl"):
        for _ in loader:
            steps += 1
    assert FLOOR / 3 * 4 - 2 <= steps < 35
    assert len(lines(tmp_path)) == 21


@pytest.mark.parametrize("workers", [0, 1])
def test_all_samples_bad(tmp_path: Path, workers: int) -> None:
    write_tars(tmp_path / "tars", (4,))
    build("webdataset", tmp_path / "out", overrides=[f"source.shards={tmp_path}/tars/*.tar", "splits.fractions={}"])
    spoil(tmp_path / "out", dict.fromkeys(range(4), b"junk"))
    with pytest.raises(TrainingError, match="neither could 20 others"):
        batches(tmp_path / "out", workers=workers, batch=2, total_steps=1)


def test_evaluation_names_a_bad_sample_and_never_skips_it(damaged: Path) -> None:
    for workers in (0, 1):
        with pytest.raises(DataError, match=r"s00011 in .*part-000\.tar.*never skips"):
            list(eval_batches(Manifest.open(damaged).split("train"), (8, 8), 4, indices=[5, 11], workers=workers))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_shard_that_vanishes_stops_the_run(damaged: Path, tmp_path: Path, workers: int) -> None:
    """Missing storage is no reason to train on something else."""
    copy = tmp_path / "copy"
    shutil.copytree(tmp_path / "tars", copy)
    build("webdataset", tmp_path / "out", overrides=[f"source.shards={copy}/*.tar", "splits.fractions={}"])
    data = TrainData(config(tmp_path / "out", workers=workers), 0)
    shutil.rmtree(copy)
    with pytest.raises(TrainingError, match=r"part-00.\.tar failed.*No such file.*--resume"):
        list(make_loader(data, batch=4, total_steps=2))


def test_transient_errors_are_tried_again_and_then_reported() -> None:
    """Reading a process's memory at address 0 fails with EIO, as a tired disk does."""
    memory = Path("/proc/self/mem")
    if not memory.exists():
        pytest.skip("needs Linux")
    import time

    start = time.monotonic()
    with pytest.raises(OSError, match="Input/output error"):
        read_storage(memory, 0, 0, 10, waits=(0.05, 0.1))
    assert time.monotonic() - start >= 0.15, "it must have waited before each further try"
    start = time.monotonic()
    with pytest.raises(FileNotFoundError):
        read_storage(Path("/nowhere"), 0, 0, 10)
    assert time.monotonic() - start < 0.1, "what is not there will not come by waiting"


def test_a_full_disk_is_reported_when_quarantine_cannot_be_written(damaged: Path, tmp_path: Path) -> None:
    """A limit on file sizes stands for the full disk: the write fails in the same place."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    loader = make_loader(TrainData(config(damaged), 0, run_dir=tmp_path / "run"), batch=10, total_steps=8)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        with pytest.raises(TrainingError, match=r"cannot write .*quarantine\.jsonl.*Free some space and resume"):
            list(loader)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
