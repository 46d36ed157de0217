"""Several sources in every step: fixed counts, own numbers and keys, any number of ranks, exact resume."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from jepa.data.build import build
from jepa.errors import ConfigError
from jepa.train import train
from tests.tiny import run_config
from tests.train import runs, worker
from tests.train.worker import Job


@pytest.fixture(scope="module")
def other_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A second data set: 30 other pictures, in uneven shards."""
    folder = tmp_path_factory.mktemp("data") / "other"
    sizes = ["source.size=20", "source.digit=[10, 14]", "source.samples={train: 30, val: 4, test: 4}", "source.seed=5"]
    build("digits", folder, overrides=["name=other", *sizes, "shards.max_samples=13"], progress=False)
    return folder


def mixed(other: Path, *more: str) -> tuple[str, ...]:
    """Six samples of the second source beside the eight of the first."""
    source = f"mix.other={{path: {other}, image_size: 20, workers: 0, batch: 6}}"
    return (source, "train.batch=12", "train.duration={steps: 6}", "train.checkpoint_every={steps: 4}", *more)


def by_source(rows: list[dict[str, Any]]) -> dict[int, list[dict[str, Any]]]:
    return {s: sorted((r for r in rows if r["source"] == s), key=lambda r: r["g"]) for s in (0, 1)}


def test_every_step_takes_its_counts_and_numbers_run_on(tiny_data: Path, other_data: Path, tmp_path: Path) -> None:
    train(run_config(tiny_data, *mixed(other_data)), tmp_path / "run", trace=True, quiet=True)
    rows = by_source(runs.trace(tmp_path / "run"))
    assert [r["g"] for r in rows[0]] == list(range(72)) and [r["g"] for r in rows[1]] == list(range(36))
    assert Counter(r["step"] for r in rows[1]) == dict.fromkeys(range(6), 6)
    assert sorted(r["index"] for r in rows[1][:30]) == list(range(30))  # an epoch of its own
    lines = runs.lines(tmp_path / "run")
    assert all({"data/loss", "other/loss"} <= set(line) for line in lines)
    for line in lines:  # by default every sample counts the same
        assert line["loss"] == pytest.approx((12 * line["data/loss"] + 6 * line["other/loss"]) / 18, rel=1e-9)


def test_a_source_is_the_same_with_and_without_another(tiny_data: Path, other_data: Path, tmp_path: Path) -> None:
    alone = ("train.batch=12", "train.duration={steps: 6}")
    train(run_config(tiny_data, *alone), tmp_path / "alone", trace=True, quiet=True)
    train(run_config(tiny_data, *mixed(other_data)), tmp_path / "mixed", trace=True, quiet=True)
    rows = [[r for r in runs.trace(tmp_path / name) if r["source"] == 0] for name in ("alone", "mixed")]
    assert rows[0] == rows[1]


def test_weights_are_parts_of_the_loss(tiny_data: Path, other_data: Path, tmp_path: Path) -> None:
    overrides = mixed(other_data, "mix.other.weight=0.25")
    train(run_config(tiny_data, *overrides), tmp_path / "run", quiet=True)
    for line in runs.lines(tmp_path / "run"):
        assert line["loss"] == pytest.approx(0.75 * line["data/loss"] + 0.25 * line["other/loss"], rel=1e-9)


def test_micro_batches_change_rounding_only(tiny_data: Path, other_data: Path, tmp_path: Path) -> None:
    double = ("train.precision=fp64",)
    whole = run_config(tiny_data, *mixed(other_data, *double))
    train(whole, tmp_path / "whole", quiet=True)
    train(run_config(tiny_data, *mixed(other_data, *double, "train.micro_batch=3")), tmp_path / "cut", quiet=True)
    losses = [[line["loss"] for line in runs.lines(tmp_path / name)] for name in ("whole", "cut")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-9)


@pytest.mark.parametrize("world", [2, 3])
def test_any_number_of_ranks(tiny_data: Path, other_data: Path, tmp_path: Path, world: int) -> None:
    overrides = mixed(other_data, "train.precision=fp64")
    one, many = Job(tiny_data, tmp_path / "one", overrides), Job(tiny_data, tmp_path / "many", overrides)
    assert worker.run(one) == 0
    assert worker.run_group(worker.ranks(many, world)) == [0] * world
    assert by_source(runs.trace(one.out)) == by_source(runs.trace(many.out))
    losses = [[line["loss"] for line in runs.lines(job.out)] for job in (one, many)]
    assert losses[0][0] == pytest.approx(losses[1][0], rel=1e-9)
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_killed_and_resumed(tiny_data: Path, other_data: Path, tmp_path: Path) -> None:
    whole, cut = (
        Job(tiny_data, tmp_path / "whole", mixed(other_data)),
        Job(tiny_data, tmp_path / "cut", mixed(other_data)),
    )
    assert worker.run(whole) == 0
    assert worker.run(Job(**{**cut.__dict__, "kill": ("mid-step", 5)})) == -9
    assert worker.run(Job(**{**cut.__dict__, "resume": True})) == 0
    assert runs.lines(whole.out) == runs.lines(cut.out) and runs.trace(whole.out) == runs.trace(cut.out)
    runs.assert_bit_equal(runs.tensors(whole.out, 6), runs.tensors(cut.out, 6))


def test_resume_refuses_another_second_source(tiny_data: Path, other_data: Path, tmp_path: Path) -> None:
    train(run_config(tiny_data, *mixed(other_data)), tmp_path / "run", quiet=True)
    changed = run_config(tiny_data, *mixed(tiny_data))
    with pytest.raises(ConfigError, match=r"cannot go on.*mix"):
        train(changed, tmp_path / "run", resume=True, quiet=True)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (("mix.other={path: OTHER, image_size: 20, batch: 0}",), r"mix\.other.*batch: at least 1"),
        (("mix.other={path: OTHER, image_size: 20, weight: 1.5}",), r"sum below 1"),
        (("mix.data={path: OTHER}",), r"mix\.data: this name is the main source's"),
        (("mix.other={path: ''}",), r"mix\.other: data\.path is empty"),
        (("mix.other={path: OTHER, image_size: 24}",), r"mix\.other|24"),
        (("mix.other={pth: OTHER}",), r"mix\.other\.pth.*path"),
    ],
)
def test_clear_errors(
    tiny_data: Path, other_data: Path, tmp_path: Path, overrides: tuple[str, ...], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        train(run_config(tiny_data, *(o.replace("OTHER", str(other_data)) for o in overrides)), tmp_path / "run")


def test_metrics_count_every_sample(tiny_data: Path, other_data: Path, tmp_path: Path) -> None:
    train(run_config(tiny_data, *mixed(other_data)), tmp_path / "run", quiet=True)
    rows = [json.loads(x) for x in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    for row in (r for r in rows if "step_seconds" in r):
        assert row["images_per_s"] * row["step_seconds"] == pytest.approx(18)
        assert row["g"] == 12 * row["step"] and row["flops"] > 0
